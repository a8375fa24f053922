"""
Turn the scores of a generative search into probabilities, which other retrievers' scores can be added to.

A score is a sum over however many identifiers were found, to the power alpha; what it is worth depends on the model and
on the query's other documents. The probability that a document is the relevant one is a softmax over the roots of the
best documents' scores, with one more place for "none of these".

Shapes: D documents of a query.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gr_components.decoding.weights import Float64
from gr_components.errors import ModelError


@dataclass(frozen=True)
class Calibration:
    """
    What was fitted on validation queries (`gr_training.generative.list_calibration`): `calibration` in `gr_model.json`.

    :param slope: Multiplies the roots of scores, > 0.
    :param absent: Logit of "none of these", on the same scale.
    :param alpha: Exponent of identifiers' weights in the search that it was fitted on; the root that is taken.
    :param depth: How many of a query's best documents share the probability.
    """

    slope: float
    absent: float
    alpha: float = 2.0
    depth: int = 100

    def __post_init__(self) -> None:
        numbers = (self.slope, self.absent, self.alpha, self.depth)
        if not np.isfinite(numbers).all() or min(self.slope, self.alpha) <= 0 or self.depth < 1:
            msg = f"A calibration needs a slope and an alpha > 0, a depth >= 1 and finite numbers, got {self}."
            raise ModelError(msg)

    def probabilities(self, scores_D: Float64) -> Float64:
        """
        Return the probability of each document that it is the relevant one; their order stays.

        :param scores_D: Scores of a query's documents, best first, >= 0; at least the `depth` best where there are so
            many.
        """
        logits_D = self.slope * roots(scores_D, self.alpha)
        highest = max([self.absent, *logits_D[:1]])
        parts_D = np.exp(logits_D - highest)
        return parts_D / (parts_D[: self.depth].sum() + np.exp(self.absent - highest))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `gr_model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> "Calibration":
        """
        Read what `to_dict` returned.

        :param data: Plain values; keys that this version does not know are ignored.
        :param where: Named in errors: the model.
        :raises ModelError: If a value is missing or out of range.
        """
        try:
            return cls(float(data["slope"]), float(data["absent"]), float(data["alpha"]), int(data["depth"]))
        except (KeyError, TypeError, ValueError, OverflowError, ModelError) as error:
            msg = f"The calibration of '{where}' is damaged ({error!r}): {data!r}. Train or calibrate it again."
            raise ModelError(msg) from error


def roots(scores_D: Float64, alpha: float) -> Float64:
    """
    Return the alpha-th roots of scores, which are of first order in log-odds.

    :param scores_D: Scores; those below 0 count as 0.
    :param alpha: > 0.
    """
    return np.maximum(np.asarray(scores_D, dtype=np.float64), 0.0) ** (1.0 / alpha)
