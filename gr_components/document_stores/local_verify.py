"""Looking for damage in a store: its database, and every file of the current state of every index."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_lexical import open_read_only
from gr_components.document_stores.local_schema import FILE, has_changed
from gr_components.errors import GRError, IndexFormatError
from gr_components.indexes import formats, lexical, registry
from gr_components.indexes.manifest import read_manifest

_FORMATS = {"vector": formats.VECTORS, "suffix": formats.SUFFIX}
_MOST = 5  # findings of SQLite that are shown


@dataclass(frozen=True)
class Checked:
    """
    One thing that was looked at.

    :param name: The file or the index folder, relative to the store.
    :param problem: What is wrong with it and what to do; None if nothing is.
    """

    name: str
    problem: str | None = None


def verify(folder: Path) -> Iterator[Checked]:
    """
    Read everything, one finding after the other; nothing is changed.

    :param folder: A store.
    """
    database = Database(folder, read_only=True, lock_timeout_s=0.0)
    try:
        problem = _database_problem(database)
        yield Checked(FILE, problem)
        if problem is None:
            with database.reading() as connection:
                rows = registry.rows(connection)
            for row in rows:
                yield from _index(database, row)
    finally:
        database.close()


def _database_problem(database: Database) -> str | None:
    try:
        with database.reading() as connection:
            found = [str(line) for (line,) in connection.execute(f"PRAGMA quick_check({_MOST})")]
    except GRError as error:
        return str(error)
    if found == ["ok"]:
        return None
    return f"SQLite finds: {'; '.join(found)}. Restore the file, or index the documents into a new folder."


def _index(database: Database, row: registry.IndexRow) -> Iterator[Checked]:
    for path in sorted(registry.paths_of(database.folder, [row])):
        name = str(path.relative_to(database.folder))
        try:
            if not path.is_dir():
                msg = "missing, though the store names it"
                raise IndexFormatError(msg)
            if row.kind == "lexical":
                _check_lexical(database, row, path)
            else:
                form, version = _FORMATS[row.kind]
                read_manifest(path, format=form, version=version, verify="full")
        except (GRError, OSError) as error:
            with database.reading() as connection:
                replaced = registry.find(connection, row.name) != row  # another process wrote a newer state meanwhile
            if not replaced:
                yield Checked(name, f"{str(error).rstrip('.')}. Index '{row.name}': gr index makes it again.")
        else:
            yield Checked(name)


def _check_lexical(database: Database, row: registry.IndexRow, path: Path) -> None:
    lexical.check_files(path)
    index = open_read_only(path, row)
    with database.reading() as connection:
        documents = _documents_if_current(connection, row)
    if documents is not None and index.num_documents != documents:
        msg = f"it holds {index.num_documents} documents instead of {documents}"
        raise IndexFormatError(msg)


def _documents_if_current(connection: sqlite3.Connection, row: registry.IndexRow) -> int | None:
    if registry.find(connection, row.name) != row or has_changed(connection, row.up_to_sequence):
        return None
    return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
