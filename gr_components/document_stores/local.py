"""
`LocalDocumentStore`: documents, metadata and all indexes in one folder, without a server.

SQLite holds the truth; a committed transaction is the only commit point. Lexical, vector and generative indexes are
derived from it: after a crash they are at most behind. The first two catch up by themselves when searched, the third
when `build_suffix` is called.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.types import DuplicatePolicy

from gr_components.data.haystack import EMBEDDING_MODEL
from gr_components.document_stores import local_metadata, local_write
from gr_components.document_stores.local_async import AsyncTwins
from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_filters import matching
from gr_components.document_stores.local_lexical import Lexical
from gr_components.document_stores.local_rows import COLUMNS, decode, encode, load
from gr_components.document_stores.local_search import IndexedDocuments
from gr_components.document_stores.local_suffix import Suffixes
from gr_components.document_stores.local_vectors import Vectors, prepare
from gr_components.indexes import registry


class LocalDocumentStore(IndexedDocuments, AsyncTwins):
    """
    A document store in a folder, with exact filters and lexical, vector and generative search.

    One process writes at a time, any number read, from any number of threads and store objects. Every document version
    has a *number*, which is never used again: indexes speak of numbers, users of ids. Changing title, content or
    pseudo-queries makes a new version; changing other metadata does not.

    `Document.embedding` is the document's vector in the index `embedding_index`.

    ```python
    from haystack import Document
    from gr_components.document_stores.local import LocalDocumentStore

    store = LocalDocumentStore("my_store")
    store.write_documents([Document(id="1", content="Ada Lovelace wrote the first program.")])
    ```
    """

    def __init__(
        self,
        path: str | Path,
        *,
        read_only: bool = False,
        embedding_index: str = "dense",
        language: str | None = None,
        stop_words: bool | None = None,
        cjk_ngrams: int | None = None,
        lexical_queries: bool | None = None,
        lock_timeout_s: float = 30.0,
    ) -> None:
        """
        Describe a store; nothing is opened before the first use, and nothing is created before the first writing.

        The lexical settings are fixed when the first document is written. None means what the store has, or, for a new
        one, English with stop words, character bigrams and no pseudo-queries.

        :param path: Its folder.
        :param read_only: Whether writing is refused; such a store may lie on a file system that cannot be written.
        :param embedding_index: The vector index that takes and gives `Document.embedding`.
        :param language: Snowball language of the lexical index, such as `german`; `none` for no stemming.
        :param stop_words: Whether the lexical index leaves out function words of its language.
        :param cjk_ngrams: Length of the character n-grams for Chinese, Japanese and Korean in the lexical index; 0 for
            none.
        :param lexical_queries: Whether the lexical index also reads the documents' pseudo-queries
            (`meta["queries"]`).
        :param lock_timeout_s: How long a writer waits for another one.
        """
        self.path = str(path)
        self.read_only = read_only
        self.embedding_index = embedding_index
        self.language = language
        self.stop_words = stop_words
        self.cjk_ngrams = cjk_ngrams
        self.lexical_queries = lexical_queries
        self.lock_timeout_s = lock_timeout_s
        self._database = Database(Path(self.path), read_only=read_only, lock_timeout_s=lock_timeout_s)
        options = {"language": language, "stop_words": stop_words, "cjk_ngrams": cjk_ngrams, "queries": lexical_queries}
        self._lexical = Lexical(self._database, options)
        self._vectors = Vectors(self._database)
        self._suffixes = Suffixes(self._database)
        self._allowed: dict[tuple[str, int, int], npt.NDArray[np.int64]] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._executor_lock = threading.Lock()

    def to_dict(self) -> dict[str, Any]:
        """Return the init parameters; the documents stay in the folder."""
        return default_to_dict(
            self,
            path=self.path,
            read_only=self.read_only,
            embedding_index=self.embedding_index,
            language=self.language,
            stop_words=self.stop_words,
            cjk_ngrams=self.cjk_ngrams,
            lexical_queries=self.lexical_queries,
            lock_timeout_s=self.lock_timeout_s,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LocalDocumentStore":
        """
        Rebuild a store from `to_dict`.

        :param data: Type and init parameters.
        """
        return default_from_dict(cls, data)

    def close(self) -> None:
        """Release files, threads and memory. The next use opens the store again."""
        self._lexical.close()
        self._vectors.close()
        self._suffixes.close()
        self._database.close()
        self._allowed.clear()
        with self._executor_lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def exists(self) -> bool:
        """Tell whether there is a store in the folder. Reading where there is none finds nothing, creates nothing."""
        return self._database.exists()

    # --- documents -----------------------------------------------------------------------------------------------

    def count_documents(self) -> int:
        """Return how many documents there are."""
        with self._database.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """
        Return the documents that match a filter, in the order of their numbers.

        :param filters: Haystack's filter dictionary; None or empty for all documents.
        :raises FilterError: If the filter is malformed or cannot be applied to a document.
        """
        with self._database.reading() as connection:
            vectors = self._embedding_index_id(connection)
            if filters:
                return [d for _, d in load(connection, matching(connection, filters, vectors), vectors)]
            sql = (
                f"SELECT v.vector, v.exact, {COLUMNS} FROM documents d "
                "LEFT JOIN vectors v ON v.number = d.number AND v.index_id = ? ORDER BY d.number"
            )
            rows = connection.execute(sql, (vectors,))
            return [decode(columns, vector, exact) for vector, exact, *columns in rows]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """
        Write documents, all of them or, if anything fails, none.

        Overwriting a document with the same title, content and pseudo-queries keeps its number and, unless a new
        embedding comes with it, its vectors.

        :param documents: Documents; an id that occurs twice is a duplicate.
        :param policy: What happens to duplicates; NONE means FAIL.
        :returns: How many were written.
        :raises ValueError: If `documents` is not a list of documents.
        :raises DuplicateDocumentError: If the policy is FAIL and an id exists.
        :raises DataError: If metadata is not JSON.
        :raises DimensionError: If an embedding does not have the width of the index.
        :raises NumericsError: If an embedding holds NaN or infinity.
        :raises SearchIndexError: If `meta["embedding_model"]` names another model than that of the index.
        :raises StoreError: If the store cannot be written.
        """
        if not isinstance(documents, Iterable) or isinstance(documents, str | dict):
            msg = f"write_documents needs a list of documents, got {type(documents).__name__}."
            raise ValueError(msg)
        documents = list(documents)
        for document in documents:
            if not isinstance(document, Document):
                msg = f"write_documents needs a list of documents, one item is {type(document).__name__}."
                raise ValueError(msg)
        rows = [encode(document) for document in documents]
        with self._database.writing() as connection:
            self._lexical.register(connection)
            vectors = None
            for row, document in zip(rows, documents, strict=True):
                if row.vector is not None:
                    model = document.meta.get(EMBEDDING_MODEL)
                    known = model if isinstance(model, str) else None
                    vectors = prepare(connection, self.embedding_index, len(row.vector) // 4, known).id
            return local_write.write_rows(connection, rows, policy, vectors)

    def delete_documents(self, document_ids: list[str]) -> None:
        """
        Delete documents by id; unknown ids are ignored.

        :param document_ids: Ids.
        """
        with self._database.writing() as connection:
            local_write.delete_ids(connection, document_ids)

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """
        Delete all documents.

        :param recreate_index: Whether the indexes are forgotten as well, with their settings and models.
        """
        with self._database.writing() as connection:
            local_write.delete_all(connection)
            if recreate_index:
                for row in registry.rows(connection):
                    registry.forget(connection, row)
        if recreate_index:
            self._drop_caches()

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """
        Delete the documents that match a filter.

        :param filters: Haystack's filter dictionary.
        :returns: How many were deleted.
        """
        with self._database.writing() as connection:
            numbers = self._matching(connection, filters)
            return local_write.delete_numbers(connection, numbers.tolist())

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """
        Merge values into the metadata of the documents that match a filter.

        `title` and `queries` are text: changing them makes a new version of the document, which the indexes of texts
        have to take up again. With a new title the document also loses its vectors, `Document.embedding` included:
        encoders read the title. Other values keep number and vectors.

        :param filters: Haystack's filter dictionary.
        :param meta: Values by key.
        :returns: How many documents were updated.
        """
        with self._database.writing() as connection:
            numbers = self._matching(connection, filters)
            return local_write.update_meta(connection, numbers.tolist(), meta)

    # --- metadata ------------------------------------------------------------------------------------------------

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """
        Count the documents that match a filter.

        :param filters: Haystack's filter dictionary.
        """
        with self._database.reading() as connection:
            return len(self._matching(connection, filters))

    def count_unique_metadata_by_filter(self, filters: dict[str, Any], metadata_fields: list[str]) -> dict[str, int]:
        """
        Count the distinct values of metadata fields among the documents that match a filter.

        :param filters: Haystack's filter dictionary; empty for all documents.
        :param metadata_fields: Fields, with or without `meta.`.
        :returns: Counts by field, without `meta.`.
        """
        return local_metadata.count_unique(self._metas(filters), metadata_fields)

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """Return the type of each metadata field, as `{"type": "keyword" | "int" | "float" | "boolean"}`."""
        return local_metadata.field_types(self._metas(None))

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """
        Return the smallest and the largest value of a metadata field as `min` and `max`, None if there are none.

        :param metadata_field: The field, with or without `meta.`.
        """
        return local_metadata.min_max(self._metas(None), metadata_field)

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """
        Return a page of the distinct values of a metadata field, and how many there are.

        :param metadata_field: The field, with or without `meta.`.
        :param search_term: Only values that contain this text, in any case.
        :param from_: How many values to pass over.
        :param size: Most values to return.
        :param filters: Only values of documents that match this filter.
        """
        values = local_metadata.unique_values(self._metas(filters), metadata_field)
        if search_term:
            values = [value for value in values if search_term.lower() in str(value).lower()]
        return values[from_ : from_ + size], len(values)

    def _metas(self, filters: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        with self._database.reading() as connection:
            yield from local_metadata.metas(connection, self._matching(connection, filters) if filters else None)
