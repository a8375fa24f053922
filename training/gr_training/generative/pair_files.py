"""
Training pairs as a file: what a generative retriever learns from, to be looked at, counted, changed or used elsewhere.

A recipe needs no such file, since it draws its pairs as it goes. A line is one source with its identifiers:

    {"set": "demo", "source": "who made the bells", "source_tokens": [...],
     "targets": [["body", "the bells were cast", [...]], ...], "weight": 1.0}

The tokens count; the texts are there to be read. The sidecar says what the pairs were drawn from.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gr_components.data.candidates import check_inputs, is_current, path_hash, write_sidecar
from gr_components.data.files import read_objects, shown, write_objects
from gr_components.decoding.grammar import Grammar
from gr_components.errors import DataError, ProvenanceError, TokenizerMismatchError
from gr_components.progress import Reporter, Silent, track
from gr_components.tokenization import TextTokenizer
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.distributed import main_first
from gr_training.fitting import Count, Natural
from gr_training.generative.pairs import Pair, PairSampler, PairsConfig, Target
from gr_training.sources import QuestionSet, input_names


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class PairFileConfig:
    """
    How many pairs are written.

    :param per_question: Pairs drawn for each training question. The share `pairs.unsupervised` of all of them has
        noised pieces of passages as sources instead.
    :param seed: Of the draws.
    """

    per_question: Count = 1
    seed: Natural = 13


@dataclass(frozen=True)
class PairFile:
    """
    Pairs in memory.

    :param pairs: All pairs; each has the same number of identifiers, in the order body, title, query.
    :param weights: How often each is to be seen per pass.
    :param num_short: How many of a pair's identifiers, from the first, are short (`IdentifierBatches.groups`).
    """

    pairs: list[Pair]
    weights: list[float]
    num_short: int

    def rows(self, seed: int) -> list[int]:
        """
        Return the pairs of one pass, repeated as their weights say.

        :param seed: Decides which pairs the fractional part of a weight takes once more.
        """
        weights_N = np.asarray(self.weights)
        extra_N = np.random.default_rng(seed).random(len(weights_N)) < weights_N % 1.0
        return np.repeat(np.arange(len(weights_N)), weights_N.astype(np.int64) + extra_N).tolist()


def write_pairs(
    path: Path, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, grammar: Grammar, pairs: PairsConfig,
    config: PairFileConfig, report: Reporter | None = None,
) -> Path:  # fmt: skip
    """
    Draw pairs and write them; a file that is there and still true is kept.

    :param path: A `pairs.jsonl.gz`.
    :param sets: Training sets.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param pairs: Which identifiers each source gets.
    :param config: How many pairs.
    :param report: Where progress goes.
    :returns: `path`.
    """
    report = report or Silent()
    hashes = {name: path_hash(name) for name in input_names(name for each in sets for name in each.files or {})}
    made_by = {
        "stage": "pairs", "settings": to_plain(config), "pairs": to_plain(pairs), "sets": [s.name for s in sets],
        "tokenizer": tokenizer.fingerprint, "grammar": _plain(grammar),
    }  # fmt: skip
    with main_first():
        if not is_current(path, made_by):
            sampler = PairSampler(sets, tokenizer, grammar, pairs)
            total = config.per_question * sum(len(each.questions) for each in sets)
            drawn = track(_drawn(sets, sampler, config), report, "pairs", total)
            count = write_objects(path, (_line(name, weight, pair, tokenizer) for name, weight, pair in drawn))
            write_sidecar(path, made_by=made_by, hashes=hashes, summary={"pairs": count})
    return path


def read_pairs(path: Path, tokenizer: TextTokenizer, grammar: Grammar) -> PairFile:
    """
    Read pairs.

    :param path: What `write_pairs` wrote.
    :param tokenizer: Of the model that is to be trained.
    :param grammar: Likewise.
    :raises ProvenanceError: If the file or what it was drawn from has changed, or if it holds no pairs.
    :raises TokenizerMismatchError: If it was written with another tokenizer or grammar.
    :raises DataError: If a line is malformed, names a view that the model lacks, or has another number of identifiers.
    """
    made_by = check_inputs(path)["made_by"]
    if made_by.get("stage") != "pairs":
        msg = f"'{path}' holds no pairs: it was made by {made_by.get('stage')!r}."
        raise ProvenanceError(msg)
    if made_by["tokenizer"] != tokenizer.fingerprint:
        msg = (
            f"'{path}' was written with the tokenizer {made_by['tokenizer'][:12]}, the model uses "
            f"{tokenizer.fingerprint[:12]}. Write the pairs again with this model."
        )
        raise TokenizerMismatchError(msg)
    if made_by.get("grammar") != _plain(grammar):
        msg = f"'{path}' was written with another identifier grammar than the model's. Write the pairs again with it."
        raise TokenizerMismatchError(msg)
    shape = made_by["pairs"]
    num_targets = shape["body"] + shape["title"] + shape["query"]
    views = {view.name: view for view in grammar.views}
    pairs, weights = [], []
    for line, data in read_objects(path):
        try:
            targets = [Target(views[name], list(map(int, tokens))) for name, _, tokens in data["targets"]]
            pairs.append(Pair(list(map(int, data["source_tokens"])), targets))
            weights.append(float(data["weight"]))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path}, line {line}: not a pair for a model with the views {list(views)} ({error!r}): {shown(data)}"
            raise DataError(msg) from error
        if len(targets) != num_targets:
            msg = f"{path}, line {line}: {len(targets)} identifiers, the others have {num_targets}."
            raise DataError(msg)
        _check_tokens(pairs[-1], tokenizer, f"{path}, line {line}")
    return PairFile(pairs, weights, shape["body"] + shape["title"])


def _drawn(
    sets: Sequence[QuestionSet], sampler: PairSampler, config: PairFileConfig
) -> Iterator[tuple[str, float, Pair]]:
    for number, each in enumerate(sets):
        for row in range(len(each.questions)):
            for copy in range(config.per_question):
                generator = np.random.default_rng((config.seed, number, row, copy))
                if generator.random() < sampler.config.unsupervised:
                    yield each.name, each.weight, sampler.unsupervised(generator)
                else:
                    yield each.name, each.weight, sampler.supervised(number, row, generator)


def _line(name: str, weight: float, pair: Pair, tokenizer: TextTokenizer) -> dict[str, Any]:
    targets = []
    for target in pair.targets:
        text = [token for token in target.tokens if token != target.view.stop]
        targets.append([target.view.name, tokenizer.decode(text, skip_special=False).strip(), target.tokens])
    source = tokenizer.decode(pair.source, skip_special=False).strip()
    return {"set": name, "source": source, "source_tokens": pair.source, "targets": targets, "weight": weight}


def _plain(grammar: Grammar) -> Any:
    """Return a grammar as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(grammar.to_dict()))


def _check_tokens(pair: Pair, tokenizer: TextTokenizer, where: str) -> None:
    for tokens in (pair.source, *(target.tokens for target in pair.targets)):
        if not tokens or min(tokens) < 0 or max(tokens) >= tokenizer.vocabulary_size:
            msg = f"{where}: tokens must be between 0 and {tokenizer.vocabulary_size - 1}, got {tokens}."
            raise DataError(msg)
