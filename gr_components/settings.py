"""What components do with their settings: check them, serialize them, combine filters, read documents' text."""

import inspect
from collections.abc import Sequence
from enum import Enum
from typing import Any, Self, TypedDict

from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy
from haystack.utils import ComponentDevice, Secret

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ConfigError, DeviceError
from gr_components.models.checks import POOLING_MODES, check_backend, check_choice, check_count


class Serializable:
    """Mixin: a component that stores every argument of `__init__` under its own name can be written to YAML."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for a YAML file."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        values = {name: getattr(self, name) for name in names}
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
        return default_to_dict(self, **plain)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """
        Rebuild from `to_dict`.

        :param data: What `to_dict` returned.
        """
        return default_from_dict(cls, data)


def check_top_k(top_k: int, *, least: int) -> None:
    """
    Check a number of documents.

    :param top_k: The setting.
    :param least: 1 at construction; 0 at run time, where it means "nothing, please".
    :raises ConfigError: If it is smaller or no whole number.
    """
    check_count("top_k", top_k, least=least)


def check_store(store: Any) -> LocalDocumentStore:
    """
    Check a document store.

    :param store: The setting.
    :raises ConfigError: If it is no LocalDocumentStore.
    """
    if not isinstance(store, LocalDocumentStore):
        msg = f"document_store must be a LocalDocumentStore, got {type(store).__name__}."
        raise ConfigError(msg)
    return store


def check_model_settings(
    *,
    batch_size: int,
    dtype: str,
    backend: str = "torch",
    max_length: int | None = None,
    pooling: str | None = None,
) -> None:
    """
    Check what components with a model have in common, before anything is loaded.

    :param batch_size: Inputs per batch.
    :param dtype: Number type of the weights.
    :param backend: What runs the model.
    :param max_length: Largest number of tokens, if one is set.
    :param pooling: Pooling mode, if one is set.
    :raises ConfigError: If one is unknown or out of range.
    """
    check_count("batch_size", batch_size, least=1)
    check_backend(backend, dtype)
    if max_length is not None:
        check_count("max_length", max_length, least=1)
    if pooling is not None:
        check_choice("pooling", pooling, POOLING_MODES)


def filter_policy_of(value: str | FilterPolicy) -> FilterPolicy:
    """
    Return a filter policy.

    :param value: `replace`, `merge` or Haystack's enumeration.
    :raises ConfigError: If it is unknown.
    """
    try:
        return value if isinstance(value, FilterPolicy) else FilterPolicy.from_str(value)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def effective_filters(
    policy: FilterPolicy, configured: dict[str, Any] | None, given: dict[str, Any] | None
) -> dict[str, Any] | None:
    """
    Combine the filters of the configuration with those of a run.

    :param policy: Whether those of the run replace those of the configuration or are merged with them.
    :param configured: Filters of the configuration.
    :param given: Filters of the run: None means as configured; `{}` replaces the configured ones by none.
    """
    if given is not None and not given and policy is FilterPolicy.REPLACE:
        return None
    return apply_filter_policy(policy, configured, given) or None


def device_name(device: ComponentDevice | None) -> str | None:
    """
    Return a device as torch names it; None leaves the choice to the loader.

    :param device: The setting.
    :raises DeviceError: If it is a map of several devices.
    """
    if device is None:
        return None
    if device.has_multiple_devices:
        msg = "A device map over several devices is not supported here. Use ComponentDevice.from_str('cuda:0')."
        raise DeviceError(msg)
    return device.to_torch_str()


def token_value(token: Secret | None) -> str | None:
    """
    Return a secret's value, or None if its environment variables are not set.

    :param token: The setting.
    """
    return None if token is None else token.resolve_value()


class LoadArguments(TypedDict):
    """What every component with a model hands on to what loads it."""

    device: str | None
    dtype: str
    revision: str | None
    token: str | None
    local_files_only: bool
    model_kwargs: dict[str, Any] | None


def load_arguments(component: Any) -> LoadArguments:
    """
    Return the settings of a component that all loaders of models take alike.

    :param component: A component that stores them under their own names.
    :raises DeviceError: If its device is a map of several devices.
    """
    return {
        "device": device_name(component.device),
        "dtype": component.dtype,
        "revision": component.revision,
        "token": token_value(component.token),
        "local_files_only": component.local_files_only,
        "model_kwargs": component.model_kwargs,
    }


def document_text(document: Document, meta_fields: Sequence[str], separator: str) -> str:
    """
    Return the text that models read of a document: the named metadata and the content, empty parts left out.

    :param document: The document; without content, only its metadata are read.
    :param meta_fields: Metadata fields, in order.
    :param separator: Put between the parts.
    """
    parts = [str(value) for name in meta_fields if (value := document.meta.get(name)) not in (None, "")]
    if document.content:
        parts.append(document.content)
    return separator.join(parts).strip()
