"""
Rough times of stages on this machine, for the plan that `--dry-run` prints.

A training step costs about 6 floating-point operations per parameter and token (2 forward, 4 backward; Kaplan et al.,
2020, https://arxiv.org/abs/2001.08361), a decoding step 2. They are divided by the speed of a matrix product that is
timed here, and by what models reach of it. The result is good to a factor of two.
"""

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gr_components.errors import GRError
from gr_components.models.resolve import resolve_model

if TYPE_CHECKING:
    from gr_training.starts import StartConfig

# Share of a matrix product's speed that models of this family reach, from runs on two kinds of CPU.
_EFFICIENCY = 0.35
_SOURCE_TOKENS, _TARGET_TOKENS, _PAIR_TOKENS = 20, 9, 180
PASSAGE_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 160, 14, 5  # usual lengths, where no setting is shorter


@dataclass(frozen=True)
class Shape:
    """
    Size of an encoder-decoder or an encoder.

    :param encoder: Parameters of the encoder's layers.
    :param decoder: Parameters of the decoder's layers.
    :param output: Parameters of the output projection: vocabulary times width.
    """

    encoder: float
    decoder: float
    output: float


def shape_of_start(start: "StartConfig") -> Shape | None:
    """
    Read the size of what a recipe starts from; None if it is not on this machine.

    :param start: The recipe's section.
    """
    return shape_of(start.model, start.build.decoder_layers if start.build else None)


def shape_of(model: str, decoder_layers: int | None = None, encoder_layers: int | None = None) -> Shape | None:
    """
    Read a model's size from its `config.json`; None if it is not on this machine.

    :param model: A folder, a `package:` path, or a hub name.
    :param decoder_layers: Of an encoder-decoder that is to be built from it.
    :param encoder_layers: How many of an encoder's layers are kept; all by default.
    """
    try:
        folder = resolve_model(model, local_files_only=True)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (GRError, OSError, ValueError):
        return None
    first, last = config.get("encoder", config), config.get("decoder", config)
    width = first.get("hidden_size") or first.get("d_model")
    if not width:
        return None
    above = decoder_layers or last.get("decoder_layers") or last.get("num_hidden_layers") or 0
    below = first.get("encoder_layers") or first.get("num_hidden_layers") or first.get("num_layers") or 0
    return Shape(12 * width**2 * (encoder_layers or below), 16 * width**2 * above, float(config.get("vocab_size") or
                 first.get("vocab_size", 0)) * width)  # fmt: skip


def likelihood_minutes(
    shape: Shape | None, steps: int, sources: int, identifiers: int, lora: bool = False
) -> float | None:
    """
    Estimate training on identifiers.

    :param shape: The model.
    :param steps: Optimiser steps.
    :param sources: Sources of each, all rounds together.
    :param identifiers: Of each source.
    :param lora: Whether the weights themselves get no gradient, which is 2 of the 6 operations.
    """
    return writing_minutes(shape, steps, sources, _SOURCE_TOKENS, _TARGET_TOKENS * identifiers, lora)


def writing_minutes(
    shape: Shape | None, steps: int, sources: int, read: float, written: float, lora: bool = False
) -> float | None:
    """
    Estimate training of an encoder-decoder.

    :param shape: The model.
    :param steps: Optimiser steps.
    :param sources: Sources of each, all rounds together.
    :param read: Tokens of a source.
    :param written: Tokens of all its targets.
    :param lora: As in `likelihood_minutes`.
    """
    if shape is None:
        return None
    each = shape.encoder * read + (shape.decoder + shape.output) * written
    return _minutes((4.0 if lora else 6.0) * steps * sources * each)


def rank_minutes(
    shape: Shape | None, steps: int, questions: int, passages: int, keys: int, lora: bool = False
) -> float | None:
    """
    Estimate training on lists; about half of the keys of a list are shared between its passages.

    :param shape: The model.
    :param steps: Optimiser steps.
    :param questions: Of each.
    :param passages: Of each list.
    :param keys: Of each passage.
    :param lora: As in `likelihood_minutes`.
    """
    return likelihood_minutes(shape, steps, questions, max(1, passages * keys // 2), lora)


def search_minutes(shape: Shape | None, questions: int, beams: int, tokens: int) -> float | None:
    """
    Estimate beam search.

    :param shape: The model.
    :param questions: How many.
    :param beams: Beam width.
    :param tokens: Decoding steps of all views together.
    """
    if shape is None:
        return None
    return _minutes(
        2.0 * questions * (shape.encoder * _SOURCE_TOKENS + (shape.decoder + shape.output) * beams * tokens)
    )


def scoring_minutes(shape: Shape | None, pairs: int) -> float | None:
    """
    Estimate a teacher that reads question and passage together.

    :param shape: The teacher.
    :param pairs: How many it reads.
    """
    return None if shape is None else _minutes(2.0 * pairs * shape.encoder * _PAIR_TOKENS)


def encoder_minutes(shape: Shape | None, steps: int, tokens: float) -> float | None:
    """
    Estimate training of an encoder.

    :param shape: The model.
    :param steps: Optimiser steps.
    :param tokens: Tokens of each, all rounds together.
    """
    return None if shape is None else _minutes(6.0 * steps * tokens * shape.encoder)


def pair_minutes(shape: Shape | None, steps: int, pairs: int) -> float | None:
    """
    Estimate training of a model that reads question and passage together.

    :param shape: The model.
    :param steps: Optimiser steps.
    :param pairs: Pairs of each, all rounds together.
    """
    return encoder_minutes(shape, steps, pairs * _PAIR_TOKENS)


def _minutes(operations: float) -> float:
    return operations / (_speed() * _EFFICIENCY) / 60


@lru_cache(maxsize=1)
def _speed() -> float:
    """Time matrix products (operations per second) on the device that training would use."""
    import torch

    from gr_components.models.devices import torch_device

    device = torch_device(None)
    a, b = (torch.randn(1024, 1024, device=device, dtype=torch.bfloat16) for _ in range(2))
    (a @ b).sum().item()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        (a @ b).sum().item()
        rounds += 1
    return rounds * 2.0 * 1024**3 / (time.perf_counter() - started)
