"""
The registry of a store's indexes: which generation of each is current, and which files belong to it.

An index is a row of the `indexes` table. Its files are immutable and complete before the row names them; a new state of
the index is a new generation of the row. Readers hold the files of the generation they opened with a `Lease`; `collect`
removes files that no row names and no process holds.
"""

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gr_components.errors import IndexMissingError, SearchIndexError
from gr_components.indexes.manifest import MANIFEST

Kind = Literal["lexical", "vector", "suffix"]
_COLUMNS = "id, name, kind, model_fingerprint, config, generation, up_to_sequence, files"


@dataclass(frozen=True)
class IndexRow:
    """
    The current generation of an index.

    :param id: Key of the row, never used again.
    :param name: What users call the index.
    :param kind: `lexical`, `vector` or `suffix`.
    :param model_fingerprint: Of the model whose output the index holds; None where there is none or it is unknown.
    :param config: What the index was made with.
    :param generation: Counts the states of the index from 0, which is empty.
    :param up_to_sequence: The last change of the store that the files contain.
    :param files: Folder names of the generation.
    """

    id: int
    name: str
    kind: str
    model_fingerprint: str | None
    config: dict[str, Any]
    generation: int
    up_to_sequence: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class IndexState:
    """
    An index as users see it.

    :param name: Its name.
    :param kind: `lexical`, `vector` or `suffix`.
    :param model_fingerprint: Of its model, or None.
    :param config: What it was made with.
    :param generation: Counts its states.
    :param up_to_sequence: The last change of the store that its files contain.
    :param lag: Documents with text that the index lacks. Lexical indexes make that up by themselves when searched.
    """

    name: str
    kind: str
    model_fingerprint: str | None
    config: dict[str, Any]
    generation: int
    up_to_sequence: int
    lag: int


def find(connection: sqlite3.Connection, name: str) -> IndexRow | None:
    """
    Look an index up.

    :param connection: An open connection to the store.
    :param name: Its name.
    """
    row = connection.execute(f"SELECT {_COLUMNS} FROM indexes WHERE name = ?", (name,)).fetchone()
    return None if row is None else _row(row)


def rows(connection: sqlite3.Connection) -> list[IndexRow]:
    """
    List all indexes by name.

    :param connection: An open connection to the store.
    """
    return [_row(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM indexes ORDER BY name")]


def require(connection: sqlite3.Connection, name: str, kind: Kind) -> IndexRow:
    """
    Look an index up that must exist.

    :param connection: An open connection to the store.
    :param name: Its name.
    :param kind: The kind it must have.
    :raises IndexMissingError: If there is none.
    :raises SearchIndexError: If it is of another kind.
    """
    row = find(connection, name)
    if row is None:
        others = [other.name for other in rows(connection) if other.kind == kind]
        known = f"Its {kind} indexes are: {', '.join(others)}." if others else f"It has no {kind} index yet."
        msg = f"The store has no index {name!r}. {known} Build one with `gr index`, or write to it."
        raise IndexMissingError(msg)
    return _of_kind(row, kind)


def register(
    connection: sqlite3.Connection, name: str, kind: Kind, config: Mapping[str, Any], fingerprint: str | None = None
) -> IndexRow:
    """
    Look an index up, or make an empty one.

    :param connection: A connection in a write transaction.
    :param name: Its name.
    :param kind: Its kind.
    :param config: What a new one is made with.
    :param fingerprint: Of the model of a new one.
    :raises SearchIndexError: If there is an index of that name and another kind.
    """
    row = find(connection, name)
    if row is not None:
        return _of_kind(row, kind)
    connection.execute(
        "INSERT INTO indexes (name, kind, model_fingerprint, config, generation, up_to_sequence, files) "
        "VALUES (?, ?, ?, ?, 0, 0, '[]')",
        (name, kind, fingerprint, json.dumps(dict(config))),
    )
    return require(connection, name, kind)


def advance(
    connection: sqlite3.Connection, row: IndexRow, *, files: Iterable[str], up_to_sequence: int,
    config: Mapping[str, Any] | None = None, fingerprint: str | None = None, generation: int | None = None,
) -> None:  # fmt: skip
    """
    Make the next generation of an index current.

    :param connection: A connection in a write transaction.
    :param row: The generation it follows.
    :param files: Folder names of the new generation, all complete.
    :param up_to_sequence: The last change that they contain.
    :param config: New configuration, if it changes.
    :param fingerprint: New model fingerprint, if it changes.
    :param generation: Its number, where the index files count themselves; the next one by default.
    """
    connection.execute(
        "UPDATE indexes SET generation = ?, up_to_sequence = ?, files = ?, config = ?, model_fingerprint = ? "
        "WHERE id = ?",
        (
            row.generation + 1 if generation is None else generation,
            up_to_sequence,
            json.dumps(list(files)),
            json.dumps(dict(row.config if config is None else config)),
            row.model_fingerprint if fingerprint is None else fingerprint,
            row.id,
        ),
    )


def lacks(row: IndexRow | None) -> tuple[str, tuple[int, ...]]:
    """
    Return the SQL condition on `documents d` for documents with text that an index lacks, and its values.

    :param row: The index; None for one that does not exist yet.
    """
    if row is None:
        return "d.searchable", ()
    if row.kind == "vector":
        return (
            "d.searchable AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.number = d.number AND v.index_id = ?)",
            (row.id,),
        )
    return "d.searchable AND d.sequence > ?", (row.up_to_sequence,)


def state(connection: sqlite3.Connection, row: IndexRow) -> IndexState:
    """
    Describe an index to users.

    :param connection: An open connection to the store.
    :param row: The index.
    """
    where, parameters = lacks(row)
    lag = connection.execute(f"SELECT count(*) FROM documents d WHERE {where}", parameters).fetchone()[0]
    return IndexState(
        row.name, row.kind, row.model_fingerprint, row.config, row.generation, row.up_to_sequence, int(lag)
    )


def prune_deletions(connection: sqlite3.Connection) -> None:
    """
    Forget deletions that every index has seen. Suffix indexes do not need them.

    :param connection: A connection in a write transaction.
    """
    sql = "SELECT min(up_to_sequence) FROM indexes WHERE kind <> 'suffix'"
    seen = connection.execute(sql).fetchone()[0]
    if seen is not None:
        connection.execute("DELETE FROM deletions WHERE sequence <= ?", (seen,))


def forget(connection: sqlite3.Connection, row: IndexRow) -> None:
    """
    Remove an index from the registry, with its vectors. `collect` removes its files.

    :param connection: A connection in a write transaction.
    :param row: The index.
    """
    connection.execute("DELETE FROM vectors WHERE index_id = ?", (row.id,))
    connection.execute("DELETE FROM indexes WHERE id = ?", (row.id,))


def folder_of(store: Path, row: IndexRow) -> Path:
    """
    Return the folder that holds an index's files.

    :param store: Folder of the store.
    :param row: The index.
    """
    return store / "indexes" / f"{row.kind}-{row.id}"


def new_name(row: IndexRow) -> str:
    """
    Return a folder name that was never used before.

    :param row: The index that the folder will belong to.
    """
    return f"{row.generation + 1:06d}-{uuid.uuid4().hex[:12]}"


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


def collect_indexes(store: Path, keep: Iterable[str]) -> None:
    """
    Remove the folders of indexes that were forgotten, as far as no process holds them.

    :param store: Folder of the store.
    :param keep: Folder names of the indexes that exist.
    """
    kept = set(keep)
    parent = store / "indexes"
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if folder.name not in kept:
            collect(folder, ())
            if not any(path.is_dir() for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


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


def _of_kind(row: IndexRow, kind: Kind) -> IndexRow:
    if row.kind != kind:
        msg = f"The index {row.name!r} is a {row.kind} index, not a {kind} index. Choose another name."
        raise SearchIndexError(msg)
    return row


def _row(row: tuple[Any, ...]) -> IndexRow:
    identifier, name, kind, fingerprint, config, generation, up_to_sequence, files = row
    return IndexRow(
        identifier, name, kind, fingerprint, json.loads(config), generation, up_to_sequence, tuple(json.loads(files))
    )
