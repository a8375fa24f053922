"""
The two sides that meet in a beam search: a decoder that gives log-probabilities and a constraint that says what exists.

Both speak numpy, so that torch, ONNX, suffix indexes and tries combine freely.

Shapes: B queries, L source tokens, K beams of each query, R = B * K rows (row b * K + k is beam k of query b),
V vocabulary, M candidates of each query, N sequences of T tokens.
"""

from typing import Any, Protocol

from gr_components.indexes.candidates import BeamStates, Bool, Candidates, Float32, Int64, Occurrences

__all__ = ["BeamStates", "Candidates", "Constraint", "Decoder", "Occurrences"]


class Decoder(Protocol):
    """An encoder-decoder that encodes once and decodes one token per row and step, with a cache."""

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of every array of log-probabilities."""
        ...

    def encode(self, input_ids_BL: Int64, attention_mask_BL: Bool) -> Any:
        """
        Encode queries; the result can be given to `start` and `score` any number of times.

        :param input_ids_BL: Token ids.
        :param attention_mask_BL: True on real tokens.
        """
        ...

    def start(self, source: Any, beams: int) -> Any:
        """
        Begin a decoding with an empty cache.

        :param source: What `encode` returned.
        :param beams: Rows K of each query.
        :returns: The state of R = B * K rows.
        """
        ...

    def step(self, tokens_R: Int64, rows_R: Int64, state: Any) -> Float32:
        """
        Feed one token to every row; the state is changed in place.

        :param tokens_R: The tokens to feed.
        :param rows_R: The row of the previous step that each row continues; a row of the same query.
        :param state: What `start` returned.
        :returns: Normalised log-probabilities (R, V) of the next token over the full vocabulary.
        """
        ...

    def score(self, source: Any, targets_KT: Int64, decoder_start: tuple[int, ...], owner_K: Int64) -> Float32:
        """
        Log-probabilities of given sequences (teacher forcing).

        :param source: What `encode` returned.
        :param targets_KT: Tokens after `decoder_start`, padded with -1.
        :param decoder_start: Tokens that are fed first.
        :param owner_K: Which source each sequence belongs to.
        :returns: The log-probability of every token (K, T), 0 at padding.
        """
        ...


class Constraint(Protocol):
    """Which token sequences exist, how often, and in which documents."""

    def start(self, field: str, prefix: tuple[int, ...], rows: int) -> BeamStates:
        """
        Return the states of beams that have consumed a prefix.

        :param field: The index field to search.
        :param prefix: Tokens that precede what is generated.
        :param rows: How many equal states to make.
        """
        ...

    def step(
        self,
        log_probs_RV: Float32,
        scores_R: Float32,
        states: BeamStates,
        beams: int,
        num_candidates: int,
        blocked_V: Bool,
        allowed: Any,
    ) -> Candidates:
        """
        Return the best continuations that exist in an allowed document.

        :param log_probs_RV: Log-probabilities of the next token.
        :param scores_R: Log-probability of each beam so far; -inf for dead beams.
        :param states: Where the beams stand.
        :param beams: Rows K of each query; B is R / K.
        :param num_candidates: M, how many to return for each query.
        :param blocked_V: Tokens that may not be chosen.
        :param allowed: Document set, as the index makes it.
        """
        ...

    def extend(self, field: str, tokens_NT: Int64) -> BeamStates:
        """
        Find sequences.

        :param field: The index field to search.
        :param tokens_NT: Sequences, prefixes included, padded with -1 on the right.
        :returns: The N states that they lead to, with `depth` -1 since lengths differ.
        """
        ...

    def count(self, states: BeamStates, allowed: Any) -> Int64:
        """
        Count the occurrences of sequences in live and allowed documents.

        :param states: States of N sequences.
        :param allowed: Document set, as the index makes it.
        :returns: N counts.
        """
        ...
