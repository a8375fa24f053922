"""
`minder`: multi-view identifiers for generative retrieval (Li et al., 2023, https://arxiv.org/abs/2305.16675).

A question is to be answered with spans of its passage, the passage's title, and other questions about the passage.
Without the query view (`pairs.query: 0`) this is SEAL (https://arxiv.org/abs/2204.10628). The loss is the negative
log-likelihood of the identifiers' tokens. Validation searches with the model, since the training loss misleads: it goes
on falling when retrieval gets worse.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.decoding.grammar import Grammar
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.tokenization import TextTokenizer
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig, Fraction
from gr_training.identifier_batches import GrammarConfig, IdentifierBatches, grammar_for, identifier_loss
from gr_training.loop import fit
from gr_training.order import Turn
from gr_training.pairs import Pair, PairSampler, PairsConfig
from gr_training.run import Run, identity, publish
from gr_training.search_validation import SearchValidation, training_questions
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    texts_of,
    weighted_rows,
)
from gr_training.starts import StartConfig, start_seq2seq


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param start: The model to start from.
    :param grammar: For a model without a grammar of its own.
    :param pairs: Which identifiers each source gets.
    :param smoothing: Label smoothing; only without a copy head.
    :param sources_per_step: Sources of each round.
    :param search: Settings of the validation's search, such as `beams`.
    :param weights: How the trained weights are stored.
    """

    recipe: Literal["minder"] = "minder"
    start: StartConfig
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    smoothing: Fraction = 0.0
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    search: dict[str, Any] = field(default_factory=dict)
    sources_per_step: Count = 16
    weights: Literal["float32", "float16", "int8"] = "float32"
    fit: FitConfig


def train(config: Config, run: Run) -> Path:
    """
    Train a generative retriever.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    :raises ConfigError: If label smoothing is combined with a copy head.
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
    if config.smoothing and model.copy is not None:
        msg = "smoothing: label smoothing is not defined for a model with a copy head; set it to 0."
        raise ConfigError(msg)
    grammar = grammar_for(config.grammar, tokenizer, started.info, query_view=config.pairs.query > 0)
    batches = _Batches(config, sets, tokenizer, grammar)
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
            identity=identity(config, [each.files or {} for each in (*sets, validation)]),
        )  # fmt: skip
    provenance = Provenance(
        task="generative_retriever", recipe=to_plain(config), base_model=config.start.model, data=used(sets),
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip

    def write(folder: Path) -> None:
        save_seq2seq(model, tokenizer, {"grammar": grammar.to_dict()}, folder, weights=config.weights)
        describe(folder, provenance)

    publish(run.model, write)
    return run.model


class _Batches:
    """Training batches: questions, and in part noised pieces of passages, with identifiers."""

    def __init__(self, config: Config, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, grammar: Grammar) -> None:
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
