"""
Retrieval measures by `ir-measures` (https://ir-measur.es), under one protocol.

- Every judged question counts; one that the run lacks, or finds nothing for, scores zero.
- Results are ordered by score, equal scores by document id. What the providers of `ir-measures` do with ties differs.
- Questions of the run without judgements are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gr_components.data.runs import ranked
from gr_components.errors import ConfigError, DataError
from gr_components.extras import need

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@1", "R@5", "R@10", "R@20", "R@100", "Success@1")


@dataclass(frozen=True)
class Evaluation:
    """
    What one system got.

    :param per_question: For each measure, as `ir-measures` prints it, the value of every question, in 0..1.
    """

    per_question: dict[str, dict[str, float]]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each measure over the questions; 0 without questions."""
        return {name: fmean(values.values()) if values else 0.0 for name, values in self.per_question.items()}

    @property
    def num_questions(self) -> int:
        """How many questions were judged."""
        return max((len(values) for values in self.per_question.values()), default=0)

    def restricted(self, questions: Iterable[str]) -> "Evaluation":
        """
        Return the same evaluation over some of the questions.

        :param questions: Their ids; all must have been evaluated.
        """
        wanted = list(questions)
        return Evaluation({name: {q: values[q] for q in wanted} for name, values in self.per_question.items()})

    def merged(self, other: "Evaluation") -> "Evaluation":
        """
        Return an evaluation with the measures of both.

        :param other: Another evaluation of the same system.
        """
        return Evaluation({**self.per_question, **other.per_question})


def evaluate_run(
    run: Mapping[str, Sequence[tuple[str, float]]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = DEFAULT_MEASURES,
) -> Evaluation:
    """
    Measure a run.

    :param run: For each question its documents and scores, in any order.
    :param qrels: For each question its judged documents and grades. A grade of 1 and more is relevant, unless the
        measure says otherwise: `R(rel=2)@100`.
    :param measures: Names as `ir-measures` writes them.
    :returns: Values by the canonical name of the measure.
    :raises ConfigError: If a measure is unknown.
    :raises DataError: If a document stands twice in a question's results.
    """
    ir_measures = need("ir_measures", "eval")
    parsed = [_parse(ir_measures, name) for name in measures]
    values: dict[str, dict[str, float]] = {str(measure): dict.fromkeys(qrels, 0.0) for measure in parsed}
    if not qrels:
        return Evaluation(values)
    ordered = {question: _by_rank(question, run[question]) for question in qrels if run.get(question)}
    for metric in ir_measures.iter_calc(parsed, {q: dict(judged) for q, judged in qrels.items()}, ordered):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
    return Evaluation(values)


def _by_rank(question: str, results: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Scores that fall strictly with the rank, so that no provider meets a tie."""
    order = ranked(results)
    by_rank = {document: float(len(order) - rank) for rank, (document, _) in enumerate(order)}
    if len(by_rank) != len(order):
        msg = f"The results of question {question!r} hold a document twice."
        raise DataError(msg)
    return by_rank


def _parse(ir_measures: Any, name: str) -> Any:
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError, KeyError) as error:
        msg = f"'{name}' is no measure of ir-measures ({error}). Examples: nDCG@10, RR@10, R@100, Success@1, AP."
        raise ConfigError(msg) from error
    if not any(p.is_available() and p.supports(measure) for p in ir_measures.providers.registry.values()):
        msg = f"No installed provider of ir-measures computes '{measure}'."
        raise ConfigError(msg)
    return measure
