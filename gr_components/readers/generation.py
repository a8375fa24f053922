"""
Free generation with a decoder: greedy, beams, and answers that must be spans of the source.

Shapes: B sources, K beams, R = B * K rows (row b * K + k is beam k of source b), S source positions, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.decoding.interfaces import Decoder

_NEG = np.float32(-np.inf)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """
    How answers are searched.

    :param start: Tokens fed before the first generated one.
    :param stop: Token that ends an answer.
    :param beams: Beam width K; 1 is greedy.
    :param max_tokens: Longest answer, `stop` included.
    :param length_penalty: Log-probabilities are divided by length to this power before answers are compared; 0
        compares plain log-probabilities.
    :param never: Tokens that are never generated.
    """

    start: tuple[int, ...]
    stop: int
    beams: int = 1
    max_tokens: int = 50
    length_penalty: float = 0.0
    never: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """
    A generated answer.

    :param tokens: Its tokens, without start and stop.
    :param log_probability: Of all its tokens, `stop` included; natural logarithm.
    :param complete: Whether it ended with `stop` rather than at the longest length.
    :param score: What hypotheses are compared by.
    """

    tokens: tuple[int, ...]
    log_probability: float
    complete: bool
    score: float


class Spans:
    """
    Admits only what stands in one piece in a source, from the start of a word to the end of one.

    :param ids_BS: Source tokens; -1 where an answer cannot stand.
    :param continuation_V: True for tokens that continue a word.
    :param beams: Rows per source K.
    """

    def __init__(self, ids_BS: npt.NDArray[np.int64], continuation_V: npt.NDArray[np.bool_], beams: int) -> None:
        # One position more, where the last word of a source ends.
        self._ids_RS = np.repeat(np.pad(ids_BS, ((0, 0), (0, 1)), constant_values=-1), beams, axis=0)
        real = self._ids_RS >= 0
        self._inside_word = real & continuation_V[np.maximum(self._ids_RS, 0)]
        # Which positions continue everything generated so far; before the first token, those that begin a word.
        self._open_RS = real & ~self._inside_word
        self._num_tokens = len(continuation_V)
        self._first = True

    def allowed(self, stop: int) -> npt.NDArray[np.bool_]:
        """
        Return which tokens may come next, (R, V).

        :param stop: Allowed where the answer ends with a word.
        """
        allowed_RV = np.zeros((len(self._open_RS), self._num_tokens), dtype=bool)
        rows, positions = np.nonzero(self._open_RS & (self._ids_RS >= 0))
        allowed_RV[rows, self._ids_RS[rows, positions]] = True
        allowed_RV[:, stop] = False if self._first else (self._open_RS & ~self._inside_word).any(axis=1)
        return allowed_RV

    def advance(self, tokens_R: npt.NDArray[np.int64], rows_R: npt.NDArray[np.int64]) -> None:
        """
        Take up the chosen tokens.

        :param tokens_R: The token of each row.
        :param rows_R: The row that each row continues.
        """
        matched = self._open_RS[rows_R] & (self._ids_RS == tokens_R[:, None])
        self._open_RS = np.zeros_like(matched)
        self._open_RS[:, 1:] = matched[:, :-1]
        self._first = False


def generate(
    decoder: Decoder, source: Any, num_sources: int, config: GenerationConfig, spans: Spans | None = None
) -> list[list[Hypothesis]]:
    """
    Search the best answers of each source; with one beam this is greedy decoding.

    :param decoder: The decoder.
    :param source: Encoded sources.
    :param num_sources: Their number B.
    :param config: Settings.
    :param spans: Restricts answers to spans; made for `config.beams` rows per source.
    :returns: For each source up to K hypotheses, best first. None is empty.
    """
    beams = config.beams
    state = decoder.start(source, beams)
    rows_R = np.arange(num_sources * beams, dtype=np.int64)
    for token in config.start[:-1]:
        decoder.step(np.full(len(rows_R), token, dtype=np.int64), rows_R, state)
    tokens_R = np.full(len(rows_R), config.start[-1], dtype=np.int64)
    search = _Search(num_sources, config)
    for length in range(1, config.max_tokens + 1):
        log_probs_RV = np.array(decoder.step(tokens_R, rows_R, state))
        log_probs_RV[:, list(config.never)] = _NEG
        if length == 1:
            log_probs_RV[:, config.stop] = _NEG
        if spans is not None:
            log_probs_RV[~spans.allowed(config.stop)] = _NEG
        tokens_R, rows_R = search.step(log_probs_RV, length)
        if search.done():
            break
        if spans is not None:
            spans.advance(tokens_R, rows_R)
    return search.results()


class _Search:
    """Running beams and finished hypotheses of each source."""

    def __init__(self, num_sources: int, config: GenerationConfig) -> None:
        self.config = config
        self.scores_BK = np.full((num_sources, config.beams), _NEG, dtype=np.float64)
        self.scores_BK[:, 0] = 0.0
        self.written: list[list[tuple[int, ...]]] = [[()] * config.beams for _ in range(num_sources)]
        self.finished: list[list[Hypothesis]] = [[] for _ in range(num_sources)]
        self._open_B = np.ones(num_sources, dtype=bool)

    def step(
        self, log_probs_RV: npt.NDArray[np.float32], length: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Choose the best continuations; return tokens to feed and the rows that they continue."""
        sources, beams = self.scores_BK.shape
        vocabulary = log_probs_RV.shape[1]
        totals_BC = (self.scores_BK.reshape(-1, 1) + log_probs_RV).reshape(sources, beams * vocabulary)
        # Twice as many as beams: up to K of them may be finished answers.
        best_BC = _best(totals_BC, 2 * beams)
        tokens_BK = np.full((sources, beams), self.config.stop, dtype=np.int64)
        rows_BK = np.arange(sources * beams, dtype=np.int64).reshape(sources, beams)
        for b in np.nonzero(self._open_B)[0]:
            self._step_source(int(b), totals_BC[b], best_BC[b], vocabulary, length, tokens_BK, rows_BK)
        return tokens_BK.reshape(-1), rows_BK.reshape(-1)

    def _step_source(
        self, b: int, totals_C: npt.NDArray[np.float64], best_C: npt.NDArray[np.int64], vocabulary: int, length: int,
        tokens_BK: npt.NDArray[np.int64], rows_BK: npt.NDArray[np.int64],
    ) -> None:  # fmt: skip
        beams = self.config.beams
        before = self.written[b]
        written: list[tuple[int, ...]] = []
        scores: list[float] = []
        for rank, candidate in enumerate(best_C):
            total = float(totals_C[candidate])
            beam, token = divmod(int(candidate), vocabulary)
            if total == _NEG or len(written) == beams:
                break
            if token == self.config.stop:
                if rank < beams:  # worse ones are no answers that a beam of this width would find
                    self._finish(b, before[beam], total, length, complete=True)
                continue
            tokens_BK[b, len(written)], rows_BK[b, len(written)] = token, b * beams + beam
            written.append((*before[beam], token))
            scores.append(total)
        if length == self.config.max_tokens:
            for tokens, total in zip(written, scores, strict=True):
                self._finish(b, tokens, total, length, complete=False)
        unused = beams - len(written)
        self.written[b] = written + [()] * unused
        self.scores_BK[b] = scores + [_NEG] * unused
        self._open_B[b] = self._can_improve(b)

    def _finish(self, b: int, tokens: tuple[int, ...], total: float, length: int, *, complete: bool) -> None:
        score = total / length**self.config.length_penalty
        self.finished[b].append(Hypothesis(tokens, total, complete, score))

    def _can_improve(self, b: int) -> bool:
        best = float(self.scores_BK[b].max())
        if best == _NEG:
            return False
        if len(self.finished[b]) < self.config.beams:
            return True
        if self.config.beams == 1:
            return False
        # Log-probabilities only fall, and dividing by the greatest length makes them largest.
        bound = best / self.config.max_tokens ** max(0.0, self.config.length_penalty)
        return bound > sorted((h.score for h in self.finished[b]), reverse=True)[self.config.beams - 1]

    def done(self) -> bool:
        """Tell whether no source can get a better answer."""
        return not self._open_B.any()

    def results(self) -> list[list[Hypothesis]]:
        """Return the best hypotheses of each source."""
        beams = self.config.beams
        return [sorted(found, key=lambda h: -h.score)[:beams] for found in self.finished]


def _best(totals_BC: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Columns of the largest values of each row, largest first, ties by column."""
    count = min(count, totals_BC.shape[1])
    if count < totals_BC.shape[1]:
        columns = np.argpartition(-totals_BC, count - 1, axis=1)[:, :count]
    else:
        columns = np.broadcast_to(np.arange(count), totals_BC.shape).copy()
    columns.sort(axis=1)
    order = np.argsort(-np.take_along_axis(totals_BC, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def span_sources(ids_BNL: npt.NDArray[np.int64], context_BNL: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """
    Return the tokens that spans are taken from, (B, N * L), -1 elsewhere.

    :param ids_BNL: Source tokens.
    :param context_BNL: True on context tokens.
    """
    return np.where(context_BNL, ids_BNL, -1).reshape(len(ids_BNL), -1)
