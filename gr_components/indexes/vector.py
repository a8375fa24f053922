"""
Exact nearest neighbours: FAISS flat search over memory-mapped float32 shards and a delta in memory.

Letters: N vectors of a part, Q queries, K hits, E dimensions. Parts are searched one by one and merged; the hits that
FAISS proposes are scored again in float64, so a score does not depend on how queries were batched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError, DimensionError, IndexFormatError, NumericsError
from gr_components.extras import need
from gr_components.indexes.formats import VECTORS
from gr_components.indexes.manifest import Verify, open_array, publish, read_manifest, save_array

FORMAT, VERSION = VECTORS

Similarity = Literal["cosine", "dot", "l2"]
Hits = list[tuple[int, float]]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_EXTRA = 16  # hits fetched beyond what is asked: FAISS rounds, and equal vectors may be cut
_FEW = 1024  # this many excluded vectors are fetched and dropped; more are left out before the search
_BLOCK = 1 << 16
_UNIT = 1e-6  # lengths this close to 1 do not change which vectors are nearest, up to `_ROUNDING`
_ROUNDING = 4e-6  # of FAISS's scores, in units of the product of the lengths


class VectorShard:
    """
    An immutable folder of vectors.

    :param path: The folder, opened with `open`.
    :param part: What is in it, mapped.
    :param removed_N: Numbers that earlier shards of the same index hold and that do not count there any more.
    """

    def __init__(self, path: Path, part: "Part", removed_N: Numbers) -> None:
        self.path = path
        self.part = part
        self.removed_N = removed_N

    @classmethod
    def write(
        cls, path: Path, batches: Iterator[tuple[Numbers, Floats]], count: int, dimension: int, removed_N: Numbers
    ) -> None:
        """
        Write a shard.

        :param path: Its folder, which must not exist.
        :param batches: Numbers and vectors, ascending by number.
        :param count: Vectors in all batches together.
        :param dimension: Width of the vectors.
        :param removed_N: What it takes out of earlier shards.
        """
        info = {"count": count, "dimension": dimension, "unit": True}
        with publish(path, format=FORMAT, version=VERSION, info=info) as folder:
            numbers_N = np.lib.format.open_memmap(folder / "numbers.npy", mode="w+", dtype="<i8", shape=(count,))
            vectors_NE = np.lib.format.open_memmap(
                folder / "vectors.npy", mode="w+", dtype="<f4", shape=(count, dimension)
            )
            save_array(folder, "removed", np.asarray(removed_N, dtype=np.int64))
            lengths_N = np.empty(count, dtype=np.float32)
            start = 0
            for some_N, some_NE in batches:
                numbers_N[start : start + len(some_N)] = some_N
                vectors_NE[start : start + len(some_N)] = some_NE
                lengths_N[start : start + len(some_N)] = np.linalg.norm(some_NE, axis=1)
                start += len(some_N)
            assert start == count, (start, count)
            numbers_N.flush()
            vectors_NE.flush()
            info["unit"] = bool((np.abs(lengths_N - 1) < _UNIT).all())
            if not info["unit"]:
                save_array(folder, "lengths", lengths_N)

    @classmethod
    def open(cls, path: Path, *, verify: Verify = "header") -> "VectorShard":
        """
        Open a shard.

        :param path: Its folder.
        :param verify: `full` also checks the checksums.
        :raises IndexFormatError: If it is damaged or of another version.
        """
        info = read_manifest(path, format=FORMAT, version=VERSION, verify=verify).info
        numbers_N, vectors_NE = open_array(path, "numbers"), open_array(path, "vectors")
        lengths_N = None if info["unit"] else open_array(path, "lengths")
        if numbers_N.shape != (info["count"],) or vectors_NE.shape != (info["count"], info["dimension"]):
            msg = f"The arrays in '{path}' do not have the shapes that its manifest says. Build the index again."
            raise IndexFormatError(msg)
        return cls(path, Part(numbers_N, vectors_NE, lengths_N), open_array(path, "removed"))


@dataclass(frozen=True)
class Part:
    """
    Vectors that are searched together.

    :param numbers_N: Document numbers, ascending.
    :param vectors_NE: Their vectors.
    :param lengths_N: The lengths of the vectors, or None if all are 1.
    :param live_N: Which of them count, or None for all.
    """

    numbers_N: Numbers
    vectors_NE: Floats
    lengths_N: Floats | None
    live_N: Flags | None = None


def search(
    parts: Sequence[Part], queries_QE: Floats, *, top_k: int, similarity: Similarity = "cosine",
    allowed: Numbers | None = None,
) -> list[Hits]:  # fmt: skip
    """
    Find the most similar vectors for each query.

    :param parts: Vectors; a number is live in at most one part.
    :param queries_QE: Q query vectors.
    :param top_k: Most hits for each query.
    :param similarity: `cosine`, `dot`, or `l2`, whose score is the negative Euclidean distance.
    :param allowed: Ascending numbers that may be found, or None for all.
    :returns: For each query numbers and scores, best first, equal scores by number.
    :raises DimensionError: If the queries are not as wide as the vectors.
    :raises NumericsError: If a query holds NaN or infinity.
    :raises ConfigError: If `similarity` is unknown.
    """
    if similarity not in get_args(Similarity):
        msg = f"similarity must be one of {', '.join(get_args(Similarity))}, got {similarity!r}."
        raise ConfigError(msg)
    parts = [part for part in parts if len(part.numbers_N)]
    queries_QE = np.ascontiguousarray(queries_QE, dtype=np.float32)
    check_queries(queries_QE, parts[0].vectors_NE.shape[1] if parts else None)
    hits: list[Hits] = [[] for _ in queries_QE]
    if top_k <= 0 or not len(queries_QE):
        return hits
    for part in parts:
        for q, found in enumerate(_search_part(part, queries_QE, top_k, similarity, allowed)):
            hits[q] = sorted(hits[q] + found, key=lambda hit: (-hit[1], hit[0]))[:top_k]
    return hits


def make_part(numbers_N: Numbers, vectors_NE: Floats) -> Part:
    """
    Make a part of vectors in memory.

    :param numbers_N: Document numbers, ascending.
    :param vectors_NE: Their vectors.
    """
    return Part(numbers_N, vectors_NE, np.linalg.norm(vectors_NE, axis=1).astype(np.float32))


def check_queries(queries_QE: npt.NDArray[Any], dimension: int | None) -> None:
    """
    Refuse query vectors that cannot be compared with the index.

    :param queries_QE: Q query vectors.
    :param dimension: Width of the index; None if it is empty.
    :raises DimensionError: If they are of another width.
    :raises NumericsError: If one holds NaN or infinity.
    """
    if queries_QE.ndim != 2 or (dimension is not None and len(queries_QE) and queries_QE.shape[1] != dimension):
        expected = "(queries, dimension)" if dimension is None else f"(queries, {dimension})"
        msg = (
            f"The query vectors have shape {queries_QE.shape}, the index needs {expected}. Use the model that the "
            "index was made with."
        )
        raise DimensionError(msg)
    bad = np.flatnonzero(~np.isfinite(queries_QE).all(axis=1))
    if len(bad):
        msg = f"Query vector(s) {bad[:5].tolist()} hold NaN or infinity. Check the model that made them."
        raise NumericsError(msg)


def _search_part(
    part: Part, queries_QE: Floats, top_k: int, similarity: Similarity, allowed: Numbers | None
) -> list[Hits]:
    keep_N = part.live_N
    if allowed is not None:
        inside_N = np.zeros(len(part.numbers_N), dtype=bool)
        inside_N[_positions(part.numbers_N, allowed)] = True
        keep_N = inside_N if keep_N is None else keep_N & inside_N
    total = len(part.numbers_N) if keep_N is None else int(keep_N.sum())
    if not total:
        return [[] for _ in queries_QE]
    wanted = min(top_k, total)
    longest = 1.0 if similarity == "cosine" or part.lengths_N is None else float(part.lengths_N.max())
    rough_QK, rows_QK = _nearest(part, queries_QE, min(wanted + _EXTRA, total), similarity, keep_N)
    hits: list[Hits] = []
    for q, query_E in enumerate(queries_QE):
        rough_K, rows_K = rough_QK[q], rows_QK[q]
        while len(rows_K) < total and rough_K[wanted - 1] - rough_K[-1] <= _doubt(
            query_E, longest, rough_K[wanted - 1], similarity
        ):
            more = min(len(rows_K) * 8, total)  # perhaps not all equally good vectors were fetched
            rough_1K, rows_1K = _nearest(part, query_E[None], more, similarity, keep_N)
            rough_K, rows_K = rough_1K[0], rows_1K[0]
        scores_K = _score(query_E, part.vectors_NE[rows_K], similarity)
        numbers_K = part.numbers_N[rows_K]
        order = np.lexsort((numbers_K, -scores_K))[:wanted]
        hits.append(list(zip(numbers_K[order].tolist(), scores_K[order].tolist(), strict=True)))
    return hits


def _nearest(
    part: Part, queries_QE: Floats, k: int, similarity: Similarity, keep_N: Flags | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return FAISS's scores (higher is better, l2: negative squares) and rows, best first."""
    faiss = need("faiss", "faiss")
    l2 = similarity == "l2"
    metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
    excluded = 0 if keep_N is None else int((~keep_N).sum())
    drop_later = 0 < excluded <= _FEW
    fetch = k + excluded if drop_later else k
    scores: list[npt.NDArray[np.float64]] = []
    rows: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(part.vectors_NE), _BLOCK):
        rows_N = np.arange(start, min(start + _BLOCK, len(part.vectors_NE)))
        block_NE = part.vectors_NE[start : start + _BLOCK]
        if keep_N is not None and excluded and not drop_later:
            rows_N = rows_N[keep_N[rows_N]]
            block_NE = part.vectors_NE[rows_N]
        if not len(rows_N):
            continue
        if similarity == "cosine" and part.lengths_N is not None:
            lengths_N = np.asarray(part.lengths_N[rows_N])
            block_NE = np.divide(block_NE, np.where(lengths_N > 0, lengths_N, 1)[:, None], dtype=np.float32)
        found_QK, at_QK = faiss.knn(queries_QE, np.ascontiguousarray(block_NE), min(fetch, len(rows_N)), metric=metric)
        scores.append(np.asarray(-found_QK if l2 else found_QK, dtype=np.float64))
        rows.append(rows_N[at_QK])
    scores_QK, rows_QK = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    if drop_later:
        assert keep_N is not None
        scores_QK = np.where(keep_N[rows_QK], scores_QK, -np.inf)
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QK, order_QK, axis=1), np.take_along_axis(rows_QK, order_QK, axis=1)


def _doubt(query_E: Floats, longest: float, rough_last: float, similarity: Similarity) -> float:
    """
    Return how far FAISS's score may be off for any vector that could be among the best, fetched or not.

    :param query_E: The query.
    :param longest: Length of the longest vector of the part.
    :param rough_last: FAISS's score of the last vector that is wanted.
    :param similarity: What is compared.
    """
    length = float(np.linalg.norm(query_E))
    if similarity == "l2":  # a vector much longer than this is farther from the query than the last wanted one
        reach = 1.01 * (length + max(-rough_last, 0.0) ** 0.5)
        return _ROUNDING * max(length, min(longest, reach)) ** 2
    return _ROUNDING * length * longest


def _score(query_E: Floats, vectors_KE: Floats, similarity: Similarity) -> npt.NDArray[np.float64]:
    query, vectors = query_E.astype(np.float64), np.asarray(vectors_KE, dtype=np.float64)
    if similarity == "l2":
        return -np.sqrt(((vectors - query) ** 2).sum(axis=1))
    # einsum adds in a fixed order, so equal vectors get equal scores; a BLAS product may not.
    dots_K = np.einsum("ke,e->k", vectors, query, optimize=False)
    if similarity == "dot":
        return np.asarray(dots_K)
    norms_K = np.sqrt(np.einsum("ke,ke->k", vectors, vectors, optimize=False) * np.dot(query, query))
    return np.where(norms_K > 0, dots_K / np.where(norms_K > 0, norms_K, 1), 0.0)


def _positions(sorted_N: Numbers, wanted_K: Numbers) -> npt.NDArray[np.int64]:
    at_K = np.searchsorted(sorted_N, wanted_K)
    at_K[at_K == len(sorted_N)] = 0  # one that cannot be equal to a number beyond the last
    return at_K[sorted_N[at_K] == wanted_K]
