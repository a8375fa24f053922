"""Find evaluation questions inside anything that a model was trained on or that an index holds."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
_KEY_WORDS = 3


@dataclass(frozen=True)
class Leak:
    """
    A held-out question found where it must not be.

    :param question: The question, as given.
    :param position: Index of the text in which it was found.
    :param text: That text.
    """

    question: str
    position: int
    text: str


def normalise(text: str) -> str:
    """
    Return the words of a text: NFKC, case folded, without punctuation, one space between words.

    :param text: Any text.
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def leaks(forbidden_questions: Iterable[str], texts: Iterable[str]) -> list[Leak]:
    """
    Find held-out questions in texts, compared as `normalise` leaves them.

    A question leaks when it is the whole of a text or a run of words in it; questions of fewer than three words only
    when they are the whole text, since such a run means nothing.

    :param forbidden_questions: Questions of the validation, test and unseen splits.
    :param texts: Training sources and targets, pseudo-queries, index texts.
    :returns: Every leak, in the order of the texts.
    """
    whole: dict[str, str] = {}
    by_key: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
    for question in forbidden_questions:
        normal = normalise(question)
        words = normal.split(" ")
        if not normal or normal in whole:
            continue
        whole[normal] = question
        if len(words) >= _KEY_WORDS:
            by_key.setdefault(tuple(words[:_KEY_WORDS]), []).append((words, question))
    found: list[Leak] = []
    for position, text in enumerate(texts):
        normal = normalise(text)
        hits = {whole[normal]} if normal in whole else set()
        hits.update(_runs(normal.split(" "), by_key))
        found.extend(Leak(question, position, text) for question in sorted(hits))
    return found


def _runs(words: list[str], by_key: dict[tuple[str, ...], list[tuple[list[str], str]]]) -> set[str]:
    hits: set[str] = set()
    for start in range(len(words) - _KEY_WORDS + 1):
        for question_words, question in by_key.get(tuple(words[start : start + _KEY_WORDS]), ()):
            if words[start : start + len(question_words)] == question_words:
                hits.add(question)
    return hits
