"""Settings of a generative search, with the presets of the papers."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from gr_components.decoding.grammar import BODY, QUERY, TITLE
from gr_components.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """
    How identifiers are generated and how documents are scored by them.

    The defaults are what worked best for small models over small corpora; `seal()` and `minder()` are the published
    settings for Wikipedia. Sources: SEAL https://arxiv.org/abs/2204.10628, MINDER https://arxiv.org/abs/2305.16675.

    :param beams: Beam width, unless a view of the grammar has its own.
    :param views: Names of the views to decode; None for all of the model's, () for none.
    :param alpha: Exponent of an identifier's log-odds weight, > 0.
    :param beta: How much of its weight an identifier loses whose tokens better ones have used already, 0 to 1.
    :param smoothing: Added to counts and to their normaliser; published with 5, for 21 million passages.
    :param normaliser: Total that counts are divided by: `view` (entries of the field for views with complete
        identifiers, else tokens) or `tokens` (always).
    :param global_counts: Whether a filtered search counts in all live documents instead of the allowed ones.
    :param unigram_weight: Weight of single tokens that no identifier uses, taken from the first step of the body view.
    :param unigram_keys: Whether as many of the most probable single tokens as there are identifiers become identifiers.
    :param query_ngrams: Longest n-gram of query words that is added as an identifier; 0 for none.
    :param max_hits: Identifiers with more occurrences only enter the second stage of scoring.
    :param full_documents: Documents that the second stage scores.
    :param rescore: Whether identifiers get their log-probability by teacher forcing instead of from the beam search.
    :param rescore_source: Encoder input for that: of the identifier's view, or for body identifiers the `plain` query.
    :param rescore_stop: Whether the stop token counts when re-scoring.
    :param query_view_bias: Added to the log-probability of pseudo-queries (nats).
    :param query_view_cap: Upper limit of the log-probability of pseudo-queries.
    :param constant_log_probability: Replaces every log-probability: a control that shows what the model's own adds.
    :raises ConfigError: If a value is out of range; names all problems.
    """

    beams: int = 10
    views: tuple[str, ...] | None = None
    alpha: float = 2.0
    beta: float = 0.8
    smoothing: float = 0.0
    normaliser: Literal["view", "tokens"] = "view"
    global_counts: bool = False
    unigram_weight: float = 0.0
    unigram_keys: bool = False
    query_ngrams: int = 0
    max_hits: int = 1500
    full_documents: int = 1500
    rescore: bool = False
    rescore_source: Literal["view", "plain"] = "view"
    rescore_stop: bool = True
    query_view_bias: float = 0.0
    query_view_cap: float = -1.0
    constant_log_probability: float | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {rule}, got {getattr(self, name)!r}"
            for name, rule, holds in _RULES
            if not holds(getattr(self, name))
        ]
        if problems:
            msg = f"The search settings have {len(problems)} problem(s): {'; '.join(problems)}."
            raise ConfigError(msg)

    @classmethod
    def seal(cls, **changes: Any) -> "SearchConfig":
        """
        Return the settings of SEAL's released code.

        :param changes: Settings that differ.
        """
        published = cls(
            beams=15,
            views=(BODY, TITLE),
            smoothing=5.0,
            normaliser="tokens",
            unigram_weight=1.0,
            unigram_keys=True,
            query_ngrams=3,
            rescore=True,
            rescore_source="plain",
            rescore_stop=False,
            query_view_cap=0.0,
        )
        return replace(published, **changes)

    @classmethod
    def minder(cls, **changes: Any) -> "SearchConfig":
        """
        Return the settings of MINDER's released code: SEAL's with the query view and its +14.

        :param changes: Settings that differ.
        """
        published = cls.seal(views=(BODY, TITLE, QUERY), rescore_stop=True, query_view_bias=14.0, query_view_cap=-1.0)
        return replace(published, **changes)


def _count(least: int) -> Any:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(holds: Any) -> Any:
    return lambda value: isinstance(value, int | float) and math.isfinite(value) and holds(value)


def _distinct(value: Any) -> bool:
    return isinstance(value, tuple) and len(set(value)) == len(value)


_RULES: tuple[tuple[str, str, Any], ...] = (
    ("beams", "a whole number of at least 1", _count(1)),
    ("views", "a tuple of different view names or None", lambda v: v is None or _distinct(v)),
    ("alpha", "> 0", _number(lambda v: v > 0)),
    ("beta", "between 0 and 1", _number(lambda v: 0 <= v <= 1)),
    ("smoothing", ">= 0", _number(lambda v: v >= 0)),
    ("normaliser", "'view' or 'tokens'", lambda v: v in ("view", "tokens")),
    ("unigram_weight", ">= 0", _number(lambda v: v >= 0)),
    ("query_ngrams", "a whole number of at least 0", _count(0)),
    ("max_hits", "a whole number of at least 1", _count(1)),
    ("full_documents", "a whole number of at least 1", _count(1)),
    ("rescore_source", "'view' or 'plain'", lambda v: v in ("view", "plain")),
    ("query_view_bias", "a number", _number(lambda v: True)),
    ("query_view_cap", "<= 0", _number(lambda v: v <= 0)),
    ("constant_log_probability", "< 0 or None", lambda v: v is None or _number(lambda w: w < 0)(v)),
)  # fmt: skip
assert {name for name, _, _ in _RULES} <= {field.name for field in fields(SearchConfig)}
