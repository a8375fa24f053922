"""Documents as rows of the `documents` table, and back."""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack import Document
from haystack.dataclasses import ByteStream, SparseEmbedding

from gr_components.data.records import searchable_text
from gr_components.errors import DataError, DimensionError, NumericsError

#: What `decode` reads, in this order; `d` is the documents table.
COLUMNS = "d.id, d.meta, d.content, d.queries, d.score, d.blob, d.blob_info, d.sparse"

_BATCH = 1000

# SQLite's JSON functions cut strings at NUL and turn integers beyond 64 bits into reals.
_EXOTIC = re.compile(r"\\u0000|\d{19}")


@dataclass(frozen=True)
class Row:
    """A document as it is stored. `vector` is its embedding in float32, `exact` the same in float64 if that differs."""

    id: str
    title: str
    searchable: bool
    exotic: bool
    meta: str
    content: str | None
    queries: str | None
    score: float | None
    blob: bytes | None
    blob_info: str | None
    sparse: str | None
    vector: bytes | None = None
    exact: bytes | None = None

    @property
    def columns(self) -> tuple[Any, ...]:
        """Values in the order of `INSERT_COLUMNS`."""
        return (self.searchable, self.exotic, self.id, self.title, self.meta, self.content, self.queries,
                self.score, self.blob, self.blob_info, self.sparse)  # fmt: skip


INSERT_COLUMNS = "searchable, exotic, id, title, meta, content, queries, score, blob, blob_info, sparse"


def encode(document: Document) -> Row:
    """
    Turn a document into a row.

    :param document: Any document.
    :raises DataError: If its metadata is not JSON or a text is not valid Unicode.
    :raises NumericsError: If its embedding holds NaN or infinity.
    """
    meta = dict(document.meta)
    queries = meta.get("queries")
    if isinstance(queries, list) and all(isinstance(query, str) for query in queries):
        del meta["queries"]
    else:
        queries = None
    title = meta.get("title")
    title = title if isinstance(title, str) else ""
    blob = document.blob
    vector, exact = (None, None) if document.embedding is None else encode_vector(document.embedding, document.id)
    info = None if blob is None else {"meta": blob.meta, "mime_type": blob.mime_type}
    sparse = None if document.sparse_embedding is None else document.sparse_embedding.to_dict()
    meta_json, info_json, sparse_json = (_dump(value, document.id) for value in (meta, info, sparse))
    queries_json = None if queries is None else _dump(queries, document.id)
    assert meta_json is not None
    row = Row(
        id=document.id, title=title, searchable=bool(searchable_text(title, document.content or "")),
        exotic=bool(_EXOTIC.search(meta_json)), meta=meta_json, content=document.content, queries=queries_json,
        score=None if document.score is None else float(document.score), blob=None if blob is None else blob.data,
        blob_info=info_json, sparse=sparse_json, vector=vector, exact=exact,
    )  # fmt: skip
    try:
        for text in (row.id, row.title, row.meta, row.content, row.queries):
            (text or "").encode()
    except UnicodeEncodeError as error:
        msg = f"Document {document.id!r} has a text that is not valid Unicode ({error.reason} at {error.start})."
        raise DataError(msg) from error
    return row


def decode(columns: Sequence[Any], vector: bytes | None = None, exact: bytes | None = None) -> Document:
    """
    Turn a row back into the document that was written.

    :param columns: Values of `COLUMNS`.
    :param vector: Its float32 embedding, if wanted.
    :param exact: Its float64 embedding, if it has one.
    """
    identifier, meta, content, queries, score, blob, blob_info, sparse = columns
    info = None if blob_info is None else json.loads(blob_info)
    embedding = None
    if exact is not None:
        embedding = np.frombuffer(exact, dtype="<f8").tolist()
    elif vector is not None:
        embedding = np.frombuffer(vector, dtype="<f4").tolist()
    return Document(
        id=identifier,
        content=content,
        meta=decode_meta(meta, queries),
        score=score,
        blob=None if info is None else ByteStream(data=blob, meta=info["meta"], mime_type=info["mime_type"]),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(json.loads(sparse)),
        embedding=embedding,
    )


def decode_meta(meta: str, queries: str | None) -> dict[str, Any]:
    """
    Put the metadata of a document together.

    :param meta: JSON object.
    :param queries: JSON list of its pseudo-queries, or None.
    """
    values: dict[str, Any] = json.loads(meta)
    if queries is not None:
        values["queries"] = json.loads(queries)
    return values


def encode_vector(vector: Iterable[float], owner: object) -> tuple[bytes, bytes | None]:
    """
    Turn a vector into float32 bytes, and float64 bytes if float32 loses digits.

    :param vector: Any sequence of finite numbers.
    :param owner: Id or number of its document, for messages.
    :raises DimensionError: If it is empty or not one-dimensional.
    :raises NumericsError: If it holds NaN or infinity, or numbers too large for float32.
    """
    exact_E = np.asarray(vector, dtype="<f8")
    if exact_E.ndim != 1 or not exact_E.size:
        msg = f"The embedding of document {owner!r} has shape {exact_E.shape}; it must be a list of numbers."
        raise DimensionError(msg)
    with np.errstate(over="ignore"):
        vector_E = exact_E.astype("<f4")
    check_finite(vector_E[None], [owner])
    lossless = bool((vector_E.astype("<f8") == exact_E).all())
    return vector_E.tobytes(), None if lossless else exact_E.tobytes()


def check_finite(vectors_DE: npt.NDArray[np.float32], owners: Sequence[object]) -> None:
    """
    Refuse vectors that cannot be compared.

    :param vectors_DE: One vector per document.
    :param owners: Ids or numbers of the documents.
    :raises NumericsError: Naming the first documents whose vector holds NaN or infinity.
    """
    bad = [owners[int(d)] for d in np.flatnonzero(~np.isfinite(vectors_DE).all(axis=1))]
    if bad:
        shown = ", ".join(repr(owner) for owner in bad[:5])
        msg = f"{len(bad)} vector(s) hold NaN or infinity, of document(s) {shown}. Check the model that made them."
        raise NumericsError(msg)


def fetch(connection: sqlite3.Connection, sql: str, numbers: Iterable[int]) -> list[tuple[Any, ...]]:
    """
    Run a query over `wanted(number)`: the given numbers.

    :param connection: An open connection.
    :param sql: Such as `SELECT ... FROM wanted CROSS JOIN documents d USING (number)`; a CROSS JOIN keeps SQLite from
        scanning all documents and looking each one up in the list.
    :param numbers: Document numbers.
    """
    wanted = json.dumps([int(number) for number in numbers])
    return connection.execute(f"WITH wanted(number) AS (SELECT value FROM json_each(?)) {sql}", (wanted,)).fetchall()


def load(
    connection: sqlite3.Connection, numbers: Iterable[int], vectors_of: int | None = None
) -> Iterator[tuple[int, Document]]:
    """
    Yield existing documents with their numbers, in the given order.

    :param connection: An open connection.
    :param numbers: Document numbers; unknown ones are left out.
    :param vectors_of: Id of the index whose vectors become the embeddings, or None for no embeddings.
    """
    listed = [int(number) for number in numbers]
    sql = (
        f"SELECT wanted.number, v.vector, v.exact, {COLUMNS} FROM wanted CROSS JOIN documents d USING (number) "
        f"LEFT JOIN vectors v ON v.number = d.number AND v.index_id = {int(vectors_of or 0)}"
    )
    for start in range(0, len(listed), _BATCH):
        for number, vector, exact, *columns in fetch(connection, sql, listed[start : start + _BATCH]):
            yield number, decode(columns, vector, exact)


def _dump(value: Any, identifier: str) -> str | None:
    if value is None:
        return None
    try:
        _check_keys(value)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = (
            f"Document {identifier!r} cannot be stored: its metadata is not JSON ({error}). Convert dates to ISO "
            "strings, numpy numbers to int or float, NaN to None."
        )
        raise DataError(msg) from error


def _check_keys(value: Any) -> None:
    # json.dumps would turn 1 and "1" into the same key.
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                msg = f"the key {key!r} is no string"
                raise TypeError(msg)
            _check_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_keys(inner)
