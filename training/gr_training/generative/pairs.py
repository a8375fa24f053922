"""
Training pairs of a generative retriever: a source text and identifiers of a passage that answers it.

For each question: spans of its passage, chosen near words that the question shares with it (SEAL,
https://arxiv.org/abs/2204.10628, section 3.2), the passage's title, and other training questions about the passage as
pseudo-queries (MINDER, https://arxiv.org/abs/2305.16675). Without questions: noised pieces of passages as sources.

Everything is drawn from a generator that the caller passes, so that a batch is a function of seed and step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from gr_components.data import normalise
from gr_components.decoding.grammar import BODY, QUERY, TITLE, Grammar, View
from gr_components.errors import ConfigError
from gr_components.tokenization import TextTokenizer
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Fraction, Natural
from gr_training.sources import QuestionSet

_STOP_WORDS = frozenset(
    """
    a an the of in on at to for from by with and or is are was were be been what which who whom whose when where why how
    many much did do does has have had that this it its as not s ? . , ' " - ( )
    """.split()  # noqa: SIM905 - readable
)
_LAST_TOKENS = 4


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class PairsConfig:
    """
    Which identifiers each source gets.

    :param body: Spans of the passage; also what replaces a title or a pseudo-query that is not there.
    :param title: Copies of the title.
    :param query: Other questions about the passage.
    :param span_tokens: Length of a span.
    :param temperature: Of the softmax over span starts; its logits are the summed idf of shared words.
    :param max_source: Longest question in tokens, without special tokens.
    :param unsupervised: Share of the sources that are noised pieces of passages instead of questions.
    :param delete: Share of those from which tokens are deleted, and `deleted` the share of their tokens.
    :param deleted: See `delete`.
    :param shuffle: Share of those whose tokens are shuffled.
    :param random_spans: Share of their target spans that are drawn evenly from the passage.
    """

    body: Annotated[int, Field(ge=1)] = 4
    title: Natural = 1
    query: Natural = 2
    span_tokens: Annotated[int, Field(ge=1)] = 11
    temperature: Annotated[float, Field(gt=0)] = 1.5
    max_source: Annotated[int, Field(ge=4)] = 40
    unsupervised: Fraction = 0.25
    delete: Fraction = 0.8
    deleted: Fraction = 0.3
    shuffle: Fraction = 0.4
    random_spans: Fraction = 0.6


@dataclass(frozen=True)
class Target:
    """
    One identifier to be generated.

    :param view: The view it belongs to.
    :param tokens: Its tokens, stop included, decoder start excluded.
    """

    view: View
    tokens: list[int]


@dataclass(frozen=True)
class Pair:
    """
    A source with its identifiers.

    :param source: Tokens, without special tokens.
    :param targets: `body + title + query` identifiers, in this order.
    """

    source: list[int]
    targets: list[Target]


class PairSampler:
    """
    Draws training pairs.

    :param sets: Training sets.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param config: Proportions.
    :raises ConfigError: If identifiers of a view are wanted that the grammar lacks.
    """

    def __init__(
        self, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, grammar: Grammar, config: PairsConfig
    ) -> None:
        self.config = config
        self._views = {view.name: view for view in grammar.views}
        for name, wanted in ((BODY, config.body), (TITLE, config.title), (QUERY, config.query)):
            if wanted and name not in self._views:
                msg = f"pairs.{name} is {wanted}, but the model's grammar has only the views {list(self._views)}."
                raise ConfigError(msg)
        spaced = grammar.layout == "markers"  # byte-level BPE writes a word's first token with its space
        self._sets = [_TokenizedSet(each, tokenizer, spaced) for each in sets]
        self._continues_V = tokenizer.continuation_V
        self._common_V = np.array([_is_common(tokenizer.token(i)) for i in range(tokenizer.vocabulary_size)])
        self._idf = [_inverse_frequency(each.texts, tokenizer.vocabulary_size) for each in self._sets]
        sizes = np.array([each.weight * len(s.with_text) for each, s in zip(sets, self._sets, strict=True)])
        self._share = np.cumsum(sizes / max(sizes.sum(), 1e-9))

    def supervised(self, number: int, row: int, generator: np.random.Generator) -> Pair:
        """
        Draw identifiers for a training question.

        :param number: Which set.
        :param row: Which of its questions.
        :param generator: Source of randomness.
        """
        each = self._sets[number]
        positives = each.positives[row]
        passage = positives[int(generator.integers(len(positives)))]
        question = each.questions[row]
        others = each.queries(passage, without=each.question_words[row])
        chances = self._chances(question, each.texts[passage], number)
        spans = [self._span(each.texts[passage], chances, generator) for _ in range(self._num_targets)]
        return Pair(question[: self.config.max_source], self._targets(number, passage, spans, others, generator))

    def unsupervised(self, generator: np.random.Generator) -> Pair:
        """
        Draw a noised piece of a passage and identifiers of that passage.

        :param generator: Source of randomness.
        """
        config = self.config
        number = min(int(np.searchsorted(self._share, generator.random(), side="right")), len(self._sets) - 1)
        each = self._sets[number]
        passage = each.with_text[int(generator.integers(len(each.with_text)))]
        text = each.texts[passage]
        length = int(generator.integers(6, 25))
        start = int(generator.integers(max(1, len(text) - length)))
        source = list(text[start : start + length])
        if generator.random() < config.delete:
            source = [token for token in source if generator.random() >= config.deleted] or source
        if generator.random() < config.shuffle:
            source = [source[i] for i in generator.permutation(len(source))]
        chances = self._chances(source, text, number)
        spans = [
            self._random_span(text, generator) if generator.random() < config.random_spans
            else self._span(text, chances, generator)
            for _ in range(self._num_targets)
        ]  # fmt: skip
        others = each.queries(passage)
        return Pair(source, self._targets(number, passage, spans, others, generator))

    @property
    def _num_targets(self) -> int:
        return self.config.body + self.config.title + self.config.query

    def _targets(
        self, number: int, passage: int, spans: list[list[int]], others: list[list[int]], generator: np.random.Generator
    ) -> list[Target]:
        config, each = self.config, self._sets[number]
        targets = [Target(self._views[BODY], span) for span in spans]
        first = config.body
        if each.titles[passage] and TITLE in self._views:
            for place in range(first if each.texts[passage] else 0, first + config.title):
                targets[place] = _completed(self._views[TITLE], each.titles[passage])
        first += config.title
        if others:
            for place in range(first, first + config.query):
                chosen = others[int(generator.integers(len(others)))]
                targets[place] = _completed(self._views[QUERY], chosen)
        return targets

    def _chances(self, source: Sequence[int], text: Sequence[int], number: int) -> npt.NDArray[np.float64]:
        """Cumulative chances of span starts: word starts, by the idf of the words that span and source share."""
        tokens = np.asarray(text, dtype=np.int64)
        if not len(tokens):
            return np.ones(1)
        shared = np.isin(tokens, [token for token in source if not self._common_V[token]])
        total = np.concatenate([[0.0], np.cumsum(shared * self._idf[number][tokens])])
        ends = np.minimum(np.arange(len(tokens)) + self.config.span_tokens, len(tokens))
        logits = (total[ends] - total[:-1]) / self.config.temperature
        logits[self._continues_V[tokens]] = -np.inf
        logits[max(1, len(tokens) - _LAST_TOKENS) :] = -np.inf
        if not np.isfinite(logits).any():
            logits[0] = 0.0
        chances = np.exp(logits - logits.max())
        return np.cumsum(chances / chances.sum())

    def _span(self, text: Sequence[int], chances: npt.NDArray[np.float64], generator: np.random.Generator) -> list[int]:
        start = min(int(np.searchsorted(chances, generator.random(), side="right")), max(0, len(text) - 1))
        return list(text[start : start + self.config.span_tokens])

    def _random_span(self, text: Sequence[int], generator: np.random.Generator) -> list[int]:
        start = int(generator.integers(max(1, len(text) - self.config.span_tokens)))
        while start > 0 and self._continues_V[text[start]]:
            start -= 1
        return list(text[start : start + self.config.span_tokens])


class _TokenizedSet:
    """A training set as token ids."""

    def __init__(self, each: QuestionSet, tokenizer: TextTokenizer, spaced: bool) -> None:
        def encode(texts: Sequence[str]) -> list[list[int]]:
            return tokenizer.encode([" " + text.strip() for text in texts] if spaced else list(texts))

        self.texts = encode([passage.text for passage in each.passages])
        self.with_text = [row for row, ids in enumerate(self.texts) if ids]
        self.titles = encode([passage.title for passage in each.passages])
        self.titles = [ids if p.title.strip() else [] for ids, p in zip(self.titles, each.passages, strict=True)]
        self.questions = encode([question.text for question in each.questions])
        self.positives = each.positives
        self.pseudo = [encode(passage.queries) if passage.queries else [] for passage in each.passages]
        self.question_words = [normalise(question.text) for question in each.questions]
        self._pseudo_words = [[normalise(query) for query in passage.queries] for passage in each.passages]
        self._questions_of: list[list[int]] = [[] for _ in each.passages]
        for row, passages in enumerate(each.positives):
            for passage in passages:
                self._questions_of[passage].append(row)

    def queries(self, passage: int, without: str | None = None) -> list[list[int]]:
        """
        Return the questions about a passage and its pseudo-queries.

        :param passage: Row of the passage.
        :param without: Words that none of them may consist of: a question is no identifier for itself.
        """
        rows = self._questions_of[passage]
        asked = [self.questions[row] for row in rows if self.question_words[row] != without]
        pseudo = zip(self.pseudo[passage], self._pseudo_words[passage], strict=True)
        return asked + [query for query, words in pseudo if words != without]


def _completed(view: View, tokens: Sequence[int]) -> Target:
    """End an identifier with the view's stop token; one that is too long is cut and then does not end."""
    full = list(tokens) if view.stop is None else [*tokens, view.stop]
    return Target(view, full[: view.max_tokens])


def _inverse_frequency(texts: Sequence[Sequence[int]], vocabulary_size: int) -> npt.NDArray[np.float64]:
    documents_V = np.zeros(vocabulary_size)
    for text in texts:
        documents_V[np.unique(np.asarray(text, dtype=np.int64))] += 1
    return np.log(max(1, len(texts)) / (documents_V + 0.5)).clip(0)


def _is_common(token: str) -> bool:
    word = token.removeprefix("##").removeprefix("Ġ").removeprefix("▁").lower()
    return word in _STOP_WORDS or len(word) <= 1
