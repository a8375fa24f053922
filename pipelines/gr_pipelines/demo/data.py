"""
The demo's data: 1,048 Wikipedia paragraphs of SQuAD 1.1 with 5,696 questions, divided by committed lists of ids.

`train` may be used for training and as pseudo-queries. `validation` selects models. `test` is reported. `unseen` holds
all questions of 150 paragraphs, none of which has a question in another split; it is reported separately.
"""

import random
from functools import cache
from pathlib import Path

from gr_components.data.collections import read_corpus, read_ids, read_qrels, read_questions
from gr_components.data.records import Passage, Question
from gr_components.errors import ConfigError

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation", "test", "unseen")
SAMPLE_SIZE = 300
SAMPLE_SEED = 13


def corpus(*, with_queries: bool = False) -> list[Passage]:
    """
    Return the paragraphs.

    :param with_queries: Whether each carries the training questions that it answers as pseudo-queries.
    """
    passages = list(_corpus())
    if not with_queries:
        return passages
    by_passage: dict[str, list[str]] = {}
    judged = qrels("train")
    for question in questions("train"):
        for passage_id in judged[question.id]:
            by_passage.setdefault(passage_id, []).append(question.text)
    return [Passage(p.id, p.title, p.text, tuple(by_passage.get(p.id, ())), p.meta) for p in passages]


def questions(split: str) -> list[Question]:
    """
    Return the questions of a split, in the order of its list.

    :param split: `train`, `validation`, `test` or `unseen`.
    :raises ConfigError: If there is no such split.
    """
    by_id = _questions()
    return [by_id[identity] for identity in _ids(split)]


def qrels(split: str) -> dict[str, dict[str, int]]:
    """
    Return the relevance judgements of a split's questions.

    :param split: `train`, `validation`, `test` or `unseen`.
    :raises ConfigError: If there is no such split.
    """
    judged = _qrels()
    return {identity: dict(judged[identity]) for identity in _ids(split)}


def sample(split: str, n: int = SAMPLE_SIZE, seed: int = SAMPLE_SEED) -> list[Question]:
    """
    Return questions of a split drawn by a seed, sorted by id; all of them if it has no more than `n`.

    :param split: `train`, `validation`, `test` or `unseen`.
    :param n: How many.
    :param seed: Of the draw.
    :raises ConfigError: If there is no such split.
    """
    everything = questions(split)
    if len(everything) <= n:
        return everything
    return sorted(random.Random(seed).sample(everything, n), key=lambda question: question.id)


def _ids(split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        msg = f"The demo has no split {split!r}; its splits are {', '.join(SPLITS)}."
        raise ConfigError(msg)
    return _split_ids(split)


@cache
def _split_ids(split: str) -> tuple[str, ...]:
    return tuple(read_ids(FOLDER / "splits" / f"{split}.txt"))


@cache
def _corpus() -> tuple[Passage, ...]:
    return tuple(read_corpus(FOLDER / "corpus.jsonl.gz"))


@cache
def _questions() -> dict[str, Question]:
    return {question.id: question for question in read_questions(FOLDER / "questions.jsonl.gz")}


@cache
def _qrels() -> dict[str, dict[str, int]]:
    return read_qrels(FOLDER / "qrels.tsv.gz")
