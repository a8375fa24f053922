"""Scores of a ranker become probabilities."""

import numpy as np
import pytest
import torch
from torch import nn

from gr_components.errors import ModelError
from gr_training.calibration import fit_platt, fold


def test_the_true_slope_and_offset_are_found():
    random = np.random.default_rng(0)
    scores = random.normal(loc=20, scale=5, size=200_000)
    chances = 1 / (1 + np.exp(-(0.7 * scores - 16)))
    slope, offset = fit_platt(scores, (random.random(len(scores)) < chances).astype(np.float64))
    assert slope == pytest.approx(0.7, rel=0.02)
    assert offset == pytest.approx(-16, rel=0.02)


def test_mean_probability_is_the_share_of_relevant_ones_and_separated_scores_stay_finite():
    scores = np.concatenate([np.full(50, 3.0), np.full(950, -300.0)])
    labels = np.concatenate([np.ones(50), np.zeros(950)])
    slope, offset = fit_platt(scores, labels)
    assert 0 < slope < np.inf
    chances = 1 / (1 + np.exp(-(slope * scores + offset)))
    assert chances.mean() == pytest.approx(0.05, abs=0.002)
    assert chances[0] > 0.95 > 0.01 > chances[-1]


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [0.0, 0.0]), ([1.0, 1.0], [0.0, 1.0]), ([5.0, 4.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]), ([], [])],
)
def test_where_nothing_can_be_fitted_scores_stay(scores, labels):
    assert fit_platt(np.array(scores, dtype=np.float64), np.array(labels)) == (1.0, 0.0)


def test_folding_changes_the_last_layer_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.randn(5, 4)
    before, first = model(inputs), model[0].weight.clone()
    fold(model, 2.0, -3.0)
    assert torch.allclose(model(inputs), 2 * before - 3, atol=1e-6)
    assert torch.equal(model[0].weight, first)
    with pytest.raises(ModelError, match="no last linear layer with one output"):
        fold(nn.Linear(4, 8), 1.0, 0.0)
