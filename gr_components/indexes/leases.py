"""
Who uses the files of an index, and removing those that nobody uses.

Readers hold the folders that they opened with a `Lease`, in every process; who changes an index holds its `LOCK`.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from gr_components.indexes.manifest import MANIFEST
from gr_components.posix import fcntl

LOCK = "lock"  # file in the folder of an index


def collect(folder: Path, keep: Iterable[str]) -> list[str]:
    """
    Remove folders that the registry does not name and no process holds. The caller excludes builders of this index.

    :param folder: The folder of one index; may be missing.
    :param keep: Folder names of the current generation.
    :returns: What was removed.
    """
    kept = set(keep)
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name not in kept and _remove_unused(path):
            removed.append(path.name)
    return removed


def collect_indexes(store: Path, keep: Callable[[str], bool]) -> None:
    """
    Remove the folders of indexes that were forgotten, as far as no process reads or builds them.

    :param store: Folder of the store.
    :param keep: Tells which folder names stay (`registry.names_to_keep`).
    """
    parent = store / "indexes"
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if not folder.is_dir() or keep(folder.name):
            continue
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):  # else somebody builds it and will find it forgotten
                collect(folder, ())
                if not any(path.is_dir() for path in folder.iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


class Lease:
    """
    Keeps index folders from being collected while they are in use, in every process. Ends with `release` or its owner.

    :param folders: Complete index folders.
    :raises FileNotFoundError: If one was collected already: the caller reads the registry again.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._descriptors: list[int] = []
        try:
            for folder in folders:
                descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors.append(descriptor)
                _lock(descriptor, fcntl.LOCK_SH)
                if not os.fstat(descriptor).st_nlink:  # it was removed while this waited for the lock
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """End the lease."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def _remove_unused(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # unfinished work: nobody reads it
        shutil.rmtree(folder, ignore_errors=True)
        return True
    try:
        unused = _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if unused:
            shutil.rmtree(folder, ignore_errors=True)
        return unused
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks (some network mounts): mapped files stay readable after removal anyway.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
    return True
