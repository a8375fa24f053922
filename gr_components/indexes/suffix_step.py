"""
One decoding step of all beams: the best continuations that exist, found without a mask over the vocabulary.

Every query keeps a heap of its best M (beam, token) pairs; hot ranges offer their listed next tokens, other ranges are
read row by row. Candidates are totally ordered (score, then beam, then token), so the result does not depend on the
order of reading and can be merged over segments. No fastmath: selections compare scores.

Shapes: B queries, K beams of each, R = B * K rows, M candidates of a query, S segments, V vocabulary.
"""

from typing import NamedTuple

import numpy as np

from gr_components.indexes.candidates import Bool, Float32, Int64
from gr_components.indexes.jit import Scalar, kernel
from gr_components.indexes.suffix_kernels import (
    PositionFilter,
    SuffixArrays,
    edge_range,
    edge_rows,
    is_allowed,
    next_token,
)

#: Log-probabilities may exceed 0 by rounding, but not by more than this.
SLACK = 1e-3


class Beams(NamedTuple):
    """
    The beams before a step.

    :param log_probs_RV: Log-probabilities of the next token.
    :param scores_R: Log-probability of each beam; -inf for dead beams.
    :param nodes_R3: Range (first row, end row) and hot node (-1: none) of each beam.
    :param depth: Tokens that the ranges have in common.
    :param blocked_V: Tokens that may not be chosen.
    """

    log_probs_RV: Float32
    scores_R: Float32
    nodes_R3: Int64
    depth: int
    blocked_V: Bool


class Best(NamedTuple):
    """Candidates of one query (M) or of several (B, M); -inf, -1 and 0 where there are fewer than M."""

    scores: Float32
    beams: Int64
    tokens: Int64


@kernel
def _before(
    score_a: Scalar, beam_a: Scalar, token_a: Scalar, score_b: Scalar, beam_b: Scalar, token_b: Scalar
) -> Scalar:
    """Tell whether candidate a comes before candidate b: higher score, then lower beam, then lower token."""
    if score_a != score_b:
        return score_a > score_b
    if beam_a != beam_b:
        return beam_a < beam_b
    return token_a < token_b


@kernel
def _swap(heap: Best, i: Scalar, j: Scalar) -> None:
    heap.scores[i], heap.scores[j] = heap.scores[j], heap.scores[i]
    heap.beams[i], heap.beams[j] = heap.beams[j], heap.beams[i]
    heap.tokens[i], heap.tokens[j] = heap.tokens[j], heap.tokens[i]


@kernel
def _sift(heap: Best, size: Scalar) -> None:
    """Restore a heap whose root, the candidate that comes last, was replaced."""
    i = 0
    while True:
        last = i
        for child in range(2 * i + 1, min(2 * i + 3, size)):
            if _before(
                heap.scores[last], heap.beams[last], heap.tokens[last],
                heap.scores[child], heap.beams[child], heap.tokens[child],
            ):  # fmt: skip
                last = child
        if last == i:
            return
        _swap(heap, i, last)
        i = last


@kernel
def _any_allowed(arrays: SuffixArrays, positions: PositionFilter, first: Scalar, end: Scalar) -> Scalar:
    for row in range(first, end):  # noqa: SIM110 - numba has no any() of a generator
        if is_allowed(positions.bits, np.int64(arrays.suffixes_N[row])):
            return True
    return False


@kernel
def _offer_edges(
    arrays: SuffixArrays, beams: Beams, positions: PositionFilter, heap: Best, beam: Scalar, row: Scalar
) -> None:
    """Offer the listed next tokens of a hot range."""
    node, score = beams.nodes_R3[row, 2], beams.scores_R[row]
    low, high = edge_range(arrays, node)
    for edge in range(low, high):
        token = np.int64(arrays.tokens_E[edge])
        if token >= len(beams.blocked_V) or beams.blocked_V[token]:
            continue
        value = np.float32(score + beams.log_probs_RV[row, token])
        if not _before(value, beam, token, heap.scores[0], heap.beams[0], heap.tokens[0]):
            continue
        if positions.active:
            first, end = edge_rows(arrays, node, edge)
            if not _any_allowed(arrays, positions, first, end):
                continue
        heap.scores[0], heap.beams[0], heap.tokens[0] = value, beam, token
        _sift(heap, len(heap.scores))


@kernel
def _offer_rows(
    arrays: SuffixArrays, beams: Beams, positions: PositionFilter, heap: Best, beam: Scalar, row: Scalar
) -> None:
    """Offer the next tokens of a range, suffix by suffix; equal tokens follow each other."""
    score, previous = beams.scores_R[row], np.int64(-1)
    for suffix in range(max(beams.nodes_R3[row, 0], 0), min(beams.nodes_R3[row, 1], len(arrays.suffixes_N))):
        if positions.active and not is_allowed(positions.bits, np.int64(arrays.suffixes_N[suffix])):
            continue
        token = next_token(arrays.text_N, arrays.suffixes_N, suffix, beams.depth)
        if token == previous or token < 0:
            continue
        previous = token
        if token >= len(beams.blocked_V) or beams.blocked_V[token]:
            continue
        value = np.float32(score + beams.log_probs_RV[row, token])
        if _before(value, beam, token, heap.scores[0], heap.beams[0], heap.tokens[0]):
            heap.scores[0], heap.beams[0], heap.tokens[0] = value, beam, token
            _sift(heap, len(heap.scores))


@kernel
def best_continuations(arrays: SuffixArrays, beams: Beams, positions: PositionFilter, best: Best) -> None:
    """
    Write the best M continuations of each query that occur in this text at an allowed position, best first.

    Continuations of log-probability -inf are never returned.
    """
    queries = len(best.scores)
    width = len(beams.scores_R) // max(queries, 1)
    for b in range(queries):
        heap = Best(best.scores[b], best.beams[b], best.tokens[b])
        # Placeholders come after every real candidate, so the heap is full from the start.
        heap.scores[:], heap.beams[:], heap.tokens[:] = -np.inf, -1, 0
        for beam in range(width):
            row = b * width + beam
            score = beams.scores_R[row]
            if score == -np.inf or beams.nodes_R3[row, 0] >= beams.nodes_R3[row, 1] or score + SLACK < heap.scores[0]:
                continue
            if beams.nodes_R3[row, 2] >= 0:
                _offer_edges(arrays, beams, positions, heap, beam, row)
            else:
                _offer_rows(arrays, beams, positions, heap, beam, row)
        for size in range(len(heap.scores) - 1, 0, -1):  # heap to list: the last candidate to the end, again and again
            _swap(heap, 0, size)
            _sift(heap, size)


@kernel
def merge_segments(segments: Best, merged: Best) -> None:
    """
    Merge the sorted candidates (S, B, M) of several segments; a beam and token in two segments are one candidate.

    A candidate among the best M of all segments is among the best M of each segment that has it, so this is exact.
    """
    num_segments, queries, num = segments.scores.shape
    heads_S = np.empty(num_segments, np.int64)
    for b in range(queries):
        heads_S[:] = 0
        merged.scores[b, :], merged.beams[b, :], merged.tokens[b, :] = -np.inf, -1, 0
        m = 0
        while m < num:
            first = _first_head(segments, heads_S, b)
            if first < 0:
                break
            head = heads_S[first]
            heads_S[first] += 1
            beam, token = segments.beams[first, b, head], segments.tokens[first, b, head]
            if m > 0 and merged.beams[b, m - 1] == beam and merged.tokens[b, m - 1] == token:
                continue
            merged.scores[b, m] = segments.scores[first, b, head]
            merged.beams[b, m], merged.tokens[b, m] = beam, token
            m += 1


@kernel
def _first_head(segments: Best, heads_S: Int64, b: Scalar) -> Scalar:
    """Segment whose next candidate comes first, -1 when all are used up."""
    first = -1
    for s in range(len(heads_S)):
        i, j = heads_S[s], heads_S[first]
        if i == segments.scores.shape[2] or segments.beams[s, b, i] < 0:
            continue
        if first < 0 or _before(
            segments.scores[s, b, i], segments.beams[s, b, i], segments.tokens[s, b, i],
            segments.scores[first, b, j], segments.beams[first, b, j], segments.tokens[first, b, j],
        ):  # fmt: skip
            first = s
    return first
