"""
The tables of a local store, and the check that this program can read them.

`documents` holds one row per live document; `number` names a version of a document's text and is never used again.
`sequence` counts changes: every written text, vector and deletion takes the next one, so "what happened after S" is an
index scan. `vectors` is the truth of the vector indexes, `deletions` remembers numbers that are gone until every index
has seen that, `indexes` is the registry of index generations.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_components import __version__
from gr_components.errors import StoreVersionError

FORMAT = 1
FILE = "store.sqlite"

#: The step from each older version to the next; `migrate` runs them in order inside one transaction, so a step uses
#: `execute` only (`executescript` commits). Format 1 is the first, so there is none yet.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}

_TABLES = """
CREATE TABLE store (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sequence INTEGER NOT NULL,     -- of the change that wrote this text
    searchable INTEGER NOT NULL,   -- 1 if title or content has text
    exotic INTEGER NOT NULL,       -- 1 if SQLite's JSON functions may misread `meta`
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,           -- copy of meta.title, '' without one
    meta TEXT NOT NULL,            -- JSON object, without `queries`
    content TEXT,
    queries TEXT,                  -- JSON list of meta.queries
    score REAL,
    blob BLOB,
    blob_info TEXT,                -- JSON object with meta and mime_type
    sparse TEXT                    -- JSON object with indices and values
);
CREATE INDEX documents_sequence ON documents (sequence);
CREATE TABLE deletions (number INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE INDEX deletions_sequence ON deletions (sequence);
CREATE TABLE indexes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,            -- lexical | vector | suffix
    model_fingerprint TEXT,
    config TEXT NOT NULL,          -- JSON object
    generation INTEGER NOT NULL,
    up_to_sequence INTEGER NOT NULL,
    files TEXT NOT NULL            -- JSON list of what the generation consists of
);
CREATE TABLE vectors (
    number INTEGER NOT NULL,
    index_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    vector BLOB NOT NULL,          -- float32, little endian
    exact BLOB,                    -- float64 where float32 would lose digits of Document.embedding
    PRIMARY KEY (number, index_id)
);
CREATE INDEX vectors_sequence ON vectors (index_id, sequence, number);
"""


def create(connection: sqlite3.Connection) -> None:
    """
    Create the tables if the database is empty. Runs inside the caller's write transaction.

    :param connection: A connection to a store or to an empty file.
    """
    if not is_empty(connection):
        return
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    rows = {"format": FORMAT, "created_by": f"gr-components {__version__}", "sequence": 0, "last_deletion": 0}
    connection.executemany("INSERT INTO store VALUES (?, ?)", rows.items())


def is_empty(connection: sqlite3.Connection) -> bool:
    """
    Tell whether a database has no tables at all.

    :param connection: An open connection.
    """
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def check_format(connection: sqlite3.Connection, folder: Path) -> None:
    """
    Refuse a store of another format.

    :param connection: An open connection.
    :param folder: The store, for the message.
    :raises StoreVersionError: If it is not of format `FORMAT`.
    """
    found = read_format(connection, folder)
    if found != FORMAT:
        raise refusal(folder, found)


def read_format(connection: sqlite3.Connection, folder: Path) -> Any:
    """
    Return the format version of a store, an integer unless somebody else wrote it.

    :param connection: An open connection.
    :param folder: The store, for the message.
    :raises StoreVersionError: If the database is no store.
    """
    known = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'store'").fetchone()[0]
    row = connection.execute("SELECT value FROM store WHERE key = 'format'").fetchone() if known else None
    if row is None:
        msg = f"'{folder / FILE}' is an SQLite database but no document store. Choose another folder."
        raise StoreVersionError(msg)
    return row[0]


def refusal(folder: Path, found: Any) -> StoreVersionError:
    """
    Make the error for a store of another format.

    :param folder: The store.
    :param found: Its format version.
    """
    if isinstance(found, int) and found < FORMAT and found in MIGRATIONS:
        remedy = f"Run: gr migrate --store {folder}"
    elif isinstance(found, int) and found < FORMAT:
        remedy = "It is too old to be upgraded. Index the documents again, into a new folder."
    else:
        remedy = "Upgrade gr-components, or index the documents again, into a new folder."
    return StoreVersionError(
        f"The store '{folder}' has format {found}, this version ({__version__}) reads format {FORMAT}. {remedy}"
    )


def read_sequence(connection: sqlite3.Connection) -> int:
    """
    Return the sequence number of the last change.

    :param connection: An open connection.
    """
    return int(connection.execute("SELECT value FROM store WHERE key = 'sequence'").fetchone()[0])


def read_last_deletion(connection: sqlite3.Connection) -> int:
    """
    Return the sequence number of the last deletion, 0 before the first.

    :param connection: An open connection.
    """
    return int(connection.execute("SELECT value FROM store WHERE key = 'last_deletion'").fetchone()[0])


def write_sequence(connection: sqlite3.Connection, sequence: int, last_deletion: int | None) -> None:
    """
    Store the sequence number of the last change.

    :param connection: A connection in a write transaction.
    :param sequence: The new value.
    :param last_deletion: Sequence number of the last deletion, if there was one.
    """
    connection.execute("UPDATE store SET value = ? WHERE key = 'sequence'", (sequence,))
    if last_deletion is not None:
        connection.execute("UPDATE store SET value = ? WHERE key = 'last_deletion'", (last_deletion,))


def has_changed(connection: sqlite3.Connection, since: int) -> bool:
    """
    Tell whether a text was written or a document deleted after a change.

    :param connection: An open connection.
    :param since: Sequence number of the change.
    """
    sql = "SELECT EXISTS (SELECT 1 FROM documents WHERE sequence > ?)"
    return read_last_deletion(connection) > since or bool(connection.execute(sql, (since,)).fetchone()[0])
