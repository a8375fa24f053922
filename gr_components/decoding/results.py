"""What a generative search returns."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gr_components.decoding.keys import Keys, join
from gr_components.decoding.scoring import Scored
from gr_components.decoding.weights import Float64
from gr_components.indexes.candidates import Int64


@dataclass(frozen=True)
class Identifier:
    """
    Why a document was found.

    :param text: The identifier, readable.
    :param view: The view it was written in; `words` for n-grams of the query's own words.
    :param log_probability: Of the whole identifier given the query.
    :param count: Occurrences in the documents that were searched.
    :param contribution: What it adds to the document's score.
    """

    text: str
    view: str
    log_probability: float
    count: int
    contribution: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Hit:
    """
    A document that was found.

    :param number: The store's document number.
    :param score: Sum of its identifiers' contributions (and of single tokens, where these are switched on); or, with a
        calibration, the probability that it is the relevant document.
    :param identifiers: Largest contribution first.
    """

    number: int
    score: float
    identifiers: list[Identifier] = field(default_factory=list)


@dataclass(frozen=True)
class GenerativeResult:
    """
    The result of one query.

    :param hits: Documents, best first.
    :param keys: All identifiers, whether they led to a hit or not. Decoding stops where none could count any more,
        unless log-probabilities are replaced later (`rescore`, `constant_log_probability`).
    """

    hits: list[Hit]
    keys: Keys


@dataclass(frozen=True)
class Matches:
    """
    All documents of one query with their identifiers, as arrays: D documents, K identifiers.

    :param numbers_D: Document numbers, best first.
    :param keys: All identifiers.
    :param priors_K: P(n), the share of the corpus that each of them is: what its log-odds weight was computed with.
    :param scored: The documents' scores and what they are made of.
    :param powers_K: Weights to the power of alpha: what an identifier adds where its cover is 1.
    """

    numbers_D: Int64
    keys: Keys
    priors_K: Float64
    scored: Scored
    powers_K: Float64

    @classmethod
    def nothing(cls, segments: int) -> "Matches":
        """
        Return the result of a query that finds nothing.

        :param segments: Number of index segments.
        """
        no_number, no_value = np.empty(0, dtype=np.int64), np.empty(0)
        scored = Scored(no_number, no_value, np.empty((0, 2), dtype=np.int64), no_number, no_value)
        return cls(no_number, join((), [], segments), no_value, scored, no_value)

    @property
    def scores_D(self) -> Float64:
        """The documents' scores."""
        return self.scored.scores_D

    def occurring(self, place: int) -> Int64:
        """
        Return all identifiers that a document holds, largest weight first, also those that better ones overlap.

        :param place: Rank of the document, 0 for the best.
        :returns: N rows of `keys`.
        """
        first, end = self.scored.rows_D2[place]
        keys_N = np.unique(self.scored.keys_M[first:end])
        return keys_N[np.argsort(-self.powers_K[keys_N], kind="stable")]

    def identifiers(self, place: int) -> tuple[Int64, Float64, Float64]:
        """
        Return the identifiers of a document, largest contribution first.

        :param place: Rank of the document, 0 for the best.
        :returns: N rows of `keys`, their contributions to the document's score, and their covers: contributions over
            weights to the power of alpha.
        """
        pairs = self.scored.contributions(place)
        keys_N = np.array([key for key, _ in pairs], dtype=np.int64)
        contributions_N = np.array([value for _, value in pairs], dtype=np.float64)
        return keys_N, contributions_N, contributions_N / self.powers_K[keys_N]
