"""`BM25Retriever`: lexical retrieval from a local document store."""

import math
from typing import Any

from haystack import Document, component
from haystack.document_stores.types import FilterPolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.extras import need
from gr_components.lifecycle import Lifecycle
from gr_components.settings import Serializable, check_store, check_top_k, effective_filters, filter_policy_of

_SCALE = 8.0  # as Haystack's own BM25 retriever, so that thresholds carry over


@component
class BM25Retriever(Serializable, Lifecycle[LocalDocumentStore]):
    """
    Finds documents that share rare words with the query (BM25 over title and content, k1 = 1.2, b = 0.75).

    How text becomes words, and whether pseudo-queries count as text, is a setting of the store. Nothing in a query is
    query syntax.

    ```python
    from haystack import Document
    from gr_components.document_stores.local import LocalDocumentStore
    from gr_components.retrievers.bm25 import BM25Retriever

    store = LocalDocumentStore("my_store")
    store.write_documents([Document(id="1", content="Ada Lovelace wrote the first program.")])
    print(BM25Retriever(document_store=store).run(query="Who wrote a program?")["documents"])
    ```
    """

    def __init__(
        self,
        *,
        document_store: LocalDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """
        Configure the retriever.

        :param document_store: Where the documents are.
        :param filters: Haystack filters that narrow the search down.
        :param top_k: Most documents to return; at least 1.
        :param scale_score: Whether scores are mapped to 0..1 (`1 / (1 + exp(-score / 8))`).
        :param filter_policy: Whether filters given to `run` replace the configured ones or are merged with them.
        :raises ConfigError: If `document_store` is no LocalDocumentStore or `top_k` is below 1.
        """
        check_top_k(top_k, least=1)
        self.document_store = check_store(document_store)
        self.filters = filters
        self.top_k = top_k
        self.scale_score = scale_score
        self.filter_policy = filter_policy_of(filter_policy)
        self._start_lifecycle()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
    ) -> dict[str, list[Document]]:
        """
        Find the documents that match a query best.

        :param query: Any text; one without words finds nothing.
        :param filters: Haystack filters; None for the configured ones, `{}` for none.
        :param top_k: Most documents to return, 0 for none; None for the configured number.
        :param scale_score: Whether scores are mapped to 0..1; None for the configured choice.
        :returns: `documents` with scores, best first.
        :raises ConfigError: If `top_k` is negative.
        :raises FilterError: If the filters are malformed.
        """
        store = self._engine()
        top_k = self.top_k if top_k is None else top_k
        scale_score = self.scale_score if scale_score is None else scale_score
        check_top_k(top_k, least=0)
        merged = effective_filters(self.filter_policy, self.filters, filters)
        hits = store.lexical_search([query], top_k=top_k, filters=merged)[0]
        if scale_score:
            hits = [(number, 1 / (1 + math.exp(-score / _SCALE))) for number, score in hits]
        return {"documents": store.scored_documents(hits)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
    ) -> dict[str, list[Document]]:
        """
        Do the same as `run` on a thread of its own.

        :param query: As for `run`.
        :param filters: As for `run`.
        :param top_k: As for `run`.
        :param scale_score: As for `run`.
        """
        return await self._in_thread(self.run, query, filters, top_k, scale_score)

    def _load(self) -> LocalDocumentStore:
        need("tantivy", "lexical")
        return self.document_store

    def _release(self, engine: LocalDocumentStore) -> None:
        engine.close()
