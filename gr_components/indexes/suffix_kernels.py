"""
Ranges of the suffix array: building the hot table, looking up, extending, counting, locating.

A *range* is a run of rows of the suffix array: all suffixes that begin with the same tokens. A range is either *hot*
(more than T rows: its next tokens are listed in a table, sorted) or read row by row. Files may be damaged after they
were checked, so every position, row, node and token that comes from them is bounded before it is used.

Shapes: N text length, H hot nodes, E hot edges, D documents, R rows of beams.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gr_components.indexes.candidates import Bool, Int64
from gr_components.indexes.jit import Scalar, kernel

Tokens = npt.NDArray[Any]
Bits = npt.NDArray[np.uint8]

#: Deeper ranges are read row by row: identifiers are shorter, and repetitive texts would make a table as long as they.
MAX_HOT_DEPTH = 64
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
    :param rows_E: First row of each edge. int64.
    :param children_E: Hot node that an edge leads to, -1 if it is not hot. int32.
    """

    text_N: Tokens
    suffixes_N: npt.NDArray[np.uint32]
    edges_H1: Int64
    ends_H: Int64
    tokens_E: Tokens
    rows_E: Int64
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
def next_token(text_N: Tokens, suffixes_N: Any, row: Scalar, depth: Scalar) -> Scalar:
    """Token at `depth` of the suffix in a row, -1 behind the end of the text."""
    position = np.int64(suffixes_N[row]) + depth
    if position >= len(text_N):
        return np.int64(-1)
    return np.int64(text_N[position])


@kernel
def _run_end(text_N: Tokens, suffixes_N: Any, row: Scalar, end: Scalar, depth: Scalar, token: Scalar) -> Scalar:
    """Find the end of the run of rows that have `token` at `depth` and include `row`: gallop, then halve."""
    known, step = row, 1
    while known + step < end and next_token(text_N, suffixes_N, known + step, depth) == token:
        known += step
        step *= 2
    low, high = known + 1, min(known + step, end)
    while low < high:
        middle = (low + high) >> 1
        if next_token(text_N, suffixes_N, middle, depth) == token:
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
    tokens_E, rows_E = np.empty(4096, text_N.dtype), np.empty(4096, np.int64)
    children_E = np.empty(4096, np.int32)
    ends_H[0] = len(suffixes_N)
    node, nodes, edges = 0, 1, 0
    while node < nodes:
        row, end, depth = starts_H[node], ends_H[node], depths_H[node]
        while row < end:
            token = next_token(text_N, suffixes_N, row, depth)
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
def edge_range(arrays: SuffixArrays, node: Scalar) -> tuple[Scalar, Scalar]:
    """First and end edge of a hot node."""
    if node >= len(arrays.ends_H):
        return np.int64(0), np.int64(0)
    total = len(arrays.rows_E)
    end = min(arrays.edges_H1[node + 1], total)
    return min(max(arrays.edges_H1[node], 0), end), end


@kernel
def edge_rows(arrays: SuffixArrays, node: Scalar, edge: Scalar) -> tuple[Scalar, Scalar]:
    """First and end row of an edge: edges of a node follow each other without gaps."""
    total = len(arrays.suffixes_N)
    end = arrays.rows_E[edge + 1] if edge + 1 < edge_range(arrays, node)[1] else arrays.ends_H[node]
    end = min(end, total)
    return min(max(arrays.rows_E[edge], 0), end), end


@kernel
def extend(
    arrays: SuffixArrays, first: Scalar, end: Scalar, node: Scalar, depth: Scalar, token: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Range of the rows of a range that continue with `token`: first row, end row, hot node or -1."""
    if node >= 0:
        low, high = edge_range(arrays, node)
        last = high
        while low < high:
            middle = (low + high) >> 1
            if arrays.tokens_E[middle] < token:
                low = middle + 1
            else:
                high = middle
        if low < last and arrays.tokens_E[low] == token:
            row, stop = edge_rows(arrays, node, low)
            return row, stop, np.int64(arrays.children_E[low])
        return np.int64(0), np.int64(0), np.int64(-1)
    low, high = first, end
    while low < high:
        middle = (low + high) >> 1
        if next_token(arrays.text_N, arrays.suffixes_N, middle, depth) < token:
            low = middle + 1
        else:
            high = middle
    row, high = low, end
    while low < high:
        middle = (low + high) >> 1
        if next_token(arrays.text_N, arrays.suffixes_N, middle, depth) <= token:
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
def is_allowed(bits: Bits, position: Scalar) -> Scalar:
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
            if is_allowed(positions.bits, np.int64(arrays.suffixes_N[row])):
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
            if positions.active and not is_allowed(positions.bits, position):
                continue
            document = document_of(starts_D1, blocks, position)
            if document >= 0 and m < len(found_M3):
                found_M3[m, 0], found_M3[m, 1] = n, document
                found_M3[m, 2] = position - np.int64(starts_D1[document])
                m += 1
    return m
