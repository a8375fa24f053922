"""What the reader answers from the right passage, from what a search found, and from nothing."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from haystack import Document

from gr_components.data.haystack import to_passage
from gr_components.data.records import Passage, Question
from gr_components.evaluation.answers import evaluate_answers
from gr_components.evaluation.retrieval import Evaluation
from gr_components.progress import Reporter, Silent
from gr_components.readers.config import ReadConfig
from gr_components.readers.fusion import FusionReader

SEED = 13

# The passages of a question, each with the score that it was found with, if any.
Given = Sequence[tuple[Passage, float | None]]
Choose = Callable[[Question], Given]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """
    From which passages questions are answered.

    :param name: As the table calls it.
    :param choose: The passages of a question.
    :param searched: Whether a search has to find them first.
    :param control: Whether it is only there to compare with.
    :param alike: Whether the reader is not told how sure the search was of each passage.
    """

    name: str
    choose: Choose
    searched: bool = True
    control: bool = False
    alike: bool = False


def conditions(gold: Mapping[str, Passage], found: Mapping[str, Sequence[Document]], passages: int) -> list[Condition]:
    """
    Return the reader's rows of the table.

    :param gold: The right passage of each question, by question id.
    :param found: What the search found for each question, by question id.
    :param passages: How many passages the shipped pipeline reads.
    """

    def best(count: int) -> Choose:
        return lambda question: [(to_passage(document), document.score) for document in found[question.id][:count]]

    def shuffled(question: Question) -> Given:
        order = list(best(passages)(question))
        random.Random(f"{SEED} {question.id}").shuffle(order)
        return order

    several = f"hybrid, best {passages} passages"
    return [
        Condition(name="the right passage", choose=lambda question: [(gold[question.id], None)], searched=False),
        Condition(name="hybrid, best passage", choose=best(1), control=True),
        Condition(name=several, choose=best(passages)),
        Condition(name=f"{several}, whatever their scores", choose=best(passages), control=True, alike=True),
        Condition(name=f"{several}, shuffled", choose=shuffled, control=True),
        Condition(name="no passage", choose=lambda question: [], searched=False, control=True),
    ]


def read(
    reader: FusionReader,
    questions: Sequence[Question],
    choose: Choose,
    retrieval_weight: float = 0.0,
    report: Reporter = Silent(),  # noqa: B008
) -> tuple[Evaluation, dict[str, str]]:
    """
    Answer questions.

    :param reader: The reader.
    :param questions: The questions with their answers.
    :param choose: The passages of each question.
    :param retrieval_weight: How much the passages' scores count.
    :param report: Where progress goes.
    :returns: EM and F1, and the answers by question id.
    """
    given = [choose(question) for question in questions]
    # Without a passage the reader gives no answer; as a control it is made to.
    config = ReadConfig(closed_book=True, retrieval_weight=retrieval_weight)
    passages = [[passage for passage, _ in pairs] for pairs in given]
    scores = [[score for _, score in pairs] for pairs in given]
    readings = reader.read([question.text for question in questions], passages, config, report, scores)
    answers = {
        question.id: reading.answers[0].text if reading.answers else ""
        for question, reading in zip(questions, readings, strict=True)
    }
    return evaluate_answers(answers, questions), answers
