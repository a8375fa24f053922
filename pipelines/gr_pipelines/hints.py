"""Why a filtered search found nothing."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from haystack import Document

from gr_components.document_stores.local import LocalDocumentStore
from gr_pipelines.definition import did_you_mean

_OF_DOCUMENTS = {field.name for field in fields(Document)}


def unknown_fields(filters: dict[str, Any], store: Path) -> Iterator[str]:
    """
    Yield a line for each metadata field of a filter that no document has. Such a filter is valid and matches nothing.

    :param filters: Haystack's filter dictionary.
    :param store: Folder of the store.
    """
    opened = LocalDocumentStore(str(store))
    try:
        known = set(opened.get_metadata_fields_info())
    finally:
        opened.close()
    for name in dict.fromkeys(_fields(filters)):
        field = name.removeprefix("meta.")
        if field.partition(".")[0] not in known and not (field == name and name in _OF_DOCUMENTS):
            yield f"No document has the field '{field}'.{did_you_mean(field, known)}"


def _fields(filters: dict[str, Any]) -> Iterator[str]:
    if isinstance(filters.get("field"), str):
        yield filters["field"]
    for condition in filters.get("conditions") or []:
        if isinstance(condition, dict):
            yield from _fields(condition)
