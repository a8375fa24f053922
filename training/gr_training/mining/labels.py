"""
Which passages answer a question: by judgements, or by the answer's words.

The second is DPR's rule (https://arxiv.org/abs/2004.04906, section 4): a passage counts as relevant when an answer
occurs in its text, compared token by token, lower-cased, after Unicode decomposition. It finds passages that nobody
judged, and some that mention the answer by accident.
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

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
        self._texts: dict[int, str] = {}

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
            self._texts[passage] = _joined(found.text)
        return int(_occurs(asked.answers, self._texts[passage]))


def has_answer(answers: Sequence[str], text: str) -> bool:
    """
    Say whether an answer occurs in a text as a run of tokens.

    :param answers: Any of them will do; one without letters, digits or other visible characters never occurs.
    :param text: The text of a passage.
    """
    return _occurs(answers, _joined(text))


def _occurs(answers: Sequence[str], joined: str) -> bool:
    return any(answer != "  " and answer in joined for answer in map(_joined, answers))


def _joined(text: str) -> str:
    """Return the tokens with a space around each: a run of tokens is a run of characters then."""
    decomposed = unicodedata.normalize("NFD", text)
    tokens = (match.group().lower() for match in _tokens().finditer(decomposed))
    return f" {' '.join(token for token in tokens if unicodedata.category(token[0])[0] not in 'ZC')} "


@cache
def _tokens() -> re.Pattern[str]:
    """Runs of letters, digits and combining marks; any other visible character alone."""
    marks = "".join(
        re.escape(chr(code)) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"
    )
    return re.compile(rf"(?:[^\W_]|[{marks}])+|\S")
