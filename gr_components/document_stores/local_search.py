"""What a local store does beyond Haystack's protocol: searching its indexes and filling them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack import Document

from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_filters import matching
from gr_components.document_stores.local_lexical import Lexical
from gr_components.document_stores.local_rows import COLUMNS, decode, load
from gr_components.document_stores.local_schema import read_sequence
from gr_components.document_stores.local_suffix import Suffixes, SuffixSnapshot, Tokenize
from gr_components.document_stores.local_vectors import Vectors
from gr_components.errors import StoreError
from gr_components.indexes import leases, registry
from gr_components.indexes.lexical import Hits
from gr_components.indexes.registry import IndexState
from gr_components.indexes.vector import Similarity
from gr_components.progress import Reporter, Silent

Numbers = npt.NDArray[np.int64]
_REMEMBERED_FILTERS = 8


class IndexedDocuments:
    """
    Mixin of `LocalDocumentStore`: search by number, and the indexes behind it.

    Indexes speak of document numbers; `documents` and `scored_documents` turn them into documents.
    """

    path: str
    embedding_index: str
    _database: Database
    _lexical: Lexical
    _vectors: Vectors
    _suffixes: Suffixes
    _allowed: dict[tuple[str, int, int], Numbers]

    def lexical_search(
        self, queries: Sequence[str], *, top_k: int, filters: dict[str, Any] | None = None
    ) -> list[Hits]:
        """
        Find documents by BM25 over title, content and, if so configured, pseudo-queries.

        :param queries: Texts; nothing in them is query syntax.
        :param top_k: Most hits for each query.
        :param filters: Haystack's filter dictionary, or None.
        :returns: For each query document numbers and scores, best first, equal scores by number.
        """
        return self._lexical.search(queries, top_k, self.allowed_numbers(filters))

    def vector_search(
        self,
        vectors_QE: npt.NDArray[np.float32],
        *,
        index: str = "dense",
        top_k: int,
        filters: dict[str, Any] | None = None,
        similarity: Similarity = "cosine",
        model_fingerprint: str | None = None,
    ) -> list[Hits]:
        """
        Find documents by the exact similarity of their vectors.

        :param vectors_QE: Q query vectors.
        :param index: Name of the vector index.
        :param top_k: Most hits for each query.
        :param filters: Haystack's filter dictionary, or None.
        :param similarity: `cosine`, `dot`, or `l2` (scores are negative distances).
        :param model_fingerprint: Of the model that made the queries; not checked if this or the index's is unknown.
        :returns: For each query document numbers and scores, best first, equal scores by number.
        :raises IndexMissingError: If there is no such index, unless the store is empty.
        :raises SearchIndexError: If the index holds vectors of another model.
        :raises DimensionError: If the queries do not have the width of the index.
        :raises NumericsError: If a query holds NaN or infinity.
        """
        allowed = self.allowed_numbers(filters)
        return self._vectors.search(index, vectors_QE, top_k, similarity, allowed, model_fingerprint)

    def suffix_index(self, name: str = "generative") -> SuffixSnapshot:
        """
        Return a generative index to decode with. It stays usable and unchanged whatever happens to the store.

        :param name: Name of the index.
        :raises IndexMissingError: If there is no such index, unless the store is empty.
        """
        return self._suffixes.snapshot(name)

    def allowed_numbers(self, filters: dict[str, Any] | None) -> Numbers | None:
        """
        Return the numbers of the documents that match a filter, ascending; None if there is no filter.

        :param filters: Haystack's filter dictionary, or None.
        :raises FilterError: If the filter is malformed or cannot be applied to a document.
        """
        if not filters:
            return None
        with self._database.reading() as connection:
            # Searches of one pipeline, and of one user, repeat their filters.
            key = (repr(filters), self._embedding_index_id(connection), read_sequence(connection))
            known = self._allowed.get(key)
            if known is None:
                known = self._matching(connection, filters)
                known.flags.writeable = False
                if len(self._allowed) >= _REMEMBERED_FILTERS:
                    self._allowed.clear()
                self._allowed[key] = known
            return known

    def documents(self, numbers: Sequence[int]) -> list[Document]:
        """
        Return documents by number, in the given order, without embeddings.

        :param numbers: Document numbers, as searches return them.
        :raises StoreError: If one was deleted meanwhile; `scored_documents` leaves such out.
        """
        with self._database.reading() as connection:
            found = dict(load(connection, numbers))
        gone = [int(number) for number in numbers if int(number) not in found]
        if gone:
            msg = f"The documents number {gone[:5]} are not in '{self.path}' (any more). Search again."
            raise StoreError(msg)
        return [found[int(number)] for number in numbers]

    def scored_documents(self, hits: Sequence[tuple[int, float]]) -> list[Document]:
        """
        Return the documents of hits with their scores, without embeddings; those deleted meanwhile are left out.

        :param hits: Document numbers and scores.
        """
        with self._database.reading() as connection:
            found = dict(load(connection, [number for number, _ in hits]))
        return [replace(found[number], score=score) for number, score in hits if number in found]

    def indexes(self) -> list[IndexState]:
        """Return all indexes by name, and how many documents each lacks."""
        with self._database.reading() as connection:
            return [registry.state(connection, row) for row in registry.rows(connection)]

    def pending(self, index: str, *, batch_size: int = 256) -> Iterator[tuple[int, Document]]:
        """
        Yield the documents with text that an index lacks, with their numbers, ascending.

        Vectors that are written while this runs are taken into account from one batch to the next.

        :param index: A vector or generative index; every document is pending for one that does not exist yet.
        :param batch_size: How many documents are read at once.
        """
        last = 0
        while True:
            with self._database.reading() as connection:
                row = registry.find(connection, index)
                lacks, parameters = registry.lacks(row)
                sql = (
                    f"SELECT d.number, {COLUMNS} FROM documents d WHERE {lacks} AND d.number > ? "
                    "ORDER BY d.number LIMIT ?"
                )
                page = connection.execute(sql, (*parameters, last, batch_size)).fetchall()
            if not page:
                return
            for number, *columns in page:
                yield number, decode(columns)
            last = page[-1][0]

    def write_vectors(
        self,
        index: str,
        numbers: Sequence[int],
        vectors_DE: npt.NDArray[np.float32],
        *,
        model_fingerprint: str | None = None,
    ) -> int:
        """
        Write vectors into an index, which is made if it is missing. Documents that are gone are left out.

        :param index: Name of the vector index.
        :param numbers: D document numbers.
        :param vectors_DE: Their vectors.
        :param model_fingerprint: Of the model that made them, or None if unknown.
        :returns: How many were written.
        :raises DimensionError: If the vectors do not have the width of the index.
        :raises NumericsError: If one holds NaN or infinity.
        :raises SearchIndexError: If the index holds vectors of another model.
        """
        return self._vectors.write(index, numbers, vectors_DE, model_fingerprint)

    def build_suffix(
        self,
        index: str,
        tokenize: Tokenize,
        *,
        fields: Sequence[str],
        boundary: int,
        tokenizer_fingerprint: str,
        vocabulary_size: int,
        model_fingerprint: str | None = None,
        config: Mapping[str, Any] | None = None,
        report: Reporter = Silent(),  # noqa: B008 - stateless
    ) -> int:
        """
        Add the documents that a generative index lacks; make it if it is missing.

        :param index: Name of the index.
        :param tokenize: Gets numbers, titles, texts and pseudo-queries of some documents and returns them tokenized.
        :param fields: Names of the index's fields.
        :param boundary: Token between entries.
        :param tokenizer_fingerprint: Of the tokenizer.
        :param vocabulary_size: All tokens are smaller than this.
        :param model_fingerprint: Of the model the index is made for, or None.
        :param config: Further plain values to keep with the index.
        :param report: Where progress goes.
        :returns: How many documents were added.
        :raises TokenizerMismatchError: If the index was made with another tokenizer.
        :raises ConfigError: If it was made with another `config`, other fields, another boundary or vocabulary.
        """
        described = {
            **(config or {}),
            "fields": list(fields),
            "boundary": int(boundary),
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "vocabulary_size": int(vocabulary_size),
        }
        return self._suffixes.build(index, tokenize, described, model_fingerprint, report)

    def refresh(self) -> None:
        """Bring the indexes that keep themselves up to date there now: lexical and vector."""
        with self._database.reading() as connection:
            rows = registry.rows(connection)
        for row in rows:
            if row.kind == "lexical":
                self._lexical.current()
            elif row.kind == "vector":
                self._vectors.snapshot(row.name)

    def delete_index(self, name: str) -> None:
        """
        Forget an index: its settings, its model and, for a vector index, its vectors. Documents stay.

        :param name: Name of the index; an unknown one is ignored.
        """
        with self._database.writing() as connection:
            row = registry.find(connection, name)
            if row is not None:
                registry.forget(connection, row)
        self._drop_caches()

    def _drop_caches(self) -> None:
        self._lexical.close()
        self._vectors.close()
        self._suffixes.close()
        with self._database.reading() as connection:
            keep = registry.names_to_keep(connection)
        with self._database.translated():
            leases.collect_indexes(self._database.folder, keep)

    def _embedding_index_id(self, connection: Any) -> int:
        row = registry.find(connection, self.embedding_index)
        return row.id if row is not None and row.kind == "vector" else 0

    def _matching(self, connection: Any, filters: dict[str, Any] | None) -> Numbers:
        if not filters:
            rows = connection.execute("SELECT number FROM documents ORDER BY number").fetchall()
            return np.array(rows, dtype=np.int64).reshape(-1)
        return matching(connection, filters, self._embedding_index_id(connection))
