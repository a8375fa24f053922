"""
Documents from identifiers: SEAL's intersective score (https://arxiv.org/abs/2204.10628, equations 3 and 4).

For each document, its identifiers are taken best first. An occurrence counts only where none of its positions was taken
by a better identifier; each identifier counts once, times its *cover*: the share of its tokens that better identifiers
have not used, softened by beta. All occurrences of an identifier take their positions, whether they count or not.

Two stages, as in SEAL: identifiers with more than `max_hits` occurrences first stay out; then the best `full_documents`
documents are scored with all identifiers. If no identifier is that frequent, the first stage is the whole score.

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
    ranked, weights_K = keys.select(order_K), weights_K[order_K] ** config.alpha
    sequences_KL = ranked.sequences()
    rare_K = ranked.counts_K <= config.max_hits
    matches = _matches(ranked, sequences_KL, np.nonzero(rare_K)[0], index, allowed)
    scored = _accumulate(matches, ranked, sequences_KL, weights_K, config.beta, index, None)
    if unigrams is not None or not rare_K.all():
        best_D = scored.documents_D[: config.full_documents]
        if not rare_K.all():
            # Where rare identifiers found nothing, the frequent ones have to do it alone.
            within = best_D if len(best_D) else None
            matches = _matches(ranked, sequences_KL, np.arange(len(ranked)), index, allowed, within)
        else:
            matches = matches[np.isin(matches[:, 0], best_D)]
        scored = _accumulate(matches, ranked, sequences_KL, weights_K, config.beta, index, unigrams)
    return replace(scored, keys_M=order_K[scored.keys_M])


def _fields(keys: Keys) -> list[str]:
    return sorted({view.field for view in keys.views})


def _matches(
    keys: Keys,
    sequences_KL: Int64,
    which_N: Int64,
    index: SuffixIndex,
    allowed: DocumentSet,
    within: Int64 | None = None,
) -> Int64:
    """Rows (document, key, field, position, length) by document, key, position; keys are ranked by weight."""
    fields = _fields(keys)
    field_of_view = np.array([fields.index(view.field) for view in keys.views], dtype=np.int64)
    lengths_K = (sequences_KL >= 0).sum(axis=1)
    field_N = field_of_view[keys.views_K[which_N]]
    parts = [np.empty((0, 5), dtype=np.int64)]
    for f, field in enumerate(fields):
        own_N = which_N[field_N == f]
        if not len(own_N):
            continue
        found = index.locate(BeamStates(field, -1, np.ascontiguousarray(keys.nodes_SK3[:, own_N])), allowed)
        part = np.empty((len(found.owners_N), 5), dtype=np.int64)
        part[:, 0], part[:, 1], part[:, 2] = found.documents_N, own_N[found.owners_N], f
        part[:, 3], part[:, 4] = found.positions_N, lengths_K[part[:, 1]]
        parts.append(part if within is None else part[np.isin(found.documents_N, within)])
    matches_M5 = np.concatenate(parts)
    groups_M = matches_M5[:, 0] * max(len(keys), 1) + matches_M5[:, 1]
    return matches_M5[np.lexsort((matches_M5[:, 3], groups_M))]


def _accumulate(
    matches_M5: Int64,
    keys: Keys,
    sequences_KL: Int64,
    weights_K: Float64,
    beta: float,
    index: SuffixIndex,
    unigrams: Unigrams | None,
) -> Scored:
    new_M = np.append(True, np.diff(matches_M5[:, 0]) != 0)[: len(matches_M5)]
    firsts_D = np.nonzero(new_M)[0]
    documents_D, edges_D1 = matches_M5[firsts_D, 0], np.append(firsts_D, len(matches_M5))
    table = _free_tokens(documents_D, keys, index, unigrams)
    span = int((matches_M5[:, 3] + matches_M5[:, 4]).max(initial=0))
    longest_text = int(np.diff(table.edges_D1).max(initial=0))
    taken_FP = np.zeros((len(_fields(keys)), max(span, longest_text)), dtype=np.int32)
    vocabulary = max((segment.vocabulary_size for segment in index.segments), default=1)
    used_V = np.zeros(vocabulary, dtype=np.int32)
    scores_D, contributions_M = np.zeros(len(documents_D)), np.zeros(len(matches_M5))
    _score_all(matches_M5, edges_D1, sequences_KL, weights_K, beta, taken_FP, used_V, table, scores_D, contributions_M)
    order_D = np.lexsort((index.numbers_D[documents_D], -scores_D))
    order_D = order_D[scores_D[order_D] > 0]
    rows_D2 = np.stack([edges_D1[:-1], edges_D1[1:]], axis=1)[order_D]
    return Scored(documents_D[order_D], scores_D[order_D], rows_D2, matches_M5[:, 1], contributions_M)


class _FreeTokens(NamedTuple):
    """Texts of the documents and token weights, for tokens that no identifier takes; all empty without unigrams."""

    field: int
    tokens_N: Int64
    edges_D1: Int64
    weights_V: Float64
    seen_V: Int32


def _free_tokens(documents_D: Int64, keys: Keys, index: SuffixIndex, unigrams: Unigrams | None) -> _FreeTokens:
    if unigrams is None:
        none = np.empty(0, dtype=np.int64)
        return _FreeTokens(0, none, np.zeros(len(documents_D) + 1, dtype=np.int64), np.empty(0), np.empty(0, np.int32))
    texts = [index.tokens(unigrams.field, int(document)) for document in documents_D]
    edges_D1 = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    tokens_N = np.concatenate([np.empty(0, dtype=np.int64), *texts])
    seen_V = np.zeros(len(unigrams.weights_V), dtype=np.int32)
    return _FreeTokens(_fields(keys).index(unigrams.field), tokens_N, edges_D1, unigrams.weights_V, seen_V)


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
    matches_M5: Int64,
    edges_D1: Int64,
    sequences_KL: Int64,
    weights_K: Float64,
    beta: Scalar,
    taken_FP: Int32,
    used_V: Int32,
    free: _FreeTokens,
    scores_D: Float64,
    contributions_M: Float64,
) -> None:
    """Score each document by its occurrences; stamps in `taken_FP` and `used_V` save clearing them in between."""
    for d in range(len(scores_D)):
        stamp, counted = d + 1, -1
        for m in range(edges_D1[d], edges_D1[d + 1]):
            key, field, position, length = matches_M5[m, 1], matches_M5[m, 2], matches_M5[m, 3], matches_M5[m, 4]
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
