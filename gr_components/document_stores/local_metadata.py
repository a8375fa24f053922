"""What metadata fields and values a store holds. Values are compared with their type: 1, 1.0, True and "1" differ."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.document_stores.local_rows import decode_meta, fetch

_BATCH = 10_000


def metas(connection: sqlite3.Connection, numbers: npt.NDArray[np.int64] | None) -> Iterator[dict[str, Any]]:
    """
    Yield the metadata of documents.

    :param connection: An open connection.
    :param numbers: Numbers of the documents, or None for all.
    """
    if numbers is None:
        for meta, queries in connection.execute("SELECT meta, queries FROM documents ORDER BY number"):
            yield decode_meta(meta, queries)
        return
    sql = "SELECT d.meta, d.queries FROM wanted CROSS JOIN documents d USING (number)"
    for start in range(0, len(numbers), _BATCH):
        for meta, queries in fetch(connection, sql, numbers[start : start + _BATCH]):
            yield decode_meta(meta, queries)


def field_types(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """
    Return the type of each field: `boolean`, `int`, `float` or, for everything else and for mixtures, `keyword`.

    :param found: Metadata of documents.
    """
    types: dict[str, str] = {}
    for meta in found:
        for key, value in meta.items():
            if value is None:
                continue
            kind = {bool: "boolean", int: "int", float: "float"}.get(type(value), "keyword")
            before = types.get(key, kind)
            numeric = {kind, before} == {"int", "float"}
            types[key] = kind if kind == before else "float" if numeric else "keyword"
    return {key: {"type": kind} for key, kind in types.items()}


def unique_values(found: Iterable[dict[str, Any]], field: str) -> list[Any]:
    """
    Return the distinct values of a field, sorted by their text.

    :param found: Metadata of documents.
    :param field: The field, with or without `meta.`.
    """
    key = field.removeprefix("meta.")
    values: dict[str, Any] = {}
    for meta in found:
        if meta.get(key) is not None:
            values.setdefault(json.dumps(meta[key], sort_keys=True), meta[key])  # 1, 1.0, true and "1" differ as JSON
    return sorted(values.values(), key=lambda value: (str(value), type(value).__name__))


def min_max(found: Iterable[dict[str, Any]], field: str) -> dict[str, Any]:
    """
    Return the smallest and the largest value of a field; None where there is none or values are not comparable.

    :param found: Metadata of documents.
    :param field: The field, with or without `meta.`.
    """
    key = field.removeprefix("meta.")
    values = [meta[key] for meta in found if isinstance(meta.get(key), int | float | str)]
    comparable = len({isinstance(value, str) for value in values}) == 1
    return {"min": min(values), "max": max(values)} if comparable else {"min": None, "max": None}


def count_unique(found: Iterable[dict[str, Any]], fields: Iterable[str]) -> dict[str, int]:
    """
    Count the distinct values of fields.

    :param found: Metadata of documents.
    :param fields: The fields, with or without `meta.`; the result has them without.
    """
    listed = list(found)
    return {field.removeprefix("meta."): len(unique_values(listed, field)) for field in fields}
