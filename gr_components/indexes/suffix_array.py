"""
Suffix arrays in linear time: SA-IS (Nong, Zhang, Chan 2009, https://doi.org/10.1109/DCC.2009.42), in numba.

A suffix is S-type when it is smaller than the suffix one position to its right, else L-type; the last suffix counts as
L-type, since the empty suffix is the smallest. An LMS position is an S-type position whose left neighbour is L-type.
Sorting the LMS suffixes sorts everything else by two sweeps (`_induce`); the LMS suffixes are sorted by sorting, by
recursion, the string of the names of their substrings.

Shapes: N text length, K alphabet size, M number of LMS positions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.indexes.jit import Scalar, kernel

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]
#: Positions are 32-bit, and SA-IS counts up to N.
MAX_LENGTH = 2**31 - 2


def suffix_array(text_N: npt.NDArray[Any]) -> Int32:
    """
    Sort all suffixes of a text; a suffix that is a prefix of another one comes first.

    :param text_N: Tokens, not negative; at most `MAX_LENGTH` of them.
    :returns: The start positions of the suffixes in sorted order.
    :raises ValueError: If the text is too long or holds negative tokens.
    """
    if len(text_N) > MAX_LENGTH:
        msg = f"A suffix array holds at most {MAX_LENGTH} tokens, got {len(text_N)}. Split the text into segments."
        raise ValueError(msg)
    if len(text_N) == 0:
        return np.empty(0, dtype=np.int32)
    if int(text_N.min()) < 0:
        msg = f"Tokens must not be negative, got {int(text_N.min())}."
        raise ValueError(msg)
    return _sort(np.ascontiguousarray(text_N, dtype=np.int32), int(text_N.max()) + 1)


def _sort(text_N: Int32, alphabet: int) -> Int32:
    suffixes_N = np.empty(len(text_N), dtype=np.int32)
    smaller_N = _smaller_than_next(text_N)
    large_K, small_K = _bucket_starts(text_N, smaller_N, alphabet)
    lms_M = _lms_positions(smaller_N)
    _induce(text_N, smaller_N, large_K, small_K, lms_M, suffixes_N)
    if len(lms_M) > 1:
        names_M, num_names = _name_substrings(text_N, smaller_N, lms_M, suffixes_N)
        if num_names < len(names_M):
            order_M = _sort(names_M, num_names)
        else:
            order_M = np.empty_like(names_M)
            order_M[names_M] = np.arange(len(names_M), dtype=np.int32)
        _induce(text_N, smaller_N, large_K, small_K, lms_M[order_M], suffixes_N)
    return suffixes_N


@kernel
def _smaller_than_next(text_N: Int32) -> Bool:
    """Tell which suffixes are S-type."""
    smaller_N = np.zeros(len(text_N), np.bool_)
    for i in range(len(text_N) - 2, -1, -1):
        if text_N[i] == text_N[i + 1]:
            smaller_N[i] = smaller_N[i + 1]
        else:
            smaller_N[i] = text_N[i] < text_N[i + 1]
    return smaller_N


@kernel
def _bucket_starts(text_N: Int32, smaller_N: Bool, alphabet: Scalar) -> tuple[Int32, Int32]:
    """Where the suffixes that begin with each token begin (L-type first, then S-type), and one closing entry."""
    large_K = np.zeros(alphabet + 1, np.int32)
    small_K = np.zeros(alphabet + 1, np.int32)
    for i in range(len(text_N)):
        if smaller_N[i]:
            large_K[text_N[i] + 1] += 1
        else:
            small_K[text_N[i]] += 1
    for token in range(alphabet):
        small_K[token] += large_K[token]
        large_K[token + 1] += small_K[token]
    return large_K, small_K


@kernel
def _lms_positions(smaller_N: Bool) -> Int32:
    """Positions of S-type suffixes whose left neighbour is L-type, in text order."""
    positions_M = np.empty(len(smaller_N) // 2 + 1, np.int32)
    m = 0
    for i in range(1, len(smaller_N)):
        if smaller_N[i] and not smaller_N[i - 1]:
            positions_M[m] = i
            m += 1
    return positions_M[:m].copy()


@kernel
def _induce(text_N: Int32, smaller_N: Bool, large_K: Int32, small_K: Int32, lms_M: Int32, suffixes_N: Int32) -> None:
    """Sort all suffixes from the LMS suffixes: those in the given order at the S part, then L-type, then S-type."""
    n = len(text_N)
    suffixes_N[:] = -1
    place_K = small_K.copy()
    for position in lms_M:
        suffixes_N[place_K[text_N[position]]] = position
        place_K[text_N[position]] += 1
    place_K[:] = large_K
    suffixes_N[place_K[text_N[n - 1]]] = n - 1
    place_K[text_N[n - 1]] += 1
    for i in range(n):
        before = suffixes_N[i] - 1
        if before >= 0 and not smaller_N[before]:
            suffixes_N[place_K[text_N[before]]] = before
            place_K[text_N[before]] += 1
    place_K[:] = large_K
    for i in range(n - 1, -1, -1):
        before = suffixes_N[i] - 1
        if before >= 0 and smaller_N[before]:
            token = text_N[before] + 1
            place_K[token] -= 1
            suffixes_N[place_K[token]] = before


@kernel
def _name_substrings(text_N: Int32, smaller_N: Bool, lms_M: Int32, suffixes_N: Int32) -> tuple[Int32, Scalar]:
    """Number the substrings between LMS positions by their order; equal substrings get equal names."""
    n, m = len(text_N), len(lms_M)
    # LMS positions are never adjacent, so half a position identifies one.
    ends = np.empty(n // 2 + 1, np.int32)
    names = np.empty(n // 2 + 1, np.int32)
    for i in range(m):
        ends[lms_M[i] >> 1] = lms_M[i + 1] if i + 1 < m else n
    name, before = np.int32(-1), np.int32(-1)
    for position in suffixes_N:
        if position < 1 or not smaller_N[position] or smaller_N[position - 1]:
            continue
        length = ends[position >> 1] - position
        same = before >= 0 and ends[before >> 1] - before == length
        if same:
            # The closing LMS token belongs to the substring; the end of the text equals nothing.
            offset = 0
            while offset <= length and same:
                a, b = before + offset, position + offset
                same = a < n and b < n and text_N[a] == text_N[b]
                offset += 1
        if not same:
            name += 1
        names[position >> 1] = name
        before = position
    names_M = np.empty(m, np.int32)
    for i in range(m):
        names_M[i] = names[lms_M[i] >> 1]
    return names_M, name + 1
