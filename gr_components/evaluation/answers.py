"""
Exact match and F1 of answers, as SQuAD's official evaluation defines them (https://arxiv.org/abs/1606.05250).

Answers are compared in lower case, without ASCII punctuation, without the articles a, an, the, and with white space
collapsed; each prediction is compared with every reference and the best one counts. Where prediction or reference is
empty after that, both measures are 1 if the other is empty too and 0 otherwise, as in version 2.0 of the script.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from gr_components.data.records import Question
from gr_components.evaluation.retrieval import Evaluation

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """
    Return an answer as it is compared.

    :param text: An answer.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """
    Return 1.0 if the prediction equals a reference, else 0.0.

    :param prediction: The answer given.
    :param references: Acceptable answers. Without any, only an empty prediction is right.
    """
    normal = normalise_answer(prediction)
    return float(any(normal == reference for reference in _references(references)))


def f1(prediction: str, references: Sequence[str]) -> float:
    """
    Return the best harmonic mean of word precision and recall over the references, in 0..1.

    :param prediction: The answer given.
    :param references: Acceptable answers. Without any, only an empty prediction is right.
    """
    words = normalise_answer(prediction).split()
    return max(_f1(words, reference.split()) for reference in _references(references))


def evaluate_answers(predictions: Mapping[str, str], questions: Iterable[Question]) -> Evaluation:
    """
    Measure answers.

    :param predictions: Answers by question id. A question without one counts as answered by nothing.
    :param questions: The questions with their references.
    :returns: `EM` and `F1` of every question, in 0..1.
    """
    values: dict[str, dict[str, float]] = {"EM": {}, "F1": {}}
    for question in questions:
        references = (*question.answers, *question.answers_all)
        prediction = predictions.get(question.id, "")
        values["EM"][question.id] = exact_match(prediction, references)
        values["F1"][question.id] = f1(prediction, references)
    return Evaluation(values)


def _references(references: Sequence[str]) -> list[str]:
    """References that say something; if there are none, the right answer is to say nothing."""
    normal = [normalise_answer(reference) for reference in references]
    return [reference for reference in dict.fromkeys(normal) if reference] or [""]


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)
