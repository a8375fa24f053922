"""CrossEncoderRanker: sorts documents by a model that reads query and document together."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from haystack import Document, component, logging
from haystack.utils import ComponentDevice, Secret

from gr_components.lifecycle import Lifecycle
from gr_components.models.checks import check_number
from gr_components.progress import reporter
from gr_components.settings import (
    Serializable,
    check_model_settings,
    check_top_k,
    document_text,
    load_arguments,
)

if TYPE_CHECKING:
    from gr_components.models.pair_scorer import PairScorer

logger = logging.getLogger(__name__)


@component
class CrossEncoderRanker(Serializable, Lifecycle["PairScorer"]):
    """
    Ranks documents by a cross-encoder (https://arxiv.org/abs/1901.04085): any sequence-classification model.

    The model's score of a pair is its logit; models with two classes give the log-odds of the second one, models with
    more those of `label`. `scale_score` applies the sigmoid, which makes it the probability that
    `sentence_transformers.CrossEncoder.predict` gives for models with one class.

    `retrieval_weight` w > 0 mixes in the scores that the documents come with: the logits and the incoming scores are
    each standardised over the candidates (mean 0, standard deviation 1), and the final score is
    (1 - w) * logit + w * incoming score. `scale_score` then applies the sigmoid to that.

    ```python
    from haystack import Document
    from gr_components.rankers.cross_encoder import CrossEncoderRanker

    ranker = CrossEncoderRanker(model="package:gr_pipelines/models/ranker", top_k=2)
    documents = [Document(content="Lyon is in France."), Document(content="Paris is the capital of France.")]
    print(ranker.run(query="What is the capital of France?", documents=documents)["documents"][0].content)
    ```
    """

    def __init__(
        self,
        model: str,
        *,
        top_k: int = 10,
        scale_score: bool = True,
        score_threshold: float | None = None,
        retrieval_weight: float = 0.0,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = " ",
        label: int | str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        progress_bar: bool = False,
        backend: Literal["torch", "onnx"] = "torch",
        device: ComponentDevice | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Store the settings; the model is loaded by `warm_up` or the first `run`.

        :param model: A local folder, `package:NAME/FOLDER` or a Hugging Face name.
        :param top_k: Most documents that are returned.
        :param scale_score: Whether scores are mapped to 0..1 by the sigmoid.
        :param score_threshold: Documents with a lower final score are dropped; None keeps all.
        :param retrieval_weight: Share of the incoming scores in the final score, 0..1.
        :param query_prefix: Put in front of the query.
        :param query_suffix: Put behind the query.
        :param document_prefix: Put in front of each document's text.
        :param document_suffix: Put behind each document's text.
        :param meta_fields_to_embed: Metadata fields that are read in front of the content; None for `["title"]`.
        :param embedding_separator: Put between these fields and the content.
        :param label: Number or name of the class that means "relevant", for models with three classes or more.
        :param max_length: Largest number of tokens of a pair; None for the model's own limit. Of longer pairs, the
            longer text is cut.
        :param batch_size: Pairs per batch, sorted by length; halved when memory runs out.
        :param progress_bar: Whether progress is shown on standard error.
        :param backend: `torch`, or `onnx` for a folder made by `gr export`.
        :param device: Where the model runs; None for the best device there is.
        :param dtype: `float32`, `float16` or `bfloat16`.
        :param revision: Branch, tag or commit on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :param model_kwargs: Passed to `from_pretrained`; with `onnx`, attributes of `SessionOptions`.
        :raises ConfigError: If a number is out of range.
        """
        self.model = str(model)
        self.top_k = top_k
        self.scale_score = scale_score
        self.score_threshold = score_threshold
        self.retrieval_weight = retrieval_weight
        self.query_prefix = query_prefix
        self.query_suffix = query_suffix
        self.document_prefix = document_prefix
        self.document_suffix = document_suffix
        self.meta_fields_to_embed = ["title"] if meta_fields_to_embed is None else list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.label = label
        self.max_length = max_length
        self.batch_size = batch_size
        self.progress_bar = progress_bar
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.token = token
        self.local_files_only = local_files_only
        self.model_kwargs = model_kwargs
        check_top_k(top_k, least=1)
        _check_scoring(retrieval_weight, score_threshold)
        check_model_settings(batch_size=batch_size, dtype=dtype, backend=backend, max_length=max_length)
        self._start_lifecycle()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        retrieval_weight: float | None = None,
    ) -> dict[str, list[Document]]:
        """
        Rank documents. None means as configured.

        :param query: The query.
        :param documents: Candidates; of several with one id, the one with the highest score is kept. Documents without
            content are ranked by their metadata, or by an empty text.
        :param top_k: Most documents that are returned; 0 returns none.
        :param scale_score: Whether scores are mapped to 0..1 by the sigmoid.
        :param score_threshold: Documents with a lower final score are dropped.
        :param retrieval_weight: Share of the incoming scores in the final score, 0..1.
        :returns: `documents`, best first, with their final scores; equal scores keep their order.
        :raises ConfigError: If a number is out of range.
        :raises NumericsError: If the model gives NaN or infinity.
        """
        top_k = self.top_k if top_k is None else top_k
        scale_score = self.scale_score if scale_score is None else scale_score
        score_threshold = self.score_threshold if score_threshold is None else score_threshold
        weight = self.retrieval_weight if retrieval_weight is None else retrieval_weight
        check_top_k(top_k, least=0)
        _check_scoring(weight, score_threshold)
        candidates = _deduplicated(documents)
        if not candidates or top_k == 0:
            return {"documents": []}
        scores_D = self._score(query, candidates)
        if weight > 0:
            scores_D = _mixed(scores_D, np.array([_incoming(document) for document in candidates]), weight)
        order = np.argsort(-scores_D, kind="stable")[:top_k]
        final = [float(score) for score in (_sigmoid(scores_D[order]) if scale_score else scores_D[order])]
        least = -np.inf if score_threshold is None else score_threshold
        ranked = zip(order, final, strict=True)
        return {"documents": [replace(candidates[row], score=score) for row, score in ranked if score >= least]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        retrieval_weight: float | None = None,
    ) -> dict[str, list[Document]]:
        """
        Rank documents without blocking the event loop; otherwise as `run`.

        :param query: The query.
        :param documents: Candidates.
        :param top_k: Most documents that are returned.
        :param scale_score: Whether scores are mapped to 0..1 by the sigmoid.
        :param score_threshold: Documents with a lower final score are dropped.
        :param retrieval_weight: Share of the incoming scores in the final score.
        :returns: `documents`, best first.
        """
        return await self._in_thread(self.run, query, documents, top_k, scale_score, score_threshold, retrieval_weight)

    def _score(self, query: str, documents: list[Document]) -> npt.NDArray[np.float64]:
        query = self.query_prefix + query + self.query_suffix
        texts = [document_text(d, self.meta_fields_to_embed, self.embedding_separator) for d in documents]
        pairs = [(query, self.document_prefix + text + self.document_suffix) for text in texts]
        with self._serial:
            scorer = self._engine()
            scores_D = scorer.score(pairs, batch_size=self.batch_size, report=reporter(self.progress_bar))
        return scores_D.astype(np.float64)

    def _load(self) -> "PairScorer":
        from gr_components.models.pair_scorer import load_pair_scorer

        return load_pair_scorer(
            self.model,
            backend=self.backend,
            label=self.label,
            max_length=self.max_length,
            **load_arguments(self),
        )

    def _release(self, engine: "PairScorer") -> None:
        engine.close()


def _check_scoring(weight: float, threshold: float | None) -> None:
    check_number("retrieval_weight", weight, least=0, most=1)
    if threshold is not None:
        check_number("score_threshold", threshold)


def _deduplicated(documents: list[Document]) -> list[Document]:
    """Keep, of documents with one id, the one with the highest score, at the place of the first."""
    best: dict[str, Document] = {}
    for document in documents:
        known = best.get(document.id)
        if known is None or _incoming(document) > _incoming(known):
            best[document.id] = document
    return list(best.values())


def _incoming(document: Document) -> float:
    """Return the score that a document comes with; none at all, and NaN, count as the lowest possible."""
    return -np.inf if document.score is None or np.isnan(document.score) else document.score


def _mixed(
    scores_D: npt.NDArray[np.float64], incoming_D: npt.NDArray[np.float64], weight: float
) -> npt.NDArray[np.float64]:
    known_D = np.isfinite(incoming_D)
    if not known_D.any():
        logger.warning("retrieval_weight is {weight}, but the documents have no scores.", weight=weight)
    lowest = incoming_D[known_D].min() if known_D.any() else 0.0
    filled_D = np.where(known_D, incoming_D, lowest)  # a document without a score is no better than the worst
    return (1 - weight) * _standardised(scores_D) + weight * _standardised(filled_D)


def _standardised(scores_D: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    deviation = scores_D.std()
    centred_D = scores_D - scores_D.mean()
    return centred_D / deviation if deviation > 0 else centred_D * 0.0


def _sigmoid(scores_D: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -scores_D))
