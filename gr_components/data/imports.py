"""
Data of other projects, written as the files that recipes read (`gr import`): corpus, questions and judgements.

    corpus.jsonl.gz            all passages, for every split
    queries.SPLIT.jsonl.gz     the questions of a split that have judgements
    qrels.SPLIT.tsv.gz         their judgements

Passages go from file to file one by one; only ids and the questions of the split are held in memory. A file gets its
name when all is well, and none that is there is replaced, except a corpus that passages are added to.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from gr_components.data.collections import (
    numbered_judgements,
    read_corpus,
    read_questions,
    write_corpus,
    write_qrels,
    write_questions,
)
from gr_components.data.foreign import (
    DPRExample,
    located_dpr,
    read_dpr_passages,
    read_msmarco_collection,
    read_msmarco_queries,
)
from gr_components.data.records import Passage, Question
from gr_components.errors import ConfigError, DataError
from gr_components.progress import Reporter, Silent, Task

T = TypeVar("T")

_STEP = 1000  # items for one event of progress


@dataclass(frozen=True)
class Imported:
    """
    What was written.

    :param folder: Where.
    :param split: Which split.
    :param passages: Passages of the corpus.
    :param added: How many of them are new.
    :param questions: Questions of the split.
    :param judgements: Its judgements.
    :param left_out: Questions without a judgement or a positive passage.
    :param ambiguous: Passages that occurred with a second text, which was dropped.
    """

    folder: Path
    split: str
    passages: int
    added: int
    questions: int
    judgements: int
    left_out: int
    ambiguous: int = 0

    def lines(self) -> list[str]:
        """Return it for a person."""
        left_out = f"; {self.left_out:,} without a relevant passage were left out" if self.left_out else ""
        ambiguous = f"; {self.ambiguous:,} occur with two texts, the first was kept" if self.ambiguous else ""
        return [
            f"corpus.jsonl.gz: {self.passages:,} passages, {self.added:,} of them new{ambiguous}",
            f"queries.{self.split}.jsonl.gz: {self.questions:,} questions{left_out}",
            f"qrels.{self.split}.tsv.gz: {self.judgements:,} judgements",
            f"Written to {self.folder}",
        ]


def import_dpr(
    files: Sequence[Path], out: Path, split: str, *, passages: Path | None = None, report: Reporter | None = None
) -> Imported:
    """
    Import training files of DPR (https://arxiv.org/abs/2004.04906).

    A question without an id gets `FILE-POSITION`. Examples without a positive passage are left out: DPR does not train
    on them either.

    :param files: JSON or JSONL; several become one split.
    :param out: Folder of the data.
    :param split: Name of the split.
    :param passages: The corpus, such as `psgs_w100.tsv.gz`; None adds the passages of the examples, negatives included,
        to the corpus that the folder has, if any.
    :param report: Where progress goes.
    :raises ConfigError: If a file that would be written is there already.
    :raises DataError: On malformed lines, duplicate ids, and a positive passage that is not among `passages`.
    """
    target, report = _Target(out, split), report or Silent()
    target.check("--passages" if passages else None)
    judged, questions, left_out = _Judged(), [], 0
    offered: dict[str, int | None] = {}
    for where, example in _examples(files, report):
        if passages is None:
            offered |= dict.fromkeys((passage.id for passage in _passages_of(example)), None)
        if not example.positives:
            left_out += 1
            continue
        if example.question.id in judged.qrels:
            msg = f"{where}: the question id {example.question.id!r} was there before. Ids must be unique."
            raise DataError(msg)
        questions.append(example.question)
        for identity in dict.fromkeys(passage.id for passage in example.positives):
            judged.add(where, example.question.id, identity, 1)
    _refuse_nothing(questions, files[0])
    if passages is not None:
        count = target.write_corpus(judged.found_in(read_dpr_passages(passages), passages), report)
        return target.write_split(questions, judged, count, count, left_out)
    known = {passage.id for passage in target.passages()}
    new = {identity: text for identity, text in offered.items() if identity not in known}
    if not new:
        return target.write_split(questions, judged, len(known), 0, left_out)
    added = _New(new)
    count = target.write_corpus(chain(target.passages(), added.taken(_examples(files, report))), report)
    return target.write_split(questions, judged, count, len(new), left_out, len(added.ambiguous))


def import_msmarco(
    queries: Path, qrels: Path, out: Path, split: str, *, collection: Path | None = None,
    report: Reporter | None = None,
) -> Imported:  # fmt: skip
    """
    Import files of MS MARCO (https://arxiv.org/abs/1611.09268); questions without a judgement are left out.

    :param queries: `id TAB text`.
    :param qrels: Judgements in TREC's four columns, or in three.
    :param out: Folder of the data.
    :param split: Name of the split.
    :param collection: `id TAB text`, or `id TAB url TAB title TAB text`; None for the corpus that the folder has.
    :param report: Where progress goes.
    :raises ConfigError: If a file that would be written is there already, or there is no corpus.
    :raises DataError: On malformed lines, duplicate ids, and judgements of what is not there.
    """
    passages = None if collection is None else read_msmarco_collection(collection)
    target = _Target(out, split)
    target.check("--collection" if collection else None)
    return _import(target, read_msmarco_queries(queries), queries, qrels, passages, collection, report or Silent())


def import_beir(folder: Path, out: Path, split: str, *, report: Reporter | None = None) -> Imported:
    """
    Import a data set of BEIR (https://arxiv.org/abs/2104.08663), whose questions of all splits are in one file.

    :param folder: With `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, plain or compressed (`.gz`).
    :param out: Folder of the data; a corpus that it has is used.
    :param split: Name of the split, as in `qrels`.
    :param report: Where progress goes.
    :raises ConfigError: If a file that would be written is there already.
    :raises DataError: On malformed lines, duplicate ids, and judgements of what is not there.
    """
    corpus, queries = _either(folder / "corpus.jsonl"), _either(folder / "queries.jsonl")
    qrels = _either(folder / "qrels" / f"{split}.tsv")
    target = _Target(out, split)
    target.check(None)
    passages = None if target.corpus.exists() else read_corpus(corpus)
    return _import(target, read_questions(queries), queries, qrels, passages, corpus, report or Silent())


class _Judged:
    """Judgements, and where the first one of each question and document stands."""

    def __init__(self) -> None:
        self.qrels: dict[str, dict[str, int]] = {}
        self._questions: dict[str, str] = {}
        self._documents: dict[str, str] = {}

    def add(self, where: str, question: str, document: str, grade: int) -> None:
        self.qrels.setdefault(question, {})[document] = grade
        self._questions.setdefault(question, where)
        self._documents.setdefault(document, where)

    def found_in(self, passages: Iterable[Passage], name: Path) -> Iterator[Passage]:
        """Pass the passages on; at their end every judged document must have been there."""
        for passage in passages:
            self._documents.pop(passage.id, None)
            yield passage
        _refuse("passage", self._documents, name)

    def asked_in(self, questions: Iterable[Question], name: Path) -> Iterator[Question]:
        """Pass the questions on; at their end every judged question must have been there."""
        for question in questions:
            self._questions.pop(question.id, None)
            yield question
        _refuse("question", self._questions, name)


class _Target:
    """The folder that is written."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.corpus = folder / "corpus.jsonl.gz"
        self._queries, self._qrels = folder / f"queries.{split}.jsonl.gz", folder / f"qrels.{split}.tsv.gz"

    def check(self, option: str | None) -> None:
        """Refuse to replace what is there; `option` names a new corpus."""
        if option and self.corpus.exists():
            msg = f"'{self.corpus}' is there already. Leave {option} out to use it, or remove it to make it again."
            raise ConfigError(msg)
        for path in (self._queries, self._qrels):
            if path.exists():
                msg = f"'{path}' is there already. Remove it, or use another --split or --out."
                raise ConfigError(msg)

    def passages(self) -> Iterator[Passage]:
        """Read the corpus that is there, if any."""
        return read_corpus(self.corpus) if self.corpus.exists() else iter(())

    def write_corpus(self, passages: Iterable[Passage], report: Reporter) -> int:
        return write_corpus(self.corpus, _reported(passages, report, f"write {self.corpus.name}"))

    def write_split(
        self, questions: Sequence[Question], judged: _Judged, passages: int, added: int, left_out: int,
        ambiguous: int = 0,
    ) -> Imported:  # fmt: skip
        count = write_qrels(self._qrels, judged.qrels)
        asked = write_questions(self._queries, questions)
        return Imported(self.folder, self.split, passages, added, asked, count, left_out, ambiguous)


class _New:
    """Passages of examples that the corpus does not have."""

    def __init__(self, texts: dict[str, int | None]) -> None:
        self._texts = texts  # hashes by id, None for what has not been seen yet
        self.ambiguous: set[str] = set()

    def taken(self, examples: Iterable[tuple[str, DPRExample]]) -> Iterator[Passage]:
        for _, example in examples:
            for passage in _passages_of(example):
                text, before = hash((passage.title, passage.text)), self._texts.get(passage.id, 0)
                if before is None:
                    self._texts[passage.id] = text
                    yield passage
                elif passage.id in self._texts and text != before:
                    self.ambiguous.add(passage.id)


def _import(
    target: _Target, questions: Iterable[Question], queries: Path, qrels: Path, passages: Iterable[Passage] | None,
    corpus: Path | None, report: Reporter,
) -> Imported:  # fmt: skip
    """Import files of which the corpus is None where the folder has it."""
    if passages is None and not target.corpus.exists():
        msg = f"'{target.folder}' has no corpus yet: name the collection, --collection FILE."
        raise ConfigError(msg)
    judged, total = _Judged(), 0
    for number, question, document, grade in _reported(numbered_judgements(qrels), report, f"read {qrels.name}"):
        judged.add(f"{qrels}, line {number}", question, document, grade)
    kept = []
    for each in _reported(judged.asked_in(questions, queries), report, f"read {queries.name}"):
        total += 1
        if each.id in judged.qrels:
            kept.append(each)
    _refuse_nothing(kept, queries)
    if passages is None:
        found = judged.found_in(target.passages(), target.corpus)
        count, added = sum(1 for _ in _reported(found, report, f"read {target.corpus.name}")), 0
    else:
        count = added = target.write_corpus(judged.found_in(passages, corpus or target.corpus), report)
    return target.write_split(kept, judged, count, added, total - len(kept))


def _examples(files: Sequence[Path], report: Reporter) -> Iterator[tuple[str, DPRExample]]:
    for path in files:
        prefix = f"{path.name.partition('.')[0]}-"
        yield from _reported(located_dpr(path, prefix), report, f"read {path.name}")


def _passages_of(example: DPRExample) -> Iterator[Passage]:
    return chain(example.positives, example.hard_negatives, example.negatives)


def _reported(items: Iterable[T], report: Reporter, name: str) -> Iterator[T]:
    with Task(report, name) as task:
        number = 0
        for number, item in enumerate(items, start=1):
            yield item
            if number % _STEP == 0:
                task.advance(_STEP)
        task.advance(number % _STEP)


def _refuse(what: str, missing: dict[str, str], name: Path) -> None:
    if missing:
        identity, where = next(iter(missing.items()))
        more = f" {len(missing) - 1:,} more are missing." if len(missing) > 1 else ""
        msg = f"{where}: there is no {what} {identity!r} in '{name}'.{more} Give the file they were made for."
        raise DataError(msg)


def _refuse_nothing(questions: Sequence[Question], name: Path) -> None:
    if not questions:
        msg = f"{name}: no question has a relevant passage, so there is nothing to train on."
        raise DataError(msg)


def _either(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path
