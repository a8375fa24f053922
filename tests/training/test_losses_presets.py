"""The published constants, and that the losses' defaults are those of the published code."""

import inspect

import pytest

from gr_training.losses.margin import ltrgr_margin
from gr_training.losses.presets import PUBLISHED
from gr_training.losses.ranknet import distilled_ranknet

TABLE = [
    # method, source, margin, extra, pair weights, increment, head, lambda, length, batch
    ("ltrgr", "paper", 500, 0, (1, 1), 0, 1, 1000, 4, 8),
    ("ltrgr", "code", 300, 100, (0.5, 0.5), 0, 1, 1000, 4, 8),
    ("dgr", "code", 300, 0, (0.5, 0.5), 100, 3, 500, 6, 4),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_table(row):
    method, source, margin, extra, pair_weights, increment, head, likelihood, length, batch = row
    found = PUBLISHED[method, source]
    assert (found.margin, found.random_extra, found.pair_weights) == (margin, extra, pair_weights)
    assert (found.increment, found.head_weight) == (increment, head)
    assert (found.likelihood_factor, found.length, found.batch) == (likelihood, length, batch)
    assert (found.keys, found.hits, found.epochs) == (40, 200, 3)
    assert (found.learning_rate, found.warmup_share, found.weight_decay, found.clip) == (1e-5, 0.1, 0.0, 1.0)
    assert (found.alpha, found.beta, found.smoothing) == (2.0, 0.8, 5.0)


def test_likelihood_weights():
    assert PUBLISHED["ltrgr", "code"].likelihood_weights == (0.33, 0.33, 0.33)
    assert PUBLISHED["dgr", "code"].likelihood_weights == (0.5, 0.5, 0.0)


def test_the_table_is_complete():
    assert set(PUBLISHED) == {row[:2] for row in TABLE}


def test_defaults_are_the_published_code():
    margin = {name: p.default for name, p in inspect.signature(ltrgr_margin).parameters.items()}
    code = PUBLISHED["ltrgr", "code"]
    assert (margin["margin"], margin["random_extra"], margin["weights"]) == (
        code.margin, code.random_extra, code.pair_weights,
    )  # fmt: skip
    ranknet = {name: p.default for name, p in inspect.signature(distilled_ranknet).parameters.items()}
    code = PUBLISHED["dgr", "code"]
    assert (ranknet["margin"], ranknet["increment"], ranknet["head_weight"]) == (
        code.margin, code.increment, code.head_weight,
    )  # fmt: skip
    assert ranknet["position_weights"] is True
