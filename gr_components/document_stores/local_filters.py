"""
Applying Haystack filters to the documents of a store, exactly.

SQL answers what it can; rows for which a filter's SQL may differ from Haystack's meaning go to Haystack's own function.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from gr_components.document_stores.local_filter_sql import Compiler, sql_any
from gr_components.document_stores.local_rows import decode_meta, fetch, load

_LIGHT_FIELDS = {"id", "content", "meta"}
_DECIDE_BATCH = 1000


@dataclass(frozen=True)
class _Light:
    """What Haystack's function needs of a document, when the filter reads no other field."""

    id: str
    content: str | None
    meta: dict[str, Any]
    blob: None = None
    score: None = None
    embedding: None = None
    sparse_embedding: None = None


def matching(connection: sqlite3.Connection, filters: dict[str, Any], vectors_of: int | None) -> npt.NDArray[np.int64]:
    """
    Return the numbers of the documents that match a filter, ascending.

    :param connection: An open connection.
    :param filters: Haystack's filter dictionary, not empty.
    :param vectors_of: Id of the index whose vectors are the documents' embeddings, or None.
    :raises FilterError: If the filter is malformed, or cannot be applied to a document.
    """
    compiler = Compiler()
    clause = compiler.compile(filters)
    sql = f"SELECT number, {clause.doubt} FROM documents WHERE {sql_any([clause.doubt, clause.match])}"
    try:
        rows = connection.execute(sql, compiler.parameters).fetchall()
    except sqlite3.OperationalError as error:
        if not any(limit in str(error) for limit in ("too large", "too many", "too deep", "stack overflow")):
            raise
        rows = [(number, 1) for (number,) in connection.execute("SELECT number FROM documents")]
    found = [number for number, doubtful in rows if not doubtful]
    found += _decided(
        connection, filters, [number for number, doubtful in rows if doubtful], compiler.fields, vectors_of
    )
    return np.sort(np.array(found, dtype=np.int64))


def _decided(
    connection: sqlite3.Connection,
    filters: dict[str, Any],
    numbers: list[int],
    fields: set[str],
    vectors_of: int | None,
) -> Iterator[int]:
    light = fields <= _LIGHT_FIELDS
    for start in range(0, len(numbers), _DECIDE_BATCH):
        batch = numbers[start : start + _DECIDE_BATCH]
        for number, document in _load(connection, batch, light, vectors_of):
            try:
                if document_matches_filter(filters, document):
                    yield number
            except (TypeError, ValueError, OverflowError) as error:
                msg = f"The filter {filters} cannot be applied to document {document.id!r}: {error}"
                raise FilterError(msg) from error


def _load(
    connection: sqlite3.Connection, numbers: list[int], light: bool, vectors_of: int | None
) -> Iterator[tuple[int, Any]]:
    if light:
        sql = (
            "SELECT wanted.number, d.id, d.content, d.meta, d.queries FROM wanted CROSS JOIN documents d USING (number)"
        )
        for number, identifier, content, meta, queries in fetch(connection, sql, numbers):
            yield number, _Light(identifier, content, decode_meta(meta, queries))
        return
    yield from load(connection, numbers, vectors_of)
