"""
`minder`: multi-view identifiers for generative retrieval (Li et al., 2023, https://arxiv.org/abs/2305.16675).

A question is to be answered with spans of its passage, the passage's title, and other questions about the passage.
Without the query view (`pairs.query: 0`) this is SEAL (https://arxiv.org/abs/2204.10628). The loss is the negative
log-likelihood of the identifiers' tokens. Validation searches with the model, since the training loss misleads: it goes
on falling when retrieval gets worse.
"""

from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gr_components.data import searchable_text
from gr_components.decoding.grammar import Grammar, marker_grammar, reserved_grammar
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer, pad
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig, Fraction
from gr_training.likelihood import token_log_probs
from gr_training.loop import LossSum, fit
from gr_training.losses.sequence import sequence_nll
from gr_training.order import Turn
from gr_training.pairs import Pair, PairSampler, PairsConfig, Target
from gr_training.run import Run, identity
from gr_training.search_validation import SearchValidation
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    weighted_rows,
)
from gr_training.starts import StartConfig, start_seq2seq

_PURPOSE_PAIR = 1


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class GrammarConfig:
    """
    The identifier grammar of a model that has none yet.

    :param layout: `reserved` (WordPiece, built here) or `markers` (BART, as published).
    :param body_tokens: Longest body n-gram that is searched.
    :param title_tokens: Longest title, stop included.
    :param query_tokens: Longest pseudo-query, stop included.
    """

    layout: Literal["reserved", "markers"] = "reserved"
    body_tokens: Count = 10
    title_tokens: Count = 24
    query_tokens: Count = 24


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
    validation = load_validation(config.validation)
    started = start_seq2seq(config.start, lambda: _texts(config, sets), lambda t: _frequencies(sets, t))
    model, tokenizer = started.model, started.tokenizer
    if config.smoothing and model.copy is not None:
        msg = "smoothing: label smoothing is not defined for a model with a copy head; set it to 0."
        raise ConfigError(msg)
    grammar = _grammar(config.grammar, tokenizer, started.info)
    batches = _Batches(config, sets, tokenizer, grammar)
    searching = SearchValidation(validation, _pseudo_queries(sets, validation), tokenizer, grammar, config.search)
    progress = fit(
        model, batches.make, lambda m, batch: _loss(m, batch, config.smoothing), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report,
        validate=searching.evaluate, metric="nDCG@10",
        identity=identity(config, [each.files or {} for each in (*sets, validation)]),
    )  # fmt: skip
    provenance = Provenance(
        task="generative_retriever", recipe=to_plain(config), base_model=config.start.model, data=used(sets),
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip
    more = {"task": provenance.task, "grammar": grammar.to_dict(), "weights": config.weights}
    save_seq2seq(model, tokenizer, more, run.model, weights=config.weights)
    describe(run.model, provenance)
    return run.model


class _Batches:
    """Sources and identifiers as padded tensors."""

    def __init__(self, config: Config, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, grammar: Grammar) -> None:
        self._config, self._grammar, self._tokenizer = config, grammar, tokenizer
        self._sampler = PairSampler(sets, tokenizer, grammar, config.pairs)
        self._rows = weighted_rows(sets, config.fit.seed)

    def make(self, turn: Turn) -> list[dict[str, Any]]:
        """
        Build the batch of a turn.

        :param turn: Which one.
        :returns: Groups; each has sources (B, L) and blocks of targets with the same number of rows for each source.
        """
        positions = turn.positions(self._config.sources_per_step)
        pairs = [self._draw(turn, position, row) for position, row in
                 zip(positions.tolist(), turn.rows(positions, len(self._rows)), strict=True)]  # fmt: skip
        if self._grammar.layout == "reserved":
            # One encoding of the source serves all views; long and short identifiers are padded apart.
            short = self._config.pairs.body + self._config.pairs.title
            blocks = [[pair.targets[:short] for pair in pairs], [pair.targets[short:] for pair in pairs]]
            return [self._group([pair.source for pair in pairs], "", blocks)]
        groups = []
        for view in self._grammar.views:
            chosen = [(pair.source, target) for pair in pairs for target in pair.targets if target.view == view]
            if chosen:
                groups.append(self._group([s for s, _ in chosen], view.source_suffix, [[[t] for _, t in chosen]]))
        return groups

    def _draw(self, turn: Turn, position: int, row: int) -> Pair:
        generator = turn.generator(position, _PURPOSE_PAIR)
        if generator.random() < self._config.pairs.unsupervised:
            return self._sampler.unsupervised(generator)
        return self._sampler.supervised(*self._rows[row], generator)

    def _group(self, sources: list[list[int]], suffix: str, blocks: list[list[list[Target]]]) -> dict[str, Any]:
        first, last, tail = self._frame(suffix)
        room = self._grammar.max_source - len(first) - len(tail) - len(last)
        ids_BL, mask_BL = pad([[*first, *source[:room], *tail, *last] for source in sources], self._tokenizer.pad_id)
        return {
            "ids_BL": torch.from_numpy(ids_BL),
            "mask_BL": torch.from_numpy(mask_BL),
            "blocks": [self._block([t for row in block for t in row]) for block in blocks if block and block[0]],
        }

    @cached_property
    def _special(self) -> tuple[list[int], list[int]]:
        special = self._tokenizer.special
        first = special.get("cls", special.get("bos"))
        last = special.get("sep", special.get("eos"))
        return [] if first is None else [first], [] if last is None else [last]

    def _frame(self, suffix: str) -> tuple[list[int], list[int], list[int]]:
        first, last = self._special
        return first, last, self._tokenizer.encode([suffix])[0] if suffix else []

    def _block(self, targets: list[Target]) -> dict[str, torch.Tensor]:
        inputs = [[*t.view.decoder_start, *t.tokens[:-1]] for t in targets]
        wanted = [[*t.view.decoder_start[1:], *t.tokens] for t in targets]
        ids_RT, _ = pad(inputs, self._tokenizer.pad_id)
        targets_RT, real_RT = pad(wanted, self._tokenizer.pad_id)
        for row, target in enumerate(targets):
            real_RT[row, : len(target.view.decoder_start) - 1] = False
        arrays = {"inputs_RT": ids_RT, "targets_RT": targets_RT, "real_RT": real_RT}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _loss(model: Seq2SeqModel, batch: list[dict[str, Any]], smoothing: float) -> LossSum:
    totals, count = [], torch.zeros((), device=model.device)
    for group in batch:
        memory = model.encode(group["ids_BL"], group["mask_BL"])
        for block in group["blocks"]:
            log_probs_RT, uniform_RT = token_log_probs(model, memory, block, with_uniform=bool(smoothing))
            loss_RT = sequence_nll(log_probs_RT, block["real_RT"], smoothing=smoothing, uniform_RT=uniform_RT)
            totals.append(loss_RT.sum())
            count += block["real_RT"].sum()
    return LossSum(torch.stack(totals).sum(), count)


def _grammar(config: GrammarConfig, tokenizer: TextTokenizer, info: dict[str, Any]) -> Grammar:
    if info.get("grammar"):
        return Grammar.from_dict(info["grammar"])
    if config.layout == "markers":
        return marker_grammar(tokenizer)
    return reserved_grammar(
        tokenizer, body_tokens=config.body_tokens, title_tokens=config.title_tokens, query_tokens=config.query_tokens
    )


def _texts(config: Config, sets: Sequence[QuestionSet]) -> list[str]:
    names = config.start.build.vocabulary if config.start.build else ()
    unknown = set(names) - {each.name for each in config.data}
    if unknown:
        msg = (
            f"start.build.vocabulary names {sorted(unknown)}, but data has only {[each.name for each in config.data]}."
        )
        raise ConfigError(msg)
    chosen = [each for each in sets if not names or each.name in names]
    texts = [searchable_text(passage.title, passage.text) for each in chosen for passage in each.passages]
    return texts + [question.text for each in chosen for question in each.questions]


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


def _pseudo_queries(sets: Sequence[QuestionSet], validation: QuestionSet) -> dict[str, list[str]]:
    """Training questions about the passages that validation searches, as the index will have them."""
    known = {passage.id for passage in validation.passages}
    found: dict[str, list[str]] = {}
    for each in sets:
        for question, rows in zip(each.questions, each.positives, strict=True):
            for row in rows:
                if each.passages[row].id in known:
                    found.setdefault(each.passages[row].id, []).append(question.text)
    return found
