"""
Make the demo's committed data from the folder of the SQuAD development part.

    python -m gr_pipelines.demo.make_splits FOLDER

FOLDER holds `corpus.jsonl.gz`, `queries.dev.jsonl.gz` and `qrels.dev.tsv.gz`. All questions of 150 paragraphs become
the split `unseen`; of the others 1,200 become `test`, 400 `validation`, the rest `train`. Questions that read the same,
or of which one contains the other, go to the same split, so that no held-out question is known from training.
"""

import random
import sys
from pathlib import Path

from gr_components.data.collections import (
    read_corpus,
    read_qrels,
    read_questions,
    write_corpus,
    write_ids,
    write_qrels,
    write_questions,
)
from gr_components.data.leakage import leaks, normalise
from gr_components.data.records import Question

SEED = 13
UNSEEN_PARAGRAPHS = 150
SIZES = {"test": 1200, "validation": 400}


def split(questions: list[Question], qrels: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """
    Divide questions into train, validation, test and unseen.

    :param questions: All questions.
    :param qrels: Their judgements; each question has one relevant paragraph.
    :returns: The ids of each split, sorted.
    """
    draw = random.Random(SEED)
    gold = {question: next(iter(judged)) for question, judged in qrels.items()}
    unseen_paragraphs = set(draw.sample(sorted(set(gold.values())), UNSEEN_PARAGRAPHS))
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": [], "unseen": []}
    rest: list[list[str]] = []
    for ids in _groups(questions):
        if any(gold[identity] in unseen_paragraphs for identity in ids):
            splits["unseen"] += ids
        else:
            rest.append(ids)
    draw.shuffle(rest)
    for ids in rest:
        name = next((n for n, size in SIZES.items() if len(splits[n]) + len(ids) <= size), "train")
        splits[name] += ids
    return {name: sorted(ids) for name, ids in splits.items()}


def _groups(questions: list[Question]) -> list[list[str]]:
    """Ids of questions that must stay together; sorted, so that the draw does not depend on the file's order."""
    texts = [normalise(question.text) for question in questions]
    leader = {text: text for text in texts}
    for leak in leaks(texts, texts):
        if leak.question == leak.text:
            continue
        contained, container = leader[leak.question], leader[leak.text]
        leader = {text: contained if led == container else led for text, led in leader.items()}
    groups: dict[str, list[str]] = {}
    for question, text in zip(questions, texts, strict=True):
        groups.setdefault(leader[text], []).append(question.id)
    return sorted(sorted(ids) for ids in groups.values())


def main(source: Path, target: Path) -> None:
    """
    Write corpus, questions, judgements and splits.

    :param source: The folder to read.
    :param target: The folder to write to.
    """
    questions = list(read_questions(source / "queries.dev.jsonl.gz"))
    qrels = read_qrels(source / "qrels.dev.tsv.gz")
    write_corpus(target / "corpus.jsonl.gz", read_corpus(source / "corpus.jsonl.gz"))
    write_questions(target / "questions.jsonl.gz", questions)
    write_qrels(target / "qrels.tsv.gz", qrels)
    for name, ids in split(questions, qrels).items():
        write_ids(target / "splits" / f"{name}.txt", ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
