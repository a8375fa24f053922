"""Import optional packages where they are needed, and say which extra brings a missing one."""

import importlib
import importlib.util
from types import ModuleType

from gr_components.errors import MissingExtraError

_DISTRIBUTION = "gr-components"


def need(module: str, extra: str) -> ModuleType:
    """
    Import an optional module.

    :param module: Its import name, such as `faiss` or `tantivy`.
    :param extra: The extra of this distribution that installs it.
    :returns: The imported module.
    :raises MissingExtraError: If its top-level package is not installed.
    """
    if not installed(module):
        package = module.partition(".")[0]
        msg = f"This needs '{package}', which is not installed. Run: pip install '{_DISTRIBUTION}[{extra}]'"
        raise MissingExtraError(msg)
    return importlib.import_module(module)


def installed(module: str) -> bool:
    """
    Tell whether a module's top-level package is installed, without importing it.

    :param module: Its import name.
    """
    return importlib.util.find_spec(module.partition(".")[0]) is not None
