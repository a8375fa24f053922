"""
Training of a question generator, on questions and their relevant passages.

The loss is the negative log-likelihood of the questions' tokens; that of validation questions selects the state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import send_to_device
from pydantic import Field

from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training import estimate
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig
from gr_training.generative.question_generator import QuestionBatches, layout_for, question_loss
from gr_training.loop import fit
from gr_training.run import Run, identity, publish
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    texts_of,
)
from gr_training.starts import StartConfig, start_seq2seq


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class QuestionTrainingConfig:
    """
    Settings of the training.

    :param start: The model to start from.
    :param data: Questions and passages.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the weights.
    :param passage_tokens: Longest input.
    :param question_tokens: Longest question, its end included.
    :param passages_per_step: Passages of each round.
    :param questions_per_passage: Questions of each; they share the passage's encoding.
    :param weights: How the trained weights are stored.
    :param fit: The training loop.
    """

    recipe: str = "question_generator"
    start: StartConfig
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    passage_tokens: Annotated[int, Field(ge=16)] = 192
    question_tokens: Annotated[int, Field(ge=4)] = 32
    passages_per_step: Count = 16
    questions_per_passage: Count = 2
    weights: Literal["float32", "float16", "int8"] = "float32"
    fit: FitConfig


def generator_minutes(
    start: StartConfig, passage_tokens: int, passages_per_step: int, questions_per_passage: int, fit: FitConfig
) -> float | None:
    """
    Estimate the training; None if the model to start from is not on this machine.

    :param start: The model to start from.
    :param passage_tokens: Longest input.
    :param passages_per_step: Passages of each round.
    :param questions_per_passage: Questions of each.
    :param fit: The training loop.
    """
    read, written = min(passage_tokens, estimate.PASSAGE_TOKENS), estimate.QUESTION_TOKENS * questions_per_passage
    passages = passages_per_step * fit.accumulate
    shape = estimate.shape_of_start(start)
    return estimate.writing_minutes(shape, fit.steps, passages, read, written, start.lora is not None)


def train_question_generator(config: QuestionTrainingConfig, run: Run) -> Path:
    """
    Train a question generator.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    :raises ConfigError: If `passage_tokens` is more than the model takes.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation, config.held_out, run.report)
    started = start_seq2seq(
        config.start,
        lambda: texts_of(sets, config.start.build.vocabulary if config.start.build else ()),
        lambda t: _frequencies(sets, t),
        config.fit.seed,
    )
    model, tokenizer = started.model, started.tokenizer
    longest = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.passage_tokens > longest:
        msg = f"passage_tokens is {config.passage_tokens}, but the model takes at most {longest}."
        raise ConfigError(msg)
    layout = layout_for(
        model, tokenizer, started.info, passage_tokens=config.passage_tokens, question_tokens=config.question_tokens
    )
    batches = QuestionBatches(sets, tokenizer, layout, config.questions_per_passage, config.fit.seed)
    probes = QuestionBatches([validation], tokenizer, layout, 1, config.fit.seed)
    progress = fit(
        model, lambda turn: batches.make(turn, config.passages_per_step), question_loss, config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report,
        validate=lambda m: _validate(m, probes, config), metric="log-likelihood",
        identity=identity(config, [each.files or {} for each in (*sets, validation)]),
    )  # fmt: skip
    provenance = Provenance(
        task="question_generator", recipe=to_plain(config), base_model=config.start.model, data=used(sets),
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip

    def write(folder: Path) -> None:
        info = {"question_generator": layout.to_dict()}
        save_seq2seq(model, tokenizer, info, folder, weights=config.weights)
        describe(folder, provenance)

    publish(run.model, write)
    return run.model


def _validate(model: Seq2SeqModel, probes: QuestionBatches, config: QuestionTrainingConfig) -> dict[str, float]:
    """Mean log-likelihood of a token of the validation questions."""
    total, count = 0.0, 0.0
    for batch in probes.all(config.passages_per_step):
        moved = send_to_device(batch, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.fit.precision == "bfloat16"):
            part = question_loss(model, moved)
        total, count = total + float(part.total), count + float(part.weight)
    return {"log-likelihood": -total / max(count, 1.0)}


def _frequencies(sets: Sequence[QuestionSet], tokenizer: TextTokenizer) -> npt.NDArray[np.float64]:
    """Counts of tokens in questions, with a little of the passages' words, and stops."""
    counts_V = np.zeros(tokenizer.vocabulary_size)
    for each in sets:
        for ids in tokenizer.encode([question.text for question in each.questions]):
            np.add.at(counts_V, ids, 1)
        for ids in tokenizer.encode([passage.text for passage in each.passages]):
            np.add.at(counts_V, ids, 0.05)
    stop = tokenizer.special.get("sep", tokenizer.special.get("eos"))
    if stop is not None:
        counts_V[stop] = sum(len(each.questions) for each in sets)
    return counts_V
