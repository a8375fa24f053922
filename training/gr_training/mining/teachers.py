"""
Teachers: models and runs that score mined candidates, so that a retriever can learn their order.

Several teachers stand side by side in the lines of a file (`teachers: {name: score}`). A teacher reads what the student
reads: the question, and the passage's title and text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gr_components.data import Candidate, check_inputs, read_run, searchable_text
from gr_components.data.candidates import candidate_line, path_hash
from gr_components.errors import ConfigError, DataError, NumericsError
from gr_components.indexes.lexical import Analysis, LexicalIndex
from gr_components.models.pair_scorer import load_pair_scorer
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import Reporter, Silent, Task
from gr_training.config import STRICT_KEYS, InputFile, ModelName, checked_dataclass, to_plain
from gr_training.distributed import main_first
from gr_training.fitting import Count
from gr_training.mining.candidate_lists import check_set, lists_of
from gr_training.mining.parts import Parts, is_wanted
from gr_training.sources import QuestionSet, input_names, local_file

_PART, _AT_ONCE = 64, 8
_ENCODERS = ("cross_encoder", "bi_encoder")
# Kinds that read settings which not all kinds read.
_KINDS = {
    "query_prefix": ("bi_encoder",), "passage_prefix": ("bi_encoder",), "similarity": ("bi_encoder",),
    "missing": ("run",), "language": ("bm25",),
    "batch_size": _ENCODERS, "max_length": _ENCODERS, "dtype": _ENCODERS,
}  # fmt: skip

# Question and passage texts of P pairs in, P scores out; larger is better.
Function = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TeacherConfig:
    """
    A teacher.

    :param name: The name of its scores.
    :param kind: `cross_encoder`, `bi_encoder`, `bm25` (over title and text; 0 without a word in common) or `run`
        (scores from a file in TREC's format).
    :param model: The model, for encoders.
    :param run: The file, for runs.
    :param query_prefix: Put in front of each question for a bi-encoder; None for the prompt that the model names for
        queries, if any. E5, for example, wants `query: ` and `passage: ` and does not say so in its files.
    :param passage_prefix: Likewise in front of each passage.
    :param similarity: Of a bi-encoder's vectors.
    :param missing: What a run that lacks a candidate means: an error, or the lowest score that the run has for the
        question.
    :param batch_size: Pairs or texts per batch.
    :param max_length: Largest number of tokens in place of the model's own.
    :param dtype: What an encoder computes in; only the order of its scores counts for most losses.
    :param language: Of BM25's stemmer and stop words.
    """

    name: str
    kind: Literal["cross_encoder", "bi_encoder", "bm25", "run"]
    model: ModelName | None = None
    run: InputFile | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    similarity: Literal["cosine", "dot"] = "cosine"
    missing: Literal["refuse", "lowest"] = "refuse"
    batch_size: Count = 32
    max_length: Count | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    language: str = "english"

    def __post_init__(self) -> None:
        wanted = {"run": "run", "bm25": None}.get(self.kind, "model")
        given = [name for name in ("model", "run") if getattr(self, name) is not None]
        idle = [f.name for f in fields(self) if self.kind not in _KINDS.get(f.name, (self.kind,))
                and getattr(self, f.name) != f.default]  # fmt: skip
        if idle:
            of = "; ".join(f"{name} is for teachers of kind {' or '.join(map(repr, _KINDS[name]))}" for name in idle)
            msg = f"{of}. '{self.name}' is of kind '{self.kind}': take it out."
            raise ValueError(msg)
        if given != ([wanted] if wanted else []):
            msg = f"a teacher of kind '{self.kind}' needs {wanted or 'neither model nor run'}, got {given or 'none'}."
            raise ValueError(msg)


class Row(NamedTuple):
    """A line of the candidates: its number, what it says, and rows of question and passage in their set."""

    line: int
    candidate: Candidate
    question: int
    passage: int


def teach(
    source: Path, target: Path, teachers: Sequence[TeacherConfig], questions: QuestionSet, *,
    functions: Mapping[str, Function] | None = None, device: str | None = None, report: Reporter | None = None,
    resume: bool = True,
) -> Path:  # fmt: skip
    """
    Add scores of teachers to mined candidates; a file that is there and still true is kept.

    :param source: What was mined, or taught before.
    :param target: The same lines with scores.
    :param teachers: Models and runs.
    :param questions: The set that was mined.
    :param functions: More teachers by name, as Python functions. A change inside a function goes unnoticed: give it
        another name then.
    :param device: Device name; None for the best one there is.
    :param report: Where progress goes.
    :param resume: Whether parts of an interrupted run are used, or thrown away.
    :returns: `target`.
    :raises ConfigError: If names are not different, or `target` is `source`.
    :raises ProvenanceError: If `source` or something that it was made from has changed, or is of another set.
    :raises DataError: If a teacher has no number for a line, which is named; or if the disk is full.
    """
    functions, report = functions or {}, report or Silent()
    sidecar = check_inputs(source)
    check_set(source, sidecar, questions)
    _check_names([*(teacher.name for teacher in teachers), *functions], sidecar["made_by"], source, target)
    hashes = {**sidecar["inputs"], str(source): sidecar["sha256"]}
    for teacher in teachers:
        hashes |= _inputs(teacher)
    made_by = {
        "stage": "teach",
        "set": questions.name,
        "teachers": [to_plain(teacher) for teacher in teachers],
        "functions": {name: f"{call.__module__}.{call.__qualname__}" for name, call in functions.items()},
        "names": [*_names(sidecar["made_by"]), *(teacher.name for teacher in teachers), *functions],
        "mined": sidecar["made_by"].get("mined", sidecar["made_by"]),
    }
    with main_first():
        if is_wanted(target, made_by, resume=resume):
            parts = Parts(target, made_by, hashes, resume=resume, report=report)
            scorers: dict[str, _Scorer] = {t.name: _scorer(t, questions, device) for t in teachers}
            scorers |= {name: _Function(call, questions) for name, call in functions.items()}
            _write(source, parts, scorers, questions, sidecar.get("summary", {}).get("kept"), report)
    return target


def _write(
    source: Path, parts: Parts, scorers: Mapping[str, "_Scorer"], questions: QuestionSet, total: int | None,
    report: Reporter,
) -> None:  # fmt: skip
    question_rows = {question.id: row for row, question in enumerate(questions.questions)}
    passage_rows = {passage.id: row for row, passage in enumerate(questions.passages)}
    lists, number = lists_of(source), 0
    done = sum(parts.is_done(n) for n in range(-(-total // _PART))) if total else 0
    left = None if total is None else max(0, total - done * _PART)
    with Task(report, f"teach {questions.name}", left) as task:
        while chunk := list(islice(lists, _PART)):
            if not parts.is_done(number):
                lines: list[dict[str, Any]] = []
                for some in _pieces(chunk):
                    rows = [
                        Row(line, c, *_places(source, line, c, question_rows, passage_rows))
                        for _, several in some
                        for line, c in several
                    ]
                    lines += map(candidate_line, _scored(source, rows, scorers))
                    task.advance(len(some))
                counts = {"kept": len(chunk), "lines": len(lines)}
                parts.write(number, lines, counts, f"questions '{chunk[0][0]}' to '{chunk[-1][0]}'")
            number += 1
    parts.join(number)
    for scorer in scorers.values():
        scorer.close()


def _pieces(chunk: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(chunk), _AT_ONCE):
        yield chunk[first : first + _AT_ONCE]


def _scored(source: Path, rows: Sequence[Row], scorers: Mapping[str, "_Scorer"]) -> list[Candidate]:
    teachers = [dict(row.candidate.teachers) for row in rows]
    for name, scorer in scorers.items():
        try:
            scores = scorer.score(rows)
        except NumericsError as error:
            c = (row := _first_without(scorer, rows)).candidate
            msg = (
                f"{source}, line {row.line}: teacher {name!r} has no number for question {c.query!r} and passage "
                f"{c.document!r}. {error}"
            )
            raise DataError(msg) from error
        if len(scores) != len(rows):
            msg = f"{source}: teacher {name!r} gave {len(scores)} scores for {len(rows)} lines."
            raise DataError(msg)
        for row, score, known in zip(rows, scores, teachers, strict=True):
            if score is None or not isfinite(score):
                c = row.candidate
                msg = (
                    f"{source}, line {row.line}: teacher {name!r} has no number for question {c.query!r} and passage "
                    f"{c.document!r}, but {'nothing' if score is None else score}. Complete or repair the teacher."
                )
                raise DataError(msg)
            known[name] = float(score)
    return [replace(row.candidate, teachers=known) for row, known in zip(rows, teachers, strict=True)]


def _first_without(scorer: "_Scorer", rows: Sequence[Row]) -> Row:
    """Return the first line for which a model gives no number, where it gives none for some of them."""
    while len(rows) > 1:
        half = rows[: len(rows) // 2]
        try:
            scorer.score(half)
        except NumericsError:
            rows = half
        else:
            rows = rows[len(half) :]
    return rows[0]


class _Scorer(ABC):
    """Scores lines; a score that is missing is None."""

    def __init__(self, questions: QuestionSet) -> None:
        self._questions = questions

    @abstractmethod
    def score(self, rows: Sequence[Row]) -> Sequence[float | None]:
        """Score lines."""

    def close(self) -> None:  # noqa: B027 - most have nothing to free
        """Free the model, if there is one."""

    def _question(self, row: int) -> str:
        return self._questions.questions[row].text

    def _passage(self, row: int) -> str:
        passage = self._questions.passages[row]
        return searchable_text(passage.title, passage.text)


class _CrossEncoder(_Scorer):
    def __init__(self, config: TeacherConfig, questions: QuestionSet, device: str | None) -> None:
        super().__init__(questions)
        self._model = load_pair_scorer(
            str(config.model), device=device, dtype=config.dtype, max_length=config.max_length
        )
        self._batch_size = config.batch_size

    def score(self, rows: Sequence[Row]) -> Sequence[float]:
        pairs = [(self._question(row.question), self._passage(row.passage)) for row in rows]
        return [float(score) for score in self._model.score(pairs, batch_size=self._batch_size)]

    def close(self) -> None:
        self._model.close()


class _BiEncoder(_Scorer):
    """Each text is encoded once."""

    def __init__(self, config: TeacherConfig, questions: QuestionSet, device: str | None) -> None:
        super().__init__(questions)
        self._model = load_text_encoder(
            str(config.model), device=device, dtype=config.dtype, max_length=config.max_length
        )
        self._config = config
        named: tuple[tuple[Literal["query", "document"], str | None], ...] = (
            ("query", config.query_prefix), ("document", config.passage_prefix),
        )  # fmt: skip
        self._prefix = {role: self._model.prompt(role) if prefix is None else prefix for role, prefix in named}
        self._passages: dict[int, npt.NDArray[np.float32]] = {}

    def score(self, rows: Sequence[Row]) -> Sequence[float]:
        asked = list(dict.fromkeys(row.question for row in rows))
        vectors = self._encoded([self._question(row) for row in asked], "query")
        vector_of = dict(zip(asked, vectors, strict=True))
        new = [row for row in dict.fromkeys(row.passage for row in rows) if row not in self._passages]
        encoded = self._encoded([self._passage(row) for row in new], "document")
        self._passages.update(zip(new, encoded, strict=True))
        return [float(vector_of[row.question] @ self._passages[row.passage]) for row in rows]

    def close(self) -> None:
        self._model.close()

    def _encoded(self, texts: list[str], role: Literal["query", "document"]) -> npt.NDArray[np.float32]:
        vectors_NE = self._model.encode(texts, prefix=self._prefix[role], batch_size=self._config.batch_size)
        if self._config.similarity == "dot":
            return vectors_NE
        norms_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
        return np.asarray(vectors_NE / np.maximum(norms_N1, 1e-12), dtype=np.float32)


class _BM25(_Scorer):
    """One search of everything for each question."""

    def __init__(self, config: TeacherConfig, questions: QuestionSet) -> None:
        super().__init__(questions)
        self._index = LexicalIndex.create(None, Analysis(language=config.language))
        self._index.apply([], ((row, self._passage(row)) for row in range(len(questions.passages))))

    def score(self, rows: Sequence[Row]) -> Sequence[float]:
        asked = list(dict.fromkeys(row.question for row in rows))
        found = self._index.search([self._question(row) for row in asked], top_k=len(self._questions.passages))
        scores = {row: dict(hits) for row, hits in zip(asked, found, strict=True)}
        return [float(scores[row.question].get(row.passage, 0.0)) for row in rows]


class _Run(_Scorer):
    def __init__(self, config: TeacherConfig, questions: QuestionSet) -> None:
        super().__init__(questions)
        self._scores = {query: dict(found) for query, found in read_run(local_file(str(config.run))).items()}
        self._lowest = config.missing == "lowest"

    def score(self, rows: Sequence[Row]) -> Sequence[float | None]:
        scores: list[float | None] = []
        for row in rows:
            found = self._scores.get(row.candidate.query, {})
            lowest = min(found.values(), default=None) if self._lowest else None
            scores.append(found.get(row.candidate.document, lowest))
        return scores


class _Function(_Scorer):
    def __init__(self, function: Function, questions: QuestionSet) -> None:
        super().__init__(questions)
        self._function = function

    def score(self, rows: Sequence[Row]) -> Sequence[float]:
        pairs = [(self._question(row.question), self._passage(row.passage)) for row in rows]
        return [float(score) for score in self._function(pairs)]


def _scorer(config: TeacherConfig, questions: QuestionSet, device: str | None) -> _Scorer:
    if config.kind == "cross_encoder":
        return _CrossEncoder(config, questions, device)
    if config.kind == "bi_encoder":
        return _BiEncoder(config, questions, device)
    return _BM25(config, questions) if config.kind == "bm25" else _Run(config, questions)


def _inputs(config: TeacherConfig) -> dict[str, str]:
    given = [name for name in (config.run,) if name], [name for name in (config.model,) if name]
    return {name: path_hash(name) for name in input_names(*given)}


def _names(made_by: Mapping[str, Any]) -> list[str]:
    return list(made_by.get("names", ()))


def _check_names(names: Sequence[str], made_by: Mapping[str, Any], source: Path, target: Path) -> None:
    twice = sorted({name for name in names if [*names, *_names(made_by)].count(name) > 1})
    if twice or not names:
        msg = f"teach: teachers need different names, and '{source}' has {_names(made_by)} already; got {list(names)}."
        raise ConfigError(msg)
    if source.resolve() == target.resolve():
        msg = f"teach: '{target}' would replace what it is made from. Give it another name."
        raise ConfigError(msg)


def _places(
    source: Path, line: int, candidate: Candidate, questions: Mapping[str, int], passages: Mapping[str, int]
) -> tuple[int, int]:
    try:
        return questions[candidate.query], passages[candidate.document]
    except KeyError as error:
        msg = f"{source}, line {line}: the set has no question or passage {error}. Mine again."
        raise DataError(msg) from error
