"""DenseRetriever: finds documents whose vectors are close to the query's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from haystack import Document, component, logging
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice, Secret

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.lifecycle import Lifecycle
from gr_components.models.checks import check_choice
from gr_components.models.resolve import MINILM
from gr_components.settings import (
    Serializable,
    check_model_settings,
    check_store,
    check_top_k,
    effective_filters,
    filter_policy_of,
    load_arguments,
    token_value,
)

if TYPE_CHECKING:
    from gr_components.models.text_encoder import TextEncoder

logger = logging.getLogger(__name__)

Similarity = Literal["cosine", "dot", "l2"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


@dataclass(frozen=True)
class _Loaded:
    """The query tower, and the fingerprint that the documents' vectors must have."""

    encoder: "TextEncoder"
    documents: str


@component
class DenseRetriever(Serializable, Lifecycle[_Loaded]):
    """
    Retrieves by the similarity of vectors, with one model for queries and documents or with two.

    The method is dense passage retrieval (https://arxiv.org/abs/2004.04906).

    Satisfies Haystack's `TextRetriever`. The documents' vectors are made by `DocumentEmbedder`, by `DenseIndexer` or by
    the command `gr index`; the store keeps which model made them, and a search with another model is an error.

    ```python
    from haystack import Document
    from gr_components.document_stores.local import LocalDocumentStore
    from gr_components.embedders.indexer import DenseIndexer
    from gr_components.retrievers.dense import DenseRetriever

    store = LocalDocumentStore("my_store")
    store.write_documents([Document(id="1", content="Ada Lovelace wrote the first program.")])
    DenseIndexer(document_store=store).run()
    print(DenseRetriever(document_store=store).run(query="Who was the first programmer?")["documents"])
    ```
    """

    def __init__(
        self,
        *,
        document_store: LocalDocumentStore,
        model: str = MINILM,
        document_model: str | None = None,
        index: str = "dense",
        similarity: Similarity = "cosine",
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
        query_prefix: str | None = None,
        query_suffix: str = "",
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        backend: Literal["torch", "onnx"] = "torch",
        device: ComponentDevice | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        document_revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Store the settings; the model is loaded by `warm_up` or the first `run`.

        :param document_store: Where the documents and their vectors are.
        :param model: Encodes queries: a sentence-transformers folder or a plain encoder, as local folder,
            `package:NAME/FOLDER` or Hugging Face name.
        :param document_model: The model that encoded the documents, if it is another one (two towers). It is not
            loaded, only compared with what the index was made by.
        :param index: Name of the vector index.
        :param similarity: `cosine`, `dot`, or `l2` (scores are negative distances).
        :param top_k: Most documents that are returned.
        :param filters: Haystack filters that narrow the search down, exactly.
        :param filter_policy: Whether filters given to `run` replace these or are merged with them.
        :param query_prefix: Put in front of each query; None for the prompt that the model names for queries, if any.
        :param query_suffix: Put behind each query.
        :param pooling: Pooling mode in place of the model's own; `mean` is the default of plain encoders.
        :param max_length: Largest number of tokens of a query; None for the model's own limit. Longer ones are cut.
        :param batch_size: Queries per batch in `retrieve`.
        :param backend: `torch`, or `onnx` for a folder made by `gr export`.
        :param device: Where the model runs; None for the best device there is.
        :param dtype: `float32`, `float16` or `bfloat16`.
        :param revision: Branch, tag or commit of `model` on the model hub.
        :param document_revision: Branch, tag or commit of `document_model` on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :param model_kwargs: Passed to `from_pretrained`; with `onnx`, attributes of `SessionOptions`.
        :raises ConfigError: If a setting is out of range.
        """
        self.document_store = check_store(document_store)
        self.model = str(model)
        self.document_model = None if document_model is None else str(document_model)
        self.index = index
        self.similarity = check_similarity(similarity)
        self.top_k = top_k
        self.filters = filters
        self.filter_policy = filter_policy_of(filter_policy)
        self.query_prefix = query_prefix
        self.query_suffix = query_suffix
        self.pooling = pooling
        self.max_length = max_length
        self.batch_size = batch_size
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.document_revision = document_revision
        self.token = token
        self.local_files_only = local_files_only
        self.model_kwargs = model_kwargs
        check_top_k(top_k, least=1)
        check_model_settings(
            batch_size=batch_size, dtype=dtype, backend=backend, max_length=max_length, pooling=pooling
        )
        self._start_lifecycle()

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """
        Find the documents closest to a query.

        :param query: The query; an empty one finds nothing.
        :param filters: Haystack filters; None for the configured ones, `{}` for none.
        :param top_k: Most documents to return, 0 for none; None for the configured number.
        :returns: `documents` with scores, best first.
        :raises ConfigError: If `top_k` is negative.
        :raises FilterError: If the filters are malformed.
        :raises IndexMissingError: If the store has documents but no such index.
        :raises SearchIndexError: If the index holds vectors of another model.
        """
        return {"documents": self.retrieve([query], filters=filters, top_k=top_k)[0]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """
        Find the documents closest to a query without blocking the event loop; otherwise as `run`.

        :param query: The query.
        :param filters: Haystack filters.
        :param top_k: Most documents to return.
        :returns: `documents` with scores, best first.
        """
        return await self._in_thread(self.run, query, filters, top_k)

    def retrieve(
        self, queries: Sequence[str], *, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> list[list[Document]]:
        """
        Find the documents closest to each of several queries, which are encoded and searched together.

        :param queries: Queries; an empty one finds nothing.
        :param filters: As for `run`.
        :param top_k: As for `run`.
        :returns: For each query its documents with scores, best first.
        """
        top_k = self.top_k if top_k is None else top_k
        check_top_k(top_k, least=0)
        results: list[list[Document]] = [[] for _ in queries]
        rows = [row for row, query in enumerate(queries) if query.strip()]
        if not rows or top_k == 0:
            return results
        with self._serial:
            loaded = self._engine()
            prefix = loaded.encoder.prompt("query") if self.query_prefix is None else self.query_prefix
            texts = [queries[row] + self.query_suffix for row in rows]
            vectors_QE = loaded.encoder.encode(texts, prefix=prefix, batch_size=self.batch_size, kind="queries")
        hits = self.document_store.vector_search(
            vectors_QE,
            index=self.index,
            top_k=top_k,
            filters=effective_filters(self.filter_policy, self.filters, filters),
            similarity=self.similarity,
            model_fingerprint=loaded.documents,
        )
        for row, found in zip(rows, hits, strict=True):
            results[row] = self.document_store.scored_documents(found)
        return results

    def _load(self) -> _Loaded:
        from gr_components.models.text_encoder import load_text_encoder, text_encoder_fingerprint

        encoder = load_text_encoder(
            self.model,
            backend=self.backend,
            pooling=self.pooling,
            max_length=self.max_length,
            **load_arguments(self),
        )
        documents = encoder.fingerprint
        if self.document_model is not None:
            documents = text_encoder_fingerprint(
                self.document_model,
                pooling=self.pooling,
                revision=self.document_revision,
                token=token_value(self.token),
                local_files_only=self.local_files_only,
            )
        self._warn_of_lag()
        return _Loaded(encoder, documents)

    def _warn_of_lag(self) -> None:
        lag = next((state.lag for state in self.document_store.indexes() if state.name == self.index), 0)
        if lag:
            logger.warning(
                "The index {index} lacks the vectors of {lag} document(s), which cannot be found. Run `gr index` or "
                "DenseIndexer.",
                index=self.index,
                lag=lag,
            )

    def _release(self, engine: _Loaded) -> None:
        engine.encoder.close()
        self.document_store.close()


def check_similarity(similarity: str) -> Similarity:
    """
    Check the name of a similarity.

    :param similarity: The setting.
    :raises ConfigError: If it is unknown.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    return cast(Similarity, similarity)
