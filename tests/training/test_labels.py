"""Labels by judgements and by answers."""

import pytest

from gr_components.evaluation.answer_string import has_answer
from gr_training.config import parse
from gr_training.mining.labels import Labels
from gr_training.sources import ValidationConfig, load_validation


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("Paris", "They met in PARIS, in May.", True),
        ("Paris", "Parisian nights", False),  # tokens, not characters
        ("the mayor", "opened by the  mayor.", True),
        ("the mayor", "the old mayor", False),
        ("1,000", "about 1,000 men", True),
        ("1,000", "about 1000 men", False),
        ("São Tomé", "in S\u0061\u0303o Tome\u0301 and Príncipe", True),  # composed and decomposed
        ("Tom", "São Tomé", False),  # an accent belongs to its letter
        ("U.S.", "the U.S. Army", True),
        ("snake_case", "a snake_case name", True),
        ("snake", "a snake_case name", True),  # an underscore is a token of its own
        ("हिन्दी", "भाषा हिन्दी है", True),
        ("ab", "a\u200bb", False),  # a character of format separates
        ("", "anything", False),
        (" \u200b ", "anything", False),
    ],
)
def test_has_answer(answer, text, found):
    assert has_answer([answer], text) is found
    assert has_answer(["nowhere", answer], text) is found


def test_labels_of_a_set(sources):
    questions = load_validation(parse(ValidationConfig, sources["validation"], "x"))
    by_qrels, by_answer = Labels(questions, "qrels"), Labels(questions, "answer_string")
    for row, question in enumerate(questions.questions):
        positives = [p for p in range(len(questions.passages)) if by_qrels.label(row, p)]
        assert positives == questions.positives[row]
        answered = [p for p in range(len(questions.passages)) if by_answer.label(row, p)]
        assert set(positives) <= set(answered)
        # Everything was opened by the mayor, each in another year, four things in each place.
        assert len(answered) == {"When": 1, "Who": 48, "Which": 4}[question.text.split()[0]]
