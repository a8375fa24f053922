"""One holder at a time, across threads and processes: an advisory lock on a file (`flock`)."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gr_components.errors import StoreLockedError
from gr_components.posix import fcntl

_POLL_S = 0.005


class FileLock:
    """
    A re-entrant lock on a file. The operating system releases it when its holder dies.

    :param path: The lock file; created when needed and never removed. It names the last holder's process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_lock = threading.RLock()
        self._descriptor: int | None = None

    @contextmanager
    def hold(self, timeout_s: float, *, own_timeout_s: float = 0.0) -> Iterator[None]:
        """
        Hold the lock while the body runs.

        :param timeout_s: How long to wait for another holder; 0 tries once.
        :param own_timeout_s: How long to wait if the holder is another thread of this process, if that is longer.
        :raises StoreLockedError: If it is still held by another thread or process after that time.
        """
        longest_s = max(timeout_s, own_timeout_s)
        if not self._thread_lock.acquire(timeout=longest_s):
            raise self._locked(longest_s)
        try:
            if self._descriptor is not None:  # this thread holds it already
                yield
                return
            self._descriptor = self._acquire(timeout_s, longest_s)
            try:
                yield
            finally:
                descriptor, self._descriptor = self._descriptor, None
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also frees it where a fork duplicated the descriptor
                os.close(descriptor)
        finally:
            self._thread_lock.release()

    def _acquire(self, timeout_s: float, own_timeout_s: float) -> int:
        started = time.monotonic()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    limit_s = own_timeout_s if self._holder() == str(os.getpid()) else timeout_s
                    if time.monotonic() - started >= limit_s:
                        raise self._locked(limit_s) from None
                    time.sleep(_POLL_S)
            os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)  # at once: others read it at any time
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _holder(self) -> str:
        try:
            return self._path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _locked(self, timeout_s: float) -> StoreLockedError:
        holder = self._holder()
        who = "another thread of this process" if holder == str(os.getpid()) else f"process {holder or 'unknown'}"
        return StoreLockedError(
            f"'{self._path}' was held by {who} for more than {timeout_s:g} s. Wait for it to finish, or raise "
            "`lock_timeout_s`. (The lock goes when its holder ends; removing the file does not help.)"
        )
