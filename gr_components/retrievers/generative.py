"""`GenerativeRetriever`: a model writes identifiers that occur in the documents; they find and score the documents."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

from haystack import Document, component, logging
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice, Secret

from gr_components.decoding.config import SearchConfig
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ConfigError
from gr_components.extras import need
from gr_components.lifecycle import Lifecycle
from gr_components.settings import (
    Serializable,
    check_model_settings,
    check_store,
    check_top_k,
    effective_filters,
    filter_policy_of,
    load_arguments,
)

if TYPE_CHECKING:
    from gr_components.decoding.engine import GenerativeEngine
    from gr_components.decoding.results import Hit
    from gr_components.document_stores.local_suffix import SuffixSnapshot

logger = logging.getLogger(__name__)

_PRESETS: dict[str, Callable[..., SearchConfig]] = {
    "default": SearchConfig,
    "seal": SearchConfig.seal,
    "minder": SearchConfig.minder,
}


@component
class GenerativeRetriever(Serializable, Lifecycle["GenerativeEngine"]):
    """
    Generative retrieval over a local store, as in SEAL (https://arxiv.org/abs/2204.10628) and MINDER (2305.16675).

    An encoder-decoder reads the query and writes *identifiers*: n-grams of passages, titles, pseudo-queries. Beam
    search over the store's generative index lets it write only what occurs in the documents that the filters allow. A
    document's score is made of the identifiers that it contains; `meta["identifiers"]` lists them, largest
    contribution first, each with `text`, `view`, `log_probability`, `count` and `contribution`.

    The index is built by `gr index` or an indexing pipeline. When documents were written since, the hits carry
    `meta["index_lag"]`, the number of documents that the index lacks.

    ```python
    from gr_components.document_stores.local import LocalDocumentStore
    from gr_components.retrievers.generative import GenerativeRetriever

    retriever = GenerativeRetriever(LocalDocumentStore("my_store"), "package:gr_pipelines/models/generator")
    for document in retriever.run(query="Who wrote the first program?")["documents"]:
        print(document.score, document.meta["identifiers"][0]["text"])
    ```
    """

    def __init__(
        self,
        document_store: LocalDocumentStore,
        model: str,
        *,
        index: str = "generative",
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
        preset: Literal["default", "seal", "minder"] = "default",
        beams: int | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        views: list[str] | None = None,
        search_settings: dict[str, Any] | None = None,
        scale_score: bool = False,
        batch_size: int = 16,
        backend: Literal["torch"] = "torch",
        device: ComponentDevice | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Store the settings; the model is loaded by `warm_up` or the first `run`.

        :param document_store: Where the documents and the index are.
        :param model: A local folder, `package:NAME/FOLDER` or a Hugging Face name of an encoder-decoder. A model
            without `gr_model.json` must write identifiers as SEAL's BART does.
        :param index: Name of the generative index; built with this model's tokenizer.
        :param top_k: Most documents to return; at least 1.
        :param filters: Haystack filters. Only identifiers that occur in matching documents are written at all.
        :param filter_policy: Whether filters given to `run` replace the configured ones or are merged with them.
        :param preset: Where settings start from: `default` (for small models) or the published `seal` and `minder`.
        :param beams: Beam width; None for the preset's.
        :param alpha: Exponent of an identifier's weight; None for the preset's.
        :param beta: How much an identifier loses whose tokens are used already, 0..1; None for the preset's.
        :param views: Names of the views to write, such as `["body", "title"]`; None for the preset's.
        :param search_settings: Further settings by their names in `gr_components.decoding.config.SearchConfig`.
        :param scale_score: Whether scores are mapped to 0..1: the probability that a document is the relevant one, by
            the calibration that is stored with the model. It was fitted for the settings that the model was validated
            with; the order of the documents stays the same.
        :param batch_size: Queries decoded together by `retrieve`; halved when memory runs out.
        :param backend: `torch`.
        :param device: Where the model runs; None for the best device there is.
        :param dtype: `float32`, `float16` or `bfloat16`.
        :param revision: Branch, tag or commit on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :param model_kwargs: Passed to `from_pretrained` of plain Hugging Face models.
        :raises ConfigError: If a setting is unknown or out of range.
        """
        check_top_k(top_k, least=1)
        check_model_settings(batch_size=batch_size, dtype=dtype)
        if backend != "torch":
            msg = f"backend must be 'torch' for generative models, got {backend!r}."
            raise ConfigError(msg)
        self.document_store = check_store(document_store)
        self.model = str(model)
        self.index = index
        self.top_k = top_k
        self.filters = filters
        self.filter_policy = filter_policy_of(filter_policy)
        self.preset = preset
        self.beams = beams
        self.alpha = alpha
        self.beta = beta
        self.views = views
        self.search_settings = search_settings
        self.scale_score = scale_score
        self.batch_size = batch_size
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.token = token
        self.local_files_only = local_files_only
        self.model_kwargs = model_kwargs
        self._config = _search_config(
            preset, {"beams": beams, "alpha": alpha, "beta": beta, "views": views}, search_settings
        )
        self._reported_lag = 0
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
        Find documents. None means as configured.

        :param query: Any text; an empty one finds nothing. Of one that is longer than the model reads, the end is left
            out, which the first time is a warning.
        :param filters: Haystack filters.
        :param top_k: Most documents to return; 0 returns none.
        :param scale_score: Whether scores are mapped to 0..1.
        :returns: `documents` with scores and `meta["identifiers"]`, best first.
        :raises ConfigError: If `top_k` is negative, or scores are to be mapped that have another `alpha` than those of
            the model's calibration.
        :raises FilterError: If the filters are malformed.
        :raises IndexMissingError: If the store has documents but no such index.
        :raises TokenizerMismatchError: If the index was built with another tokenizer or grammar.
        :raises NumericsError: If the model gives NaN.
        :raises ModelError: If memory does not suffice for one query, or scores are to be mapped and the model has no
            calibration.
        """
        return {"documents": self.retrieve([query], filters=filters, top_k=top_k, scale_score=scale_score)[0]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
    ) -> dict[str, list[Document]]:
        """
        Find documents without blocking the event loop; otherwise as `run`.

        :param query: Any text.
        :param filters: Haystack filters.
        :param top_k: Most documents to return.
        :param scale_score: Whether scores are mapped to 0..1.
        :returns: `documents`, best first.
        """
        return await self._in_thread(self.run, query, filters, top_k, scale_score)

    def retrieve(
        self,
        queries: Sequence[str],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
    ) -> list[list[Document]]:
        """
        Find documents for several queries, decoded together. Parameters and errors are those of `run`.

        :param queries: Texts.
        :param filters: Haystack filters.
        :param top_k: Most documents to return for each query.
        :param scale_score: Whether scores are mapped to 0..1.
        :returns: For each query what `run` gives for it.
        """
        top_k = self.top_k if top_k is None else top_k
        scale_score = self.scale_score if scale_score is None else scale_score
        check_top_k(top_k, least=0)
        numbers = self.document_store.allowed_numbers(effective_filters(self.filter_policy, self.filters, filters))
        with self._serial:
            engine = self._engine()
            snapshot = self.document_store.suffix_index(self.index)
            self._report_lag(snapshot)
            engine.check(snapshot.index, snapshot.config.get("grammar"))
            allowed = snapshot.index.document_set(numbers)
            results = engine.search(queries, snapshot.index, top_k=top_k, allowed=allowed, scale_score=scale_score)
        return [self._documents(result.hits, snapshot.lag) for result in results]

    def _documents(self, hits: "Sequence[Hit]", lag: int) -> list[Document]:
        documents = []
        found = self.document_store.scored_documents([(hit.number, hit.score) for hit in hits])
        if len(found) < len(hits):  # some were deleted during the search: find out which
            pairs = [(hit, self.document_store.scored_documents([(hit.number, hit.score)])) for hit in hits]
            hits, found = [hit for hit, own in pairs if own], [own[0] for _, own in pairs if own]
        for hit, document in zip(hits, found, strict=True):
            meta = {**document.meta, "identifiers": [identifier.to_dict() for identifier in hit.identifiers]}
            if lag:
                meta["index_lag"] = lag
            documents.append(replace(document, meta=meta))
        return documents

    def _report_lag(self, snapshot: "SuffixSnapshot") -> None:
        if snapshot.lag and snapshot.lag != self._reported_lag:
            logger.warning(
                "The index {index} lacks {lag} documents that were written since it was built. Build it again.",
                index=self.index,
                lag=snapshot.lag,
            )
        self._reported_lag = snapshot.lag

    def _load(self) -> "GenerativeEngine":
        need("torch", "torch")
        need("numba", "generative")
        from gr_components.decoding.calibration import Calibration
        from gr_components.decoding.engine import GenerativeEngine
        from gr_components.decoding.grammar import Grammar, marker_grammar
        from gr_components.models.seq2seq.folder import load_seq2seq

        loaded = load_seq2seq(self.model, **load_arguments(self))
        described = loaded.info.get("grammar")
        grammar = marker_grammar(loaded.tokenizer) if described is None else Grammar.from_dict(described)
        stored = loaded.info.get("calibration")
        engine = GenerativeEngine(
            loaded.decoder, loaded.tokenizer, grammar, self._config, batch_size=self.batch_size,
            calibration=None if stored is None else Calibration.from_dict(stored, self.model),
        )  # fmt: skip
        if self.scale_score:
            engine.needed_calibration()  # rather now than at the first query
        return engine

    def _release(self, engine: "GenerativeEngine") -> None:
        self.document_store.close()


def _search_config(preset: str, named: dict[str, Any], settings: dict[str, Any] | None) -> SearchConfig:
    if preset not in _PRESETS:
        msg = f"preset must be one of {sorted(_PRESETS)}, got {preset!r}."
        raise ConfigError(msg)
    changes = {**(settings or {}), **{name: value for name, value in named.items() if value is not None}}
    known = [field.name for field in fields(SearchConfig)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        msg = f"search_settings has unknown names {unknown}. Known are {known}."
        raise ConfigError(msg)
    if isinstance(changes.get("views"), list):  # YAML has no tuples
        changes["views"] = tuple(changes["views"])
    return _PRESETS[preset](**changes)
