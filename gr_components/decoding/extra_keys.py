"""
Identifiers that are not generated: n-grams of the query's words, single tokens; and new log-probabilities for any.

All three are in SEAL's released code (https://arxiv.org/abs/2204.10628) and off by default here.

Shapes: K keys, T longest key, V vocabulary, N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.grammar import View
from gr_components.decoding.interfaces import Decoder
from gr_components.decoding.keys import Keys
from gr_components.decoding.sources import Sources
from gr_components.indexes.candidates import Bool, Float32, Int64
from gr_components.indexes.suffix_index import DocumentSet, SuffixIndex
from gr_components.tokenization import TextTokenizer

WORDS = "words"


def words_view(body: View) -> View:
    """
    Return the view under which n-grams of the query's words are listed.

    :param body: The view whose field they are looked up in.
    """
    return replace(body, name=WORDS)


def word_keys(
    queries: Sequence[str],
    body: View,
    longest: int,
    tokenizer: TextTokenizer,
    blocked_V: Bool,
    index: SuffixIndex,
    counted: DocumentSet,
) -> Keys:
    """
    N-grams of the queries' words, in all capitalisations of first letters, that occur in the documents.

    :param queries: Texts.
    :param body: The view whose field they are looked up in.
    :param longest: Words of the longest n-gram.
    :param tokenizer: The model's tokenizer.
    :param blocked_V: Tokens that no identifier holds, such as boundaries, which a query may spell out.
    :param index: Where to look.
    :param counted: Documents to count in.
    :returns: Keys with log-probability 0: `rescored` fills it in.
    """
    # A word inside a text follows a space; tokenizers that see spaces need it, the others ignore it.
    spans = [(b, " " + span) for b, query in enumerate(queries) for span in _spans(query.split(), longest)]
    unique = dict.fromkeys(
        (b, tuple(ids))
        for (b, _), ids in zip(spans, tokenizer.encode([span for _, span in spans]), strict=True)
        if ids and not blocked_V[ids].any()
    )
    length = max((len(ids) for _, ids in unique), default=0)
    tokens_KT = np.full((len(unique), length), -1, dtype=np.int64)
    for k, (_, ids) in enumerate(unique):
        tokens_KT[k, : len(ids)] = ids
    owners_K = np.array([b for b, _ in unique], dtype=np.int64)
    return _found(owners_K, tokens_KT, np.zeros(len(unique), dtype=np.float32), words_view(body), index, counted)


def unigram_keys(
    first_V: Float32, num: int, body: View, blocked_V: Bool, index: SuffixIndex, counted: DocumentSet
) -> Keys:
    """
    Return the most probable first tokens as keys of one query.

    :param first_V: Log-probabilities of the first token.
    :param num: How many, before those that do not occur are dropped.
    :param body: The view that generated them.
    :param blocked_V: Tokens that are left out.
    :param index: Where to look.
    :param counted: Documents to count in.
    """
    tokens_N = best_tokens(first_V, blocked_V, num)
    owners_N = np.zeros(len(tokens_N), dtype=np.int64)
    return _found(owners_N, tokens_N[:, None], first_V[tokens_N], body, index, counted)


def best_tokens(first_V: Float32, blocked_V: Bool, num: int) -> Int64:
    """
    Return the most probable tokens, best first.

    :param first_V: Log-probabilities.
    :param blocked_V: Tokens that are left out.
    :param num: How many at most.
    """
    order_V = np.argsort(-first_V, kind="stable")
    return order_V[~blocked_V[order_V]][:num]


def rescored(keys: Keys, decoder: Decoder, sources: Sources, config: SearchConfig) -> Keys:
    """
    Replace log-probabilities by those of teacher forcing.

    :param keys: Keys of a batch, of views with the same decoder start.
    :param decoder: The model.
    :param sources: The batch's queries.
    :param config: Which source, and whether the stop token counts.
    """
    log_probs_K = keys.log_probs_K.copy()
    for v, view in enumerate(keys.views):
        own_N = np.nonzero(keys.views_K == v)[0]
        if not len(own_N):
            continue
        targets_NT = keys.tokens_KT[own_N]
        if view.stop is not None and not config.rescore_stop:
            targets_NT = np.where(targets_NT == view.stop, -1, targets_NT)
        plain = config.rescore_source == "plain" and view.stop is None
        source = sources.get("" if plain else view.source_suffix)
        log_probs_NT = decoder.score(source, targets_NT, view.decoder_start, keys.owners_K[own_N])
        log_probs_K[own_N] = log_probs_NT.sum(axis=1)
    return replace(keys, log_probs_K=log_probs_K)


def _spans(words: Sequence[str], longest: int) -> Iterator[str]:
    for size in range(1, longest + 1):
        for start in range(len(words) - size + 1):
            variants = [dict.fromkeys((word[:1].lower() + word[1:], word[:1].upper() + word[1:]))
                        for word in words[start : start + size]]  # fmt: skip
            yield from (" ".join(choice) for choice in product(*variants))


def _found(
    owners_K: Int64, tokens_KT: Int64, log_probs_K: Float32, view: View, index: SuffixIndex, counted: DocumentSet
) -> Keys:
    prefix_KP = np.tile(np.array(view.index_prefix, dtype=np.int64), (len(tokens_KT), 1))
    states = index.extend(view.field, np.concatenate([prefix_KP, tokens_KT], axis=1))
    keys = Keys(
        (view,), owners_K, np.zeros(len(owners_K), dtype=np.int64), tokens_KT, log_probs_K,
        index.count(states, counted), states.nodes_SR3,
    )  # fmt: skip
    return keys.select(keys.counts_K > 0)
