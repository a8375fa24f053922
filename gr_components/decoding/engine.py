"""
Generative retrieval end to end: queries in, documents with their identifiers out.

Shapes: B queries, K keys, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr_components.decoding.beam_search import Blocked, beam_search
from gr_components.decoding.calibration import Calibration
from gr_components.decoding.config import SearchConfig
from gr_components.decoding.extra_keys import best_tokens, rescored, unigram_keys, word_keys, words_view
from gr_components.decoding.grammar import QUERY, Grammar, View
from gr_components.decoding.interfaces import Decoder
from gr_components.decoding.keys import Keys, distinct, join
from gr_components.decoding.results import GenerativeResult, Hit, Identifier, Matches
from gr_components.decoding.scoring import Scored, Unigrams, score_documents
from gr_components.decoding.sources import Sources, too_long
from gr_components.decoding.weights import Float64, frequencies, least_useful_log_probability, log_odds
from gr_components.errors import ConfigError, ModelError, TokenizerMismatchError
from gr_components.indexes.candidates import Float32
from gr_components.indexes.suffix_index import DocumentSet, SuffixIndex
from gr_components.models.batching import run_batches
from gr_components.models.cut_texts import CutTexts
from gr_components.tokenization import TextTokenizer

_BEST_UNIGRAMS = 5000


class _Answer(NamedTuple):
    """One query's identifiers, their log-odds weights, and the documents that they lead to."""

    keys: Keys
    weights_K: Float64
    scored: Scored


class GenerativeEngine:
    """
    Searches with a model that writes identifiers.

    :param decoder: The model.
    :param tokenizer: Its tokenizer.
    :param grammar: What it writes.
    :param config: Settings of searches that do not bring their own.
    :param batch_size: Queries decoded together; halved when memory runs out.
    :param calibration: What makes its scores probabilities; None if that is not known.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        grammar: Grammar,
        config: SearchConfig | None = None,
        *,
        batch_size: int = 16,
        calibration: Calibration | None = None,
    ) -> None:
        self.decoder, self.tokenizer, self.grammar = decoder, tokenizer, grammar
        self.config = SearchConfig() if config is None else config
        self.batch_size = batch_size
        self.calibration = calibration
        self._cut = CutTexts()
        self._fingerprint = tokenizer.fingerprint
        self._body = next((view for view in grammar.views if view.stop is None), None)
        self._all_views = [*grammar.views, *([] if self._body is None else [words_view(self._body)])]
        self._blocked = {view.name: self._blocked_tokens(view) for view in grammar.views}

    def search(
        self,
        queries: Sequence[str],
        index: SuffixIndex,
        *,
        top_k: int,
        allowed: DocumentSet | None = None,
        config: SearchConfig | None = None,
        scale_score: bool = False,
    ) -> list[GenerativeResult]:
        """
        Find documents for queries.

        :param queries: Texts; an empty one finds nothing.
        :param index: Where to search; made with this model's tokenizer and grammar.
        :param top_k: Most documents for each query.
        :param allowed: Documents to search in (`index.document_set`); None for all live ones.
        :param config: Settings; None for the engine's own.
        :param scale_score: Whether the hits' scores become probabilities; the contributions of identifiers stay.
        :returns: One result for each query.
        :raises TokenizerMismatchError: If the index was made with another tokenizer or grammar.
        :raises ConfigError: If the model has no view of a name in `config.views`, or scores are to be scaled that have
            another `alpha` than those of the calibration.
        :raises NumericsError: If the model returns NaN.
        :raises ModelError: If memory does not suffice for one query, or scores are to be scaled without a calibration.
        """
        self.check(index)
        calibration = self.needed_calibration(config) if scale_score else None
        results = [GenerativeResult([], join((), [], len(index.segments)))] * len(queries)
        if top_k < 1:
            return results
        for place, found in self._answers(queries, index, allowed, config):
            hits = self._hits(found.scored, found.keys, index, top_k, calibration)
            results[place] = GenerativeResult(hits, found.keys)
        return results

    def match(
        self,
        queries: Sequence[str],
        index: SuffixIndex,
        *,
        allowed: DocumentSet | None = None,
        config: SearchConfig | None = None,
    ) -> list[Matches]:
        """
        Find all documents of queries, as arrays: what mining reads. The search is the same as `search`.

        :param queries: Texts; an empty one finds nothing.
        :param index: Where to search; made with this model's tokenizer and grammar.
        :param allowed: Documents to search in (`index.document_set`); None for all live ones.
        :param config: Settings; None for the engine's own.
        :returns: One result for each query, with every document that an identifier of weight above 0 led to.
        :raises TokenizerMismatchError: If the index was made with another tokenizer or grammar.
        :raises ConfigError: If the model has no view of a name in `config.views`.
        :raises NumericsError: If the model returns NaN.
        :raises ModelError: If memory does not suffice for one query.
        """
        self.check(index)
        config = self.config if config is None else config
        counted = index.live if allowed is None or config.global_counts else allowed
        results = [Matches.nothing(len(index.segments))] * len(queries)
        for place, found in self._answers(queries, index, allowed, config):
            totals = np.array([_total(view, counted, config) for view in found.keys.views], dtype=np.int64)
            priors_K = frequencies(found.keys.counts_K, totals[found.keys.views_K], smoothing=config.smoothing)
            numbers_D = index.numbers_D[found.scored.documents_D]
            results[place] = Matches(numbers_D, found.keys, priors_K, found.scored, found.weights_K**config.alpha)
        return results

    def needed_calibration(self, config: SearchConfig | None = None) -> Calibration:
        """
        Return the calibration.

        :param config: Settings of the search whose scores it is for; None for the engine's own.
        :raises ModelError: If there is none.
        :raises ConfigError: If it was fitted to scores with another `alpha`.
        """
        if self.calibration is None:
            msg = (
                "The generative model has no calibration in its gr_model.json, so its scores cannot be mapped to 0..1. "
                "Train it with a recipe of this version, or set scale_score to false (in pipelines: calibrated=false)."
            )
            raise ModelError(msg)
        alpha, fitted = (self.config if config is None else config).alpha, self.calibration.alpha
        if alpha != fitted:
            msg = (
                f"The search has alpha={alpha:g}, but the model's calibration was fitted with {fitted:g} and says "
                "nothing about other scores. Leave alpha as it was, or set scale_score to false."
            )
            raise ConfigError(msg)
        return self.calibration

    def text(self, keys: Keys, k: int) -> str:
        """
        Return an identifier as a readable text, without its stop token.

        :param keys: Identifiers of a search.
        :param k: Which one.
        """
        tokens = [int(token) for token in keys.tokens_KT[k] if token >= 0]
        if tokens and tokens[-1] == keys.views[keys.views_K[k]].stop:
            tokens.pop()
        return self.tokenizer.decode(tokens, skip_special=False).strip()

    def check(self, index: SuffixIndex, grammar: Mapping[str, Any] | None = None) -> None:
        """
        Make sure that the model can search an index.

        :param index: The index.
        :param grammar: The grammar that the index was laid out by (`Grammar.to_dict`), if it is known.
        :raises TokenizerMismatchError: If it was made with another tokenizer or grammar.
        """
        if not index.segments:
            return
        if index.tokenizer_fingerprint != self._fingerprint:
            msg = (
                f"The index was built with the tokenizer {str(index.tokenizer_fingerprint)[:12]}, the model uses "
                f"{self._fingerprint[:12]}. Build the index again with this model, or use the model of the index."
            )
            raise TokenizerMismatchError(msg)
        if set(index.fields) != set(self.grammar.fields) or index.segments[0].boundary != self.grammar.boundary:
            msg = (
                f"The index has the fields {sorted(index.fields)} and the boundary token {index.segments[0].boundary}, "
                f"the model's grammar {sorted(self.grammar.fields)} and {self.grammar.boundary}. Build the index again "
                "with this model."
            )
            raise TokenizerMismatchError(msg)
        if grammar is not None and _layout(Grammar.from_dict(grammar)) != _layout(self.grammar):
            msg = "The index marks titles or pseudo-queries by other tokens than the model. Build it with this model."
            raise TokenizerMismatchError(msg)

    def _answers(
        self, queries: Sequence[str], index: SuffixIndex, allowed: DocumentSet | None, config: SearchConfig | None
    ) -> Iterator[tuple[int, _Answer]]:
        """Search batch by batch; yields the place of each query that is not empty with what was found."""
        if not index.segments:
            return
        config, allowed = self.config if config is None else config, index.live if allowed is None else allowed
        chosen, beams = allowed, config.beams
        filled = [place for place, query in enumerate(queries) if query.strip()]
        asked = [queries[place] for place in filled]
        lost = too_long(asked, self._views(config), self.tokenizer, self.grammar)
        self._cut.report("queries", asked, lost, self.grammar.max_source)

        def run(places: list[int]) -> list[_Answer]:
            return self._search_batch([queries[place] for place in places], index, chosen, config)

        def hopeless(place: int) -> str:
            return f"Out of memory with {beams} beams for a single query, {queries[place][:60]!r}. Set fewer beams."

        for places, found in run_batches(filled, self.batch_size, run, hopeless):
            yield from zip(places, found, strict=True)

    def _search_batch(
        self, queries: Sequence[str], index: SuffixIndex, allowed: DocumentSet, config: SearchConfig
    ) -> list[_Answer]:
        counted = index.live if config.global_counts else allowed
        sources = Sources(queries, self.decoder, self.tokenizer, self.grammar)
        parts: list[Keys] = []
        first_BV: Float32 | None = None
        for view in self._views(config):
            generated = beam_search(
                self.decoder, index, sources.get(view.source_suffix), view,
                num_queries=len(queries), beams=min(view.beams or config.beams, config.beams),
                blocked=self._blocked[view.name], allowed=allowed, counted=counted, floor=_floor(view, counted, config),
            )  # fmt: skip
            parts.append(rescored(generated.keys, self.decoder, sources, config) if config.rescore else generated.keys)
            if view == self._body:
                first_BV = generated.first_BV
        if config.query_ngrams and self._body is not None:
            blocked_V = self._blocked[self._body.name].later_V
            words = word_keys(queries, self._body, config.query_ngrams, self.tokenizer, blocked_V, index, counted)
            parts.append(rescored(words, self.decoder, sources, config))
        keys = join(self._all_views, parts, len(index.segments))
        results = []
        for b in range(len(queries)):
            first_V = None if first_BV is None else first_BV[b]
            own = self._completed(keys.select(keys.owners_K == b), first_V, index, counted, config)
            unigrams = self._unigrams(first_V, index, counted, config)
            weights_K = self._weights(own, counted, config)
            scored = score_documents(own, weights_K, index, allowed, config, unigrams)
            results.append(_Answer(own, weights_K, scored))
        return results

    def _views(self, config: SearchConfig) -> list[View]:
        if config.views is None:
            return list(self.grammar.views)
        return [self.grammar.view(name) for name in config.views]

    def _completed(
        self, keys: Keys, first_V: Float32 | None, index: SuffixIndex, counted: DocumentSet, config: SearchConfig
    ) -> Keys:
        """Add single tokens if they are asked for, and drop what is there twice."""
        if config.unigram_keys and first_V is not None and self._body is not None:
            blocked_V = self._blocked[self._body.name].later_V
            singles = unigram_keys(first_V, len(keys), self._body, blocked_V, index, counted)
            keys = join(self._all_views, [keys, singles], len(index.segments))
        return distinct(keys) if config.unigram_keys or config.query_ngrams else keys

    def _weights(self, keys: Keys, counted: DocumentSet, config: SearchConfig) -> Float64:
        log_probs_K = keys.log_probs_K.astype(np.float64)
        totals = np.ones(len(keys.views), dtype=np.int64)
        for v, view in enumerate(keys.views):
            totals[v] = _total(view, counted, config)
            if view.name == QUERY:
                own = keys.views_K == v
                log_probs_K[own] = np.minimum(log_probs_K[own] + config.query_view_bias, config.query_view_cap)
        if config.constant_log_probability is not None:
            log_probs_K[:] = config.constant_log_probability
        return log_odds(log_probs_K, keys.counts_K, totals[keys.views_K], smoothing=config.smoothing)

    def _unigrams(
        self, first_V: Float32 | None, index: SuffixIndex, counted: DocumentSet, config: SearchConfig
    ) -> Unigrams | None:
        if not config.unigram_weight or first_V is None or self._body is None:
            return None
        field, blocked_V = self._body.field, self._blocked[self._body.name].later_V
        best_N = best_tokens(first_V, blocked_V, _BEST_UNIGRAMS)
        counts_N = index.count(index.extend(field, best_N[:, None]), counted)
        weights_V = np.zeros(len(first_V))
        total = counted.size(field)[0]
        weights_V[best_N] = config.unigram_weight * log_odds(
            first_V[best_N], counts_N, total, smoothing=config.smoothing
        )
        return Unigrams(field, weights_V)

    def _hits(
        self, scored: Scored, keys: Keys, index: SuffixIndex, top_k: int, calibration: Calibration | None
    ) -> list[Hit]:
        texts: dict[int, str] = {}
        hits = []
        numbers_D = index.numbers_D[scored.documents_D[:top_k]]
        scores_D = scored.scores_D if calibration is None else calibration.probabilities(scored.scores_D)
        for place, (number, score) in enumerate(zip(numbers_D, scores_D[:top_k], strict=True)):
            identifiers = []
            for k, contribution in scored.contributions(place):
                if k not in texts:
                    texts[k] = self.text(keys, k)
                view = keys.views[keys.views_K[k]].name
                log_probability, count = float(keys.log_probs_K[k]), int(keys.counts_K[k])
                identifiers.append(Identifier(texts[k], view, log_probability, count, contribution))
            hits.append(Hit(int(number), float(score), identifiers))
        return hits

    def _blocked_tokens(self, view: View) -> Blocked:
        """Boundary and forbidden tokens, except the one that completes the view's identifiers."""
        later_V = np.ones(self.decoder.vocabulary_size, dtype=bool)  # ids that the tokenizer lacks stay blocked
        later_V[: self.tokenizer.vocabulary_size] = False
        later_V[[*self.grammar.never, self.grammar.boundary]] = True
        first_V = later_V.copy()
        if view.word_start:
            continuation_V = self.tokenizer.continuation_V[: len(first_V)]
            first_V[: len(continuation_V)] |= continuation_V
        if view.stop is not None:
            first_V[view.stop] = True  # a stop alone is no identifier
            later_V[view.stop] = False
        return Blocked(first_V, later_V)


def _total(view: View, counted: DocumentSet, config: SearchConfig) -> int:
    """Return what counts of a view's identifiers are divided by."""
    tokens, entries = counted.size(view.field)
    return entries if view.complete_only and config.normaliser == "view" else tokens


def _floor(view: View, counted: DocumentSet, config: SearchConfig) -> float:
    """Return the log-probability below which a view's identifiers count nothing, so that decoding may stop there."""
    if config.rescore or config.constant_log_probability is not None:
        return -np.inf
    bias = config.query_view_bias if view.name == QUERY else 0.0
    return least_useful_log_probability(_total(view, counted, config), smoothing=config.smoothing) - bias


def _layout(grammar: Grammar) -> tuple[Any, ...]:
    """Return what decides how documents lie in the index."""
    views = sorted((view.name, view.field, view.index_prefix, view.stop or -1) for view in grammar.views)
    return grammar.layout, grammar.boundary, grammar.title_end, grammar.query_start, views
