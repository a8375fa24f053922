"""
The answer-string protocol of DPR (https://arxiv.org/abs/2004.04906): a passage is relevant when it contains an answer.

Texts are compared as sequences of tokens, after Unicode decomposition (NFD) and in lower case. A token is a run of
letters, digits and marks, or a single other character that is neither a separator nor a control character.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from gr_components.data.records import Question
from gr_components.data.runs import ranked


def answer_tokens(text: str) -> list[str]:
    """
    Return the tokens of a text that are compared.

    :param text: An answer or a passage.
    """
    tokens: list[str] = []
    start = -1
    normal = unicodedata.normalize("NFD", text).lower()
    for position, character in enumerate(normal):
        group = unicodedata.category(character)[0]
        if group in "LNM":
            start = position if start < 0 else start
            continue
        if start >= 0:
            tokens.append(normal[start:position])
            start = -1
        if group not in "ZC":
            tokens.append(character)
    if start >= 0:
        tokens.append(normal[start:])
    return tokens


def has_answer(answers: Iterable[str], text: str) -> bool:
    """
    Tell whether a text contains an answer as a run of tokens.

    :param answers: Acceptable answers; empty ones are in no text.
    :param text: A passage.
    """
    return contains_answer(answer_tokens(text), answers)


def contains_answer(tokens: Sequence[str], answers: Iterable[str]) -> bool:
    """
    Tell whether a tokenised text contains an answer as a run of tokens.

    :param tokens: From `answer_tokens`.
    :param answers: Acceptable answers.
    """
    joined = _joined(tokens)
    return any(bool(wanted) and _joined(wanted) in joined for wanted in map(answer_tokens, answers))


def answer_string_qrels(
    run: Mapping[str, Sequence[tuple[str, float]]],
    questions: Iterable[Question],
    texts: Mapping[str, str],
    depth: int = 100,
) -> dict[str, dict[str, int]]:
    """
    Judge the results of a run by whether they contain an answer.

    Recall makes no sense on such judgements, since only what was found is judged: use `Success@k`, the "accuracy" or
    "hits" at k of the papers.

    :param run: For each question its documents and scores.
    :param questions: The questions with their answers.
    :param texts: Document texts by id.
    :param depth: How many results of each question to judge.
    :returns: For each question its results with grade 1 or 0.
    """
    qrels: dict[str, dict[str, int]] = {}
    for question in questions:
        results = ranked(run.get(question.id, ()))[:depth]
        qrels[question.id] = {doc: int(has_answer(question.answers, texts[doc])) for doc, _ in results}
    return qrels


def _joined(tokens: Sequence[str]) -> str:
    """No token holds a space, so a run of tokens is a run of characters here."""
    return f" {' '.join(tokens)} "
