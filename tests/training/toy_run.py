"""A small regression trained with the real loop; run as a script by the tests that kill it or start two of it."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gr_training.fitting import FitConfig, GroupConfig
from gr_training.loop import LossSum, Progress, fit
from gr_training.order import Turn

NUM_EXAMPLES, BATCH = 50, 8
INPUTS_NF = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 6)).astype(np.float32)
TARGETS_N = np.tanh(INPUTS_NF @ np.arange(6, dtype=np.float32))


def toy_model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))


def make_batch(turn: Turn) -> dict[str, torch.Tensor]:
    positions = turn.positions(BATCH)
    rows = turn.rows(positions, NUM_EXAMPLES)
    noise = [turn.generator(position).normal(scale=0.01, size=6) for position in positions]
    inputs = INPUTS_NF[rows] + np.array(noise, dtype=np.float32).reshape(len(rows), 6)
    return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(TARGETS_N[rows])}


def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> LossSum:
    error_B = model(batch["inputs"])[:, 0].float() - batch["targets"]
    return LossSum(error_B.square().sum(), len(error_B))


def validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    error = model(torch.from_numpy(INPUTS_NF))[:, 0] - torch.from_numpy(TARGETS_N)
    return {"fit": -float(error.square().mean())}


def config(**changes: object) -> FitConfig:
    settings: dict[str, object] = {
        "steps": 40, "learning_rate": 1e-2, "warmup": 5, "precision": "float32", "ema_decay": 0.9,
        "validate_every": 7, "checkpoint_every": 5, "log_every": 1,
        "groups": (GroupConfig(pattern="^3[.]", factor=0.5),),
    }  # fmt: skip
    return FitConfig(**{**settings, **changes})  # type: ignore[arg-type]


def run(folder: Path, *, resume: bool = False, dropout: float = 0.1, **changes: object) -> tuple[nn.Module, Progress]:
    model = toy_model(dropout)
    progress = fit(
        model, make_batch, compute_loss, config(**changes), folder=folder, validate=validate, metric="fit",
        resume=resume, device="cpu", identity={"toy": 1},
    )  # fmt: skip
    return model, progress


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = {key: float(value) if "." in value else int(value) for key, value in (a.split("=") for a in sys.argv[2:])}
    trained, _ = run(Path(sys.argv[1]), **options)  # type: ignore[arg-type]
    torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None
