"""
Documents from identifiers: SEAL's intersective score (https://arxiv.org/abs/2204.10628, equations 3 and 4).

For each document, its identifiers are taken best first. An occurrence counts only where none of its positions was taken
by a better identifier; each identifier counts once, times its *cover*: the share of its tokens that better identifiers
have not used, softened by beta. All occurrences of an identifier take their positions, whether they count or not.

Two stages, as in SEAL: identifiers with more than `max_hits` occurrences first stay out; then the best `full_documents`
documents are scored with all identifiers. One stage is enough where no identifier is that frequent or where there are
no more documents than that.

Shapes: K keys, L longest key, M occurrences, D documents found, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.keys import Keys
from gr_components.indexes.candidates import BeamStates, Int64
from gr_components.indexes.jit import Scalar, kernel
from gr_components.indexes.suffix_index import DocumentSet, SuffixIndex

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

# An occurrence as one number: positions are 32-bit.
_KEY_SHIFT = 32
_POSITION = (1 << _KEY_SHIFT) - 1


@dataclass(frozen=True)
class Scored:
    """
    Documents with a score above 0, best first; equal scores by document number.

    :param documents_D: Places in the index.
    :param scores_D: Their scores.
    :param rows_D2: First and end row of each document in the next two.
    :param keys_M: The key of each occurrence.
    :param contributions_M: What the occurrence adds to its document: 0 where a better key overlaps it or where the key
        has counted already.
    """

    documents_D: Int64
    scores_D: Float64
    rows_D2: Int64
    keys_M: Int64
    contributions_M: Float64

    def contributions(self, place: int) -> list[tuple[int, float]]:
        """
        Return the keys that a document's score is made of and what each adds, largest first.

        :param place: Rank of the document, 0 for the best.
        """
        first, end = self.rows_D2[place]
        pairs = zip(self.keys_M[first:end].tolist(), self.contributions_M[first:end].tolist(), strict=True)
        return sorted(((key, value) for key, value in pairs if value > 0), key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Unigrams:
    """
    Weights of single tokens.

    :param field: The index field whose tokens count.
    :param weights_V: Weight of each token, >= 0.
    """

    field: str
    weights_V: Float64


def score_documents(
    keys: Keys,
    weights_K: Float64,
    index: SuffixIndex,
    allowed: DocumentSet,
    config: SearchConfig,
    unigrams: Unigrams | None = None,
) -> Scored:
    """
    Score all documents that contain identifiers.

    :param keys: Identifiers of one query.
    :param weights_K: Their log-odds weights, before the exponent.
    :param index: Where they occur.
    :param allowed: Documents that may be found.
    :param config: Settings.
    :param unigrams: Weights of tokens that no identifier uses; None for none.
    """
    order_K = np.argsort(-weights_K, kind="stable")
    order_K = order_K[weights_K[order_K] > 0]
    ranked = _Ranked.of(keys.select(order_K), weights_K[order_K] ** config.alpha, config.beta)
    rare_K = ranked.keys.counts_K <= config.max_hits
    if rare_K.all() or allowed.num_documents <= config.full_documents:
        found = _locate(ranked, np.arange(len(order_K)), index, allowed)
        scored = _score(found, ranked, index, unigrams)
    else:
        rare = _locate(ranked, np.nonzero(rare_K)[0], index, allowed)
        best_D = _score(rare, ranked, index, None).documents_D[: config.full_documents]
        frequent = _locate(ranked, np.nonzero(~rare_K)[0], index, allowed)
        if len(best_D):  # otherwise the frequent identifiers have to do it alone
            rare, frequent = rare.within(best_D), frequent.within(best_D)
        scored = _score(rare.joined(frequent), ranked, index, unigrams)
    return replace(scored, keys_M=order_K[scored.keys_M])


class _Ranked(NamedTuple):
    """Keys of positive weight, best first, and what scoring needs of each."""

    keys: Keys
    fields: tuple[str, ...]
    fields_K: Int64
    sequences_KL: Int64
    lengths_K: Int64
    weights_K: Float64
    beta: float

    @classmethod
    def of(cls, keys: Keys, weights_K: Float64, beta: float) -> "_Ranked":
        fields = tuple(sorted({view.field for view in keys.views}))
        of_view = np.array([fields.index(view.field) for view in keys.views], dtype=np.int64)
        sequences_KL = keys.sequences()
        lengths_K = (sequences_KL >= 0).sum(axis=1)
        return cls(keys, fields, of_view[keys.views_K], sequences_KL, lengths_K, weights_K, beta)


class _Found(NamedTuple):
    """Occurrences of ranked keys, in any order."""

    documents_M: Int64
    keys_M: Int64
    positions_M: Int64

    def within(self, documents_D: Int64) -> "_Found":
        inside_M = np.isin(self.documents_M, documents_D)
        return _Found(*(values[inside_M] for values in self))

    def joined(self, other: "_Found") -> "_Found":
        return _Found(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def _locate(ranked: _Ranked, which_N: Int64, index: SuffixIndex, allowed: DocumentSet) -> _Found:
    found = _Found(*(np.empty(0, dtype=np.int64) for _ in _Found._fields))
    for f, field in enumerate(ranked.fields):
        own_N = which_N[ranked.fields_K[which_N] == f]
        if len(own_N):
            nodes_SN3 = np.ascontiguousarray(ranked.keys.nodes_SK3[:, own_N])
            places = index.locate(BeamStates(field, -1, nodes_SN3), allowed)
            found = found.joined(_Found(places.documents_N, own_N[places.owners_N], places.positions_N))
    return found


def _score(found: _Found, ranked: _Ranked, index: SuffixIndex, unigrams: Unigrams | None) -> Scored:
    documents_D, edges_D1, codes_M = _grouped(*found, len(index.numbers_D))
    free = _free_tokens(documents_D, ranked, index, unigrams)
    span = int((found.positions_M + ranked.lengths_K[found.keys_M]).max(initial=0))
    longest_text = int(np.diff(free.edges_D1).max(initial=0))
    taken_FP = np.zeros((len(ranked.fields), max(span, longest_text)), dtype=np.int32)
    vocabulary = max((segment.vocabulary_size for segment in index.segments), default=1)
    used_V = np.zeros(vocabulary, dtype=np.int32)
    scores_D, contributions_M = np.zeros(len(documents_D)), np.zeros(len(codes_M))
    _score_all(
        codes_M, edges_D1, ranked.fields_K, ranked.lengths_K, ranked.sequences_KL, ranked.weights_K, ranked.beta,
        taken_FP, used_V, free, scores_D, contributions_M,
    )  # fmt: skip
    order_D = np.lexsort((index.numbers_D[documents_D], -scores_D))
    order_D = order_D[scores_D[order_D] > 0]
    rows_D2 = np.stack([edges_D1[:-1], edges_D1[1:]], axis=1)[order_D]
    return Scored(documents_D[order_D], scores_D[order_D], rows_D2, codes_M >> _KEY_SHIFT, contributions_M)


class _FreeTokens(NamedTuple):
    """Texts of the documents and token weights, for tokens that no identifier takes; all empty without unigrams."""

    field: int
    tokens_N: Int64
    edges_D1: Int64
    weights_V: Float64
    seen_V: Int32


def _free_tokens(documents_D: Int64, ranked: _Ranked, index: SuffixIndex, unigrams: Unigrams | None) -> _FreeTokens:
    if unigrams is None:
        none = np.empty(0, dtype=np.int64)
        return _FreeTokens(0, none, np.zeros(len(documents_D) + 1, dtype=np.int64), np.empty(0), np.empty(0, np.int32))
    texts = [index.tokens(unigrams.field, int(document)) for document in documents_D]
    edges_D1 = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    tokens_N = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    seen_V = np.zeros(len(unigrams.weights_V), dtype=np.int32)
    return _FreeTokens(ranked.fields.index(unigrams.field), tokens_N, edges_D1, unigrams.weights_V, seen_V)


@kernel
def _grouped(
    documents_M: Int64, keys_M: Int64, positions_M: Int64, num_documents: Scalar
) -> tuple[Int64, Int64, Int64]:
    """Group occurrences by document; each becomes one number, key then position, that sorts as they do."""
    total = len(documents_M)
    group_of = np.zeros(num_documents, np.int32)  # 1 + group; pages that are not touched cost nothing
    documents_D, sizes_D = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    groups = 0
    for m in range(total):
        document = documents_M[m]
        if group_of[document] == 0:
            documents_D[groups] = document
            groups += 1
            group_of[document] = groups
        sizes_D[group_of[document]] += 1
    edges_D1 = np.cumsum(sizes_D[: groups + 1])
    place_D = edges_D1.copy()
    codes_M = np.empty(total, np.int64)
    for m in range(total):
        group = group_of[documents_M[m]] - 1
        codes_M[place_D[group]] = (keys_M[m] << _KEY_SHIFT) | positions_M[m]
        place_D[group] += 1
    return documents_D[:groups].copy(), edges_D1, codes_M


@kernel
def _sort(values: Int64, first: Scalar, end: Scalar) -> None:
    """Shell sort of a short stretch, in place."""
    gap = 1
    while gap < (end - first) // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(first + gap, end):
            value, j = values[i], i
            while j >= first + gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 3


@kernel
def _is_free(taken_FP: Int32, field: Scalar, position: Scalar, length: Scalar, stamp: Scalar) -> Scalar:
    for p in range(position, position + length):  # noqa: SIM110 - numba has no all() of a generator
        if taken_FP[field, p] == stamp:
            return False
    return True


@kernel
def _cover(tokens_L: Int64, length: Scalar, beta: Scalar, used_V: Int32, stamp: Scalar) -> Scalar:
    """Return 1 - beta + beta * (share of the distinct tokens that are not used yet), and mark them used."""
    distinct, unused = 0, 0
    for i in range(length):
        repeated = False
        for j in range(i):
            repeated = repeated or tokens_L[j] == tokens_L[i]
        if not repeated:
            distinct += 1
            unused += used_V[tokens_L[i]] != stamp
    for i in range(length):
        used_V[tokens_L[i]] = stamp
    return 1.0 - beta + beta * unused / distinct


@kernel
def _score_all(
    codes_M: Int64, edges_D1: Int64, fields_K: Int64, lengths_K: Int64, sequences_KL: Int64, weights_K: Float64,
    beta: Scalar, taken_FP: Int32, used_V: Int32, free: _FreeTokens, scores_D: Float64, contributions_M: Float64,
) -> None:  # fmt: skip
    """Score each document by its occurrences; stamps in `taken_FP` and `used_V` save clearing them in between."""
    for d in range(len(scores_D)):
        stamp, counted = d + 1, -1
        _sort(codes_M, edges_D1[d], edges_D1[d + 1])
        for m in range(edges_D1[d], edges_D1[d + 1]):
            key, position = codes_M[m] >> _KEY_SHIFT, codes_M[m] & _POSITION
            field, length = fields_K[key], lengths_K[key]
            if not _is_free(taken_FP, field, position, length, stamp):
                continue
            taken_FP[field, position : position + length] = stamp
            if key != counted:
                counted = key
                contributions_M[m] = weights_K[key] * _cover(sequences_KL[key], length, beta, used_V, stamp)
                scores_D[d] += contributions_M[m]
        first = free.edges_D1[d]
        for n in range(first, free.edges_D1[d + 1]):
            token = free.tokens_N[n]
            if token >= len(free.seen_V) or free.seen_V[token] == stamp:
                continue
            if taken_FP[free.field, n - first] != stamp:
                free.seen_V[token] = stamp
                scores_D[d] += free.weights_V[token] * (1.0 - beta if used_V[token] == stamp else 1.0)
