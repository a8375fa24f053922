"""
The collections of the generative experiments, in the project's formats: a corpus, questions, judgements, splits.

    python tests/benchmarks/generative_data.py merged DATA runs/merged
    python tests/benchmarks/generative_data.py medquad DATA runs/medquad
    python tests/benchmarks/generative_data.py demo DATA runs/squad
    python tests/benchmarks/generative_data.py scifact DATA runs/scifact    (or cranfield, pubmedqa_l)
    python tests/benchmarks/generative_data.py queries CORPUS runs/squad runs/squad-generated

`demo` is the demo's corpus with its own splits (SQuAD's development part). `scifact`, `cranfield` and `pubmedqa_l` are
for testing only: all their questions are test questions, and no passage has pseudo-queries. `queries` copies a
collection with the pseudo-queries that CORPUS has, which the recipe `pseudo_queries` wrote.

DATA holds the public sets, a folder each: squad (its development part), squadshifts_wiki, nq_gold, wiki_text, medquad.

`merged` puts the passages of the three question sets and 100-word passages of Wikipedia articles into one corpus. Of
the latter, those that share an eighth of their 8-word sequences with a passage of the question sets are left out, and
20,000 of the rest are drawn: more would not change the generative index (its cost hardly depends on the corpus), but
the dense baseline reads them all. Everything is drawn by one seed.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gr_components.data import (
    Passage,
    Question,
    leaks,
    read_corpus,
    read_qrels,
    read_questions,
    write_corpus,
    write_ids,
    write_qrels,
    write_questions,
)
from gr_components.data.files import read_objects
from gr_pipelines.demo import data as demo

SEED = 13
TEST, VALIDATION = 300, 100  # questions of each set
DISTRACTORS = 20_000
UNSEEN = ("cranfield", "scifact", "pubmedqa_l")
_WORDS = 100
_SHINGLE = 8
_SHARED = 0.125

Part = tuple[list[Passage], dict[str, list[Question]], dict[str, dict[str, int]]]


def merged(data: Path, distractors: int = DISTRACTORS) -> Part:
    """
    Return the passages, the questions of each split and the judgements of the merged corpus.

    :param data: The folder of the public sets.
    :param distractors: Wikipedia passages without questions.
    """
    generator = np.random.default_rng(SEED)
    passages: list[Passage] = []
    splits: dict[str, list[Question]] = {"train": [], "validation": [], "test": []}
    qrels: dict[str, dict[str, int]] = {}
    for name, part in (
        ("squad", _squad()),
        ("squadshifts_wiki", _published(data / "squadshifts_wiki", generator)),
        ("nq_gold", _published(data / "nq_gold", generator)),
    ):
        passages += [Passage(f"{name}/{p.id}", p.title, p.text) for p in part[0]]
        for split, questions in part[1].items():
            wanted = {"train": len(questions), "validation": VALIDATION, "test": TEST}[split]
            chosen = sorted(generator.permutation(len(questions))[:wanted].tolist())
            splits[split] += [_renamed(questions[row], name) for row in chosen]
        qrels |= {f"{name}/{q}": {f"{name}/{d}": g for d, g in judged.items()} for q, judged in part[2].items()}
    passages += _distractors(data / "wiki_text" / "train.jsonl.xz", passages, distractors, generator)
    return passages, _clean(splits), qrels


def medquad(data: Path) -> Part:
    """
    Return MedQuAD: medical questions and the answers to them, with several hundred of each validation and test.

    :param data: The folder of the public sets.
    """
    generator = np.random.default_rng(SEED)
    folder = data / "medquad"
    passages, splits, qrels = _published(folder, generator)
    for split, wanted in (("validation", 3 * VALIDATION), ("test", 3 * TEST)):
        chosen = sorted(generator.permutation(len(splits[split]))[:wanted].tolist())
        splits[split] = [splits[split][row] for row in chosen]
    return passages, _clean(splits), qrels


def unseen(folder: Path) -> Part:
    """
    Return a set that nothing is trained on: all its questions are test questions.

    :param folder: The set.
    """
    passages = [passage for passage in read_corpus(folder / "corpus.jsonl.gz") if passage.text.strip()]
    questions, qrels = [], {}
    for path in sorted(folder.glob("queries.*.jsonl.gz")):
        judged = read_qrels(folder / path.name.replace("queries", "qrels").replace("jsonl", "tsv"))
        qrels |= judged
        questions += [question for question in read_questions(path) if any(judged.get(question.id, {}).values())]
    return passages, {"train": [], "validation": [], "test": questions}, qrels


def write(part: Part, folder: Path) -> None:
    """
    Write `corpus.jsonl.gz`, `indexed.jsonl.gz`, `questions.jsonl.gz`, `qrels.tsv.gz` and `splits/*.txt`.

    `indexed.jsonl.gz` is the corpus with the training questions as pseudo-queries, for `gr index`.

    :param part: From `merged` or `medquad`.
    :param folder: Where to.
    """
    passages, splits, qrels = part
    write_corpus(folder / "corpus.jsonl.gz", passages)
    write_corpus(folder / "indexed.jsonl.gz", _with_queries(passages, splits["train"], qrels))
    write_questions(folder / "questions.jsonl.gz", [question for each in splits.values() for question in each])
    known = {question.id for each in splits.values() for question in each}
    write_qrels(folder / "qrels.tsv.gz", {q: judged for q, judged in qrels.items() if q in known})
    for split, questions in splits.items():
        write_ids(folder / "splits" / f"{split}.txt", [question.id for question in questions])
        print(f"{split}: {len(questions)} questions")
    print(f"{len(passages)} passages in {folder}")


def with_pseudo_queries(corpus: Path, source: Path, folder: Path) -> None:
    """
    Copy a collection with other pseudo-queries, for training and for search.

    :param corpus: Its passages with pseudo-queries.
    :param source: The collection.
    :param folder: Where to.
    """
    passages = list(read_corpus(corpus))
    if [passage.id for passage in passages] != [passage.id for passage in read_corpus(source / "corpus.jsonl.gz")]:
        msg = f"'{corpus}' has other passages than '{source}'."
        raise SystemExit(msg)
    for name in ("questions.jsonl.gz", "qrels.tsv.gz", *(f"splits/{s}.txt" for s in ("train", "validation", "test"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    for name in ("corpus.jsonl.gz", "indexed.jsonl.gz"):
        write_corpus(folder / name, passages)
    print(f"{sum(len(passage.queries) for passage in passages)} pseudo-queries in {folder}")


def _with_queries(
    passages: Sequence[Passage], questions: Sequence[Question], qrels: dict[str, dict[str, int]]
) -> Iterator[Passage]:
    """Give passages their training questions as pseudo-queries: what indexes hold, and BM25 too."""
    of: dict[str, list[str]] = {}
    for question in questions:
        for document, grade in qrels.get(question.id, {}).items():
            if grade > 0:
                of.setdefault(document, []).append(question.text)
    for passage in passages:
        yield Passage(passage.id, passage.title, passage.text, tuple(of.get(passage.id, ())))


def _squad() -> Part:
    splits = {name: demo.questions(name) for name in ("train", "validation", "test")}
    return list(demo.corpus()), splits, {q: dict(d) for name in splits for q, d in demo.qrels(name).items()}


def _published(folder: Path, generator: np.random.Generator) -> Part:
    """Take the set's own development questions for validation and test, or a fifth of its training questions each."""
    passages = list(read_corpus(folder / "corpus.jsonl.gz"))
    found = {p.name.split(".")[1]: list(read_questions(p)) for p in sorted(folder.glob("queries.*.jsonl.gz"))}
    qrels = {q: judged for name in found for q, judged in read_qrels(folder / f"qrels.{name}.tsv.gz").items()}
    train, held = found["train"], found.get("dev", [])
    if not held:
        order = generator.permutation(len(train))
        cut = 2 * len(train) // 5
        train, held = [train[row] for row in sorted(order[cut:])], [train[row] for row in sorted(order[:cut])]
    order = generator.permutation(len(held))
    third = len(held) // 3
    validation, test = order[:third], order[third:]
    return passages, {
        "train": train,
        "validation": [held[row] for row in sorted(validation)],
        "test": [held[row] for row in sorted(test)],
    }, qrels  # fmt: skip


def _clean(splits: dict[str, list[Question]]) -> dict[str, list[Question]]:
    """Drop training questions that hold the words of a held-out one."""
    held = [question.text for name in ("validation", "test") for question in splits[name]]
    leaking = {leak.position for leak in leaks(held, (question.text for question in splits["train"]))}
    return {**splits, "train": [q for row, q in enumerate(splits["train"]) if row not in leaking]}


def _renamed(question: Question, name: str) -> Question:
    return Question(f"{name}/{question.id}", question.text, question.answers)


def _distractors(path: Path, gold: Sequence[Passage], wanted: int, generator: np.random.Generator) -> list[Passage]:
    known = {shingle for passage in gold for shingle in _shingles(passage.text)}
    pieces = [p for p in _pieces(path) if not _repeats(p.text, known)]
    chosen = generator.permutation(len(pieces))[:wanted]
    return [pieces[row] for row in sorted(chosen.tolist())]


def _pieces(path: Path) -> Iterator[Passage]:
    for number, article in read_objects(path):
        words = article["text"].split()
        for first in range(0, len(words) - _WORDS // 2, _WORDS):
            text = " ".join(words[first : first + _WORDS])
            yield Passage(f"wiki_text/{number}-{first // _WORDS}", article["title"], text)


def _shingles(text: str) -> Iterable[tuple[str, ...]]:
    words = text.lower().split()
    return zip(*(words[start:] for start in range(_SHINGLE)), strict=False)


def _repeats(text: str, known: set[tuple[str, ...]]) -> bool:
    shingles = list(_shingles(text))
    return sum(shingle in known for shingle in shingles) > _SHARED * max(1, len(shingles))


def main() -> None:
    """Write one of the collections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", choices=("merged", "medquad", "demo", *UNSEEN, "queries"))
    parser.add_argument("data", type=Path, help="folder of the public sets; a corpus for `queries`")
    parser.add_argument("source", type=Path, nargs="?", help="the collection that `queries` copies")
    parser.add_argument("out", type=Path)
    parser.add_argument("--distractors", type=int, default=DISTRACTORS)
    options = parser.parse_args()
    make = {"merged": lambda: merged(options.data, options.distractors), "medquad": lambda: medquad(options.data),
            "demo": _squad}  # fmt: skip
    name = options.collection
    if name == "queries":
        with_pseudo_queries(options.data, options.source, options.out)
        return
    write(unseen(options.data / name) if name in UNSEEN else make[name](), options.out)


if __name__ == "__main__":
    main()
