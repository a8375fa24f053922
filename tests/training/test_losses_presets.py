"""The published constants, and that the losses' defaults are those of the published code."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import gr_training
from gr_training.config import load_raw, parse
from gr_training.generative.ranking_loss import LossConfig, ranking_loss
from gr_training.losses.margin import ltrgr_margin, pick
from gr_training.losses.presets import PUBLISHED
from gr_training.losses.ranknet import distilled_ranknet
from gr_training.recipes import recipe_module

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


@pytest.mark.parametrize("method", ["ltrgr", "dgr"])
def test_the_base_recipes_have_them(method):
    published = PUBLISHED[method, "code"]
    path = Path(gr_training.__file__).parents[1] / "configs" / "base" / f"{method}.yaml"
    config = parse(recipe_module(method, method).Config, load_raw(path), method)
    rank, fit = config.rank, config.rank.fit
    assert (rank.loss.kind, rank.loss.scale, rank.loss.query_view) == (method, "raw", "plain")
    assert (rank.loss.margin, rank.loss.alpha) == (published.margin, published.alpha)
    extra = (rank.loss.random_extra, published.random_extra) if method == "ltrgr" else (
        rank.loss.increment, published.increment)  # fmt: skip
    assert extra[0] == extra[1]
    assert (rank.lists.length, rank.lists.keys, rank.lists.violating) == (published.length, 40, published.margin)
    assert rank.likelihood_weight == published.likelihood_factor
    shares = np.array([rank.pairs.body, rank.pairs.title, rank.pairs.query])
    assert np.allclose(shares / shares.sum(), published.likelihood_weights, atol=0.01)
    assert (fit.learning_rate, fit.weight_decay, fit.clip) == (
        published.learning_rate, published.weight_decay, published.clip,
    )  # fmt: skip
    assert fit.warmup == published.warmup_share * fit.steps
    assert rank.questions_per_step % (8 if method == "dgr" else 8 * published.batch) == 0, "eight processes share it"
    assert config.mine.top_k == published.hits
    assert config.search["smoothing"] == published.smoothing


@pytest.mark.parametrize("source", ["code", "paper"])
def test_recipes_can_have_the_constants_of_ltrgr(source):
    published = PUBLISHED["ltrgr", source]
    config = parse(LossConfig, {"kind": "ltrgr", "margin": published.margin, "random_extra": published.random_extra,
                                "pair_weights": list(published.pair_weights)}, source)  # fmt: skip
    scores_BD = torch.tensor([[10.0, 400.0, 350.0, 90.0]])
    labels_BD, mask_BD = torch.tensor([[1, 0, 1, 0]]), torch.ones(1, 4, dtype=torch.bool)
    picks = pick(scores_BD, labels_BD, mask_BD, torch.zeros(1, 2))
    wanted = ltrgr_margin(
        scores_BD, labels_BD, mask_BD, picks, margin=published.margin, random_extra=published.random_extra,
        weights=published.pair_weights,
    )  # fmt: skip
    found = ranking_loss(config, scores_BD, scores_BD, labels_BD, torch.zeros(1, 4), mask_BD, torch.zeros(1, 2))
    assert found.tolist() == wanted.tolist() != [0.0]


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
