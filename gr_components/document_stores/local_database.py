"""Connections, transactions and the writer lock of a local store."""

import errno
import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from haystack import logging

from gr_components.document_stores.local_lock import FileLock
from gr_components.document_stores.local_schema import FILE, check_format, create, is_empty
from gr_components.errors import DISK_FULL, StoreError

logger = logging.getLogger(__name__)

_BUSY_S = 30.0
_NEVER = -1  # the epoch of connections that are not kept


class Database:
    """
    The SQLite file of a store. Safe to use from several threads; each operation takes a connection from a pool.

    :param folder: The store's folder; created by the first writing, never by reading.
    :param read_only: Whether writing is refused. Works on file systems that cannot be written.
    :param lock_timeout_s: How long a writer waits for another one.
    """

    def __init__(self, folder: Path, *, read_only: bool, lock_timeout_s: float) -> None:
        self.folder = folder
        self.read_only = read_only
        self.lock_timeout_s = lock_timeout_s
        self._write_lock = FileLock(folder / "write.lock")
        self._pool_lock = threading.RLock()
        self._idle: list[sqlite3.Connection] = []
        self._abandoned: list[sqlite3.Connection] = []
        self._epoch = 0
        self._pid = os.getpid()
        self._source: tuple[str, bool] | None = None  # URI, and whether SQLite was told that nothing changes
        self._stamp: tuple[object, ...] = ()
        self._remove_copy: weakref.finalize[..., Database] | None = None

    def exists(self) -> bool:
        """Tell whether there is a store in the folder, or something in its place; nothing is opened or created."""
        return is_there(self.folder)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """
        One consistent view of the store: everything that the body reads is of the same moment.

        Where there is no store yet, the view is of an empty one, and nothing is created.

        :raises StoreError: If the store is unreadable, or if it is missing and `read_only`.
        """
        with self._connection(create=False) as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.rollback()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """
        One transaction: committed and on the disk when the body ends, undone when it raises.

        :raises StoreLockedError: If another writer does not finish in time.
        :raises StoreError: If the store is read-only or the disk is full.
        """
        if self.read_only:
            msg = f"The store '{self.folder}' was opened with read_only=True. Open it without to change it."
            raise StoreError(msg)
        with self.translated():
            self.folder.mkdir(parents=True, exist_ok=True)
        with self.locked(), self._connection(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have already undone the transaction
                    if connection.in_transaction:
                        connection.rollback()
                raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Keep other writers away while the body runs.

        :raises StoreLockedError: If another writer does not finish in time.
        """
        with self.translated(), self._write_lock.hold(self.lock_timeout_s):
            yield

    def connect_unchecked(self) -> sqlite3.Connection:
        """Return a connection of the caller's own to what is there, whatever its format; for `migrate`."""
        return _connect(_uri(self.folder / FILE, "mode=rw"))

    def close(self) -> None:
        """Close all connections; the next operation opens new ones."""
        with self._pool_lock:
            idle, self._idle = self._idle, []
            self._epoch += 1
            self._source = None
            remove_copy, self._remove_copy = self._remove_copy, None
        for connection in idle:
            connection.close()
        if remove_copy is not None:
            remove_copy()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            with suppress(Exception):
                self.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """
        Turn errors of SQLite and of the file system into `StoreError`.

        :raises StoreError: Naming the store, the cause and the remedy.
        """
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(str(error)) from error
        except OSError as error:
            if error.errno is None:  # one of ours that derives from OSError
                raise
            raise self._explained(error.strerror or str(error), error.errno) from error

    @contextmanager
    def full_disk_explained(self) -> Iterator[None]:
        """
        Turn the errors of a full disk into `StoreError`, and no other error of the file system.

        :raises StoreError: Naming the store and the remedy.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise self._explained(error.strerror or str(error), error.errno) from error

    def _explained(self, cause: str, number: int | None = None) -> StoreError:
        if number in DISK_FULL or "disk is full" in cause or "disk I/O error" in cause:
            remedy = "Nothing of this operation was kept. Free some space (or raise the file size limit) and repeat it."
        elif "malformed" in cause or "not a database" in cause:
            remedy = "The file is damaged or no document store. Restore it, or index the documents into a new folder."
        elif number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in cause or "unable to open" in cause:
            remedy = "Check the permissions of the folder, or open it with read_only=True."
        elif number in (errno.ENOTDIR, errno.EEXIST):
            remedy = "Choose a folder."
        else:
            remedy = "Nothing of this operation was kept."
        return StoreError(f"The store '{self.folder}' cannot be used: {cause}. {remedy}")

    @contextmanager
    def _connection(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        with self.translated():
            connection, epoch = self._take(create)
            try:
                yield connection
            finally:
                with self._pool_lock:
                    keep = epoch == self._epoch and self._pid == os.getpid()
                    if keep:
                        self._idle.append(connection)
                if not keep:
                    connection.close()

    def _take(self, may_create: bool) -> tuple[sqlite3.Connection, int]:
        with self._pool_lock:
            if self._pid != os.getpid():  # SQLite connections must not be used, nor closed, after a fork
                self._abandoned += self._idle
                self._idle, self._pid, self._source = [], os.getpid(), None
            if self._source is not None and self._source[1] and self._stamp != self._current_stamp():
                self.close()
            if self._idle:
                return self._idle.pop(), self._epoch
            if self._source is not None:
                return _connect(self._source[0]), self._epoch
            connection = self._open_first(may_create)
            return connection, _NEVER if self._source is None else self._epoch

    def _open_first(self, may_create: bool) -> sqlite3.Connection:
        if not may_create and not self.read_only and not self.exists():
            return _nothing()
        if self.read_only:
            connection = self._open_read_only()
            source = self._source
        else:
            self.folder.mkdir(parents=True, exist_ok=True)  # an error names what is there instead of a folder
            source = (_uri(self.folder / FILE, "mode=rw"), False)
            connection = _connect(_uri(self.folder / FILE, "mode=rwc" if may_create else "mode=rw"))
        try:
            if not self.read_only and is_empty(connection):
                if not may_create:  # what is left where a first writing was killed
                    connection.close()
                    return _nothing()
                self._create(connection)
            check_format(connection, self.folder)
        except BaseException:
            connection.close()
            self._source = None  # the next use tries again from the beginning
            raise
        self._source = source
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        with self._write_lock.hold(self.lock_timeout_s):
            if not is_empty(connection):  # another process was first
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            create(connection)
            connection.execute("COMMIT")

    def _open_read_only(self) -> sqlite3.Connection:
        file = self.folder / FILE
        if not file.is_file():
            msg = f"There is no store in '{self.folder}'. Make one with `gr index`, or open it without read_only=True."
            raise StoreError(msg)
        self._source = (_uri(file, "mode=ro"), False)
        try:
            return _connect(self._source[0])
        except sqlite3.OperationalError as error:
            if "unable to open" not in str(error) and "readonly" not in str(error):
                raise
        # The folder cannot be written, so SQLite cannot make the files that coordinate it with a writer. Without a
        # write-ahead log the file alone is complete; with one, a copy in a temporary folder can be recovered.
        log = file.with_name(FILE + "-wal")
        if log.is_file() and log.stat().st_size:
            logger.warning("Reading a copy of {file}: its write-ahead log cannot be used in place", file=str(file))
            copy = Path(tempfile.mkdtemp(prefix="gr-store-"))
            self._remove_copy = weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
            for name in (file.name, log.name):
                shutil.copyfile(file.with_name(name), copy / name)
            self._source = (_uri(copy / FILE, "mode=rw"), True)
        else:
            self._source = (_uri(file, "mode=ro&immutable=1"), True)
        self._stamp = self._current_stamp()
        return _connect(self._source[0])

    def _current_stamp(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for name in (FILE, FILE + "-wal"):
            with suppress(FileNotFoundError):
                stat = (self.folder / name).stat()
                stamps += [name, stat.st_ino, stat.st_size, stat.st_mtime_ns]
        return tuple(stamps)


def is_there(folder: Path) -> bool:
    """
    Tell whether a folder holds a store, or something in its place.

    :param folder: Any path.
    """
    if folder.exists() and not folder.is_dir():
        return True
    file = folder / FILE
    return file.is_file() and file.stat().st_size > 0


def _uri(file: Path, options: str) -> str:
    return f"{file.resolve().as_uri()}?{options}"


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the files
    except BaseException:
        connection.close()
        raise
    return connection


def _nothing() -> sqlite3.Connection:
    """Return a store without documents that is nowhere on the disk."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    create(connection)
    return connection
