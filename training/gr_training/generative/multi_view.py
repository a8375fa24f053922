"""
Likelihood training on identifiers of several views: what `seal` and `minder` are, and how `ltrgr` and `dgr` begin.

The loss is the negative log-likelihood of the identifiers' tokens. Validation searches with the model, since the
training loss misleads: it goes on falling when retrieval gets worse.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.data.candidates import file_hash
from gr_components.decoding.grammar import Grammar
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.tokenization import TextTokenizer
from gr_training import estimate
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, InputFile, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig, Fraction
from gr_training.generative.identifier_batches import GrammarConfig, IdentifierBatches, grammar_for, identifier_loss
from gr_training.generative.pair_files import PairFile, read_pairs
from gr_training.generative.pairs import Pair, PairSampler, PairsConfig
from gr_training.generative.search_validation import SearchValidation, search_config, training_questions
from gr_training.loop import fit
from gr_training.order import Turn
from gr_training.run import Run, identity, publish
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    local_file,
    texts_of,
    weighted_rows,
)
from gr_training.stages import Step
from gr_training.starts import StartConfig, Started, start_seq2seq


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class MultiViewConfig:
    """
    Settings of the training.

    :param start: The model to start from.
    :param grammar: For a model without a grammar of its own.
    :param pairs: Which identifiers each source gets.
    :param pairs_from: A `pairs.jsonl.gz` (`generative/pair_files.py`) to learn from; null draws pairs as it goes.
    :param smoothing: Label smoothing; only without a copy head.
    :param sources_per_step: Sources of each round.
    :param search: Settings of the validation's search, such as `beams`.
    :param weights: How the trained weights are stored.
    """

    recipe: str = "minder"
    start: StartConfig
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    pairs_from: InputFile | None = None
    smoothing: Fraction = 0.0
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    search: dict[str, Any] = field(default_factory=dict)
    sources_per_step: Count = 16
    weights: Literal["float32", "float16", "int8"] = "float32"
    fit: FitConfig

    def __post_init__(self) -> None:
        search_config(self.search)


def likelihood_minutes(start: StartConfig, pairs: PairsConfig, sources_per_step: int, fit: FitConfig) -> float | None:
    """
    Estimate the training; None if the model to start from is not on this machine.

    :param start: The model to start from.
    :param pairs: Which identifiers each source gets.
    :param sources_per_step: Sources of each round.
    :param fit: The training loop.
    """
    identifiers = pairs.body + pairs.title + pairs.query
    shape = estimate.shape_of_start(start)
    sources = sources_per_step * fit.accumulate
    return estimate.likelihood_minutes(shape, fit.steps, sources, identifiers, start.lora is not None)


def multi_view_steps(config: MultiViewConfig) -> list[Step]:
    """
    Return the plan of a recipe.

    :param config: The recipe.
    """
    size = f"{config.fit.steps:,} steps of {config.sources_per_step * config.fit.accumulate} sources"
    minutes = partial(likelihood_minutes, config.start, config.pairs, config.sources_per_step, config.fit)
    return [Step("train", size, minutes)]


def train_multi_view(config: MultiViewConfig, run: Run, *, calibrated: bool = True) -> Path:
    """
    Train a generative retriever.

    :param config: The recipe.
    :param run: Where and how.
    :param calibrated: Whether its scores are calibrated on the validation questions in the end.
    :returns: The folder of the model.
    :raises ConfigError: If label smoothing is combined with a copy head.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation, config.held_out, run.report)
    started, grammar = start_multi_view(config, sets)
    model, tokenizer = started.model, started.tokenizer
    if config.smoothing and model.copy is not None:
        msg = "smoothing: label smoothing is not defined for a model with a copy head; set it to 0."
        raise ConfigError(msg)
    batches: _Drawn | _Written
    files = [each.files or {} for each in (*sets, validation)]
    if config.pairs_from is None:
        batches = _Drawn(config, sets, tokenizer, grammar)
    else:
        path = local_file(config.pairs_from)
        batches = _Written(config, read_pairs(path, tokenizer, grammar), tokenizer, grammar)
        files.append({config.pairs_from: file_hash(path)})
    with tempfile.TemporaryDirectory(prefix="gr-validation-") as temporary:
        searching = SearchValidation(
            validation,
            training_questions(sets, validation),
            tokenizer,
            grammar,
            config.search,
            Path(temporary),
            config.fit.precision,
        )
        progress = fit(
            model, batches.make, lambda m, groups: identifier_loss(m, groups, config.smoothing), config.fit,
            folder=run.out, resume=run.resume, device=run.device, report=run.report,
            validate=searching.evaluate, metric="nDCG@10",
            identity=identity(config, files),
        )  # fmt: skip
        provenance = Provenance(
            task="generative_retriever", recipe=to_plain(config), base_model=config.start.model, data=used(sets),
            metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
        )  # fmt: skip

        def write(folder: Path) -> None:
            save_seq2seq(model, tokenizer, {"grammar": grammar.to_dict()}, folder, weights=config.weights)
            describe(folder, provenance)
            if calibrated:
                searching.calibrate_folder(folder, run.device, run.report)

        publish(run.model, write)
    return run.model


def start_multi_view(config: MultiViewConfig, sets: Sequence[QuestionSet]) -> tuple[Started, Grammar]:
    """
    Load or build the model to start from, with the grammar of its identifiers.

    :param config: The recipe.
    :param sets: Training sets: where the vocabulary of a model that is built comes from.
    """
    started = start_seq2seq(
        config.start,
        lambda: texts_of(sets, config.start.build.vocabulary if config.start.build else ()),
        lambda t: _frequencies(sets, t),
        config.fit.seed,
    )
    grammar = grammar_for(config.grammar, started.tokenizer, started.info, query_view=config.pairs.query > 0)
    return started, grammar


class _Written:
    """Training batches from a file of pairs."""

    def __init__(self, config: MultiViewConfig, pairs: PairFile, tokenizer: TextTokenizer, grammar: Grammar) -> None:
        self._config, self._pairs = config, pairs
        self._padded = IdentifierBatches(tokenizer, grammar)
        self._rows = pairs.rows(config.fit.seed)

    def make(self, turn: Turn) -> list[dict[str, Any]]:
        """
        Build this process's part of a batch.

        :param turn: Which one.
        """
        rows = turn.rows(turn.positions(self._config.sources_per_step), len(self._rows))
        return self._padded.groups([self._pairs.pairs[self._rows[row]] for row in rows], self._pairs.num_short)


class _Drawn:
    """Training batches: questions, and in part noised pieces of passages, with identifiers."""

    def __init__(
        self, config: MultiViewConfig, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, grammar: Grammar
    ) -> None:
        self._config = config
        self._sampler = PairSampler(sets, tokenizer, grammar, config.pairs)
        self._padded = IdentifierBatches(tokenizer, grammar)
        self._rows = weighted_rows(sets, config.fit.seed)

    def make(self, turn: Turn) -> list[dict[str, Any]]:
        """
        Build this process's part of a batch.

        :param turn: Which one.
        """
        positions = turn.positions(self._config.sources_per_step)
        rows = turn.rows(positions, len(self._rows))
        pairs = [self._draw(turn, position, row) for position, row in zip(positions.tolist(), rows, strict=True)]
        return self._padded.groups(pairs, self._config.pairs.body + self._config.pairs.title)

    def _draw(self, turn: Turn, position: int, row: int) -> Pair:
        generator = turn.generator(position)
        if generator.random() < self._config.pairs.unsupervised:
            return self._sampler.unsupervised(generator)
        return self._sampler.supervised(*self._rows[row], generator)


def _frequencies(sets: Sequence[QuestionSet], tokenizer: TextTokenizer) -> npt.NDArray[np.float64]:
    """Counts of tokens in texts, with questions once, titles as often as spans of their passage would be, and stops."""
    counts_V = np.zeros(tokenizer.vocabulary_size)
    for each in sets:
        own_V = np.zeros_like(counts_V)
        for ids in tokenizer.encode([passage.text for passage in each.passages]):
            np.add.at(own_V, ids, 1)
        total = own_V.sum()
        for ids in tokenizer.encode([passage.title for passage in each.passages]):
            np.add.at(own_V, ids, 0.02 * total / len(each.passages))
        for ids in tokenizer.encode([question.text for question in each.questions]):
            np.add.at(own_V, ids, 1)
        counts_V += own_V
    stop = tokenizer.special.get("sep", tokenizer.special.get("eos"))
    if stop is not None:
        counts_V[stop] = 0.04 * counts_V.sum()
    return counts_V
