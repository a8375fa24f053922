"""Checks of settings that models share: made where a component is configured, and again where a model is used."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from gr_components.errors import ConfigError

Backend = Literal["torch", "onnx"]
BACKENDS = ("torch", "onnx")
DTYPES = ("float32", "float16", "bfloat16")
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """
    Check a setting that has a few possible values.

    :param name: Its name.
    :param value: The setting.
    :param choices: What it may be.
    :raises ConfigError: If it is something else.
    """
    if not isinstance(value, str) or value not in choices:
        msg = f"{name} must be one of {', '.join(choices)}, got {value!r}."
        raise ConfigError(msg)


def check_count(name: str, value: Any, *, least: int) -> None:
    """
    Check a whole number.

    :param name: Its name.
    :param value: The setting.
    :param least: Smallest value.
    :raises ConfigError: If it is smaller, or no whole number (True and 2.0 are none).
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}."
        raise ConfigError(msg)


def check_number(name: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> None:
    """
    Check a number that need not be whole.

    :param name: Its name.
    :param value: The setting.
    :param least: Smallest value.
    :param most: Largest value.
    :raises ConfigError: If it is out of range, NaN, infinite or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{name} must be a number, got {value!r}."
        raise ConfigError(msg)
    if not least <= value <= most:
        limits = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        msg = f"{name} must be {limits}, got {value!r}."
        raise ConfigError(msg)


def check_backend(backend: str, dtype: str) -> None:
    """
    Check the names of a backend and of the number type that it is to run with.

    :param backend: The setting.
    :param dtype: The setting.
    :raises ConfigError: If one is unknown, or `onnx` is to run another number type than the exported one.
    """
    check_choice("backend", backend, BACKENDS)
    check_choice("dtype", dtype, DTYPES)
    if backend == "onnx" and dtype != "float32":
        msg = f"backend='onnx' runs the number type that was exported; dtype must be 'float32', got {dtype!r}."
        raise ConfigError(msg)
