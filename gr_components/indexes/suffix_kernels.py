"""
The inner loops of the suffix index: building the hot table, looking up, counting, locating, and one step of all beams.

A *range* is a run of rows of the suffix array: all suffixes that begin with the same tokens. A range is either *hot*
(more than T rows: its next tokens are listed in a table, sorted) or read row by row. Files may be damaged after they
were checked, so every position, row, node and token that comes from them is bounded before it is used.

A decoding step finds the best continuations that exist without a mask over the vocabulary: every query keeps a heap of
its best M (beam, token) pairs, hot ranges offer their listed next tokens, other ranges are read row by row. Candidates
are totally ordered (score, then beam, then token), so the result does not depend on the order of reading and can be
merged over segments. No fastmath: selections compare scores.

All in one file, because the cache of compiled code only notices changes in a function's own file.

Shapes: N text length, H hot nodes, E hot edges, D documents, B queries, K beams of each, R = B * K rows, M candidates
of a query, S segments, V vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gr_components.indexes.candidates import Bool, Float32, Int64
from gr_components.indexes.jit import Scalar, kernel

Tokens = npt.NDArray[Any]
Bits = npt.NDArray[np.uint8]

#: Deeper ranges are read row by row: identifiers are shorter, and repetitive texts would make a table as long as they.
MAX_HOT_DEPTH = 64
#: Log-probabilities may exceed 0 by rounding, but not by more than this.
SLACK = 1e-3
#: Positions per entry of the table that finds the document of a position, as a power of two.
BLOCK_SHIFT = 6


class SuffixArrays(NamedTuple):
    """
    One searchable text.

    :param text_N: Tokens, uint16 or uint32.
    :param suffixes_N: Start positions of the suffixes in sorted order, uint32.
    :param edges_H1: Edges of hot node h are `edges_H1[h]` to `edges_H1[h + 1]`; node 0 is the whole array. int64.
    :param ends_H: End row of each hot node. int64.
    :param tokens_E: Next token of each edge, ascending within a node; as `text_N`.
    :param rows_E: First row of each edge. uint32.
    :param children_E: Hot node that an edge leads to, -1 if it is not hot. int32.
    """

    text_N: Tokens
    suffixes_N: npt.NDArray[np.uint32]
    edges_H1: Int64
    ends_H: Int64
    tokens_E: Tokens
    rows_E: npt.NDArray[np.uint32]
    children_E: npt.NDArray[np.int32]


class PositionFilter(NamedTuple):
    """
    Which text positions belong to live and allowed documents.

    :param active: False if all do; `bits` is not read then.
    :param bits: One bit per position, lowest bit first.
    """

    active: bool
    bits: Bits


@kernel
def _next_token(text_N: Tokens, suffixes_N: Any, row: Scalar, depth: Scalar) -> Scalar:
    """Token at `depth` of the suffix in a row, -1 behind the end of the text."""
    position = np.int64(suffixes_N[row]) + depth
    if position >= len(text_N):
        return np.int64(-1)
    return np.int64(text_N[position])


@kernel
def _run_end(text_N: Tokens, suffixes_N: Any, row: Scalar, end: Scalar, depth: Scalar, token: Scalar) -> Scalar:
    """Find the end of the run of rows that have `token` at `depth` and include `row`: gallop, then halve."""
    known, step = row, 1
    while known + step < end and _next_token(text_N, suffixes_N, known + step, depth) == token:
        known += step
        step *= 2
    low, high = known + 1, min(known + step, end)
    while low < high:
        middle = (low + high) >> 1
        if _next_token(text_N, suffixes_N, middle, depth) == token:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _grown(array: Any) -> Any:
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger


@kernel
def build_hot_table(text_N: Tokens, suffixes_N: Any, boundary: Scalar, threshold: Scalar) -> Any:
    """
    List the next tokens of every range with more than `threshold` rows, breadth first.

    Nothing is listed below a boundary token, except at the very start, since identifiers do not cross it.
    """
    edges_H1, ends_H = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
    starts_H, depths_H = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
    tokens_E, rows_E = np.empty(4096, text_N.dtype), np.empty(4096, np.uint32)
    children_E = np.empty(4096, np.int32)
    ends_H[0] = len(suffixes_N)
    node, nodes, edges = 0, 1, 0
    while node < nodes:
        row, end, depth = starts_H[node], ends_H[node], depths_H[node]
        while row < end:
            token = _next_token(text_N, suffixes_N, row, depth)
            if token < 0:
                row += 1
                continue
            stop = _run_end(text_N, suffixes_N, row, end, depth, token)
            if edges == len(rows_E):
                tokens_E, rows_E, children_E = _grown(tokens_E), _grown(rows_E), _grown(children_E)
            tokens_E[edges], rows_E[edges], children_E[edges] = token, row, -1
            if stop - row > threshold and (depth == 0 or token != boundary) and depth < MAX_HOT_DEPTH:
                if nodes + 1 == len(edges_H1):
                    edges_H1, ends_H = _grown(edges_H1), _grown(ends_H)
                    starts_H, depths_H = _grown(starts_H), _grown(depths_H)
                children_E[edges] = nodes
                starts_H[nodes], ends_H[nodes], depths_H[nodes] = row, stop, depth + 1
                nodes += 1
            edges += 1
            row = stop
        node += 1
        edges_H1[node] = edges
    return edges_H1[: nodes + 1], ends_H[:nodes], tokens_E[:edges], rows_E[:edges], children_E[:edges]


@kernel
def _edge_range(arrays: SuffixArrays, node: Scalar) -> tuple[Scalar, Scalar]:
    """First and end edge of a hot node."""
    if node >= len(arrays.ends_H):
        return np.int64(0), np.int64(0)
    total = len(arrays.rows_E)
    end = min(arrays.edges_H1[node + 1], total)
    return min(max(arrays.edges_H1[node], 0), end), end


@kernel
def _edge_rows(arrays: SuffixArrays, node: Scalar, edge: Scalar) -> tuple[Scalar, Scalar]:
    """First and end row of an edge: edges of a node follow each other without gaps."""
    last = edge + 1 == _edge_range(arrays, node)[1]
    end: Scalar = arrays.ends_H[node] if last else np.int64(arrays.rows_E[edge + 1])
    end = min(end, len(arrays.suffixes_N))
    return min(np.int64(arrays.rows_E[edge]), end), end


@kernel
def extend(
    arrays: SuffixArrays, first: Scalar, end: Scalar, node: Scalar, depth: Scalar, token: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Range of the rows of a range that continue with `token`: first row, end row, hot node or -1."""
    if node >= 0:
        low, high = _edge_range(arrays, node)
        last = high
        while low < high:
            middle = (low + high) >> 1
            if arrays.tokens_E[middle] < token:
                low = middle + 1
            else:
                high = middle
        if low < last and arrays.tokens_E[low] == token:
            row, stop = _edge_rows(arrays, node, low)
            return row, stop, np.int64(arrays.children_E[low])
        return np.int64(0), np.int64(0), np.int64(-1)
    low, high = first, end
    while low < high:
        middle = (low + high) >> 1
        if _next_token(arrays.text_N, arrays.suffixes_N, middle, depth) < token:
            low = middle + 1
        else:
            high = middle
    row, high = low, end
    while low < high:
        middle = (low + high) >> 1
        if _next_token(arrays.text_N, arrays.suffixes_N, middle, depth) <= token:
            low = middle + 1
        else:
            high = middle
    return row, low, np.int64(-1)


@kernel
def find_sequences(arrays: SuffixArrays, tokens_NT: Int64, nodes_N3: Int64) -> None:
    """Look sequences up (padded with -1) and write their ranges."""
    for n in range(tokens_NT.shape[0]):
        first, end, node = np.int64(0), np.int64(len(arrays.suffixes_N)), np.int64(0)
        for depth in range(tokens_NT.shape[1]):
            token = tokens_NT[n, depth]
            if token < 0 or first >= end:
                break
            first, end, node = extend(arrays, first, end, node, depth, token)
        nodes_N3[n, 0], nodes_N3[n, 1], nodes_N3[n, 2] = first, end, node


@kernel
def advance(
    arrays: SuffixArrays, nodes_R3: Int64, depth: Scalar, rows_N: Int64, tokens_N: Int64, nodes_N3: Int64
) -> None:
    """Extend the range of row `rows_N[n]` by `tokens_N[n]`; a negative row gives an empty range."""
    for n in range(len(rows_N)):
        row = rows_N[n]
        nodes_N3[n, 0], nodes_N3[n, 1], nodes_N3[n, 2] = 0, 0, -1
        if row >= 0 and nodes_R3[row, 0] < nodes_R3[row, 1]:
            first, end, node = extend(arrays, nodes_R3[row, 0], nodes_R3[row, 1], nodes_R3[row, 2], depth, tokens_N[n])
            nodes_N3[n, 0], nodes_N3[n, 1], nodes_N3[n, 2] = first, end, node


@kernel
def _is_allowed(bits: Bits, position: Scalar) -> Scalar:
    """Tell whether the bit of a text position is set."""
    byte = position >> 3
    return byte < len(bits) and (bits[byte] >> np.uint8(position & 7)) & np.uint8(1) == 1


@kernel
def count_ranges(arrays: SuffixArrays, nodes_N3: Int64, positions: PositionFilter, counts_N: Int64) -> None:
    """Count the rows of each range, or of those that begin at a position whose bit is set."""
    for n in range(len(nodes_N3)):
        first, end = max(nodes_N3[n, 0], 0), min(nodes_N3[n, 1], len(arrays.suffixes_N))
        if not positions.active:
            counts_N[n] = max(end - first, 0)
            continue
        counts_N[n] = 0
        for row in range(first, end):
            if _is_allowed(positions.bits, np.int64(arrays.suffixes_N[row])):
                counts_N[n] += 1


@kernel
def set_position_bits(starts_D1: Any, mask_D: Bool, bits: Bits) -> None:
    """Set the bits of all text positions of the documents in a mask."""
    total = 8 * len(bits)
    for document in range(len(mask_D)):
        if not mask_D[document]:
            continue
        position = np.int64(starts_D1[document])
        end: Scalar = min(np.int64(starts_D1[document + 1]), total)
        while position < end:
            if position & 7 == 0 and position + 8 <= end:
                bits[position >> 3] = 255
                position += 8
            else:
                bits[position >> 3] |= np.uint8(1 << (position & 7))
                position += 1


@kernel
def document_of(starts_D1: Any, blocks: Any, position: Scalar) -> Scalar:
    """Document of a text position, -1 for the closing boundary; its block gives the first guess."""
    total = len(starts_D1) - 1
    document = np.int64(blocks[min(position >> BLOCK_SHIFT, len(blocks) - 1)])
    while document < total and np.int64(starts_D1[document + 1]) <= position:
        document += 1
    if document < total and np.int64(starts_D1[document]) <= position:
        return document
    return np.int64(-1)


@kernel
def locate_ranges(
    arrays: SuffixArrays, starts_D1: Any, blocks: Any, nodes_N3: Int64, positions: PositionFilter, found_M3: Int64
) -> Scalar:
    """Write range, document and position in the document of every allowed row of every range; return how many."""
    m = 0
    for n in range(len(nodes_N3)):
        for row in range(max(nodes_N3[n, 0], 0), min(nodes_N3[n, 1], len(arrays.suffixes_N))):
            position = np.int64(arrays.suffixes_N[row])
            if positions.active and not _is_allowed(positions.bits, position):
                continue
            document = document_of(starts_D1, blocks, position)
            if document >= 0 and m < len(found_M3):
                found_M3[m, 0], found_M3[m, 1] = n, document
                found_M3[m, 2] = position - np.int64(starts_D1[document])
                m += 1
    return m


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
        if _is_allowed(positions.bits, np.int64(arrays.suffixes_N[row])):
            return True
    return False


@kernel
def _offer_edges(
    arrays: SuffixArrays, beams: Beams, positions: PositionFilter, heap: Best, beam: Scalar, row: Scalar
) -> None:
    """Offer the listed next tokens of a hot range."""
    node, score = beams.nodes_R3[row, 2], beams.scores_R[row]
    low, high = _edge_range(arrays, node)
    for edge in range(low, high):
        token = np.int64(arrays.tokens_E[edge])
        if token >= len(beams.blocked_V) or beams.blocked_V[token]:
            continue
        value = np.float32(score + beams.log_probs_RV[row, token])
        if not _before(value, beam, token, heap.scores[0], heap.beams[0], heap.tokens[0]):
            continue
        if positions.active:
            first, end = _edge_rows(arrays, node, edge)
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
        if positions.active and not _is_allowed(positions.bits, np.int64(arrays.suffixes_N[suffix])):
            continue
        token = _next_token(arrays.text_N, arrays.suffixes_N, suffix, beams.depth)
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
