"""
Every change of the `documents` table. Each function runs inside the caller's write transaction.

A change of a document's text (title, content, pseudo-queries) makes a new version with a new number; other changes keep
the number, so indexes of texts need not be touched. Vectors follow a document to its new number as long as title and
content are the same.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy

from gr_components.document_stores.local_rows import INSERT_COLUMNS, Row, decode, encode
from gr_components.document_stores.local_schema import read_sequence, write_sequence

_PLACES = ", ".join("?" * len(INSERT_COLUMNS.split(",")))
_LOOKUP_BATCH = 10_000


class Changes:
    """
    Takes the next sequence numbers of a transaction.

    :param connection: A connection in a write transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.sequence = read_sequence(connection)
        self.last_deletion: int | None = None

    def next(self) -> int:
        """Return the sequence number of one more change."""
        self.sequence += 1
        return self.sequence

    def delete(self, number: int) -> None:
        """
        Record that a document is gone.

        :param number: Its number.
        """
        self.last_deletion = self.next()
        self.connection.execute("INSERT INTO deletions VALUES (?, ?)", (number, self.last_deletion))

    def save(self) -> None:
        """Store the counter; call it last."""
        write_sequence(self.connection, self.sequence, self.last_deletion)


def write_rows(
    connection: sqlite3.Connection, rows: Sequence[Row], policy: DuplicatePolicy, vectors_of: int | None
) -> int:
    """
    Write documents.

    :param connection: A connection in a write transaction.
    :param rows: The documents, in order: the same id twice is a duplicate as well.
    :param policy: What happens to duplicates; NONE is FAIL.
    :param vectors_of: Id of the index that takes the embeddings; None if no row has one.
    :returns: How many documents were written; with OVERWRITE all of them, also those that were the same already.
    :raises DuplicateDocumentError: If the policy is FAIL or NONE and an id exists.
    """
    changes = Changes(connection)
    known = _numbers_by_id(connection, [row.id for row in rows])
    written = 0
    for row in rows:
        number = known.get(row.id)
        if number is not None:
            if policy is DuplicatePolicy.SKIP:
                continue
            if policy is not DuplicatePolicy.OVERWRITE:
                msg = (
                    f"Document {row.id!r} exists already. Nothing was written; use another policy to skip or overwrite."
                )
                raise DuplicateDocumentError(msg)
            number = _replace(changes, number, row)
        else:
            number = _insert(changes, row)
        known[row.id] = number
        if row.vector is not None and vectors_of is not None:
            write_vector(changes, vectors_of, number, row.vector, row.exact)
        written += 1
    changes.save()
    return written


def delete_ids(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """
    Delete documents by id; unknown ids are ignored.

    :param connection: A connection in a write transaction.
    :param ids: Document ids.
    :returns: How many documents were deleted.
    """
    return delete_numbers(connection, list(_numbers_by_id(connection, ids).values()))


def delete_numbers(connection: sqlite3.Connection, numbers: Iterable[int]) -> int:
    """
    Delete documents by number.

    :param connection: A connection in a write transaction.
    :param numbers: Numbers of existing documents.
    :returns: How many documents were deleted.
    """
    changes = Changes(connection)
    deleted = 0
    for number in numbers:
        _delete(changes, int(number))
        deleted += 1
    changes.save()
    return deleted


def delete_all(connection: sqlite3.Connection) -> None:
    """
    Delete every document. Numbers are still never used again.

    :param connection: A connection in a write transaction.
    """
    changes = Changes(connection)
    connection.execute(
        "INSERT INTO deletions SELECT number, ? + row_number() OVER (ORDER BY number) FROM documents",
        (changes.sequence,),
    )
    changes.sequence += connection.execute("DELETE FROM documents").rowcount
    changes.last_deletion = changes.sequence
    connection.execute("DELETE FROM vectors")
    changes.save()


def update_meta(connection: sqlite3.Connection, numbers: Iterable[int], meta: dict[str, Any]) -> int:
    """
    Merge values into the metadata of documents.

    :param connection: A connection in a write transaction.
    :param numbers: Numbers of existing documents.
    :param meta: Values by key.
    :returns: How many documents were updated.
    """
    changes = Changes(connection)
    updated = 0
    for number in numbers:
        document = decode(_columns(connection, int(number)))
        document.meta.update(meta)
        _replace(changes, int(number), encode(document))
        updated += 1
    changes.save()
    return updated


def write_vector(changes: Changes, index_id: int, number: int, vector: bytes, exact: bytes | None) -> None:
    """
    Write one vector of a document; nothing happens if it is the same already.

    :param changes: The transaction's counter.
    :param index_id: Id of the vector index.
    :param number: Number of an existing document.
    :param vector: float32 bytes.
    :param exact: float64 bytes if float32 loses digits.
    """
    changes.connection.execute(
        "INSERT INTO vectors (number, index_id, sequence, vector, exact) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (number, index_id) DO UPDATE "
        "SET sequence = excluded.sequence, vector = excluded.vector, exact = excluded.exact "
        "WHERE vector <> excluded.vector OR exact IS NOT excluded.exact",
        (number, index_id, changes.next(), vector, exact),
    )


def _numbers_by_id(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    for start in range(0, len(ids), _LOOKUP_BATCH):
        sql = "SELECT id, number FROM documents WHERE id IN (SELECT value FROM json_each(?))"
        wanted = json.dumps([identifier for identifier in ids[start : start + _LOOKUP_BATCH] if "\0" not in identifier])
        known.update(connection.execute(sql, (wanted,)).fetchall())
    for identifier in ids:
        if "\0" in identifier:  # SQLite's JSON functions cut at NUL
            known.update(connection.execute("SELECT id, number FROM documents WHERE id = ?", (identifier,)).fetchall())
    return known


def _columns(connection: sqlite3.Connection, number: int) -> tuple[Any, ...]:
    sql = "SELECT id, meta, content, queries, score, blob, blob_info, sparse FROM documents WHERE number = ?"
    return tuple(connection.execute(sql, (number,)).fetchone())


def _insert(changes: Changes, row: Row) -> int:
    sql = f"INSERT INTO documents (sequence, {INSERT_COLUMNS}) VALUES (?, {_PLACES})"
    number = changes.connection.execute(sql, (changes.next(), *row.columns)).lastrowid
    assert number is not None
    return number


def _replace(changes: Changes, number: int, row: Row) -> int:
    """Bring a document to a new state and return its number, a new one if its text changed."""
    sql = f"SELECT {INSERT_COLUMNS} FROM documents WHERE number = ?"
    old = changes.connection.execute(sql, (number,)).fetchone()
    if old == row.columns:
        return number
    before = dict(zip(INSERT_COLUMNS.split(", "), old, strict=True))
    same_passage = (before["title"], before["content"]) == (row.title, row.content)
    if same_passage and before["queries"] == row.queries:
        settings = ", ".join(f"{name} = ?" for name in before)
        changes.connection.execute(f"UPDATE documents SET {settings} WHERE number = ?", (*row.columns, number))
        changes.next()
        return number
    vectors = []
    if same_passage:
        sql = "SELECT index_id, vector, exact FROM vectors WHERE number = ?"
        vectors = changes.connection.execute(sql, (number,)).fetchall()
    _delete(changes, number)
    number = _insert(changes, row)
    for index_id, vector, exact in vectors:
        write_vector(changes, index_id, number, vector, exact)
    return number


def _delete(changes: Changes, number: int) -> None:
    changes.connection.execute("DELETE FROM documents WHERE number = ?", (number,))
    changes.connection.execute("DELETE FROM vectors WHERE number = ?", (number,))
    changes.delete(number)
