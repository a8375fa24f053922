"""
Candidate lists for ranking losses: what retrieval found for each question, fused from several runs.

Runs are fused as Haystack's distribution-based mode does: each run's scores are divided by their spread around their
mean over the question's list, then added up, so that no run needs a weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gr_components.data import Passage, Question
from gr_components.data.runs import Run, ranked


@dataclass(frozen=True)
class CandidateLists:
    """
    The best passages for each of Q questions, best first.

    :param rows: For each question the rows of its passages.
    :param scores: For each question their fused scores, mean 0 over each list.
    """

    rows: list[npt.NDArray[np.int64]]
    scores: list[npt.NDArray[np.float32]]


def fuse(runs: Sequence[Mapping[str, Sequence[tuple[str, float]]]]) -> Run:
    """
    Add up the standardised scores of several runs.

    A document that a run lacks gets that run's lowest standardised score.

    :param runs: For each question documents and scores.
    """
    fused: Run = {}
    for question in dict.fromkeys(question for run in runs for question in run):
        totals: dict[str, float] = {}
        lists = [_standardised(run.get(question, ())) for run in runs]
        for document in dict.fromkeys(document for scores in lists for document in scores):
            totals[document] = sum(scores.get(document, min(scores.values(), default=0.0)) for scores in lists)
        fused[question] = ranked(totals.items())
    return fused


def to_lists(run: Run, questions: Sequence[Question], passages: Sequence[Passage], depth: int) -> CandidateLists:
    """
    Turn a run into rows of a corpus.

    :param run: For each question documents and scores, best first.
    :param questions: Which questions; one that the run lacks gets an empty list.
    :param passages: The corpus; documents that it lacks are left out.
    :param depth: How many passages of each question are kept.
    """
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    rows, scores = [], []
    for question in questions:
        found = [(row_of[d], s) for d, s in run.get(question.id, ()) if d in row_of][:depth]
        values = np.array([score for _, score in found], dtype=np.float32)
        spread = float(values.std()) if len(values) > 1 else 0.0
        rows.append(np.array([row for row, _ in found], dtype=np.int64))
        scores.append((values - values.mean()) / (spread or 1.0) if len(values) else values)
    return CandidateLists(rows, scores)


def _standardised(results: Sequence[tuple[str, float]]) -> dict[str, float]:
    values = np.array([score for _, score in results], dtype=np.float64)
    spread = float(values.std()) if len(values) > 1 else 0.0
    centred = (values - values.mean()) / (spread or 1.0) if len(values) else values
    return {document: float(value) for (document, _), value in zip(results, centred, strict=True)}
