"""
Formats of other projects, read into our records.

- DPR (https://arxiv.org/abs/2004.04906): JSON or JSONL with positive and hard negative passages per question, and the
  passages of Wikipedia in tab-separated columns
- MS MARCO: tab-separated collection and queries
- KILT (https://arxiv.org/abs/2009.02252): JSONL with answers and provenance
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gr_components.data.files import read_blocks, read_columns, read_lines, read_objects, shown
from gr_components.data.records import Passage, Question
from gr_components.errors import DataError

_HEADER = ["id", "text", "title"]
_CUT = 16  # a JSON error this close to the end of what was read may be one only because the rest is not there yet


@dataclass(frozen=True)
class DPRExample:
    """
    One training example of DPR.

    :param question: The question; its id is the line or list position when the file has none.
    :param positives: Passages that answer it, the best first.
    :param hard_negatives: Passages that look as if they did.
    :param negatives: Other passages.
    """

    question: Question
    positives: tuple[Passage, ...]
    hard_negatives: tuple[Passage, ...] = ()
    negatives: tuple[Passage, ...] = ()


def read_dpr(path: str | Path) -> Iterator[DPRExample]:
    """
    Yield the examples of a DPR training file.

    :param path: A JSON list (`.json`, `.json.gz`) or one object a line.
    :raises DataError: On malformed entries, and on examples without a positive passage.
    """
    for where, example in located_dpr(path):
        if not example.positives:
            msg = f"{where}: the question {example.question.text!r} has no positive passage."
            raise DataError(msg)
        yield example


def located_dpr(path: str | Path, prefix: str = "") -> Iterator[tuple[str, DPRExample]]:
    """
    Yield the examples of a DPR training file with their places, also those without a positive passage.

    The file is read piece by piece: that of Natural Questions has gigabytes.

    :param path: A JSON list (`.json`, `.json.gz`) or one object a line.
    :param prefix: Put in front of the position that is the id of a question which has none.
    :raises DataError: On malformed entries.
    """
    for where, position, data in _dpr_objects(Path(path)):
        text, answers = data.get("question"), data.get("answers", [])
        if not isinstance(text, str):
            msg = f"{where}: 'question' must be a text, got {shown(text)}."
            raise DataError(msg)
        if not isinstance(answers, list):
            msg = f"{where}: 'answers' must be a list, got {shown(answers)}."
            raise DataError(msg)
        identity = str(data.get("id", data.get("question_id", f"{prefix}{position}")))
        yield (
            where,
            DPRExample(
                Question(identity, text, tuple(str(answer) for answer in answers)),
                _contexts(data, "positive_ctxs", where),
                _contexts(data, "hard_negative_ctxs", where),
                _contexts(data, "negative_ctxs", where),
            ),
        )


def read_dpr_passages(path: str | Path) -> Iterator[Passage]:
    """
    Yield passages of `id TAB text TAB title`, as in `psgs_w100.tsv`; a header line is skipped.

    Columns may stand in double quotes, inside which a double quote is written twice.

    :param path: The file, plain or compressed.
    :raises DataError: On lines with another number of columns, and on duplicate ids.
    """
    seen: set[str] = set()
    for number, line in read_lines(path):
        try:
            columns = next(csv.reader([line], delimiter="\t"))
        except csv.Error as error:
            msg = f"{path}, line {number}: not a line of tab-separated columns ({error}): {shown(line)}"
            raise DataError(msg) from error
        if number == 1 and columns == _HEADER:
            continue
        _check_row(path, number, columns, (3,), seen)
        yield Passage(columns[0], columns[2], columns[1])


def read_msmarco_collection(path: str | Path) -> Iterator[Passage]:
    """
    Yield passages of `id TAB text` or `id TAB url TAB title TAB text`.

    :param path: The file, plain or compressed.
    :raises DataError: On lines with another number of columns, and on duplicate ids.
    """
    seen: set[str] = set()
    for number, columns in read_columns(path):
        _check_row(path, number, columns, (2, 4), seen)
        if len(columns) == 2:
            yield Passage(columns[0], "", columns[1])
        else:
            yield Passage(columns[0], columns[2], columns[3], (), {"url": columns[1]})


def read_msmarco_queries(path: str | Path) -> Iterator[Question]:
    """
    Yield questions of `id TAB text`.

    :param path: The file, plain or compressed.
    :raises DataError: On lines with another number of columns, and on duplicate ids.
    """
    seen: set[str] = set()
    for number, columns in read_columns(path):
        _check_row(path, number, columns, (2,), seen)
        yield Question(columns[0], columns[1])


def read_kilt(path: str | Path) -> Iterator[tuple[Question, tuple[str, ...]]]:
    """
    Yield KILT questions with the ids of the Wikipedia pages that prove their answers.

    :param path: JSONL of `{"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id"}]}]}`.
    :raises DataError: On malformed lines.
    """
    for number, data in read_objects(path):
        where = f"{path}, line {number}"
        text, outputs = data.get("input"), data.get("output", [])
        if not isinstance(text, str) or "id" not in data:
            msg = f"{where}: a KILT line needs 'id' and a text 'input', got {shown(data)}."
            raise DataError(msg)
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            msg = f"{where}: 'output' must be a list of objects, got {shown(outputs)}."
            raise DataError(msg)
        answers = dict.fromkeys(str(output["answer"]) for output in outputs if output.get("answer"))
        provenance = [source for output in outputs for source in output.get("provenance", ())]
        pages = dict.fromkeys(str(source["wikipedia_id"]) for source in provenance if "wikipedia_id" in source)
        yield Question(str(data["id"]), text, tuple(answers)), tuple(pages)


def _dpr_objects(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    first = next((block.lstrip() for block in read_blocks(path) if block.strip()), "")
    if not first.startswith("["):
        for number, data in read_objects(path):
            yield f"{path}, line {number}", number, data
        return
    for position, data in enumerate(_ListEntries(path)):
        where = f"{path}, entry {position}"
        if not isinstance(data, dict):
            msg = f"{where}: expected an object, got {shown(data)}."
            raise DataError(msg)
        yield where, position, data


class _ListEntries:
    """The entries of a JSON list, each decoded as soon as the file has been read as far as that."""

    def __init__(self, path: Path) -> None:
        self._path, self._blocks, self._decoder = path, read_blocks(path), json.JSONDecoder()
        self._text, self._at = "", 0  # what has been read and is kept, and the place in it
        self._line, self._column = 1, 0  # of the first character that is kept

    def __iter__(self) -> Iterator[Any]:
        self._next()
        self._at += 1  # the bracket
        if self._next() != "]":
            yield self._entry()
            while self._next() == ",":
                self._at += 1
                yield self._entry()
        if self._next() != "]":
            self._fail("Expecting ',' delimiter", self._at)
        self._at += 1
        if self._next():
            self._fail("Extra data", self._at)

    def _entry(self) -> Any:
        while True:
            self._next()
            try:
                entry, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text.rstrip()) - _CUT
                if not (cut and self._read()):
                    self._fail(error.msg, error.pos)
            else:
                return entry

    def _next(self) -> str:
        """Go to the next character that is no white space, and return it; nothing at the end of the file."""
        while True:
            while self._text[self._at : self._at + 1].isspace():
                self._at += 1
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def _read(self) -> bool:
        block = next(self._blocks, "")
        if not block:
            return False
        done, rest = self._text[: self._at], self._text[self._at :]
        lines = done.count("\n")
        self._line += lines
        self._column = len(done) - done.rfind("\n") - 1 + (0 if lines else self._column)
        self._text, self._at = rest + block, 0
        return True

    def _fail(self, what: str, at: int) -> NoReturn:
        before = self._text[:at]
        lines = before.count("\n")
        line, column = self._line + lines, len(before) - before.rfind("\n") + (0 if lines else self._column)
        msg = f"{self._path}: not valid JSON ({what} at line {line}, column {column})."
        raise DataError(msg)


def _contexts(data: dict[str, Any], key: str, where: str) -> tuple[Passage, ...]:
    passages = []
    for context in data.get(key) or ():
        identity = context.get("passage_id", context.get("psg_id", context.get("id")))
        text = context.get("text")
        if identity is None or not isinstance(text, str):
            msg = f"{where}: every passage in '{key}' needs an id and a text, got {shown(context)}."
            raise DataError(msg)
        passages.append(Passage(str(identity), str(context.get("title") or ""), text))
    return tuple(passages)


def _check_row(path: str | Path, number: int, columns: list[str], widths: tuple[int, ...], seen: set[str]) -> None:
    if len(columns) not in widths:
        wanted = " or ".join(str(width) for width in widths)
        msg = f"{path}, line {number}: expected {wanted} columns between tabs, got {len(columns)}: {shown(columns)}"
        raise DataError(msg)
    if columns[0] in seen:
        msg = f"{path}, line {number}: the id {columns[0]!r} stands in the file already."
        raise DataError(msg)
    seen.add(columns[0])
