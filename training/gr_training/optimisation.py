"""Optimiser, learning-rate schedule and the moving average of the weights."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gr_components.errors import ConfigError
from gr_training.fitting import FitConfig

_EMA_EVERY = 4


def make_optimiser(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """
    Return AdamW over the trainable parameters; each group carries `base_lr`, which the schedule multiplies.

    :param model: Its parameter names decide the groups.
    :param config: Learning rates and weight decay.
    :raises ConfigError: If a group's pattern matches no parameter.
    """
    buckets: dict[tuple[float, float], list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = next((g for g in config.groups if re.search(g.pattern, name)), None)
        factor = 1.0 if group is None else group.factor
        if group is not None:
            used.add(group.pattern)
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        buckets.setdefault((factor, decay), []).append(parameter)
    unused = [group.pattern for group in config.groups if group.pattern not in used]
    if unused:
        names = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
        msg = f"fit.groups: no parameter of the model matches {unused}. Its parameters begin with: {names}."
        raise ConfigError(msg)
    groups = [
        {"params": parameters, "weight_decay": decay, "base_lr": config.learning_rate * factor}
        for (factor, decay), parameters in buckets.items()
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def rate_factor(step: int, config: FitConfig) -> float:
    """
    Return what multiplies the learning rate in a step.

    :param step: From 0; the first step of a warm-up of W has 1/W.
    :param config: Schedule.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    start = config.warmup
    if config.schedule == "trapezoid":
        start = max(start, config.steps - round(config.decay_fraction * config.steps))
    if step < start:
        return 1.0
    left = (config.steps - step) / max(1, config.steps - start)
    return config.final_factor + (1 - config.final_factor) * max(0.0, min(1.0, left))


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """
    Set the learning rates of a step.

    :param optimiser: From `make_optimiser`.
    :param factor: From `rate_factor`.
    """
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


class MovingAverage:
    """
    Exponential moving average of the weights; early on it averages over fewer steps, so that it is usable soon.

    :param weights: The live weights by name; they are copied.
    :param decay: Per step.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """
        Take up the weights after a step; works on every fourth step only, with the decay of four.

        :param weights: The live weights.
        :param step: Number of steps done, from 1.
        """
        if step % _EMA_EVERY:
            return
        decay = min(self.decay**_EMA_EVERY, step / (step + 10 * _EMA_EVERY))
        with torch.no_grad():
            for name, average in self.weights.items():
                live = weights[name].detach()
                if average.is_floating_point():
                    average.lerp_(live, 1 - decay)
                else:
                    average.copy_(live)
