"""Measures, protocols, paired tests and reports."""

from gr_components.evaluation.answer_string import answer_string_qrels, has_answer
from gr_components.evaluation.answers import evaluate_answers, exact_match, f1, normalise_answer
from gr_components.evaluation.comparison import Comparison, compare
from gr_components.evaluation.reports import comparison_table, evaluation_table, markdown_table
from gr_components.evaluation.retrieval import DEFAULT_MEASURES, Evaluation, evaluate_run
from gr_components.evaluation.significance import (
    bootstrap_interval,
    holm,
    paired_randomisation,
    smallest_detectable_difference,
)

__all__ = [
    "DEFAULT_MEASURES",
    "Comparison",
    "Evaluation",
    "answer_string_qrels",
    "bootstrap_interval",
    "compare",
    "comparison_table",
    "evaluate_answers",
    "evaluate_run",
    "evaluation_table",
    "exact_match",
    "f1",
    "has_answer",
    "holm",
    "markdown_table",
    "normalise_answer",
    "paired_randomisation",
    "smallest_detectable_difference",
]
