"""
Which passages answer a question: by judgements, or by the answer's words.

The second is DPR's rule (https://arxiv.org/abs/2004.04906, section 4): a passage counts as relevant when an answer
occurs in its text, compared token by token, lower-cased, after Unicode decomposition. It finds passages that nobody
judged, and some that mention the answer by accident.
"""

from typing import Literal

from gr_components.evaluation.answer_string import answer_tokens, contains_answer
from gr_training.sources import QuestionSet

LabelBy = Literal["qrels", "answer_string"]


class Labels:
    """
    Labels passages of a set for its questions.

    :param questions: Questions, passages and judgements.
    :param by: `qrels` (the grade; 0 where nobody judged) or `answer_string` (1 if an answer occurs in the text).
    """

    def __init__(self, questions: QuestionSet, by: LabelBy) -> None:
        self.source = by
        self._questions = questions
        self._texts: dict[int, list[str]] = {}

    def label(self, question: int, passage: int) -> int:
        """
        Return the label of a passage; above 0 it is a positive.

        :param question: Row of the question.
        :param passage: Row of the passage.
        """
        asked, found = self._questions.questions[question], self._questions.passages[passage]
        if self.source == "qrels":
            return max(0, self._questions.qrels[asked.id].get(found.id, 0))
        if passage not in self._texts:
            self._texts[passage] = answer_tokens(found.text)
        return int(contains_answer(self._texts[passage], asked.answers))
