"""The training loop: exact resume, independence from how a batch is split, early stopping, and errors."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gr_components.errors import ConfigError, NumericsError, ProvenanceError
from gr_training.checkpoint import load_weights
from gr_training.loop import LossSum, fit

SCRIPT = Path(__file__).with_name("toy_run.py")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("best-*.safetensors")
    return load_weights(path)


def assert_same(first: dict, second: dict, tolerance: float = 0.0) -> None:
    assert first, "nothing to compare"
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=0, atol=tolerance), name


def events(folder: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name and not line.get("done")]


def test_a_run_learns_and_keeps_the_best_weights(toy, tmp_path):
    model, progress = toy.run(tmp_path)
    validations = events(tmp_path, "validation")
    assert [v["at"] for v in validations] == [7, 14, 21, 28, 35, 40]
    best = max(validations, key=lambda v: v["fit"])
    assert progress.best_step == best["at"]
    assert progress.best == {"fit": best["fit"]}
    with torch.no_grad():
        assert toy.validate(model.eval())["fit"] == pytest.approx(best["fit"], abs=1e-7)
    assert best["fit"] > validations[0]["fit"]
    losses = [e["loss"] for e in events(tmp_path, "train")]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_killed_and_resumed_equals_not_killed_bit_for_bit(toy, tmp_path):
    steps = {"steps": 600, "validate_every": 70}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed"), *(f"{k}={v}" for k, v in steps.items())]
    checkpoints = tmp_path / "killed" / "checkpoints"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        deadline = time.monotonic() + 240
        while not list(checkpoints.glob("step-00000[1-9]*")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    survivors = sorted(checkpoints.glob("step-*"))
    assert survivors
    assert int(survivors[-1].name.removeprefix("step-")) < 600
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, whole = toy.run(tmp_path / "whole", **steps)
        _, resumed = toy.run(tmp_path / "killed", resume=True, **steps)
    finally:
        torch.set_num_threads(threads)
    assert (resumed.step, resumed.best_step, resumed.best) == (whole.step, whole.best_step, whole.best)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    for name in ("model", "optimiser", "average"):
        file = f"checkpoints/step-00000600/{name}.safetensors"
        assert_same(load_weights(tmp_path / "whole" / file), load_weights(tmp_path / "killed" / file))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [3, 14, 23])
def test_resume_after_an_interruption_at_any_step(toy, tmp_path, monkeypatch, at):
    toy.run(tmp_path / "whole")
    whole = weights(tmp_path / "whole")
    original = toy.make_batch

    def interrupted(turn):
        if turn.step == at:
            raise Interrupted
        return original(turn)

    monkeypatch.setattr(toy, "make_batch", interrupted)
    with pytest.raises(Interrupted):
        toy.run(tmp_path / "cut")
    monkeypatch.setattr(toy, "make_batch", original)
    toy.run(tmp_path / "cut", resume=True)
    assert_same(whole, weights(tmp_path / "cut"))


def test_resuming_a_finished_run_changes_nothing(toy, tmp_path):
    _, first = toy.run(tmp_path)
    before = weights(tmp_path)
    _, second = toy.run(tmp_path, resume=True)
    assert (second.step, second.ended) == (first.step, first.ended) == (40, "steps")
    assert_same(before, weights(tmp_path))


def test_accumulation_equals_a_large_batch(toy, tmp_path, monkeypatch):
    plain, _ = toy.run(tmp_path / "one", dropout=0.0, validate_every=0)
    monkeypatch.setattr(toy, "BATCH", 2)
    rounds, _ = toy.run(tmp_path / "four", dropout=0.0, validate_every=0, accumulate=4)
    assert_same(dict(plain.named_parameters()), dict(rounds.named_parameters()), 1e-6)
    other, _ = toy.run(tmp_path / "two", dropout=0.0, validate_every=0, accumulate=2)
    assert not torch.allclose(plain[0].weight, other[0].weight, atol=1e-4), "smaller batches must give another result"


@pytest.mark.slow
def test_two_processes_equal_one(toy, tmp_path, together):
    together([str(SCRIPT), str(tmp_path / "two"), "steps=30", "dropout=0.0", "validate_every=10"], 2)
    assert [e["at"] for e in events(tmp_path / "two", "validation")] == [10, 20, 30], "the main process alone validates"
    toy.run(tmp_path / "one", steps=30, dropout=0.0, validate_every=10)
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"), 1e-5)


def test_gradients_are_clipped(toy, tmp_path):
    norms: list[float] = []

    def measure(optimiser, *_):
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    hook = register_optimizer_step_pre_hook(measure)
    try:
        toy.run(tmp_path / "clipped", clip=0.05, steps=10)
        toy.run(tmp_path / "not", clip=0, steps=10)
    finally:
        hook.remove()
    clipped, free = norms[:10], norms[10:]
    assert len(free) == 10
    assert max(clipped) == pytest.approx(0.05, rel=1e-3)
    assert free[0] > 0.1, "otherwise there was nothing to clip"


def test_training_stops_early_and_returns_to_the_best(toy, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(toy, "validate", lambda model: {"fit": next(values)})
    _, progress = toy.run(tmp_path, patience=2, validate_every=4)
    assert (progress.step, progress.best_step, progress.ended) == (16, 8, "patience")
    assert progress.best == {"fit": 0.5}


def test_training_stops_when_its_time_is_over(toy, tmp_path):
    _, progress = toy.run(tmp_path, max_minutes=1e-6)
    assert (progress.step, progress.ended, progress.best_step) == (1, "time", 1)


def test_a_checkpoint_of_another_run_is_refused(toy, tmp_path):
    toy.run(tmp_path)
    model = toy.toy_model()
    with pytest.raises(ProvenanceError, match="toy differ"):
        fit(model, toy.make_batch, toy.compute_loss, toy.config(), folder=tmp_path, identity={"toy": 2}, resume=True,
            device="cpu")  # fmt: skip


def test_a_loss_that_is_no_number_is_reported(toy, tmp_path):
    def broken(model, batch):
        return LossSum(toy.compute_loss(model, batch).total * float("nan"), 1)

    with pytest.raises(NumericsError, match=r"step 1\b.*learning_rate"):
        fit(toy.toy_model(), toy.make_batch, broken, toy.config(), folder=tmp_path, device="cpu")


def test_a_metric_that_validation_lacks_is_reported(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"'nDCG' is not among.*'fit'"):
        fit(toy.toy_model(), toy.make_batch, toy.compute_loss, toy.config(), folder=tmp_path, device="cpu",
            validate=toy.validate, metric="nDCG")  # fmt: skip


def test_bfloat16_trains_float32_weights(toy, tmp_path):
    model, progress = toy.run(tmp_path, precision="bfloat16")
    assert progress.best["fit"] > -0.5
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_models_trained_together_are_clipped_apart(toy, tmp_path):
    def both(model, batch):
        small, large = (toy.compute_loss(model[name], batch) for name in ("small", "large"))
        return LossSum(small.total + 1000 * large.total, small.weight)

    def trained(folder: str, loss, names: tuple[str, ...], apart: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        model = torch.nn.ModuleDict({name: toy.toy_model() for name in names})
        config = toy.config(clip=0.05, groups=(), validate_every=0)
        fit(model, toy.make_batch, loss, config, folder=tmp_path / folder, device="cpu", apart=apart)
        return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("small.")}

    alone = trained("alone", lambda model, batch: toy.compute_loss(model["small"], batch), ("small",))
    names = ("small", "large")
    assert_same(alone, trained("apart", both, names, ("small.", "large.")), 1e-6)
    with pytest.raises(AssertionError):
        assert_same(alone, trained("together", both, names), 1e-3)
    norms = [e["norm"] for e in events(tmp_path / "apart", "train")]
    assert min(norms) > 1  # of all gradients, before they were clipped


def test_a_full_disk_is_said_and_keeps_the_last_checkpoint(toy, tmp_path, monkeypatch, file_size_limit):
    make_batch, limited = toy.make_batch, contextlib.ExitStack()

    def then_full(turn):
        if turn.step == 7:  # after the checkpoint of step 5
            limited.enter_context(file_size_limit(600))
        return make_batch(turn)

    monkeypatch.setattr(toy, "make_batch", then_full)
    with limited, pytest.raises(OSError, match=r"no room for '.*safetensors'; go on with --resume") as caught:
        toy.run(tmp_path, validate_every=0, log_every=100)  # the log is a file, too
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_run_begun_anew_leaves_no_checkpoint_of_the_old_one(toy, tmp_path):
    toy.run(tmp_path, steps=20)
    toy.run(tmp_path, steps=5, checkpoint_every=0)
    assert not (tmp_path / "checkpoints").exists()
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00000005.safetensors"]
