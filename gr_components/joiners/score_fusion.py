"""ScoreFusionJoiner: joins the results of several retrievers and keeps what each one knows of a document."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from haystack import Document, component
from haystack.core.component.types import Variadic

from gr_components.errors import ConfigError, NumericsError
from gr_components.lifecycle import Lifecycle
from gr_components.models.checks import check_choice, check_number
from gr_components.settings import Serializable, check_top_k

JoinMode = Literal["distribution_based_rank_fusion", "reciprocal_rank_fusion"]
Combination = Literal["max", "sum", "mean"]
Value = TypeVar("Value")

_DEVIATIONS = 3.0  # a list's scores are rescaled so that mean - 3 deviations is 0 and mean + 3 deviations is 1
_MIDDLE = 0.5
_RANK = 61.0  # 60 as in the paper, and ranks count from 0 here


class _Copy(NamedTuple):
    """One list's copy of a document, with its score on the common scale and the weight of its list."""

    document: Document
    score: float
    weight: float


Fusion = Callable[[Sequence[Sequence[Document]]], list[Document]]


@component
class ScoreFusionJoiner(Serializable, Lifecycle[Fusion]):
    """
    Joins ranked lists of several retrievers into one, as Haystack's `DocumentJoiner` does in its modes of these names.

    With `distribution_based_rank_fusion` the scores of each list are rescaled, mean - 3 standard deviations to 0 and
    mean + 3 standard deviations to 1, and the copies of a document are combined by `combine`. With
    `reciprocal_rank_fusion` (https://doi.org/10.1145/1571941.1572114) only ranks count.

    What differs from Haystack's component: a document that several retrievers found has the metadata of all its copies,
    those of the best copy first, so that `meta["identifiers"]` of a generative retriever is never lost. A list with one
    document, or with equal scores only, says nothing about how good its documents are: they get the middle, 0.5, and
    not their raw scores, which would win over everything. A document twice in one list counts once. One without a score
    counts as the last of its list.

    ```python
    from haystack import Document
    from gr_components.joiners.score_fusion import ScoreFusionJoiner

    words = [Document(id="1", content="a", score=12.0), Document(id="2", content="b", score=7.5)]
    keys = [Document(id="2", content="b", score=150.0, meta={"identifiers": []}), Document(id="3", score=90.0)]
    print(ScoreFusionJoiner().run(documents=[words, keys])["documents"])
    ```
    """

    def __init__(
        self,
        *,
        join_mode: JoinMode = "distribution_based_rank_fusion",
        combine: Combination = "max",
        weights: list[float] | None = None,
        calibrated: list[bool] | None = None,
        top_k: int | None = None,
    ) -> None:
        """
        Store the settings.

        :param join_mode: `distribution_based_rank_fusion` or `reciprocal_rank_fusion`.
        :param combine: How rescaled scores of a document's copies make its score: `max`, the largest; `sum`, their
            weighted sum, to which a list without the document adds nothing; `mean`, their weighted mean. Reciprocal
            ranks are always added up.
        :param weights: One weight per list, in the order of the connections, at least 0 and not all 0; None for equal
            weights. Only their ratios matter. Not with `combine="max"` of rescaled scores.
        :param calibrated: For each list, in the same order, whether its scores are probabilities and taken as they are
            instead of rescaled, such as those of a `GenerativeRetriever` with `scale_score`; None for no list. Without
            effect on reciprocal ranks.
        :param top_k: Most documents to return; None for all.
        :raises ConfigError: If a setting is unknown or out of range.
        """
        self.join_mode = join_mode
        self.combine = combine
        self.weights = weights
        self.calibrated = calibrated
        self.top_k = top_k
        check_choice("join_mode", join_mode, get_args(JoinMode))
        check_choice("combine", combine, get_args(Combination))
        _check_weights(weights, needless=join_mode == "distribution_based_rank_fusion" and combine == "max")
        known = isinstance(calibrated, list) and all(isinstance(each, bool) for each in calibrated)
        if calibrated is not None and not known:
            msg = f"calibrated must be a list of true and false, got {calibrated!r}."
            raise ConfigError(msg)
        if top_k is not None:
            check_top_k(top_k, least=1)
        self._start_lifecycle()

    @component.output_types(documents=list[Document])
    def run(self, documents: Variadic[list[Document]], top_k: int | None = None) -> dict[str, list[Document]]:
        """
        Join lists.

        :param documents: Lists of documents, each best first.
        :param top_k: Most documents to return, 0 for none; None for the configured number.
        :returns: `documents`, each id once, best first; equal scores keep the order of the lists.
        :raises ConfigError: If `top_k` is negative, or there are not as many lists as `weights` or `calibrated` has.
        :raises NumericsError: If a score is NaN or infinite, or one of a calibrated list is no probability.
        """
        top_k = self.top_k if top_k is None else top_k
        if top_k is not None:
            check_top_k(top_k, least=0)
        joined = self._engine()([_distinct(found) for found in documents])
        return {"documents": sorted(joined, key=lambda document: -(document.score or 0.0))[:top_k]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, documents: Variadic[list[Document]], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """
        Join lists; as `run`.

        :param documents: Lists of documents, each best first.
        :param top_k: Most documents to return.
        :returns: `documents`, best first.
        """
        return await self._in_thread(self.run, documents, top_k)

    def _load(self) -> Fusion:
        return self._by_rank if self.join_mode == "reciprocal_rank_fusion" else self._by_score

    def _by_score(self, lists: Sequence[Sequence[Document]]) -> list[Document]:
        combine = {"max": _largest, "sum": _sum, "mean": _mean}[self.combine]
        weights = self._weights(len(lists))
        as_they_are = self._per_list("calibrated", self.calibrated, len(lists)) or [False] * len(lists)
        scores = [
            _probabilities(found) if known else _rescaled(found)
            for found, known in zip(lists, as_they_are, strict=True)
        ]
        return [_merged(copies, combine(copies)) for copies in _copies(lists, scores, weights)]

    def _by_rank(self, lists: Sequence[Sequence[Document]]) -> list[Document]:
        weights = self._weights(len(lists))
        scores = [[_RANK / (_RANK + rank) for rank in range(len(found))] for found in lists]
        return [_merged(copies, _sum(copies)) for copies in _copies(lists, scores, weights)]

    def _weights(self, number: int) -> list[float]:
        """Return a weight for each of `number` lists; they add up to 1."""
        weights = self._per_list("weights", self.weights, number)
        if weights is None:
            return [1.0 / number] * number if number else []
        return [weight / sum(weights) for weight in weights]

    @staticmethod
    def _per_list(name: str, values: list[Value] | None, number: int) -> list[Value] | None:
        """Check that a setting has one value for each of `number` lists."""
        if values is not None and len(values) != number and number:
            msg = f"{name} has {len(values)} entries for {number} lists of documents; give one for each list."
            raise ConfigError(msg)
        return values if number else None


def _check_weights(weights: list[float] | None, *, needless: bool) -> None:
    if weights is None:
        return
    if needless:
        msg = "weights have no effect with combine='max'. Set combine to 'sum' or 'mean', or leave weights out."
        raise ConfigError(msg)
    if not isinstance(weights, list):
        msg = f"weights must be a list of numbers, got {weights!r}."
        raise ConfigError(msg)
    for weight in weights:
        check_number("Each of weights", weight, least=0)
    if not any(weights):
        msg = f"weights must not all be 0, got {weights}."
        raise ConfigError(msg)


def _distinct(documents: Sequence[Document]) -> list[Document]:
    """Keep, of documents with one id, the one with the highest score."""
    best: dict[str, Document] = {}
    for document in documents:
        if document.score is not None and not math.isfinite(document.score):
            msg = f"Document '{document.id}' has the score {document.score}, which cannot be joined with others."
            raise NumericsError(msg)
        known = best.get(document.id)
        if known is None or _score(document) > _score(known):
            best[document.id] = document
    return list(best.values())


def _score(document: Document) -> float:
    return -math.inf if document.score is None else document.score


def _rescaled(documents: Sequence[Document]) -> list[float]:
    known = [document.score for document in documents if document.score is not None]
    if not known or min(known) == max(known):
        return [_MIDDLE] * len(documents)
    scores = [min(known) if document.score is None else document.score for document in documents]
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    lowest = mean - _DEVIATIONS * deviation
    if deviation == 0.0:  # scores so close that their squared differences vanish
        return [_MIDDLE] * len(scores)
    return [(score - lowest) / (2 * _DEVIATIONS * deviation) for score in scores]


def _probabilities(documents: Sequence[Document]) -> list[float]:
    for document in documents:
        if document.score is None or not 0.0 <= document.score <= 1.0:
            msg = (
                f"Document '{document.id}' has the score {document.score} in a list that is said to be calibrated. Set "
                "scale_score on the component that gives the list, or calibrated to false for it."
            )
            raise NumericsError(msg)
    return [float(document.score) for document in documents if document.score is not None]


def _copies(
    lists: Sequence[Sequence[Document]], scores: Sequence[Sequence[float]], weights: Sequence[float]
) -> list[list[_Copy]]:
    """Collect the copies of each document, in the order in which documents first occur."""
    found: dict[str, list[_Copy]] = {}
    for documents, own, weight in zip(lists, scores, weights, strict=True):
        for document, score in zip(documents, own, strict=True):
            found.setdefault(document.id, []).append(_Copy(document, score, weight))
    return list(found.values())


def _merged(copies: Sequence[_Copy], score: float) -> Document:
    """Return the best copy with the metadata that only others have."""
    order = sorted(copies, key=lambda copy: -copy.score)
    meta: dict[str, Any] = {}
    for copy in order:
        meta = {**copy.document.meta, **meta}
    return replace(order[0].document, meta=meta, score=score)


def _largest(copies: Sequence[_Copy]) -> float:
    return max(copy.score for copy in copies)


def _sum(copies: Sequence[_Copy]) -> float:
    return sum(copy.weight * copy.score for copy in copies)


def _mean(copies: Sequence[_Copy]) -> float:
    weight = sum(copy.weight for copy in copies)
    return _sum(copies) / weight if weight else 0.0
