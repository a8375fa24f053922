"""
Fit the calibration of a generative retriever's scores on validation questions, by maximum likelihood.

Shapes: D documents of a question's list.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gr_components.decoding.calibration import Calibration, roots
from gr_components.errors import DataError

_ROUNDS, _RIDGE = 100, 1e-9

Ranked = Sequence[tuple[str, float]]
"""Documents' ids with their scores, best first."""


def fit_calibration(
    run: Mapping[str, Ranked], relevant: Mapping[str, frozenset[str]], *, alpha: float = 2.0, depth: int = 100
) -> Calibration:
    """
    Fit slope and "none of these" of a softmax over the roots of scores.

    The target of a question is spread evenly over its relevant documents in the list, and is "none of these" where the
    list has none. As in Platt's method the targets lie slightly inside 0 and 1: "none of these" gets one part in
    (questions + 2) of each, so that lists which always hold the answer keep a finite value.

    :param run: For each question its documents, at least `depth` of them if there are so many.
    :param relevant: For each question the ids of its relevant documents.
    :param alpha: Exponent of identifiers' weights in the search.
    :param depth: How many of the best documents share the probability.
    :returns: The calibration.
    :raises DataError: If no question has a relevant and another document in its list, or if scores order them the wrong
        way round.
    """
    lists, told = [], False
    for name, ranked in run.items():
        best = ranked[:depth]
        if best:
            good_D = np.array([document in relevant.get(name, ()) for document, _ in best])
            told |= bool(good_D.any() and not good_D.all())
            lists.append((roots(np.array([score for _, score in best]), alpha), good_D))
    if not told:
        msg = f"Scores cannot be calibrated: none of {len(run)} questions has a relevant document next to another one."
        raise DataError(msg)
    spread = float(np.median([roots_D[0] for roots_D, _ in lists])) or 1.0
    features = [_features(roots_D / spread) for roots_D, _ in lists]
    targets = [_target(good_D, 1 / (len(lists) + 2)) for _, good_D in lists]
    slope, absent = _newton(features, targets)
    if slope <= 0:
        msg = f"Scores cannot be calibrated: a higher score is no better over {len(lists)} questions."
        raise DataError(msg)
    return Calibration(float(slope) / spread, float(absent), alpha, depth)


def log_loss(calibration: Calibration, run: Mapping[str, Ranked], relevant: Mapping[str, frozenset[str]]) -> float:
    """
    Return the mean negative log-probability of the right answer: a relevant document, or "none of these".

    :param calibration: What is measured.
    :param run: For each question its documents, best first.
    :param relevant: For each question the ids of its relevant documents.
    """
    losses = []
    for name, ranked in run.items():
        best, wanted = ranked[: calibration.depth], relevant.get(name, frozenset())
        chances_D = calibration.probabilities(np.array([score for _, score in best]))
        right_D = np.array([document in wanted for document, _ in best], dtype=bool)
        chance = chances_D[right_D].sum() if right_D.any() else 1.0 - chances_D.sum()
        losses.append(-np.log(max(float(chance), 1e-12)))
    return float(np.mean(losses)) if losses else 0.0


def _features(roots_D: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each place's factors of slope and "none of these"; the last place is that."""
    features = np.zeros((len(roots_D) + 1, 2))
    features[:-1, 0], features[-1, 1] = roots_D, 1.0
    return features


def _target(good_D: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.float64]:
    if not good_D.any():
        rest = np.full(len(good_D), share / len(good_D))
        return np.append(rest, 1 - share)
    return np.append((1 - share) * good_D / good_D.sum(), share)


def _newton(
    features: Sequence[npt.NDArray[np.float64]], targets: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Minimise the cross-entropy, which is convex, with halved steps where a whole one goes too far."""
    weights = np.zeros(2)
    for _ in range(_ROUNDS):
        gradient, curvature = np.zeros(2), _RIDGE * np.eye(2)
        for own, target in zip(features, targets, strict=True):
            chances = _softmax(own @ weights)
            mean = chances @ own
            gradient += mean - target @ own
            curvature += (own * chances[:, None]).T @ own - np.outer(mean, mean)
        step, before = np.linalg.solve(curvature, gradient), _loss(features, targets, weights)
        while _loss(features, targets, weights - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def _loss(
    features: Sequence[npt.NDArray[np.float64]], targets: Sequence[npt.NDArray[np.float64]],
    weights: npt.NDArray[np.float64],
) -> float:  # fmt: skip
    total = 0.0
    for own, target in zip(features, targets, strict=True):
        logits = own @ weights
        highest = float(logits.max())
        total += highest + float(np.log(np.exp(logits - highest).sum())) - float(target @ logits)
    return total


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    parts: npt.NDArray[np.float64] = np.exp(logits - logits.max())
    return parts / parts.sum()
