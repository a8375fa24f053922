"""Settings of the training loop; what they mean is in `loop.py`."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gr_training.config import STRICT_KEYS, checked_dataclass

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


def _regular(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        msg = f"{pattern!r} is not a regular expression: {error}"
        raise ValueError(msg) from error
    return pattern


Pattern = Annotated[str, AfterValidator(_regular)]
"""A regular expression, checked where it is read."""


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class GroupConfig:
    """
    Parameters that learn at a rate of their own.

    :param pattern: Regular expression that is searched in the parameter's name, such as `^hf[.]decoder[.]`.
        The first match counts.
    :param factor: Multiplies the learning rate.
    """

    pattern: Pattern
    factor: Annotated[float, Field(ge=0)]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class FitConfig:
    """
    How a model is fitted.

    :param steps: Optimiser steps.
    :param seed: Of data order, sampling and dropout.
    :param accumulate: Rounds of forward and backward per step.
    :param learning_rate: Peak rate of AdamW.
    :param groups: Parameters with another rate.
    :param betas: Of AdamW.
    :param weight_decay: Of matrices; vectors and scalars have none.
    :param clip: Largest norm of the gradient; 0 switches clipping off.
    :param warmup: Steps of linear warm-up.
    :param schedule: After warm-up: `linear` decay to the end, `constant`, or `trapezoid` (constant, then linear decay).
    :param decay_fraction: `trapezoid`: the share of the steps that decays.
    :param final_factor: The rate at the end, as a share of the peak.
    :param precision: `bfloat16` runs matrix products in bfloat16 (autocast); weights and their gradients stay float32.
    :param ema_decay: Per step, of the moving average of the weights that is validated and kept; 0 switches it off.
    :param validate_every: Steps between validations; 0 validates only at the end.
    :param patience: Validations without a better metric before training stops; 0 never stops early.
    :param checkpoint_every: Steps between checkpoints; 0 writes none, and then a killed run starts again.
    :param keep_checkpoints: How many stay.
    :param max_minutes: Training ends after this time (validation included) even if steps are left; null is no limit.
    :param log_every: Steps between lines of the log.
    """

    steps: Count
    seed: Natural = 13
    accumulate: Count = 1
    learning_rate: Positive = 5e-5
    groups: tuple[GroupConfig, ...] = ()
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(ge=0)] = 1.0
    warmup: Natural = 0
    schedule: Literal["linear", "constant", "trapezoid"] = "linear"
    decay_fraction: Fraction = 0.3
    final_factor: Fraction = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: Natural = 0
    patience: Natural = 0
    checkpoint_every: Natural = 0
    keep_checkpoints: Count = 1
    max_minutes: Positive | None = None
    log_every: Count = 10
