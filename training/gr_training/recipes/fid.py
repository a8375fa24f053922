"""
`fid`: a Fusion-in-Decoder reader (Izacard & Grave, 2021, https://arxiv.org/abs/2007.01282).

Starts from an encoder-decoder (T5, BART, or one made by `seq2seq_pretrain`), or from a BERT-like encoder, which becomes
a BERT-to-BERT model with a cut vocabulary and a copy head. Questions come with their relevant passage and, in part of
the batches, with hard negatives from BM25. The loss of a question is the negative log-likelihood of a sampled answer;
models with a copy head get an auxiliary loss on where the answer starts.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from gr_components.data import Passage
from gr_components.evaluation import evaluate_answers
from gr_components.models.seq2seq.folder import LoadedSeq2Seq, Weights, save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.progress import Reporter
from gr_components.readers.config import ReadConfig
from gr_components.readers.fusion import FusionReader, layout_of
from gr_components.readers.layout import ReaderLayout, reserved_layout
from gr_components.tokenization import TextTokenizer
from gr_training import estimate
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig
from gr_training.loop import LossSum, fit
from gr_training.mining.lists import lexical_search
from gr_training.reading.batches import reader_loss
from gr_training.reading.examples import BatchConfig, ReaderExamples
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
from gr_training.stages import Step
from gr_training.starts import StartConfig, start_seq2seq

_LANGUAGE = "english"  # of BM25


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class LengthConfig:
    """
    Lengths in tokens, stored with the model.

    :param max_passage_tokens: Longest input: question, title, context and what stands between them.
    :param max_question_tokens: Longest question.
    :param max_title_tokens: Longest title.
    :param max_answer_tokens: Longest answer in serving, its end included.
    """

    max_passage_tokens: Count = 224
    max_question_tokens: Count = 50
    max_title_tokens: Count = 20
    max_answer_tokens: Annotated[int, Field(ge=2)] = 24


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param start: The encoder-decoder to start from, or how one is made of an encoder.
    :param lengths: Lengths in tokens.
    :param data: Training sets, questions with `answers`.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the model.
    :param validation_passages: How many BM25 passages validation reads, besides reading the relevant one alone.
    :param batches: What a batch is made of.
    :param start_weight: Weight of the loss on where an answer starts (models with a copy head).
    :param weights: How the model is saved.
    :param fit: The training loop.
    """

    recipe: Literal["fid"] = "fid"
    start: StartConfig = field(default_factory=StartConfig)
    lengths: LengthConfig = field(default_factory=LengthConfig)
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    validation_passages: Count = 5
    batches: BatchConfig = field(default_factory=BatchConfig)
    start_weight: Annotated[float, Field(ge=0)] = 2.5
    weights: Weights = "float32"
    fit: FitConfig


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    passages = config.batches.passages * config.fit.accumulate

    def minutes() -> float | None:
        read = min(config.lengths.max_passage_tokens, estimate.PASSAGE_TOKENS)
        written = estimate.ANSWER_TOKENS / (1 + config.batches.num_negatives * config.batches.negative_share)
        shape, lora = estimate.shape_of_start(config.start), config.start.lora is not None
        return estimate.writing_minutes(shape, config.fit.steps, passages, read, written, lora)

    return [
        Step("search", "BM25, all questions"),
        Step("train", f"{config.fit.steps:,} steps of {passages} passages", minutes),
    ]


def train(config: Config, run: Run) -> Path:
    """
    Train a reader.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation, config.held_out, run.report)
    started = start_seq2seq(
        config.start,
        lambda: texts_of(sets, config.start.build.vocabulary if config.start.build else ()),
        lambda tokenizer: _frequencies(sets, tokenizer),
        config.fit.seed,
    )
    model = started.model
    loaded = LoadedSeq2Seq(model, started.tokenizer, started.info, Path(config.start.model))
    layout = _layout(loaded, to_plain(config.lengths))
    depth = config.batches.depth + 1 if config.batches.num_negatives else 0
    found = [_search(each, depth, run.report) for each in sets]
    examples = ReaderExamples(
        sets, found, loaded.tokenizer, layout, config.batches, config.fit.seed, must_occur=model.copy is not None
    )
    for each, number in zip(sets, examples.num_questions, strict=True):
        run.report.event("examples", source=each.name, questions=number)
    tops = _search(validation, config.validation_passages, run.report)
    files = [each.files or {} for each in (*sets, validation)]
    progress = fit(
        model, examples.batch, lambda m, batch: _loss(m, batch, config.start_weight), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report, metric="mean",
        validate=lambda m: _validate(FusionReader(loaded, layout), config, validation, tops),
        identity=identity(config, files),
    )  # fmt: skip
    provenance = Provenance(
        task="reader", recipe=to_plain(config), base_model=config.start.model, data=used(sets),
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip

    def write(folder: Path) -> None:
        save_seq2seq(model, loaded.tokenizer, {"reader": layout.to_dict()}, folder, weights=config.weights)
        describe(folder, provenance)

    publish(run.model, write)
    return run.model


def _layout(loaded: LoadedSeq2Seq, lengths: dict[str, int]) -> ReaderLayout:
    if loaded.model.family.name == "bert" and "reader" not in loaded.info:
        return reserved_layout(loaded.tokenizer, **lengths)
    return layout_of(loaded, **lengths)


def _frequencies(sets: Sequence[QuestionSet], tokenizer: TextTokenizer) -> npt.NDArray[np.float64]:
    """Count the tokens of all answers, and the end of each."""
    counts_V = np.zeros(tokenizer.vocabulary_size)
    for each in sets:
        answers = tokenizer.encode([answer for question in each.questions for answer in question.answers])
        np.add.at(counts_V, [token for answer in answers for token in answer], 1.0)
        counts_V[tokenizer.special.get("sep", tokenizer.special.get("eos", 0))] += len(answers)
    return counts_V


def _search(each: QuestionSet, depth: int, report: Reporter) -> list[list[int]]:
    """Rows of the best BM25 passages of each question."""
    if not depth:
        return [[] for _ in each.questions]
    return [[row for row, _ in several] for several in lexical_search(each, depth, _LANGUAGE, report)]


def _loss(model: Seq2SeqModel, batch: dict[str, torch.Tensor], start_weight: float) -> LossSum:
    return LossSum(reader_loss(model, batch, start_weight), len(batch["real_BT"]))


def _validate(
    reader: FusionReader, config: Config, validation: QuestionSet, tops: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Exact match and F1 in percent with the relevant passage, and with what BM25 finds; `mean` is that of the four."""
    metrics: dict[str, float] = {}
    texts = [question.text for question in validation.questions]
    settings = ReadConfig()
    bfloat16 = config.fit.precision == "bfloat16"
    top = f"top {config.validation_passages}"
    for name, rows in (("gold", [several[:1] for several in validation.positives]), (top, tops)):
        passages: list[list[Passage]] = [[validation.passages[row] for row in several] for several in rows]
        with torch.autocast(reader.decoder.model.device.type, torch.bfloat16, enabled=bfloat16):
            readings = reader.read(texts, passages, settings)
        predictions = {
            question.id: reading.answers[0].text
            for question, reading in zip(validation.questions, readings, strict=True)
            if reading.answers
        }
        means = evaluate_answers(predictions, validation.questions).means
        metrics.update({f"{name} {measure}": 100 * value for measure, value in means.items()})
    metrics["mean"] = sum(metrics.values()) / len(metrics)
    return metrics
