"""Batches of a reader: pure functions of the step, complete passes, windows that keep their answer."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gr_components.data.records import Passage, Question
from gr_components.models.seq2seq.building import cut_vocabulary
from gr_components.readers.layout import ReaderLayout, reserved_layout
from gr_components.tokenization import TextTokenizer
from gr_training.order import Turn
from gr_training.reading.examples import BatchConfig, ReaderExamples
from gr_training.sources import QuestionSet

WORDS = [f"{a}{b}" for a in ("red", "blue", "green", "old", "new") for b in ("house", "river", "mountain", "road")]


def collection(size: int, seed: int) -> QuestionSet:
    generator = np.random.default_rng(seed)
    passages, questions = [], []
    for n in range(size):
        words = [WORDS[i] for i in generator.integers(len(WORDS), size=int(generator.integers(20, 60)))]
        words[int(generator.integers(len(words)))] = f"number {n}"
        passages.append(Passage(f"p{n}", f"title {n}", " ".join(words)))
        questions.append(Question(f"q{n}", f"which one is {n} ?", (f"number {n}", "not in the text")))
    return QuestionSet(
        "made", passages, questions, [[n] for n in range(size)], {f"q{n}": {f"p{n}": 1} for n in range(size)}
    )


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> TextTokenizer:
    return cut_vocabulary(minilm, [" ".join(WORDS) + " number title which one is not in the text"])[0]


@pytest.fixture(scope="module")
def layout(tokenizer: TextTokenizer) -> ReaderLayout:
    return reserved_layout(tokenizer, max_passage_tokens=224)


@pytest.fixture(scope="module")
def made() -> QuestionSet:
    return collection(150, 1)


FOUND = [[(row + k) % 150 for k in (0, 1, 2, 3)] for row in range(150)]


def examples(made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout, **changes: object) -> ReaderExamples:
    config = BatchConfig(**{"passages": 6, **changes})
    return ReaderExamples([made], [FOUND], tokenizer, layout, config, 5, must_occur=True)


def turn(step: int, **changes: int) -> Turn:
    return dataclasses.replace(Turn(seed=5, step=step), **changes)


def questions_of(batch: dict[str, torch.Tensor], tokenizer: TextTokenizer) -> list[str]:
    sep = tokenizer.special["sep"]
    rows = batch["ids_BNL"][:, 0].tolist()
    return [tokenizer.decode(row[1 : row.index(sep)]) for row in rows]


def test_a_batch_depends_on_its_turn_alone(made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout) -> None:
    several = {"negative_share": 0.4, "crop_share": 0.5}
    one = examples(made, tokenizer, layout, **several)
    in_order = [one.batch(turn(step)) for step in range(45)]
    other = examples(made, tokenizer, layout, **several)
    for step in (44, 3, 21, 20):
        again = other.batch(turn(step))
        assert all(torch.equal(again[name], tensor) for name, tensor in in_order[step].items())


def test_a_pass_visits_every_question_once(made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout) -> None:
    # 20 batches of 6 make a group; 25 batches make a pass over 150 questions
    batches = examples(made, tokenizer, layout, negative_share=0.0)
    seen = [q for step in range(100) for q in questions_of(batches.batch(turn(step)), tokenizer)]
    assert sorted(seen) == sorted(4 * [q.text.replace(" ?", "?") for q in made.questions])


def test_processes_and_rounds_share_what_one_would_see(
    made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout
) -> None:
    batches = examples(made, tokenizer, layout, negative_share=0.4)
    for step in range(6):
        whole = questions_of(batches.batch(turn(step)), tokenizer)
        parts = [questions_of(batches.batch(turn(step, rank=r, num_processes=2)), tokenizer) for r in (0, 1)]
        assert sorted(parts[0] + parts[1]) == sorted(whole)
        halves = questions_of(batches.batch(turn(step // 2, round=step % 2, num_rounds=2)), tokenizer)
        assert halves == whole


def test_shares_and_sizes(made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout) -> None:
    batches = examples(made, tokenizer, layout, negative_share=0.35, num_negatives=2)
    shapes = [tuple(batches.batch(turn(step))["ids_BNL"].shape[:2]) for step in range(40)]
    assert sorted(set(shapes)) == [(2, 3), (6, 1)]
    assert shapes[:20].count((2, 3)) == shapes[20:].count((2, 3)) == 7
    assert shapes[:20] != shapes[20:]


def test_negatives_are_what_was_found_but_not_relevant(
    made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout
) -> None:
    batches = examples(made, tokenizer, layout, negative_share=1.0, num_negatives=2)
    places = []
    for step in range(30):
        batch = batches.batch(turn(step))
        for b, question in enumerate(questions_of(batch, tokenizer)):
            number = int(question.split()[3].rstrip("?"))
            texts = [
                tokenizer.decode(ids[real])
                for ids, real in zip(batch["ids_BNL"][b], batch["context_BNL"][b], strict=True)
            ]
            own = [
                n
                for n in range(number, number + 4)
                for text in texts
                if f"number {n % 150}" in f"{text} ".replace("  ", " ")
            ]
            assert sum(f"number {number} " in f"{text} " for text in texts) == 1
            assert len(own) >= 3
            places.append(next(n for n, text in enumerate(texts) if f"number {number} " in f"{text} "))
    assert set(places) == {0, 1, 2}


def test_windows_keep_the_answer_and_targets_say_it(
    made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout
) -> None:
    batches = examples(made, tokenizer, layout, negative_share=0.5, crop_share=1.0, crop_tokens=[12, 20])
    lengths = set()
    for step in range(40):
        batch = batches.batch(turn(step))
        contexts = batch["context_BNL"].sum(-1)
        lengths.add(int(contexts.max()))
        assert 12 <= contexts.max() <= 20
        assert batch["starts_BS"].any(-1).all()
        for b, number in enumerate(q.split()[3].rstrip("?") for q in questions_of(batch, tokenizer)):
            assert tokenizer.decode(batch["targets_BT"][b][batch["real_BT"][b]].tolist()) == f"number {number}"
            assert batch["inputs_BT"][b, 0] == layout.answer_start[0]
            start = int(batch["starts_BS"][b].nonzero()[0])
            answer = batch["targets_BT"][b][batch["real_BT"][b]][:-1]
            assert torch.equal(batch["ids_BNL"][b].reshape(-1)[start : start + len(answer)], answer)
    assert len(lengths) > 3


def test_answers_that_do_not_occur_are_kept_only_for_models_that_write(
    made: QuestionSet, tokenizer: TextTokenizer, layout: ReaderLayout
) -> None:
    config = BatchConfig()
    copying, writing = (
        ReaderExamples([made], [FOUND], tokenizer, layout, config, 5, must_occur=must) for must in (True, False)
    )
    assert {len(e.answers) for e in copying.examples} == {1}
    assert {len(e.answers) for e in writing.examples} == {2}
    assert copying.num_questions == [150]
