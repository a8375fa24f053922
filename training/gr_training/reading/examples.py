"""
Training examples of a reader: which passages it sees, cut where, and which answer it is to write.

Batches are functions of (seed, step) alone. A *group* is a fixed number of consecutive batches over consecutive places
of the endless sequence of examples (`order.py`); within it the examples are sorted by length, so that a batch needs
little padding, and some of the batches have hard negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from gr_components.readers.layout import ReaderLayout
from gr_components.readers.surface import find_tokens
from gr_components.tokenization import TextTokenizer
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Count, Fraction, Natural
from gr_training.order import Turn
from gr_training.reading.batches import reader_batch
from gr_training.sources import QuestionSet, weighted_rows

_GROUP = 20
_KINDS, _SHUFFLE, _CROP = 101, 102, 103


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class BatchConfig:
    """
    What a batch is made of.

    :param passages: Passages of a batch; it has as many questions as fit.
    :param num_negatives: Hard negatives beside the relevant passage, in the batches that have any.
    :param negative_share: Share of the batches with negatives. They are what makes five passages better than one.
    :param depth: Negatives are drawn from this many passages at the top.
    :param crop_share: Share of the batches whose passages are windows of the text, which makes steps cheaper and every
        pass over the data a different one. Needs answers that stand in their passage.
    :param crop_tokens: Shortest and longest window.
    :param max_answer_tokens: Longer answers are not trained on.
    """

    passages: Count = 16
    num_negatives: Natural = 2
    negative_share: Fraction = 0.35
    depth: Count = 6
    crop_share: Fraction = 0.0
    crop_tokens: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (40, 110)
    max_answer_tokens: Count = 20


@dataclass(frozen=True)
class Example:
    """
    A question with one of its relevant passages.

    :param number: Which training set.
    :param question: Token ids.
    :param positive: Row of the passage.
    :param answers: Token ids of its acceptable answers.
    :param negatives: Rows of passages that retrieval found and that are not relevant.
    """

    number: int
    question: list[int]
    positive: int
    answers: list[list[int]]
    negatives: list[int]


class ReaderExamples:
    """
    All examples, tokenized once, and the batches made of them.

    :param sets: Training sets.
    :param found: For each set and each of its questions the rows of passages that retrieval found, best first.
    :param tokenizer: The model's tokenizer.
    :param layout: How inputs are written.
    :param config: What a batch is made of.
    :param seed: Of the run.
    :param must_occur: Whether answers that do not stand in the passage are left out (models that copy).
    """

    def __init__(
        self, sets: Sequence[QuestionSet], found: Sequence[Sequence[Sequence[int]]], tokenizer: TextTokenizer,
        layout: ReaderLayout, config: BatchConfig, seed: int, *, must_occur: bool,
    ) -> None:  # fmt: skip
        self.layout, self.config, self._pad_id = layout, config, tokenizer.pad_id
        self._titles = [_ids(layout, tokenizer, [p.title for p in each.passages]) for each in sets]
        self._contexts = [_ids(layout, tokenizer, [p.text for p in each.passages]) for each in sets]
        by_question = [
            self._examples_of(number, each, found[number], tokenizer, must_occur) for number, each in enumerate(sets)
        ]
        self.examples = [e for number, row in weighted_rows(sets, seed) for e in by_question[number][row]]
        self.num_questions = [sum(bool(examples) for examples in each) for each in by_question]
        self._group: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, turn: Turn) -> dict[str, torch.Tensor]:
        """
        Build this process's part of a batch.

        :param turn: Which one.
        :returns: What `reader_batch` returns.
        """
        index = turn.step * turn.num_rounds + turn.round
        positions = self._positions(turn, index)[turn.rank :: turn.num_processes]
        number_of = 1 + self.config.num_negatives if self._has_negatives(turn.seed, index) else 1
        window = self._window(turn.seed, index)
        rows, answers = [], []
        for position, row in zip(positions, turn.rows(np.array(positions), len(self.examples)), strict=True):
            generator = turn.generator(position)
            example = self.examples[row]
            answer = example.answers[int(generator.integers(len(example.answers)))]
            passages = self._draw(example, number_of - 1, generator)
            rows.append([self._input(example, p, answer, window, generator) for p in passages])
            answers.append(answer)
        return reader_batch(self.layout, rows, answers, self._pad_id)

    def _examples_of(
        self, number: int, each: QuestionSet, found: Sequence[Sequence[int]], tokenizer: TextTokenizer, must_occur: bool
    ) -> list[list[Example]]:
        questions = _ids(self.layout, tokenizer, [q.text for q in each.questions])
        answers = [answer for q in each.questions for answer in q.answers]
        tokens = dict(zip(answers, tokenizer.encode(answers), strict=True))
        examples: list[list[Example]] = []
        for row, question in enumerate(each.questions):
            positives = each.positives[row]
            negatives = [p for p in found[row] if p not in positives][: self.config.depth]
            own = []
            for positive in positives:
                read = self._read(number, positive, questions[row])
                wanted = [
                    tokens[a]
                    for a in question.answers
                    if 0 < len(tokens[a]) <= self.config.max_answer_tokens
                    and not (must_occur and find_tokens(tokens[a], read) is None)
                ]
                if wanted:
                    own.append(Example(number, questions[row], positive, wanted, negatives))
            examples.append(own)
        return examples

    def _read(self, number: int, passage: int, question: list[int]) -> list[int]:
        """Return what the model reads of a passage beside a question."""
        ids, begin, end = self.layout.assemble(question, self._titles[number][passage], self._contexts[number][passage])
        return ids[begin:end]

    def _positions(self, turn: Turn, index: int) -> list[int]:
        """Return the positions of a batch, from its group's examples in order of length."""
        group, slot = divmod(index, _GROUP)
        if self._group[0] != group:
            self._group = (group, self._divide(turn, group))
        return self._group[1][slot]

    def _divide(self, turn: Turn, group: int) -> list[list[int]]:
        sizes = [self._size(turn.seed, group * _GROUP + slot) for slot in range(_GROUP)]
        total = sum(sizes)  # the same for every group
        positions = np.arange(group * total, (group + 1) * total, dtype=np.int64)
        lengths = [self._length(row) for row in turn.rows(positions, len(self.examples))]
        by_length = positions[np.argsort(lengths, kind="stable")].tolist()
        batches: list[list[int]] = [[] for _ in range(_GROUP)]
        for slot in np.random.default_rng((turn.seed, _SHUFFLE, group)).permutation(_GROUP):
            batches[slot], by_length = by_length[: sizes[slot]], by_length[sizes[slot] :]
        return batches

    def _length(self, row: int) -> int:
        example = self.examples[row]
        return len(example.question) + len(self._contexts[example.number][example.positive])

    def _size(self, seed: int, index: int) -> int:
        if not self._has_negatives(seed, index):
            return self.config.passages
        return max(1, self.config.passages // (1 + self.config.num_negatives))

    def _has_negatives(self, seed: int, index: int) -> bool:
        if not self.config.num_negatives:
            return False
        group, slot = divmod(index, _GROUP)
        order = np.random.default_rng((seed, _KINDS, group)).permutation(_GROUP)
        return bool(order[slot] < round(self.config.negative_share * _GROUP))

    def _window(self, seed: int, index: int) -> int | None:
        generator = np.random.default_rng((seed, _CROP, index))
        if generator.random() >= self.config.crop_share:
            return None
        shortest, longest = self.config.crop_tokens
        return int(generator.integers(shortest, longest + 1))

    def _draw(self, example: Example, count: int, generator: np.random.Generator) -> list[int]:
        """Return the relevant passage and `count` others in random order; fewer hard ones are filled up at random."""
        hard = list(generator.permutation(example.negatives)[:count])
        size = len(self._contexts[example.number])
        while len(hard) < count and size > 1 + len(hard):
            other = int(generator.integers(size))
            if other != example.positive and other not in hard:
                hard.append(other)
        return [int(p) for p in generator.permutation([example.positive, *hard])]

    def _input(
        self, example: Example, passage: int, answer: list[int], window: int | None, generator: np.random.Generator
    ) -> tuple[list[int], int, int]:
        title, context = self._titles[example.number][passage], self._contexts[example.number][passage]
        if window is not None:
            read = self._read(example.number, passage, example.question)
            where = find_tokens(answer, read) if passage == example.positive else None
            context = _cut(read, window, where, len(answer), generator)
        return self.layout.assemble(example.question, title, context)


def _cut(tokens: list[int], window: int, where: int | None, length: int, generator: np.random.Generator) -> list[int]:
    """A window of the tokens at a random place, around the answer if there is one."""
    last = max(0, len(tokens) - window)
    low, high = 0, last
    if where is not None:
        high = min(where, last)
        low = min(max(0, where + length - window), high)
    begin = int(generator.integers(low, high + 1))
    return tokens[begin : begin + window]


def _ids(layout: ReaderLayout, tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
    out: list[list[int]] = []
    for first in range(0, len(texts), 1000):
        out += [encoded.ids for encoded in layout.tokenize(tokenizer, texts[first : first + 1000])]
    return out
