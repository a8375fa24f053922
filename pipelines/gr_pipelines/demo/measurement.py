"""One pass over all systems of the demo: retrieval, controls, answers, unseen passages, milliseconds, paired tests."""

import sys
from collections.abc import Mapping
from functools import partial

from haystack import Document

from gr_components.evaluation.comparison import compare
from gr_components.evaluation.retrieval import Evaluation, evaluate_run
from gr_components.progress import Reporter, Silent, Task
from gr_pipelines.demo import data, engines
from gr_pipelines.demo.engines import Engines
from gr_pipelines.demo.reading import Condition, conditions, read
from gr_pipelines.demo.results import RETRIEVAL_MEASURES, Results, Row, row_key
from gr_pipelines.demo.systems import Search, remembered, run_of
from gr_pipelines.demo.timing import TIMED_QUESTIONS, milliseconds, one_core

_SLICE = 32  # questions between two reports of progress: some seconds
_UNSEEN_SYSTEMS = tuple(name for name in engines.SYSTEMS if name != engines.RRF)


class Measurement:
    """
    Runs every system once; `run` returns the rows in the order of the table.

    :param opened: Models and stores.
    :param sample: How many test questions, and how many on unseen passages, are asked; None for all.
    :param report: Where progress goes.
    """

    def __init__(self, opened: Engines, *, sample: int | None, report: Reporter = Silent()) -> None:  # noqa: B008
        self._engines, self._report = opened, report
        size = sys.maxsize if sample is None else sample
        self._questions = {split: data.sample(split, size) for split in ("test", "unseen")}
        self._timed = self._questions["test"][:TIMED_QUESTIONS]
        self._shared = engines.systems(opened, remembered)
        self._controls = engines.controls(opened)
        self._ms: dict[str, float] = {}
        self._results = Results()

    def run(self) -> Results:
        """Measure all systems and compare them."""
        test = f"{len(self._questions['test'])} test questions"
        unseen = f"{len(self._questions['unseen'])} questions on unseen passages"
        adds, answers = f"{test}: controls of the generative retriever", f"{test}: answers of the reader"
        self._time(self._controls)
        self._time(engines.systems(self._engines, lambda search: search))
        self._search(test, "test", self._shared)
        self._search(adds, "test", self._controls)
        self._read(answers, "test")
        self._search(unseen, "unseen", {name: self._shared[name] for name in _UNSEEN_SYSTEMS})
        self._read(f"{unseen}: answers of the reader", "unseen")
        self._compare(test, unseen, adds, answers)
        return self._results

    def _time(self, searches: Mapping[str, Search]) -> None:
        texts = [question.text for question in self._timed]
        asked = len(searches) * (len(texts) + 1)  # the first question of each is asked twice
        with one_core(), Task(self._report, "milliseconds on one core", asked) as task:
            for name, search in searches.items():
                self._ms[name] = milliseconds(partial(_ask, search, task), texts)

    def _search(self, group: str, split: str, searches: Mapping[str, Search]) -> None:
        questions = self._questions[split]
        ids, texts = [question.id for question in questions], [question.text for question in questions]
        judged = data.qrels(split)
        qrels = {identity: judged[identity] for identity in ids}
        with Task(self._report, group, len(searches) * len(texts)) as task:
            for name, search in searches.items():
                found: list[list[Document]] = []
                for first in range(0, len(texts), _SLICE):
                    found += search(texts[first : first + _SLICE])
                    task.advance(len(found) - first)
                evaluation = evaluate_run(run_of(found, ids), qrels, RETRIEVAL_MEASURES)
                self._add(group, name, evaluation, self._ms.get(name) if split == "test" else None)

    def _read(self, group: str, split: str) -> None:
        questions = self._questions[split]
        passages = {passage.id: passage for passage in data.corpus()}
        gold = {question: passages[next(iter(judged))] for question, judged in data.qrels(split).items()}
        found = self._shared[engines.RANKED]([question.text for question in questions])
        by_question = dict(zip([question.id for question in questions], found, strict=True))
        for condition in conditions(gold, by_question, self._engines.passages):
            if condition.control and split != "test":
                continue
            weight = self._weight(condition)
            evaluation, _ = read(self._engines.reader, questions, condition.choose, weight, self._report)
            self._add(group, condition.name, evaluation, self._reading_ms(condition) if split == "test" else None)

    def _reading_ms(self, condition: Condition) -> float:
        by_text = {question.text: question for question in self._timed}
        reader, weight = self._engines.reader, self._weight(condition)
        with one_core():
            ms = milliseconds(lambda text: read(reader, [by_text[text]], condition.choose, weight), list(by_text))
        return ms + (self._ms[engines.RANKED] if condition.searched else 0.0)

    def _weight(self, condition: Condition) -> float:
        return 0.0 if condition.alike else self._engines.retrieval_weight

    def _add(self, group: str, system: str, evaluation: Evaluation, ms: float | None) -> None:
        self._results.rows.append(Row(group=group, system=system, evaluation=evaluation, ms_per_query=ms))

    def _compare(self, test: str, unseen: str, adds: str, answers: str) -> None:
        by_key = {row.key: row.evaluation for row in self._results.rows}
        hybrid, ranked, generative = (
            row_key(test, name) for name in (engines.HYBRID, engines.RANKED, engines.GENERATIVE)
        )
        one, several, alike, shuffled, nothing = [row.key for row in self._results.rows if row.group == answers][1:]
        parts = (engines.PAIR, engines.BM25Q, engines.DENSE, engines.GENERATIVE)
        controls = [(generative, row_key(adds, name)) for name in self._controls]
        families = {
            "what the trained generator adds to matching words": ("R@1", controls),
            "what the hybrid adds": ("nDCG@10", [(hybrid, row_key(test, name)) for name in parts]),
            "what the cross-encoder adds": ("nDCG@10", [(ranked, hybrid)]),
            "what the cross-encoder adds on unseen passages": (
                "nDCG@10",
                [(row_key(unseen, engines.RANKED), row_key(unseen, engines.HYBRID))],
            ),
            "what the reader makes of its passages": (
                "F1",
                [(several, one), (several, alike), (several, shuffled), (several, nothing)],
            ),
        }
        for heading, (measure, pairs) in families.items():
            self._results.comparisons[heading] = compare(by_key, pairs, measure)


def _ask(search: Search, task: Task, text: str) -> None:
    search([text])
    task.advance()
