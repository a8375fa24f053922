"""Build the demo's stores: one with the training questions as pseudo-queries, one without them to compare with."""

from dataclasses import dataclass
from pathlib import Path

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

from gr_components.data.haystack import to_document
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.progress import Reporter, Silent
from gr_pipelines.demo import data
from gr_pipelines.indexing import IndexOptions, update_indexes


@dataclass(frozen=True)
class Stores:
    """
    The demo's stores.

    :param full: Folder of the store that the pipelines use: paragraphs, training questions as pseudo-queries, which the
        lexical index reads too, and all indexes.
    :param plain: Folder of a store that has only the paragraphs and a lexical index.
    """

    full: Path
    plain: Path


def build_stores(folder: Path, options: IndexOptions, report: Reporter = Silent()) -> Stores:  # noqa: B008
    """
    Build the stores, or bring them up to date: what is there already is not made again.

    :param folder: Where they go.
    :param options: Which models the indexes are made with.
    :param report: Where progress goes.
    """
    stores = Stores(folder / "store", folder / "store-without-questions")
    full = LocalDocumentStore(str(stores.full), lexical_queries=True)
    plain = LocalDocumentStore(str(stores.plain), lexical_queries=False)
    try:
        full.write_documents(_documents(with_queries=True), policy=DuplicatePolicy.OVERWRITE)
        update_indexes(full, options, report)
        plain.write_documents(_documents(with_queries=False), policy=DuplicatePolicy.OVERWRITE)
        plain.refresh()
    finally:
        full.close()
        plain.close()
    return stores


def _documents(*, with_queries: bool) -> list[Document]:
    return [to_document(passage) for passage in data.corpus(with_queries=with_queries)]
