"""
`seq2seq_pretrain`: denoising and copying on plain text, as a start for generative retrievers and readers.

Needs no questions. Each round is one of two tasks (`text_tasks.py`), written in the formats of `minder` and of `fid`,
so that both can go on from the model: its `gr_model.json` has the identifier grammar and the reader's layout. Weights
are selected by the likelihood of held-out passages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import send_to_device
from pydantic import Field

from gr_components.data import Passage, read_corpus, read_questions, searchable_text
from gr_components.data.candidates import file_hash
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.progress import Reporter
from gr_components.readers.layout import ReaderLayout, reserved_layout
from gr_components.tokenization import TextTokenizer
from gr_training import estimate
from gr_training.card import DataUse, Provenance, describe
from gr_training.config import STRICT_KEYS, InputFile, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig, Fraction
from gr_training.generative.identifier_batches import GrammarConfig, IdentifierBatches, grammar_for, identifier_loss
from gr_training.generative.pairs import PairSampler, PairsConfig
from gr_training.held_out import without_leaks
from gr_training.loop import LossSum, fit
from gr_training.order import Turn
from gr_training.reading.batches import reader_batch, reader_loss
from gr_training.run import Run, identity, publish
from gr_training.sources import HeldOutConfig, QuestionSet, held_out_texts, local_file
from gr_training.stages import Step
from gr_training.starts import StartConfig, start_seq2seq
from gr_training.text_tasks import TextConfig, make_cloze, read_passages

_TRIES = 20


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param start: The model to start from.
    :param text: What to learn from.
    :param held_out: Questions that must not be trained on: passages that hold one are dropped, and questions of
        `vocabulary`.
    :param validation: Passages that select the model.
    :param vocabulary: Corpora and question files whose texts decide the vocabulary of a model that is built; the text
        itself if there are none.
    :param grammar: Identifier grammar of the model.
    :param pairs: Identifiers of the task *spans*; `query` must be 0.
    :param cloze: Share of the rounds that are *cloze*; the others are *spans*.
    :param start_weight: Weight of the loss on where the answer of a cloze starts.
    :param max_passage_tokens: Longest input of a cloze.
    :param sources_per_step: Sources of each round.
    :param validation_rounds: Rounds of each task that validation looks at.
    :param weights: How the trained weights are stored.
    :param fit: The training loop.
    """

    recipe: Literal["seq2seq_pretrain"] = "seq2seq_pretrain"
    start: StartConfig
    text: tuple[TextConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: TextConfig
    vocabulary: tuple[InputFile, ...] = ()
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    pairs: PairsConfig = field(default_factory=lambda: PairsConfig(query=0, unsupervised=1.0))
    cloze: Fraction = 0.5
    start_weight: Annotated[float, Field(ge=0)] = 1.0
    max_passage_tokens: Count = 192
    sources_per_step: Count = 16
    validation_rounds: Count = 10
    weights: Literal["float32", "float16", "int8"] = "float32"
    fit: FitConfig

    def __post_init__(self) -> None:
        if self.pairs.query:
            msg = "pairs.query must be 0: plain text has no questions."
            raise ValueError(msg)


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    sources = config.sources_per_step * config.fit.accumulate

    def minutes() -> float | None:
        shape, lora = estimate.shape_of_start(config.start), config.start.lora is not None
        identifiers = config.pairs.body + config.pairs.title
        spans = estimate.likelihood_minutes(shape, config.fit.steps, sources, identifiers, lora)
        read = min(config.max_passage_tokens, estimate.PASSAGE_TOKENS)
        cloze = estimate.writing_minutes(shape, config.fit.steps, sources, read, estimate.ANSWER_TOKENS, lora)
        return None if spans is None or cloze is None else (1 - config.cloze) * spans + config.cloze * cloze

    return [Step("train", f"{config.fit.steps:,} steps of {sources} sources", minutes)]


def train(config: Config, run: Run) -> Path:
    """
    Pretrain an encoder-decoder.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    forbidden = held_out_texts(config.held_out)
    passages = [permitted(each, forbidden, run.report) for each in config.text]
    held_out = read_passages(config.validation)
    everything = [passage for several in passages for passage in several]
    run.report.event("data", passages=len(everything), validation=len(held_out))
    started = start_seq2seq(
        config.start,
        lambda: _vocabulary_texts(config, everything, forbidden),
        lambda t: _frequencies(everything, t),
        config.fit.seed,
    )
    tasks = _Tasks(config, everything, started.tokenizer, started.info)
    probes = _Tasks(config, held_out, started.tokenizer, started.info)
    files = [{each.path: file_hash(local_file(each.path))} for each in (*config.text, config.validation)]
    progress = fit(
        started.model, tasks.make, lambda m, batch: _loss(m, batch, config.start_weight), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report,
        validate=lambda m: _validate(m, probes, config), metric="log-likelihood", identity=identity(config, files),
    )  # fmt: skip
    info = {"grammar": tasks.grammar.to_dict(), "reader": tasks.layout.to_dict()}
    data = [
        DataUse(each.name, each.licence, len(several), hashes)
        for each, several, hashes in zip(config.text, passages, files, strict=False)
    ]
    provenance = Provenance(
        task="seq2seq_pretrain", recipe=to_plain(config), base_model=config.start.model, data=data,
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip

    def write(folder: Path) -> None:
        save_seq2seq(started.model, started.tokenizer, info, folder, weights=config.weights)
        describe(folder, provenance)

    publish(run.model, write)
    return run.model


class _Tasks:
    """Batches of both tasks over some passages."""

    def __init__(
        self, config: Config, passages: Sequence[Passage], tokenizer: TextTokenizer, info: dict[str, Any]
    ) -> None:
        self._config, self._passages, self._tokenizer = config, passages, tokenizer
        self.grammar = grammar_for(config.grammar, tokenizer, info, query_view=True)
        self.layout = _layout(config, tokenizer, info)
        plain = QuestionSet("text", list(passages), [], [], {})
        self._sampler = PairSampler([plain], tokenizer, self.grammar, config.pairs)
        self._identifiers = IdentifierBatches(tokenizer, self.grammar)

    def make(self, turn: Turn) -> dict[str, Any]:
        """
        Build this process's part of a batch; all processes do the same task in a round.

        :param turn: Which one.
        """
        index = turn.step * turn.num_rounds + turn.round
        is_cloze = np.random.default_rng((turn.seed, 201, index)).random() < self._config.cloze
        return self.cloze(turn) if is_cloze else self.spans(turn)

    def spans(self, turn: Turn) -> dict[str, Any]:
        """
        Noised pieces of passages with identifiers.

        :param turn: Which batch.
        """
        pairs = [self._sampler.unsupervised(turn.generator(p)) for p in turn.positions(self._config.sources_per_step)]
        return {"groups": self._identifiers.groups(pairs, self._config.pairs.body + self._config.pairs.title)}

    def cloze(self, turn: Turn) -> dict[str, Any]:
        """
        Questions made of sentences, each with its passage.

        :param turn: Which batch.
        """
        drawn = [self._draw(turn.generator(p)) for p in turn.positions(self._config.sources_per_step)]
        rows = [[self.layout.assemble(question, title, context)] for question, title, context, _ in drawn]
        answers = [answer for *_, answer in drawn]
        return reader_batch(self.layout, rows, answers, self._tokenizer.pad_id)

    def _draw(self, generator: np.random.Generator) -> tuple[list[int], list[int], list[int], list[int]]:
        """Question, title, context and answer as token ids."""
        for _ in range(_TRIES):
            passage = self._passages[int(generator.integers(len(self._passages)))]
            cloze = make_cloze(passage.text, generator)
            if cloze is not None:
                texts = [cloze.question, passage.title, passage.text, cloze.answer]
                question, title, context, answer = (e.ids for e in self.layout.tokenize(self._tokenizer, texts))
                if answer:
                    return question, title, context, answer[: self.layout.max_answer_tokens - 1]
        msg = f"None of {_TRIES} passages had a sentence with a name or a number: is this text in another script?"
        raise ConfigError(msg)


def _loss(model: Seq2SeqModel, batch: dict[str, Any], start_weight: float) -> LossSum:
    if "groups" in batch:
        return identifier_loss(model, batch["groups"])
    return LossSum(reader_loss(model, batch, start_weight), batch["real_BT"].sum())


def _validate(model: Seq2SeqModel, tasks: _Tasks, config: Config) -> dict[str, float]:
    """Mean log-likelihood of a token in each task, and over both."""
    metrics: dict[str, float] = {}
    for name, make in (("spans", tasks.spans), ("cloze", tasks.cloze)):
        total, count = 0.0, 0.0
        for step in range(config.validation_rounds):
            batch = send_to_device(make(Turn(config.fit.seed, step)), model.device)
            with torch.autocast(model.device.type, torch.bfloat16):
                part = _loss(model, batch, 0.0)
            total, count = total + float(part.total), count + float(part.weight)
        metrics[f"{name} log-likelihood"] = -total / max(count, 1.0)
    return {"log-likelihood": sum(metrics.values()) / len(metrics), **metrics}


def _layout(config: Config, tokenizer: TextTokenizer, info: dict[str, Any]) -> ReaderLayout:
    if info.get("reader"):
        return ReaderLayout.from_dict(info["reader"])
    return reserved_layout(tokenizer, max_passage_tokens=config.max_passage_tokens)


def permitted(text: TextConfig, forbidden: Sequence[str], report: Reporter) -> list[Passage]:
    """
    Return the passages of a text that hold no held-out question.

    :param text: The text.
    :param forbidden: Held-out questions.
    :param report: Told how many passages were dropped.
    """
    passages = read_passages(text)
    kept = without_leaks(forbidden, passages, lambda passage: searchable_text(passage.title, passage.text))
    if forbidden:
        report.event("held out", set=text.name, passages_dropped=len(passages) - len(kept))
    return kept


def _vocabulary_texts(config: Config, passages: Sequence[Passage], forbidden: Sequence[str]) -> Iterator[str]:
    if not config.vocabulary:
        yield from (searchable_text(passage.title, passage.text) for passage in passages)
    for path in config.vocabulary:
        file = local_file(path)
        if "corpus" in file.name:
            yield from (searchable_text(passage.title, passage.text) for passage in read_corpus(file))
        else:
            texts = [question.text for question in read_questions(file)]
            yield from without_leaks(forbidden, texts, str)


def _frequencies(passages: Sequence[Passage], tokenizer: TextTokenizer) -> npt.NDArray[np.float64]:
    counts_V = np.zeros(tokenizer.vocabulary_size)
    for ids in tokenizer.encode([passage.text for passage in passages[:5000]]):
        np.add.at(counts_V, ids, 1)
    stop = tokenizer.special.get("sep", tokenizer.special.get("eos"))
    if stop is not None:
        counts_V[stop] = 0.04 * counts_V.sum()
    return counts_V
