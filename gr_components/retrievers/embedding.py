"""LocalEmbeddingRetriever: finds documents close to a vector that another component computed."""

from typing import Any

import numpy as np
from haystack import Document, component
from haystack.document_stores.types import FilterPolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.lifecycle import Lifecycle
from gr_components.retrievers.dense import Similarity, check_similarity
from gr_components.settings import Serializable, check_store, check_top_k, effective_filters, filter_policy_of


@component
class LocalEmbeddingRetriever(Serializable, Lifecycle[LocalDocumentStore]):
    """
    Searches a local store with query vectors of any text embedder; satisfies Haystack's `EmbeddingRetriever`.

    Which model made a query's vector is not known here, so only its width is checked. `DenseRetriever` does both steps.
    """

    def __init__(
        self,
        *,
        document_store: LocalDocumentStore,
        index: str = "dense",
        similarity: Similarity = "cosine",
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """
        Store the settings.

        :param document_store: Where the documents and their vectors are.
        :param index: Name of the vector index.
        :param similarity: `cosine`, `dot`, or `l2` (scores are negative distances).
        :param top_k: Most documents that are returned.
        :param filters: Haystack filters that narrow the search down, exactly.
        :param filter_policy: Whether filters given to `run` replace these or are merged with them.
        :raises ConfigError: If a setting is out of range.
        """
        self.document_store = check_store(document_store)
        self.index = index
        self.similarity = check_similarity(similarity)
        self.top_k = top_k
        self.filters = filters
        self.filter_policy = filter_policy_of(filter_policy)
        check_top_k(top_k, least=1)
        self._start_lifecycle()

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """
        Find the documents closest to a vector.

        :param query_embedding: The vector; an empty one finds nothing.
        :param filters: Haystack filters; None for the configured ones, `{}` for none.
        :param top_k: Most documents to return, 0 for none; None for the configured number.
        :returns: `documents` with scores, best first.
        :raises ConfigError: If `top_k` is negative.
        :raises DimensionError: If the vector does not have the width of the index.
        :raises NumericsError: If it holds NaN or infinity.
        """
        store = self._engine()
        top_k = self.top_k if top_k is None else top_k
        check_top_k(top_k, least=0)
        if not query_embedding or top_k == 0:
            return {"documents": []}
        hits = store.vector_search(
            np.array([query_embedding], dtype=np.float32),
            index=self.index,
            top_k=top_k,
            filters=effective_filters(self.filter_policy, self.filters, filters),
            similarity=self.similarity,
        )[0]
        return {"documents": store.scored_documents(hits)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """
        Find the documents closest to a vector without blocking the event loop; otherwise as `run`.

        :param query_embedding: The vector.
        :param filters: Haystack filters.
        :param top_k: Most documents to return.
        :returns: `documents` with scores, best first.
        """
        return await self._in_thread(self.run, query_embedding, filters, top_k)

    def _load(self) -> LocalDocumentStore:
        return self.document_store

    def _release(self, engine: LocalDocumentStore) -> None:
        engine.close()
