"""
Search results in TREC's format: `question Q0 document rank score tag`.

A run is `{question: [(document, score), ...]}`, best first. The order of a run is defined by its scores: equal scores
are ordered by document id, so that the figures of a run do not depend on who wrote it (`ranked`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gr_components.data.files import read_columns, shown, writing
from gr_components.errors import DataError

Run = dict[str, list[tuple[str, float]]]


def ranked(results: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """
    Return results by falling score, equal scores by document id.

    :param results: Documents and scores of one question.
    """
    return sorted(results, key=lambda result: (-result[1], result[0]))


def read_run(path: str | Path) -> Run:
    """
    Read a run.

    Besides TREC's six columns, four are read: `question document rank score`.

    :param path: The file, plain or compressed.
    :returns: For each question its documents and scores, by falling score.
    :raises DataError: On malformed lines, scores that are no numbers, and a document found twice for a question.
    """
    found: dict[str, dict[str, float]] = {}
    for number, columns in read_columns(path, None):
        where = f"{path}, line {number}"
        if len(columns) == 6:
            question, document, score = columns[0], columns[2], columns[4]
        elif len(columns) == 4:
            question, document, score = columns[0], columns[1], columns[3]
        else:
            msg = f"{where}: expected 'question Q0 document rank score tag', got {shown(' '.join(columns))}"
            raise DataError(msg)
        results = found.setdefault(question, {})
        if document in results:
            msg = f"{where}: document {document!r} was found before for question {question!r}."
            raise DataError(msg)
        results[document] = _score(score, where)
    return {question: ranked(results.items()) for question, results in found.items()}


def write_run(path: str | Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str = "gr") -> int:
    """
    Write a run in TREC's format, ranks from 1.

    :param path: The file.
    :param run: For each question its documents and scores.
    :param tag: Name of the system, without white space.
    :returns: How many lines were written.
    :raises DataError: If an id or the tag has white space, which the format cannot hold, or a score is no number.
    """
    _check_name(tag, "tag")
    count = 0
    with writing(path) as file:
        for question, results in run.items():
            _check_name(question, "question id")
            for rank, (document, score) in enumerate(ranked(results), start=1):
                _check_name(document, "document id")
                if not math.isfinite(score):
                    msg = f"Question {question!r}, document {document!r}: the score is {score}; a run needs numbers."
                    raise DataError(msg)
                file.write(f"{question} Q0 {document} {rank} {float(score)!r} {tag}\n")
                count += 1
    return count


def _score(value: str, where: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        msg = f"{where}: the score must be a number, got {value!r}."
        raise DataError(msg)
    return score


def _check_name(value: str, what: str) -> None:
    if not value or value.split() != [value]:
        msg = f"A TREC run cannot hold the {what} {value!r}: it is empty or has white space."
        raise DataError(msg)
