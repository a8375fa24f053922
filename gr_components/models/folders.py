"""Put a finished model folder in its place."""

import os
import shutil
from pathlib import Path


def replace_folder(finished: Path, folder: Path) -> None:
    """
    Give a finished folder its name; whatever happens, either the old folder or the new one survives whole.

    :param finished: The complete folder, on the same file system.
    :param folder: The name; what is there is removed after the new folder has it.
    """
    for path in finished.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
