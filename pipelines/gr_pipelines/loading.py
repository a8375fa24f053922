"""Turn definitions into Haystack pipelines, and say which component is wrong when that fails."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haystack import Pipeline, component

from gr_components.errors import ConfigError, GRError
from gr_pipelines.definition import Definition, did_you_mean, read
from gr_pipelines.interface import Interface

_TRUSTED = ["gr_components"]


def load(name_or_path: str | Path, **parameters: Any) -> Pipeline:
    """
    Load a shipped pipeline or a YAML file.

    Classes of `gr_components` are trusted for this call only; other modules than Haystack's own stay refused unless the
    user allows them through `HAYSTACK_DESERIALIZATION_ALLOWLIST`.

    :param name_or_path: A shipped name (see `names()`) or the path of a file.
    :param parameters: Values for the definition's parameters, such as `store="my-store"`.
    :raises ConfigError: If the definition is wrong; the message names every wrong component.
    """
    return build(read(name_or_path), **parameters)


def build(definition: Definition, **parameters: Any) -> Pipeline:
    """
    Build the pipeline of a definition.

    :param definition: What `read` or `parse` returned.
    :param parameters: Values for its parameters.
    :raises ConfigError: If the definition is wrong; the message names every wrong component.
    """
    data = definition.fill(parameters)
    try:
        return _from_dict(data)
    except Exception as error:
        problems = list(_problems(data))
        if not problems:
            raise
        msg = f"Pipeline '{definition.name}' has {len(problems)} problem(s):\n" + "\n".join(
            f"  - {p}" for p in problems
        )
        raise ConfigError(msg) from error


def validate(name_or_path: str | Path, **parameters: Any) -> None:
    """
    Check a definition without loading any model.

    :param name_or_path: A shipped name or the path of a file.
    :param parameters: Values for the definition's parameters; required ones that are missing get a placeholder.
    :raises ConfigError: If something is wrong; all problems are listed, each with the component's name.
    """
    definition = read(name_or_path)
    placeholders = {name: name for name, value in definition.parameters.items() if value == "<required>"}
    pipeline = build(definition, **{**placeholders, **parameters})
    Interface.of(pipeline, definition)


def _from_dict(data: dict[str, Any]) -> Pipeline:
    known = {key: data[key] for key in data if key not in ("inputs", "outputs", "parameters")}
    return Pipeline.from_dict({"connections": [], **known}, allowed_modules=_TRUSTED)


def _problems(data: dict[str, Any]) -> Iterator[str]:
    components = data["components"]
    broken = set()
    for name, entry in components.items():
        problem = _component_problem(name, entry)
        if problem is not None:
            broken.add(name)
            yield f"component '{name}': {problem}"
    usable = {name: entry for name, entry in components.items() if name not in broken}
    for connection in data.get("connections") or []:
        problem = _connection_problem(connection, components, usable)
        if problem is not None:
            yield problem


def _component_problem(name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return "it needs a 'type', the full path of a component class"
    try:
        _from_dict({"components": {name: {"init_parameters": {}, **entry}}})
    except Exception as error:
        unknown = _unknown_arguments(entry)
        return unknown or f"{entry['type']} could not be made: {_innermost(error)}"
    return None


def _unknown_arguments(entry: dict[str, Any]) -> str | None:
    cls = component.registry.get(entry["type"])
    given = entry.get("init_parameters") or {}
    if cls is None or not isinstance(given, dict):
        return None
    # The metaclass hides the constructor's signature.
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]  # type: ignore[misc]
    unknown = [name for name in given if name not in known]
    if not unknown:
        return None
    return " ".join(f"unknown init parameter '{name}'.{did_you_mean(name, known)}" for name in unknown)


def _connection_problem(connection: Any, components: dict[str, Any], usable: dict[str, Any]) -> str | None:
    if not isinstance(connection, dict) or not {"sender", "receiver"} <= set(connection):
        return f"connection {connection!r} needs 'sender' and 'receiver'"
    ends = [str(connection[end]).partition(".")[0] for end in ("sender", "receiver")]
    for end in ends:
        if end not in components:
            near = did_you_mean(end, components)
            return f"connection {connection['sender']} -> {connection['receiver']}: no component '{end}'.{near}"
    if not all(end in usable for end in ends):
        return None
    try:
        parts = {end: {"init_parameters": {}, **components[end]} for end in ends}
        _from_dict({"components": parts, "connections": [connection]})
    except Exception as error:
        return f"connection {connection['sender']} -> {connection['receiver']}: {_innermost(error)}"
    return None


def _innermost(error: BaseException) -> str:
    """Return the message of the first cause: Haystack wraps it once for the component and once for the pipeline."""
    while not isinstance(error, GRError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
