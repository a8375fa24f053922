"""Names of files and folders inside installed Python packages: `package:NAME/PATH` where a path may stand."""

import importlib.util
from pathlib import Path

SCHEME = "package:"


def located(name: str | Path) -> Path:
    """
    Return the path that a name means. Nothing is imported.

    :param name: A path, or `package:NAME/PATH`, which stays inside the package's folder.
    :returns: The path; one that does not exist where there is no such package, or nothing of that name in it.
    """
    if not str(name).startswith(SCHEME):
        return Path(name).expanduser()
    package, _, inside = str(name).removeprefix(SCHEME).partition("/")
    for root in folders(package):
        found = (root / inside).resolve()
        if found.exists() and found.is_relative_to(root):
            return found
    return Path(name)


def folders(package: str) -> list[Path]:
    """
    Return the folders of an installed package; none where it is not installed.

    :param package: Its name in Python, without dots.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    return [Path(location).resolve() for location in (spec and spec.submodule_search_locations) or ()]
