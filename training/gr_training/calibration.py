"""
Make the sigmoid of a ranker's score a probability (Platt, 1999): the listwise loss leaves scale and offset open.

Shapes: N scored pairs.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gr_components.errors import ModelError

_ROUNDS, _RIDGE = 100, 1e-6


def fit_platt(scores_N: npt.NDArray[np.float64], labels_N: npt.NDArray[np.float64]) -> tuple[float, float]:
    """
    Fit `sigmoid(slope * score + offset)` to labels by maximum likelihood, with Newton's method.

    The targets are Platt's: slightly inside 0 and 1, so that perfectly separated scores keep a finite slope.

    :param scores_N: Scores, any real numbers.
    :param labels_N: 1 for relevant, 0 for not.
    :returns: Slope and offset; (1, 0) where there is nothing to fit or the scores order the labels the wrong way round.
    """
    positives, negatives = float(labels_N.sum()), float(len(labels_N) - labels_N.sum())
    if not positives or not negatives or float(np.std(scores_N)) < 1e-9:
        return 1.0, 0.0
    target_N = np.where(labels_N > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    mean, spread = float(scores_N.mean()), float(scores_N.std())
    inputs_N2 = np.stack([(scores_N - mean) / spread, np.ones_like(scores_N)], axis=1)
    weights = np.array([0.0, np.log(positives / negatives)])

    def loss(candidate: npt.NDArray[np.float64]) -> float:
        logits_N = inputs_N2 @ candidate
        return float((np.logaddexp(0.0, logits_N) - target_N * logits_N).sum())

    for _ in range(_ROUNDS):
        chance_N = 1 / (1 + np.exp(-np.clip(inputs_N2 @ weights, -500, 500)))
        gradient = inputs_N2.T @ (chance_N - target_N)
        curvature = (inputs_N2 * (chance_N * (1 - chance_N))[:, None]).T @ inputs_N2 + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break
    slope = float(weights[0]) / spread
    return (slope, float(weights[1]) - slope * mean) if slope > 0 else (1.0, 0.0)


def fold(model: nn.Module, slope: float, offset: float) -> None:
    """
    Change a model's last layer so that it gives `slope * score + offset`; the order of scores stays.

    :param model: Its last linear layer has one output.
    :param slope: Above 0.
    :param offset: Any number.
    :raises ModelError: If there is no such layer.
    """
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if not heads or heads[-1].bias is None:
        msg = f"{type(model).__name__} has no last linear layer with one output and a bias: it cannot be calibrated."
        raise ModelError(msg)
    with torch.no_grad():
        heads[-1].weight.mul_(slope)
        heads[-1].bias.mul_(slope).add_(offset)
