"""Import optional packages where they are needed, and say which extra brings a missing one."""

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType

from gr_components.errors import ConfigError, MissingExtraError

_DISTRIBUTION = "gr-components"
# All that the extras of this distribution install and its code imports. Nothing else is imported by name.
_OPTIONAL = (
    "accelerate",
    "faiss",
    "huggingface_hub",
    "ir_measures",
    "matplotlib",
    "numba",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optimum",
    "safetensors",
    "sentence_transformers",
    "tantivy",
    "torch",
    "transformers",
)


def need(module: str, extra: str) -> ModuleType:
    """
    Import an optional module.

    :param module: Its import name, such as `faiss` or `tantivy`.
    :param extra: The extra of this distribution that installs it.
    :returns: The imported module.
    :raises ConfigError: If no extra installs it.
    :raises MissingExtraError: If its top-level package is not installed.
    """
    if module.partition(".")[0] not in _OPTIONAL:
        msg = f"'{module}' is not among the optional packages of {_DISTRIBUTION}: {', '.join(_OPTIONAL)}."
        raise ConfigError(msg)
    check_installed([module], extra)
    return importlib.import_module(module)


# A pipeline file may name any function of a trusted package as a callback, and Haystack tells the package of a function
# by this attribute. One that imports by name must not be among those, however harmless its list.
need.__module__ = "importlib"


def check_installed(modules: Iterable[str], extra: str) -> None:
    """
    Make sure that optional modules are there before work begins, without importing them.

    :param modules: Their import names.
    :param extra: The extra of this distribution that installs them all.
    :raises MissingExtraError: If the top-level package of one is not installed.
    """
    for module in modules:
        if not installed(module):
            package = module.partition(".")[0]
            msg = f"This needs '{package}', which is not installed. Run: pip install '{_DISTRIBUTION}[{extra}]'"
            raise MissingExtraError(msg)


def installed(module: str) -> bool:
    """
    Tell whether a module's top-level package is installed, without importing it.

    :param module: Its import name.
    """
    return importlib.util.find_spec(module.partition(".")[0]) is not None
