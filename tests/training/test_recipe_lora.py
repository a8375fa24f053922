"""Recipes with LoRA, on a tiny collection: what changes, exact resume, and what is saved."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr_components.decoding.grammar import Grammar
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_training.checkpoint import load_weights, weights_of
from gr_training.config import parse
from gr_training.generative.rank_stage import RankBatches
from gr_training.generative.search_validation import SearchValidation
from gr_training.lora import LoraConfig, add_lora, merge_lora
from gr_training.recipes.minder import Config as MinderConfig
from gr_training.sources import ValidationConfig, load_validation

FIT = {"steps": 8, "learning_rate": 1e-2, "precision": "float32", "ema_decay": 0.5, "validate_every": 4,
       "checkpoint_every": 1, "log_every": 1}  # fmt: skip
LORA = {"rank": 2, "alpha": 8, "pattern": "self[.](query|key)$"}
LOSS = {"kind": "ltrgr", "scale": "reference", "margin": 0.2, "random_extra": 0.1}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return weights_of(load_seq2seq(str(folder), device="cpu").model)


@pytest.fixture
def started(tmp_path: Path, tiny_encoder: Path, sources: dict[str, Any], gr_train: Any, done: Any) -> Path:
    """A generative retriever that has seen three batches."""
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    fit = {**FIT, "steps": 3, "validate_every": 0, "ema_decay": 0}
    recipe = {"recipe": "minder", "start": start, **sources, "search": {"beams": 3}, "sources_per_step": 6, "fit": fit}
    done(gr_train(tmp_path / "start", recipe))
    return tmp_path / "start" / "run" / "model"


def assert_only_adapted(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(r"self[.](query|key)[.]weight$", name)}
    assert len(changed) == 2 * 2 + 2 * 2, "two layers of the encoder, self- and cross-attention of one of the decoder"
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) == 2, name


def test_ltrgr_with_lora_killed_and_resumed(
    tmp_path: Path, started: Path, sources: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gr_train: Any, done: Any
) -> None:
    rank = {"lists": {"length": 4, "keys": 6}, "loss": LOSS, "questions_per_step": 3, "likelihood_weight": 0.5,
            "chunk": 8, "lora": LORA, "fit": FIT}  # fmt: skip
    mine = {"questions": 24, "top_k": 12, "keys": 6, "folds": 2}
    recipe = {"recipe": "ltrgr", "model": str(started), **sources, "search": {"beams": 3}, "mine": mine, "rank": rank}
    done(gr_train(tmp_path / "whole", recipe))
    make = RankBatches.make

    def killed(self: RankBatches, turn: Any) -> dict[str, Any]:
        if turn.step == 6:
            raise KeyboardInterrupt
        return make(self, turn)

    monkeypatch.setattr(RankBatches, "make", killed)
    assert isinstance(gr_train(tmp_path / "killed", recipe).exception, SystemExit)  # what click makes of it
    monkeypatch.setattr(RankBatches, "make", make)
    stage = tmp_path / "killed" / "run" / "rank-1"
    assert not (stage / "model").exists()
    assert (stage / "checkpoints" / "step-00000006").is_dir()
    done(gr_train(tmp_path / "killed", recipe, "--resume"))
    best = [next((tmp_path / name / "run" / "rank-1").glob("best-*.safetensors")) for name in ("whole", "killed")]
    first, second = map(load_weights, best)
    assert any(name.endswith("lora_up") and tensor.any() for name, tensor in first.items())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    found = [weights(tmp_path / name / "run" / "model") for name in ("whole", "killed")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert_only_adapted(weights(started), found[0])


def test_minder_with_lora_and_int8(
    tmp_path: Path, started: Path, sources: dict[str, Any], gr_train: Any, done: Any
) -> None:
    start = {"model": str(started), "lora": LORA}
    recipe = {"recipe": "minder", "start": start, **sources, "search": {"beams": 3}, "sources_per_step": 6, "fit": FIT}
    done(gr_train(tmp_path / "full", recipe))
    done(gr_train(tmp_path / "small", {**recipe, "weights": "int8"}))
    full, small = (weights(tmp_path / name / "run" / "model") for name in ("full", "small"))
    assert_only_adapted(weights(started), full)
    for name, tensor in small.items():
        assert torch.allclose(tensor, full[name], atol=0.01 * full[name].abs().max().item() + 1e-3), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_validation_searches_with_the_matrices(
    tmp_path: Path, started: Path, sources: dict[str, Any], precision: Any
) -> None:
    loaded = load_seq2seq(str(started), device="cpu")
    validation = load_validation(parse(ValidationConfig, {**sources["validation"], "sample": 12}, "x"))
    grammar = Grammar.from_dict(loaded.info["grammar"])
    searching = SearchValidation(validation, {}, loaded.tokenizer, grammar, {"beams": 3}, tmp_path, precision)
    plain = searching.evaluate(loaded.model)
    torch.manual_seed(3)
    add_lora(loaded.model, rank=4, alpha=64)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(parameter)
    merged = copy.deepcopy(loaded.model)
    assert merge_lora(merged)
    found = searching.evaluate(loaded.model)
    assert found != plain, "the matrices were not there"
    assert found == pytest.approx(searching.evaluate(merged), abs=0.1 if precision == "bfloat16" else 1e-6)


def test_recipes_that_cannot_run(tiny_encoder: Path, sources: dict[str, Any]) -> None:
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1}, "lora": {}}
    with pytest.raises(ConfigError, match="lora changes trained weights"):
        parse(MinderConfig, {"start": start, **sources, "fit": {"steps": 1}}, "x")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        parse(LoraConfig, {"pattern": "("}, "x")
    with pytest.raises(ConfigError, match="rank"):
        parse(LoraConfig, {"rank": 0}, "x")
