import pytest

from gr_components.data import Question
from gr_components.evaluation import evaluate_answers, exact_match, f1, has_answer, normalise_answer
from gr_components.evaluation.answer_string import answer_string_qrels, answer_tokens


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  an   apple a  day ", "apple day"),
        ("Thea anthem", "thea anthem"),
        ("U.S.A.", "usa"),
        ("rock-'n'-roll", "rocknroll"),
        ("the.", ""),
        ("“quoted”", "“quoted”"),
        ("É TUDE", "é tude"),
        ("24\u201310", "24\u201310"),
        ("The A an", ""),
        ("a\tb\nc", "b c"),
        ("théa the a", "théa"),
    ],
)
def test_normalisation_is_squads(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1_value"),
    [
        ("Denver Broncos", ["the Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos", "Carolina"], 0, 2 / 3),
        ("in 1999 , or 2000", ["1999"], 0, 2 * (1 / 4) * 1 / (1 / 4 + 1)),
        ("big big cat", ["big cat"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("cat", [], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("", ["", "cat"], 0, 0),
        ("cat", ["", "the cat"], 1, 1),
        ("ÉTUDE", ["étude"], 1, 1),
        ("東京", ["東京。"], 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(prediction, references, em, f1_value):
    assert exact_match(prediction, references) == em
    assert f1(prediction, references) == pytest.approx(f1_value)


def test_the_best_of_all_references_counts_for_each_measure():
    references = ["one two three four", "five"]
    assert f1("one two", references) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert f1("one two", list(reversed(references))) == f1("one two", references)


def test_evaluation_counts_unanswered_questions():
    questions = [Question("q1", "?", ("Ann",)), Question("q2", "?", (), ("Bob", "Bobby")), Question("q3", "?", ("x",))]
    got = evaluate_answers({"q1": "ann", "q2": "bobby", "other": "x"}, questions)
    assert got.per_question["EM"] == {"q1": 1.0, "q2": 1.0, "q3": 0.0}
    assert got.means["F1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answers", "text", "found"),
    [
        (["New York"], "in new york.", True),
        (["New York"], "newyork", False),
        (["York"], "Yorkshire", False),
        (["U.S."], "the U.S. army", True),
        (["U.S."], "us army", False),
        (["Beyonce\u0301"], "BEYONCÉ sang", True),
        (["Beyonce"], "Beyoncé", False),
        (["no", "yes"], "yes", True),
        ([""], "anything", False),
        ([], "anything", False),
    ],
)
def test_has_answer_compares_tokens(answers, text, found):
    assert has_answer(answers, text) is found


def test_tokens_are_runs_of_letters_digits_and_marks_or_single_signs():
    assert answer_tokens("a_b\u00a0c-3!\u200b") == ["a", "_", "b", "c", "-", "3", "!"]


def test_results_are_judged_by_the_answers_they_contain():
    run = {"q": [("d2", 1.0), ("d1", 2.0), ("d3", 0.5)]}
    texts = {"d1": "none", "d2": "Ann", "d3": "Ann"}
    questions = [Question("q", "?", ("Ann",)), Question("missing", "?", ("Ann",))]
    assert answer_string_qrels(run, questions, texts, depth=2) == {"q": {"d1": 0, "d2": 1}, "missing": {}}
