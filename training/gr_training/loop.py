"""
The one training loop, on `accelerate`; recipes bring a model, batches and a loss.

    for step in range(steps):
        for round in range(accumulate):          # the same gradient as one large batch
            backward(compute_loss(model, make_batch(turn)))
        scale by 1 / count, clip, step, average the weights
        validate, keep the best, write a checkpoint

A loss returns a *sum* and the *count* it is to be divided by; both are added up over rounds and processes before the
division. So the gradient does not depend on how a batch is split: n processes or rounds equal one up to rounding.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, send_to_device
from torch import Tensor, nn

from gr_components.errors import ConfigError, NumericsError, ProvenanceError
from gr_components.progress import JsonLines, Reporter, Silent, Tee
from gr_training.checkpoint import (
    clear,
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
from gr_training.distributed import wait_for_main
from gr_training.fitting import FitConfig
from gr_training.lora import merge_lora
from gr_training.optimisation import MovingAverage, make_optimiser, rate_factor, set_rate
from gr_training.order import Turn

Model = TypeVar("Model", bound=nn.Module)
Batch = Any


class LossSum(NamedTuple):
    """
    What a loss function returns for one batch.

    :param total: Scalar with gradient: the sum of the losses of the batch.
    :param weight: How many losses that sum has (questions, tokens); what the total is divided by in the end.
    """

    total: Tensor
    weight: Tensor | int


@dataclass
class Progress:
    """
    Where a run stands; part of every checkpoint.

    :param step: Steps done.
    :param seconds: Time spent, over all resumptions.
    :param best_step: Step of the best validation; 0 before the first.
    :param best: Its metrics.
    :param worse: Validations since then.
    :param ended: Why training is over (`steps`, `patience`, `time`); empty while it is not.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    ended: str = ""


class Objective(nn.Module):
    """Model and loss as one module, so that every kind of forward pass goes through the data-parallel wrapper."""

    def __init__(self, model: nn.Module, compute_loss: Callable[[Any, Batch], LossSum], bfloat16: bool) -> None:
        super().__init__()
        self.model, self._compute_loss, self._bfloat16 = model, compute_loss, bfloat16

    def forward(self, batch: Batch) -> LossSum:
        """Compute the loss of a batch, with autocast if so configured."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bfloat16):
            return self._compute_loss(self.model, batch)


def fit(
    model: Model,
    make_batch: Callable[[Turn], Batch],
    compute_loss: Callable[[Model, Batch], LossSum],
    config: FitConfig,
    *,
    folder: Path,
    validate: Callable[[Model], dict[str, float]] | None = None,
    metric: str = "",
    identity: Mapping[str, Any] | None = None,
    apart: Sequence[str] = (),
    resume: bool = False,
    device: str | None = None,
    report: Reporter | None = None,
) -> Progress:
    """
    Fit a model; afterwards it holds the weights of the best validation, or the last ones where nothing is validated.

    Low-rank matrices (`lora.py`) are trained like all parameters and are merged in the end.

    :param model: Trained in place.
    :param make_batch: Gives this process's part of a batch: any nest of dicts, tuples and tensors. Must depend on
        nothing but its argument.
    :param compute_loss: Forward pass and loss of a batch.
    :param config: Settings.
    :param folder: For `log.jsonl`, `checkpoints/` and the best weights.
    :param validate: Computes metrics, larger = better, with the model in evaluation mode.
    :param metric: Which of them selects the best weights.
    :param identity: What the run is made of (recipe, hashes of inputs); a checkpoint of another identity is refused.
    :param apart: Beginnings of parameters' names, for models trained together: gradients of each are clipped on their
        own, so that the steps of one do not depend on the size of another's gradient.
    :param resume: Whether to continue from the latest checkpoint, if there is one.
    :param device: `cpu`, or None for the best one there is.
    :param report: Where progress goes.
    :returns: How it ended.
    :raises NumericsError: If the loss stops being a number.
    :raises ProvenanceError: If the checkpoint to resume from is of another run.
    """
    accelerator = Accelerator(
        cpu=device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    run = _Run(model, make_batch, compute_loss, config, accelerator, folder, validate, metric, identity or {}, apart)
    main: Reporter = Tee(report or Silent(), JsonLines(folder / "log.jsonl"))
    run.report = main if accelerator.is_main_process else Silent()
    if resume:
        run.restore()
    elif accelerator.is_main_process:
        clear(folder)
    run.train()
    return run.progress


class _Run:
    """The state of one run: built once, advanced step by step."""

    def __init__(
        self, model: nn.Module, make_batch: Callable[[Turn], Batch], compute_loss: Callable[[Any, Batch], LossSum],
        config: FitConfig, accelerator: Accelerator, folder: Path,
        validate: Callable[[Any], dict[str, float]] | None, metric: str, identity: Mapping[str, Any],
        apart: Sequence[str],
    ) -> None:  # fmt: skip
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.make_batch, self.validate, self.metric = make_batch, validate, metric
        self.identity = json.loads(json.dumps(dict(identity)))
        self.apart = tuple(apart)
        self.model = model.to(accelerator.device)
        self.objective = accelerator.prepare_model(Objective(model, compute_loss, config.precision == "bfloat16"))
        self.optimiser = make_optimiser(model, config)
        self.average = MovingAverage(weights_of(model), config.ema_decay) if config.ema_decay else None
        self.progress = Progress()
        self.report: Reporter = Silent()

    def train(self) -> None:
        """Train until an end is reached, then load the weights to keep."""
        config, progress = self.config, self.progress
        started = time.monotonic() - progress.seconds
        self.report.event("start", step=progress.step, total=config.steps, parameters=_count(self.model))
        while not progress.ended:
            loss, norm = self._step(progress.step)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            if progress.step % config.log_every == 0 or progress.step == config.steps:
                rate = self.optimiser.param_groups[0]["lr"]
                self.report.event("train", step=progress.step, total=config.steps, loss=loss, norm=norm, rate=rate,
                                  minutes=round(progress.seconds / 60, 2))  # fmt: skip
            self._end_step(progress.step == config.steps, started)
        self._load_best()
        self.report.event("train", step=progress.step, total=config.steps, done=True)

    def _step(self, step: int) -> tuple[float, float]:
        config, accelerator = self.config, self.accelerator
        self.model.train()
        set_rate(self.optimiser, rate_factor(step, config))
        total, count = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
        for number in range(config.accumulate):
            turn = Turn(
                config.seed, step, number, config.accumulate, accelerator.process_index, accelerator.num_processes
            )
            batch = send_to_device(self.make_batch(turn), accelerator.device)
            torch.manual_seed(turn.torch_seed)
            last = number == config.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.objective):
                part = LossSum(*self.objective(batch))
                accelerator.backward(part.total)
            total += part.total.detach()
            count += part.weight
        total, count = accelerator.reduce(torch.stack([total, count]), "sum")
        loss = (total / count.clamp(min=1)).item()
        if not math.isfinite(loss):
            msg = f"The loss is {loss} in step {step + 1}. Lower fit.learning_rate, or set fit.precision to float32."
            raise NumericsError(msg)
        return loss, self._update(accelerator.num_processes / max(1.0, count.item()))

    def _update(self, scale: float) -> float:
        """Divide the gradients (data-parallel training leaves their mean over processes), clip them, and step."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_([p.grad for p in parameters], scale)  # type: ignore[misc]
        norm = math.hypot(*(
            nn.utils.clip_grad_norm_(part, self.config.clip or math.inf).item() for part in self._clipped_together()
        ))  # fmt: skip
        if not math.isfinite(norm):
            msg = f"The gradient's norm is {norm}. Lower fit.learning_rate, or set fit.precision to float32."
            raise NumericsError(msg)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(weights_of(self.model), self.progress.step + 1)
        return norm

    def _clipped_together(self) -> Iterable[list[nn.Parameter]]:
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                part = next((beginning for beginning in self.apart if name.startswith(beginning)), "")
                parts.setdefault(part, []).append(parameter)
        return parts.values()

    def _end_step(self, is_last: bool, started: float) -> None:
        config, progress = self.config, self.progress
        out_of_time = config.max_minutes is not None and self._agree(progress.seconds) > 60 * config.max_minutes
        if (config.validate_every and progress.step % config.validate_every == 0) or is_last or out_of_time:
            self._validate()
        progress.seconds = time.monotonic() - started
        tired = bool(config.patience) and progress.worse >= config.patience
        progress.ended = "steps" if is_last else "patience" if tired else "time" if out_of_time else ""
        progress.ended, progress.seconds = self._agree((progress.ended, progress.seconds))
        if config.checkpoint_every and (progress.step % config.checkpoint_every == 0 or progress.ended):
            self._write_checkpoint()

    def _validate(self) -> None:
        """Validate on the main process, with the averaged weights if there are any."""
        progress = self.progress
        if self.accelerator.is_main_process:
            with self._kept_weights() as weights:
                metrics = {} if self.validate is None else _validated(self.model, self.validate)
                chosen = _chosen(metrics, self.metric)
                best = progress.best.get(self.metric, -math.inf)
                self.report.event("validation", at=progress.step, **metrics)
                if self.validate is None or chosen > best:
                    progress.best_step, progress.best, progress.worse = progress.step, metrics, 0
                    save_weights(weights, self._best_path())
                    if not self.config.checkpoint_every:
                        self._drop_old_best()
                else:
                    progress.worse += 1
        wait_for_main()
        for name, value in self._agree(asdict(progress)).items():
            setattr(progress, name, value)

    @contextlib.contextmanager
    def _kept_weights(self) -> Iterator[dict[str, Tensor]]:
        if self.average is None:
            yield weights_of(self.model)
            return
        live = {name: tensor.clone() for name, tensor in weights_of(self.model).items()}
        put_weights(self.model, self.average.weights)
        try:
            yield self.average.weights
        finally:
            put_weights(self.model, live)

    def _write_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {"model": weights_of(self.model), "optimiser": optimiser_tensors(self.model, self.optimiser)}
            if self.average is not None:
                tensors["average"] = self.average.weights
            state = {"progress": asdict(self.progress), "identity": self.identity}
            write_checkpoint(
                self.folder / "checkpoints", self.progress.step, tensors, state, self.config.keep_checkpoints
            )
            self._drop_old_best()
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Continue from the latest checkpoint, if there is one."""
        path = latest_checkpoint(self.folder / "checkpoints")
        if path is None:
            return
        tensors, state = read_checkpoint(path)
        if state["identity"] != self.identity:
            changed = sorted(k for k in {*state["identity"], *self.identity}
                             if state["identity"].get(k) != self.identity.get(k))  # fmt: skip
            msg = f"'{path}' was written by another run: {', '.join(changed)} differ. Use --restart, or another --out."
            raise ProvenanceError(msg)
        put_weights(self.model, tensors["model"])
        put_optimiser_tensors(self.model, self.optimiser, tensors["optimiser"])
        if self.average is not None:
            device = self.accelerator.device
            self.average.weights = {name: tensor.to(device) for name, tensor in tensors["average"].items()}
        self.progress = Progress(**state["progress"])

    def _load_best(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.progress.best_step:
            put_weights(self.model, load_weights(self._best_path()))
        merge_lora(self.model)
        self.model.eval()

    def _best_path(self) -> Path:
        return self.folder / f"best-{self.progress.best_step:08d}.safetensors"

    def _drop_old_best(self) -> None:
        for path in self.folder.glob("best-*.safetensors"):
            if path != self._best_path():
                path.unlink(missing_ok=True)

    def _agree(self, value: Any) -> Any:
        """Give every process what the main process decided."""
        if self.accelerator.num_processes == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]


def _validated(model: nn.Module, validate: Callable[[Any], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return validate(model)


def _chosen(metrics: Mapping[str, float], metric: str) -> float:
    if not metrics:
        return 0.0
    if metric not in metrics:
        msg = f"The metric {metric!r} is not among those that validation computes: {sorted(metrics)}."
        raise ConfigError(msg)
    return metrics[metric]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
