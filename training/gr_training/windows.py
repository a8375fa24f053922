"""Parts of passages near the words of a question: training on them costs a fraction of training on whole passages."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from gr_components.data import Passage

_WORD = re.compile(r"\w+")


class Windows:
    """
    Cuts windows of words out of the passages of a corpus.

    :param passages: The corpus.
    :param num_words: Words of a window.
    """

    def __init__(self, passages: Sequence[Passage], num_words: int) -> None:
        self._passages, self._num_words = passages, num_words

    def cut(self, passage: int, question: str, generator: np.random.Generator) -> str:
        """
        Return a window around the words that a passage shares with a question, rare words counting more.

        Among the windows with the largest sum one is drawn, so that the shared words stand anywhere in it.

        :param passage: Row of the passage; one that is not longer than a window is returned whole.
        :param question: The question.
        :param generator: Source of randomness.
        """
        words, normal = self._words[passage]
        if len(words) <= self._num_words:
            return self._passages[passage].text
        asked = set(_WORD.findall(question.lower()))
        worth = np.array([self._idf.get(word, 0.0) if word in asked else 0.0 for word in normal])
        total = np.concatenate([[0.0], np.cumsum(worth)])
        sums = total[self._num_words :] - total[: -self._num_words]
        best = np.flatnonzero(sums >= sums.max() - 1e-9)
        start = int(best[generator.integers(len(best))])
        return " ".join(words[start : start + self._num_words])

    @cached_property
    def _words(self) -> list[tuple[list[str], list[str]]]:
        """For each passage its words, and these as they are compared."""
        several = [passage.text.split() for passage in self._passages]
        return [(words, ["".join(_WORD.findall(word.lower())) for word in words]) for words in several]

    @cached_property
    def _idf(self) -> dict[str, float]:
        counts = Counter(word for _, normal in self._words for word in set(normal))
        return {word: math.log(len(self._passages) / count) for word, count in counts.items()}
