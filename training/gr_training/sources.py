"""
What recipes read: passages, questions and judgements from files, with licences and hashes, and nothing held out.

A path may be `package:NAME/FILE`, a file inside an installed Python package, such as the demo's corpus.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from gr_components.data import (
    Passage,
    Question,
    read_corpus,
    read_ids,
    read_qrels,
    read_questions,
    searchable_text,
    select,
)
from gr_components.data.candidates import file_hash
from gr_components.errors import ConfigError, DataError
from gr_components.models.resolve import resolve_model
from gr_components.packages import SCHEME, located
from gr_components.progress import Reporter, Silent
from gr_training.config import STRICT_KEYS, InputFile, checked_dataclass
from gr_training.held_out import without_leaking_queries, without_leaks


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class SourceConfig:
    """
    One training set.

    :param name: Shown in logs and in the model card.
    :param corpus: JSONL of passages.
    :param questions: JSONL of questions.
    :param qrels: Judgements; a grade of 1 and more makes a passage a positive.
    :param ids: Files with the ids of the questions to use; all questions if empty.
    :param licence: SPDX name or what the source states; the model's licence follows from it.
    :param weight: How often each question is seen per pass; 0.5 takes every second one, by seed.
    :param optional: Whether training goes on without it when its files are missing; it then says so.
    :param url: Where the set can be had, for that message.
    """

    name: str
    corpus: InputFile
    questions: InputFile
    qrels: InputFile
    ids: tuple[InputFile, ...] = ()
    licence: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    optional: bool = False
    url: str = ""


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class HeldOutConfig:
    """
    Questions that must not be trained on.

    Training questions and passages' own pseudo-queries that hold one, as the whole text or as a run of words, are
    dropped, and so are passages of plain text that hold one.

    :param questions: JSONL of questions.
    :param ids: Files with their ids; all questions if empty.
    """

    questions: InputFile
    ids: tuple[InputFile, ...] = ()


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class ValidationConfig:
    """
    Questions that select the model.

    :param corpus: JSONL of passages that are searched.
    :param questions: JSONL of questions.
    :param qrels: Judgements.
    :param ids: Files with the ids of the questions to use; all questions if empty.
    :param sample: How many questions, drawn by `seed`; 0 takes all.
    :param seed: Of the draw.
    """

    corpus: InputFile
    questions: InputFile
    qrels: InputFile
    ids: tuple[InputFile, ...] = ()
    sample: Annotated[int, Field(ge=0)] = 0
    seed: int = 13


@dataclass(frozen=True)
class QuestionSet:
    """
    A set in memory.

    :param name: Its name.
    :param passages: All passages of its corpus.
    :param questions: The questions in use.
    :param positives: For each question the rows of its relevant passages.
    :param qrels: Judgements of the questions in use.
    :param licence: As stated.
    :param weight: How often each question is seen per pass.
    :param files: SHA-256 of what was read, by path as the recipe writes it.
    """

    name: str
    passages: list[Passage]
    questions: list[Question]
    positives: list[list[int]]
    qrels: dict[str, dict[str, int]]
    licence: str = ""
    weight: float = 1.0
    files: dict[str, str] | None = None


def local_file(path: str) -> Path:
    """
    Return the file that a recipe's path names.

    :param path: A path, relative to the working directory, or `package:NAME/FILE`.
    :raises DataError: If there is no such file.
    """
    found = located(path)
    if not found.is_file():
        place = "" if path.startswith(SCHEME) else f" (looked for '{found.absolute()}')"
        msg = f"There is no file '{path}'{place}."
        raise DataError(msg)
    return found


def input_names(files: Iterable[str] = (), models: Iterable[str | Path] = ()) -> list[str]:
    """
    Return the names under which `check_inputs` finds again what a file was made from.

    Those in packages stay as they are, since their folders move with the environment.

    :param files: Files that a recipe names.
    :param models: Models that it names.
    :raises DataError: If a file is missing.
    :raises ModelNotFoundError: If a model is missing.
    """
    found = {str(name): local_file(name) for name in files}
    found |= {str(name): resolve_model(str(name)) for name in models}
    return [name if name.startswith(SCHEME) else str(path) for name, path in found.items()]


def load_sources(
    sources: Sequence[SourceConfig], held_out: Sequence[HeldOutConfig] = (), report: Reporter | None = None
) -> list[QuestionSet]:
    """
    Read training sets.

    Questions and pseudo-queries that hold a held-out question are dropped, and questions without a relevant passage.

    :param sources: Which sets.
    :param held_out: Questions that must not be trained on.
    :param report: Told what was read and what was dropped.
    :raises DataError: If a file is missing or nothing is left to train on.
    """
    report = report or Silent()
    forbidden = held_out_texts(held_out)
    missing = [source for source in sources if source.optional and is_absent(source)]
    if missing:
        report.event("WARNING: data skipped", **_skipped(missing))
    sets = [_load(source, forbidden, report) for source in sources if source not in missing]
    if not any(each.questions for each in sets):
        msg = f"No training question is left in {[source.name for source in sources]}: check files, ids and judgements."
        raise DataError(msg)
    return sets


def held_out_texts(held_out: Sequence[HeldOutConfig]) -> list[str]:
    """
    Return the texts of held-out questions.

    :param held_out: Which ones.
    :raises DataError: If a file is missing.
    """
    return [question.text for config in held_out for question in _questions(config.questions, config.ids)]


def files_of(
    data: Sequence[SourceConfig], held_out: Sequence[HeldOutConfig] = (), validation: ValidationConfig | None = None
) -> tuple[str, ...]:
    """
    Return all files that a recipe names.

    :param data: Training sets.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the model.
    """
    sets = (*data, *(() if validation is None else (validation,)))
    names = [name for each in sets for name in (each.corpus, each.questions, each.qrels, *each.ids)]
    return (*names, *(name for each in held_out for name in (each.questions, *each.ids)))


def load_validation(
    config: ValidationConfig, held_out: Sequence[HeldOutConfig] = (), report: Reporter | None = None
) -> QuestionSet:
    """
    Read the validation set.

    Pseudo-queries of its passages that hold a validation question or a held-out one are dropped, since validation may
    search them.

    :param config: Which questions.
    :param held_out: Questions that must not be trained on.
    :param report: Told how many pseudo-queries were dropped.
    :raises DataError: If a file is missing, or no question has a relevant passage.
    """
    everything = _questions(config.questions, config.ids)
    questions = everything
    if 0 < config.sample < len(questions):
        rows = np.random.default_rng(config.seed).choice(len(questions), config.sample, replace=False)
        questions = [questions[row] for row in sorted(rows)]
    forbidden = [*(question.text for question in everything), *held_out_texts(held_out)]
    passages, dropped = without_leaking_queries(forbidden, read_corpus(local_file(config.corpus)))
    loaded = _assemble("validation", passages, questions, config.qrels)
    if not loaded.questions:
        msg = f"No validation question of '{config.questions}' has a relevant passage in '{config.qrels}'."
        raise DataError(msg)
    if report is not None and dropped:
        report.event("held out", set="validation", pseudo_queries_dropped=dropped)
    files = _hashes((config.corpus, config.questions, config.qrels, *config.ids))
    return QuestionSet(loaded.name, loaded.passages, loaded.questions, loaded.positives, loaded.qrels, files=files)


def is_absent(source: SourceConfig) -> bool:
    """
    Say whether a file of a training set is missing.

    :param source: Which set.
    """
    try:
        for path in (source.corpus, source.questions, source.qrels, *source.ids):
            local_file(path)
    except DataError:
        return True
    return False


def weighted_rows(sets: Sequence[QuestionSet], seed: int) -> list[tuple[int, int]]:
    """
    Return (set, question) of every training example of one pass, questions repeated as the weights say.

    :param sets: Training sets.
    :param seed: Decides which questions a fractional weight takes.
    """
    rows: list[tuple[int, int]] = []
    for number, each in enumerate(sets):
        whole, part = divmod(each.weight, 1.0)
        chosen = np.random.default_rng((seed, number)).random(len(each.questions)) < part
        for row, extra in enumerate(chosen):
            rows += [(number, row)] * (int(whole) + int(extra))
    return rows


def texts_of(sets: Sequence[QuestionSet], names: Sequence[str] = ()) -> list[str]:
    """
    Return the searchable texts of passages and the texts of questions.

    :param sets: Training sets.
    :param names: Of which sets; of all if empty.
    :raises ConfigError: If there is no set of a name.
    """
    known = [each.name for each in sets]
    unknown = [name for name in names if name not in known]
    if unknown:
        msg = f"vocabulary: there are no training sets {unknown}; the sets are {known}."
        raise ConfigError(msg)
    chosen = [each for each in sets if not names or each.name in names]
    texts = [searchable_text(passage.title, passage.text) for each in chosen for passage in each.passages]
    return texts + [question.text for each in chosen for question in each.questions]


def _skipped(missing: Sequence[SourceConfig]) -> dict[str, str]:
    """Fields of the warning: which sets, what that means, and where they can be had."""
    places = dict.fromkeys(str(Path(source.corpus).parent) for source in missing)
    urls = dict.fromkeys(source.url for source in missing if source.url)
    return {
        "sets": ", ".join(source.name for source in missing),
        "effect": "the model learns from less than its recipe says",
        "looked_in": ", ".join(places),
        "get_them_from": ", ".join(urls) or "the recipe does not say",
    }


def _load(source: SourceConfig, forbidden: Sequence[str], report: Reporter) -> QuestionSet:
    asked = _questions(source.questions, source.ids)
    questions = without_leaks(forbidden, asked, lambda question: question.text)
    passages, dropped = without_leaking_queries(forbidden, read_corpus(local_file(source.corpus)))
    loaded = _assemble(source.name, passages, questions, source.qrels)
    report.event("data", set=source.name, passages=len(passages), questions=len(loaded.questions))
    if forbidden:
        report.event(
            "held out",
            set=source.name,
            questions_dropped=len(asked) - len(questions),
            pseudo_queries_dropped=dropped,
        )
    files = _hashes((source.corpus, source.questions, source.qrels, *source.ids))
    return QuestionSet(loaded.name, loaded.passages, loaded.questions, loaded.positives, loaded.qrels,
                       source.licence, source.weight, files)  # fmt: skip


def _assemble(name: str, passages: list[Passage], questions: Sequence[Question], qrels: str) -> QuestionSet:
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    judged = read_qrels(local_file(qrels))
    kept: list[Question] = []
    positives: list[list[int]] = []
    for question in questions:
        rows = [row_of[d] for d, grade in judged.get(question.id, {}).items() if grade > 0 and d in row_of]
        if rows:
            kept.append(question)
            positives.append(rows)
    return QuestionSet(name, passages, kept, positives, {question.id: judged[question.id] for question in kept})


def _questions(path: str, ids: Sequence[str]) -> list[Question]:
    questions = list(read_questions(local_file(path)))
    if not ids:
        return questions
    wanted = [identity for name in ids for identity in read_ids(local_file(name))]
    return select(questions, wanted)


def _hashes(paths: Iterable[str]) -> dict[str, str]:
    return {path: file_hash(local_file(path)) for path in paths}
