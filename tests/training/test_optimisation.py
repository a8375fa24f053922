"""Schedules, parameter groups, moving average, checkpoints."""

import json

import pytest
import torch
from torch import nn

from gr_components.errors import ConfigError, ProvenanceError
from gr_training.checkpoint import (
    latest_checkpoint,
    load_weights,
    optimiser_tensors,
    put_optimiser_tensors,
    put_weights,
    read_checkpoint,
    save_weights,
    weights_of,
    write_checkpoint,
)
from gr_training.fitting import FitConfig, GroupConfig
from gr_training.optimisation import MovingAverage, make_optimiser, rate_factor


def test_schedules_by_hand():
    linear = FitConfig(steps=10, warmup=4)
    assert [rate_factor(step, linear) for step in (0, 1, 3, 4, 7)] == [0.25, 0.5, 1.0, 1.0, 0.5]
    assert rate_factor(9, linear) == pytest.approx(1 / 6)
    constant = FitConfig(steps=10, warmup=2, schedule="constant")
    assert [rate_factor(step, constant) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    shape = FitConfig(steps=10, warmup=2, schedule="trapezoid", decay_fraction=0.4, final_factor=0.2)
    assert [rate_factor(step, shape) for step in (0, 2, 5, 6, 8)] == [0.5, 1.0, 1.0, 1.0, pytest.approx(0.6)]


def test_groups_learn_at_their_own_rate_and_vectors_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].bias.requires_grad_(False)
    config = FitConfig(steps=1, learning_rate=0.1, weight_decay=0.5, groups=(GroupConfig(pattern="^1", factor=4),))
    groups = {
        parameter: (group["base_lr"], group["weight_decay"])
        for group in make_optimiser(model, config).param_groups
        for parameter in group["params"]
    }
    assert groups == {model[0].weight: (0.1, 0.5), model[1].weight: (0.4, 0.5), model[1].bias: (0.4, 0.0)}
    with pytest.raises(ConfigError, match=r"no parameter of the model matches \['\^decoder'\].*begin with: 0, 1"):
        make_optimiser(model, FitConfig(steps=1, groups=(GroupConfig(pattern="^decoder", factor=4),)))


def test_the_average_follows_the_weights_slowly():
    model = nn.Linear(2, 1)
    average = MovingAverage(weights_of(model), 0.99)
    start = {name: tensor.clone() for name, tensor in average.weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update(weights_of(model), 3)
    assert torch.equal(average.weights["weight"], start["weight"]), "works on every fourth step"
    average.update(weights_of(model), 4)
    moved = (average.weights["weight"] - start["weight"]).mean().item()
    assert moved == pytest.approx(1 - 4 / 44, abs=1e-6)
    late = MovingAverage({"weight": start["weight"]}, 0.99)
    late.update(weights_of(model), 10_000)
    assert (late.weights["weight"] - start["weight"]).mean().item() == pytest.approx(1 - 0.99**4, abs=1e-6)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path):
    model = Tied()
    own = weights_of(model)
    assert set(own) == {"embedding.weight", "count"}
    save_weights(own, tmp_path / "w.safetensors")
    other = Tied()
    put_weights(other, load_weights(tmp_path / "w.safetensors"))
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight
    with pytest.raises(ProvenanceError, match="of another model"):
        put_weights(nn.Linear(2, 2), own)


def test_checkpoints_round_trip_and_only_complete_ones_count(tmp_path):
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimiser.step()
    state = optimiser_tensors(model, optimiser)
    assert {name.split("/")[0] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step, {"model": weights_of(model), "optimiser": state}, {"note": step}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000010", "step-00000015"]
    (tmp_path / ".step-00000020.abc").mkdir()
    (tmp_path / "step-00000025").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-00000015"
    assert not (tmp_path / ".step-00000020.abc").exists()
    tensors, values = read_checkpoint(found)
    assert values["note"] == 15
    fresh = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    put_optimiser_tensors(model, fresh, tensors["optimiser"])
    again = optimiser_tensors(model, fresh)
    assert all(torch.equal(again[name], state[name]) for name in state)
    text = json.loads((found / "state.json").read_text())
    (found / "state.json").write_text(json.dumps({**text, "format": "gr.checkpoint/0"}))
    with pytest.raises(ProvenanceError, match=r"gr\.checkpoint/0"):
        read_checkpoint(found)
    assert latest_checkpoint(tmp_path / "absent") is None
