"""
Corpora, questions and relevance judgements, in a layout close to BEIR's (https://arxiv.org/abs/2104.08663).

- corpus: JSONL `{"id", "title", "text"[, "queries": [...]], other keys = metadata}`
- questions: JSONL `{"id", "text"[, "answers": [...], "answers_all": [...]], other keys = metadata}`
- judgements: `question TAB document TAB grade`; TREC's four columns are read too, and a header line is skipped
- splits: one id a line

Every reader names file, line and value of what it cannot accept. `_id` is read as `id`, as BEIR writes it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gr_components.data.files import read_columns, read_lines, read_objects, shown, write_objects, writing
from gr_components.data.records import Passage, Question
from gr_components.errors import DataError


def read_corpus(path: str | Path) -> Iterator[Passage]:
    """
    Yield the passages of a corpus file.

    :param path: JSONL, plain or compressed.
    :raises DataError: On malformed lines, duplicate ids, and passages without a text.
    """
    seen: dict[str, int] = {}
    for number, data in read_objects(path):
        where = f"{path}, line {number}"
        identity = _take_id(data, where, seen, number)
        title = _take_text(data, "title", where, default="")
        text = _take_text(data, "text", where)
        queries = _take_texts(data, "queries", where)
        yield Passage(identity, title, text, queries, data)


def write_corpus(path: str | Path, passages: Iterable[Passage]) -> int:
    """
    Write passages as `read_corpus` reads them.

    :param path: The file.
    :param passages: What to write.
    :returns: How many were written.
    """
    return write_objects(path, (_corpus_line(passage) for passage in passages))


def read_questions(path: str | Path) -> Iterator[Question]:
    """
    Yield the questions of a file.

    :param path: JSONL, plain or compressed.
    :raises DataError: On malformed lines, duplicate ids, and questions without a text.
    """
    seen: dict[str, int] = {}
    for number, data in read_objects(path):
        where = f"{path}, line {number}"
        identity = _take_id(data, where, seen, number)
        text = _take_text(data, "text", where)
        answers = _take_texts(data, "answers", where)
        answers_all = _take_texts(data, "answers_all", where)
        yield Question(identity, text, answers, answers_all, data)


def write_questions(path: str | Path, questions: Iterable[Question]) -> int:
    """
    Write questions as `read_questions` reads them.

    :param path: The file.
    :param questions: What to write.
    :returns: How many were written.
    """
    return write_objects(path, (_question_line(question) for question in questions))


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """
    Read relevance judgements.

    :param path: `question TAB document TAB grade`, or TREC's `question 0 document grade`.
    :returns: For each question its judged documents and their grades; 0 = judged not relevant.
    :raises DataError: On malformed lines, and on a pair that is judged twice.
    """
    qrels: dict[str, dict[str, int]] = {}
    for _, question, document, grade in numbered_judgements(path):
        qrels.setdefault(question, {})[document] = grade
    return qrels


def numbered_judgements(path: str | Path) -> Iterator[tuple[int, str, str, int]]:
    """
    Yield relevance judgements with their line numbers: line, question, document, grade.

    :param path: As in `read_qrels`.
    :raises DataError: On malformed lines, and on a pair that is judged twice.
    """
    seen: dict[str, set[str]] = {}
    for number, columns in read_columns(path, None):
        where = f"{path}, line {number}"
        if len(columns) not in (3, 4):
            msg = f"{where}: expected 'question TAB document TAB grade', got {shown(' '.join(columns))}"
            raise DataError(msg)
        if number == 1 and columns[-1].lower() in ("score", "grade", "relevance", "label"):
            continue
        question, document, grade = columns[0], columns[-2], _grade(columns[-1], where)
        judged = seen.setdefault(question, set())
        if document in judged:
            msg = f"{where}: document {document!r} was judged before for question {question!r}."
            raise DataError(msg)
        judged.add(document)
        yield number, question, document, grade


def write_qrels(path: str | Path, qrels: Mapping[str, Mapping[str, int]]) -> int:
    """
    Write relevance judgements as `question TAB document TAB grade`.

    :param path: The file.
    :param qrels: For each question its judged documents and their grades.
    :returns: How many judgements were written.
    """
    count = 0
    with writing(path) as file:
        for question, judged in qrels.items():
            for document, grade in judged.items():
                file.write(f"{question}\t{document}\t{grade}\n")
                count += 1
    return count


def read_ids(path: str | Path) -> list[str]:
    """
    Read a list of ids, such as a split.

    :param path: One id a line.
    :raises DataError: If an id stands there twice.
    """
    seen: dict[str, int] = {}
    for number, line in read_lines(path):
        identity = line.strip()
        if identity in seen:
            msg = f"{path}, line {number}: the id {identity!r} stands in line {seen[identity]} already."
            raise DataError(msg)
        seen[identity] = number
    return list(seen)


def write_ids(path: str | Path, ids: Iterable[str]) -> int:
    """
    Write a list of ids, one a line.

    :param path: The file.
    :param ids: What to write.
    :returns: How many were written.
    """
    count = 0
    with writing(path) as file:
        for identity in ids:
            file.write(f"{identity}\n")
            count += 1
    return count


def _take_id(data: dict[str, Any], where: str, seen: dict[str, int], number: int) -> str:
    value = data.pop("id", None)
    value = data.pop("_id", None) if value is None else value
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        msg = f"{where}: 'id' must be a text that is not empty, got {shown(value)}."
        raise DataError(msg)
    if value in seen:
        msg = f"{where}: the id {value!r} stands in line {seen[value]} already. Ids must be unique."
        raise DataError(msg)
    seen[value] = number
    return value


def _take_text(data: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = data.pop(key, None)
    value = default if value is None else value
    if not isinstance(value, str):
        msg = f"{where}: '{key}' must be a text, got {shown(value)}."
        raise DataError(msg)
    return value


def _take_texts(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = data.pop(key, None)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        msg = f"{where}: '{key}' must be a list of texts, got {shown(value)}."
        raise DataError(msg)
    return tuple(value)


def _grade(value: str, where: str) -> int:
    try:
        return int(value)
    except ValueError:
        msg = f"{where}: the grade must be a whole number, got {value!r}."
        raise DataError(msg) from None


def _corpus_line(passage: Passage) -> dict[str, Any]:
    queries = {"queries": list(passage.queries)} if passage.queries else {}
    return {"id": passage.id, "title": passage.title, "text": passage.text, **queries, **passage.meta}


def _question_line(question: Question) -> dict[str, Any]:
    line: dict[str, Any] = {"id": question.id, "text": question.text}
    if question.answers:
        line["answers"] = list(question.answers)
    if question.answers_all:
        line["answers_all"] = list(question.answers_all)
    return {**line, **question.meta}
