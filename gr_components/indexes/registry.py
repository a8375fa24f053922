"""
The registry of a store's indexes: which generation of each is current, and which files belong to it.

An index is a row of the `indexes` table. Its files are immutable and complete before the row names them; a new state of
the index is a new generation of the row. `leases` keeps files that are read and removes those that no row names.
"""

import json
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.errors import IndexMissingError, SearchIndexError

Kind = Literal["lexical", "vector", "suffix"]
_FOLDER = re.compile(r"(?:lexical|vector|suffix)-(\d+)")
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
    fingerprint: str | None = None, generation: int | None = None,
) -> None:  # fmt: skip
    """
    Make the next generation of an index current.

    :param connection: A connection in a write transaction.
    :param row: The generation it follows.
    :param files: Folder names of the new generation, all complete.
    :param up_to_sequence: The last change that they contain.
    :param fingerprint: New model fingerprint, if it changes.
    :param generation: Its number, where the index files count themselves; the next one by default.
    :raises IndexMissingError: If the index was deleted meanwhile.
    """
    updated = connection.execute(
        "UPDATE indexes SET generation = ?, up_to_sequence = ?, files = ?, model_fingerprint = ? WHERE id = ?",
        (
            row.generation + 1 if generation is None else generation,
            up_to_sequence,
            json.dumps(list(files)),
            row.model_fingerprint if fingerprint is None else fingerprint,
            row.id,
        ),
    ).rowcount
    if not updated:
        msg = f"The index {row.name!r} was deleted while it was brought up to date. Build it again if it is wanted."
        raise IndexMissingError(msg)


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
    Forget deletions that all index files have seen. Suffix indexes do not need them, nor does one without files.

    :param connection: A connection in a write transaction.
    """
    sql = "SELECT min(up_to_sequence) FROM indexes WHERE kind <> 'suffix' AND files <> '[]'"
    seen = connection.execute(sql).fetchone()[0]
    if seen is not None:
        connection.execute("DELETE FROM deletions WHERE sequence <= ?", (seen,))


def keep_deletions(connection: sqlite3.Connection, numbers: npt.NDArray[np.int64]) -> None:
    """
    Put deletions back that an index needs: those that happened, and were pruned, while its new files were made.

    :param connection: A connection in the write transaction that makes the files current.
    :param numbers: The document numbers in them.
    """
    live = np.array(connection.execute("SELECT number FROM documents").fetchall(), dtype=np.int64).reshape(-1)
    gone = np.setdiff1d(numbers, live).tolist()
    now = connection.execute("SELECT value FROM store WHERE key = 'sequence'").fetchone()[0]
    connection.executemany("INSERT OR IGNORE INTO deletions VALUES (?, ?)", [(number, now) for number in gone])


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


def paths_of(store: Path, rows: Iterable[IndexRow]) -> set[Path]:
    """
    Return what generations of indexes consist of.

    :param store: Folder of the store.
    :param rows: The generations.
    """
    return {folder_of(store, row) / file for row in rows for file in row.files}


def new_name(row: IndexRow) -> str:
    """
    Return a folder name that was never used before.

    :param row: The index that the folder will belong to.
    """
    return f"{row.generation + 1:06d}-{uuid.uuid4().hex[:12]}"


def names_to_keep(connection: sqlite3.Connection) -> Callable[[str], bool]:
    """
    Return which folders of indexes must stay: those of indexes that exist, may come to exist, or are none of ours.

    :param connection: An open connection to the store.
    """
    kept = {row.id for row in rows(connection)}
    newest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'indexes'").fetchone()

    def keep(name: str) -> bool:
        known = _FOLDER.fullmatch(name)
        # A greater id belongs to an index that was made after this was read.
        return known is None or newest is None or int(known[1]) in kept or int(known[1]) > newest[0]

    return keep


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
