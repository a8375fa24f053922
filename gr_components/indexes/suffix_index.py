"""
Search over several suffix segments, with deleted documents left out and exact document filters while decoding.

Shapes: S segments, D documents of all segments together, R = B * K rows of beams, M candidates, N sequences,
V vocabulary.
"""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gr_components.errors import SearchIndexError, TokenizerMismatchError
from gr_components.indexes.candidates import BeamStates, Bool, Candidates, Float32, Int64, Occurrences
from gr_components.indexes.suffix import FieldText, SuffixSegment
from gr_components.indexes.suffix_kernels import (
    Beams,
    Best,
    PositionFilter,
    advance,
    best_continuations,
    count_ranges,
    find_sequences,
    locate_ranges,
    merge_segments,
    set_position_bits,
)

_EVERYWHERE = PositionFilter(False, np.zeros(0, dtype=np.uint8))


class DocumentSet:
    """
    The documents that a search may return; made by `SuffixIndex.document_set`. `num_documents` says how many.

    :param segments: The index's segments.
    :param masks: For each segment which documents are in, or None for all of them.
    """

    def __init__(self, segments: Sequence[SuffixSegment], masks: Sequence[Bool | None]) -> None:
        self._segments = segments
        self._masks = [None if mask is None or mask.all() else mask for mask in masks]
        self._filters: dict[tuple[int, str], PositionFilter] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        pairs = zip(segments, self._masks, strict=True)
        self.num_documents = sum(s.num_documents if mask is None else int(mask.sum()) for s, mask in pairs)
        self._lock = threading.Lock()

    def size(self, field: str) -> tuple[int, int]:
        """
        Return the number of tokens (boundaries excluded) and of entries of the set's documents in a field.

        :param field: The field.
        """
        if field not in self._sizes:
            pairs = zip(self._segments, self._masks, strict=True)
            sizes = [_size(segment.fields[field], mask) for segment, mask in pairs]
            self._sizes[field] = sum(tokens for tokens, _ in sizes), sum(entries for _, entries in sizes)
        return self._sizes[field]

    def positions(self, segment: int, field: str) -> PositionFilter:
        """
        Return the set's text positions in a segment; computed once.

        :param segment: The segment.
        :param field: The field.
        """
        mask = self._masks[segment]
        if mask is None:
            return _EVERYWHERE
        with self._lock:
            known = self._filters.get((segment, field))
            if known is None:
                text = self._segments[segment].fields[field]
                bits = np.zeros(-(-len(text.arrays.text_N) // 8), dtype=np.uint8)
                set_position_bits(text.starts_D1, mask, bits)
                known = self._filters[segment, field] = PositionFilter(True, bits)
        return known


class SuffixIndex:
    """
    The `Constraint` of a generative search (`gr_components.decoding.interfaces`); immutable and safe to share.

    :param segments: Opened segments of one tokenizer and one set of fields; may be empty.
    :param live: For each segment which of its documents are not deleted; None for all.
    :raises TokenizerMismatchError: If segments were made with different tokenizers.
    :raises SearchIndexError: If fields differ, or masks do not fit.
    """

    def __init__(self, segments: Sequence[SuffixSegment], live: Sequence[npt.ArrayLike | None] | None = None) -> None:
        self.segments = tuple(segments)
        masks = [None] * len(self.segments) if live is None else list(live)
        self._live = [None if mask is None else np.asarray(mask, dtype=bool) for mask in masks]
        self._check()
        sizes = [segment.num_documents for segment in self.segments]
        self._bases_S = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        numbers = [segment.numbers_D for segment in self.segments]
        self.numbers_D: Int64 = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)
        self.live = DocumentSet(self.segments, self._live)

    def _check(self) -> None:
        if len(self._live) != len(self.segments):
            msg = f"Got {len(self._live)} masks for {len(self.segments)} segments."
            raise SearchIndexError(msg)
        for segment, mask in zip(self.segments, self._live, strict=True):
            first = self.segments[0]
            if segment.tokenizer_fingerprint != first.tokenizer_fingerprint:
                msg = (
                    f"'{segment.path}' was built with another tokenizer than '{first.path}'. Build the index again "
                    "for the whole store."
                )
                raise TokenizerMismatchError(msg)
            if segment.fields.keys() != first.fields.keys() or segment.boundary != first.boundary:
                msg = f"'{segment.path}' has another layout than '{first.path}'. Build the index again."
                raise SearchIndexError(msg)
            if mask is not None and mask.shape != (segment.num_documents,):
                msg = f"The mask of '{segment.path}' has shape {mask.shape}, expected ({segment.num_documents},)."
                raise SearchIndexError(msg)

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Which tokenizer made the segments; None if there are none."""
        return self.segments[0].tokenizer_fingerprint if self.segments else None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields; empty if there are no segments."""
        return tuple(self.segments[0].fields) if self.segments else ()

    def document_set(self, numbers: npt.ArrayLike | None) -> DocumentSet:
        """
        Return the set of live documents with given numbers, to search in.

        :param numbers: Document numbers of the store; unknown and deleted ones are ignored. None for all.
        """
        if numbers is None:
            return self.live
        wanted = np.asarray(numbers, dtype=np.int64)
        masks: list[Bool | None] = []
        for segment, live in zip(self.segments, self._live, strict=True):
            mask = np.isin(segment.numbers_D, wanted)
            masks.append(mask if live is None else mask & live)
        return DocumentSet(self.segments, masks)

    def start(self, field: str, prefix: tuple[int, ...], rows: int) -> BeamStates:
        """
        Return the states of beams that have consumed a prefix.

        :param field: The index field to search.
        :param prefix: Tokens that precede what is generated.
        :param rows: How many equal states to make.
        """
        found = self.extend(field, np.array([prefix], dtype=np.int64).reshape(1, len(prefix)))
        return BeamStates(field, len(prefix), np.repeat(found.nodes_SR3, rows, axis=1))

    def step(
        self,
        log_probs_RV: Float32,
        scores_R: Float32,
        states: BeamStates,
        beams: int,
        num_candidates: int,
        blocked_V: Bool,
        allowed: DocumentSet | None = None,
    ) -> Candidates:
        """
        Return the best continuations that occur in an allowed document.

        :param log_probs_RV: Log-probabilities of the next token, none above 0 but for rounding.
        :param scores_R: Log-probability of each beam so far; -inf for dead beams.
        :param states: Where the beams stand.
        :param beams: Rows K of each query.
        :param num_candidates: M, how many to return for each query.
        :param blocked_V: Tokens that may not be chosen.
        :param allowed: Documents to search in; None for all live ones.
        """
        allowed = self.live if allowed is None else allowed
        num_queries = len(scores_R) // beams
        shape = (len(self.segments), num_queries, num_candidates)
        found = Best(np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int64))
        # Read-only arrays would be compiled for separately.
        log_probs_RV = np.require(log_probs_RV, dtype=np.float32, requirements=["C", "W"])
        blocked_V = np.ascontiguousarray(blocked_V[: log_probs_RV.shape[1]])
        for s, text in self._texts(states.field):
            state = Beams(log_probs_RV, scores_R, states.nodes_SR3[s], states.depth, blocked_V)
            best = Best(found.scores[s], found.beams[s], found.tokens[s])
            best_continuations(text.arrays, state, allowed.positions(s, states.field), best)
        merged = Best(*(part[0] for part in found)) if len(self.segments) == 1 else _merged(found)
        return Candidates(merged.scores, merged.beams, merged.tokens, self._advanced(states, merged, beams))

    def extend(self, field: str, tokens_NT: Int64) -> BeamStates:
        """
        Find sequences.

        :param field: The index field to search.
        :param tokens_NT: Sequences, prefixes included, padded with -1 on the right.
        :returns: The N states that they lead to, with `depth` -1 since lengths differ.
        """
        nodes_SN3 = np.zeros((len(self.segments), len(tokens_NT), 3), dtype=np.int64)
        tokens_NT = np.ascontiguousarray(tokens_NT, dtype=np.int64)
        for s, text in self._texts(field):
            find_sequences(text.arrays, tokens_NT, nodes_SN3[s])
        return BeamStates(field, -1, nodes_SN3)

    def count(self, states: BeamStates, allowed: DocumentSet | None = None) -> Int64:
        """
        Count the occurrences of sequences in live and allowed documents.

        :param states: States of N sequences.
        :param allowed: Documents to count in; None for all live ones.
        :returns: N counts.
        """
        return self._counts(states, self.live if allowed is None else allowed).sum(axis=0)

    def locate(self, states: BeamStates, allowed: DocumentSet | None = None) -> Occurrences:
        """
        Find every occurrence of sequences in live and allowed documents.

        :param states: States of N sequences.
        :param allowed: Documents to look in; None for all live ones.
        :returns: Occurrences, in no particular order.
        """
        allowed = self.live if allowed is None else allowed
        parts = [np.empty((0, 3), dtype=np.int64)]
        for (s, text), counts_N in zip(self._texts(states.field), self._counts(states, allowed), strict=True):
            found_M3 = np.empty((int(counts_N.sum()), 3), dtype=np.int64)
            nodes_N3 = states.nodes_SR3[s]
            positions = allowed.positions(s, states.field)
            num = locate_ranges(text.arrays, text.starts_D1, text.blocks, nodes_N3, positions, found_M3)
            found_M3[:, 1] += self._bases_S[s]
            parts.append(found_M3[:num])
        found_M3 = np.concatenate(parts)
        return Occurrences(found_M3[:, 0], found_M3[:, 1], found_M3[:, 2])

    def tokens(self, field: str, document: int) -> Int64:
        """
        Return a document's text in a field, each entry preceded by a boundary token.

        :param field: The field.
        :param document: Its place in the index, as `locate` gives it.
        """
        s = int(np.searchsorted(self._bases_S, document, side="right")) - 1
        return self.segments[s].fields[field].tokens(document - int(self._bases_S[s])).astype(np.int64)

    def _texts(self, field: str) -> list[tuple[int, FieldText]]:
        if self.segments and field not in self.segments[0].fields:
            msg = (
                f"The index has no field {field!r}, only {list(self.fields)}. Build it with the grammar of this model."
            )
            raise SearchIndexError(msg)
        return [(s, segment.fields[field]) for s, segment in enumerate(self.segments)]

    def _counts(self, states: BeamStates, allowed: DocumentSet) -> Int64:
        counts_SN = np.zeros(states.nodes_SR3.shape[:2], dtype=np.int64)
        for s, text in self._texts(states.field):
            count_ranges(text.arrays, states.nodes_SR3[s], allowed.positions(s, states.field), counts_SN[s])
        return counts_SN

    def _advanced(self, states: BeamStates, best: Best, beams: int) -> BeamStates:
        queries, num = best.beams.shape
        rows_BM = np.where(best.beams < 0, -1, best.beams + beams * np.arange(queries)[:, None])
        nodes_SN3 = np.empty((len(self.segments), queries * num, 3), dtype=np.int64)
        tokens_N = np.ascontiguousarray(best.tokens).reshape(-1)
        for s, text in self._texts(states.field):
            advance(text.arrays, states.nodes_SR3[s], states.depth, rows_BM.reshape(-1), tokens_N, nodes_SN3[s])
        return BeamStates(states.field, states.depth + 1, nodes_SN3)


def _size(text: FieldText, mask: Bool | None) -> tuple[int, int]:
    lengths_D, entries_D = np.diff(text.starts_D1.astype(np.int64)), text.entries_D
    if mask is not None:
        lengths_D, entries_D = lengths_D[mask], entries_D[mask]
    entries = int(entries_D.sum(dtype=np.int64))
    return int(lengths_D.sum()) - entries, entries


def _merged(found: Best) -> Best:
    shape = found.scores.shape[1:]
    merged = Best(np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int64))
    merge_segments(found, merged)
    return merged
