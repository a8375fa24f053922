"""What a generative search returns."""

from dataclasses import asdict, dataclass, field
from typing import Any

from gr_components.decoding.keys import Keys


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
    :param score: Sum of its identifiers' contributions (and of single tokens, where these are switched on).
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
    :param keys: All identifiers, whether they led to a hit or not. Decoding stops where none could count any more, unless
        log-probabilities are replaced later (`rescore`, `constant_log_probability`).
    """

    hits: list[Hit]
    keys: Keys
