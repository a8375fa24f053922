"""
Tasks on plain text that teach an encoder-decoder to copy: pieces of passages, and questions made of sentences.

- *spans*: a noised piece of a passage is the source, spans of the passage near it and its title are the targets, as
  for a generative retriever.
- *cloze*: a name or a number is taken out of a sentence; what is left of the sentence, with words dropped and a
  question word in front, is asked about the passage, which still has the sentence; the target is what was taken out,
  as for a reader.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from gr_components.data import Passage
from gr_components.data.files import read_objects
from gr_components.errors import DataError
from gr_training.config import STRICT_KEYS, InputFile, checked_dataclass
from gr_training.fitting import Count
from gr_training.sources import local_file

_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_NAME = r"[A-Z][\w'-]*(?:\s+(?:(?:of|the|and|de|von)\s+)?[A-Z][\w'-]*){0,4}"
_NUMBER = r"\d[\d,.]*\d|\d+"
_ANSWER = re.compile(rf"(?P<name>{_NAME})|(?P<number>{_NUMBER})")
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_LEAST_WORDS, _DROPPED = 6, 0.35


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TextConfig:
    """
    Plain text to learn from.

    :param name: Shown in logs and in the model card.
    :param path: JSONL with `title` and `text`, plain or compressed.
    :param licence: As stated by its source.
    :param passage_words: Words of a passage.
    :param max_passages: How many passages are used, spread evenly over the file.
    """

    name: str
    path: InputFile
    licence: str
    passage_words: Annotated[int, Field(ge=20)] = 100
    max_passages: Count = 40_000


@dataclass(frozen=True)
class Cloze:
    """
    A question made of a sentence.

    :param question: Question word and words of the sentence.
    :param answer: What was taken out of the sentence; stands in the passage.
    """

    question: str
    answer: str


def read_passages(config: TextConfig) -> list[Passage]:
    """
    Cut texts into passages of equal length; the last words of a text, too few for a passage, are left out.

    :param config: Which text.
    :raises DataError: If the file has no text.
    """
    path = local_file(config.path)
    passages = [
        Passage(f"{number}-{part}", str(data.get("title") or ""), words)
        for number, data in read_objects(path)
        for part, words in enumerate(_windows(str(data.get("text") or ""), config.passage_words))
    ]
    if not passages:
        msg = f"'{path}' has no text of {config.passage_words} words to learn from."
        raise DataError(msg)
    if len(passages) <= config.max_passages:
        return passages
    return [passages[row] for row in np.linspace(0, len(passages) - 1, config.max_passages).astype(int)]


def make_cloze(text: str, generator: np.random.Generator) -> Cloze | None:
    """
    Make a question of a sentence of a passage, or return None if no sentence has a name or a number.

    :param text: The passage.
    :param generator: Source of randomness.
    """
    choices = [
        (sentence, match)
        for sentence in _SENTENCE.findall(text)
        if len(sentence.split()) >= _LEAST_WORDS
        for match in _ANSWER.finditer(sentence)
        if sentence[: match.start()].strip() or match["number"] or " " in match[0]
    ]
    if not choices:
        return None
    sentence, match = choices[int(generator.integers(len(choices)))]
    rest = f"{sentence[: match.start()]} {sentence[match.end() :]}".rstrip(".!? ").split()
    kept = [word for word in rest if generator.random() >= _DROPPED] or rest
    return Cloze(" ".join([_question_word(match, generator), *kept]) + "?", match[0].strip(" ,."))


def _question_word(match: re.Match[str], generator: np.random.Generator) -> str:
    words: tuple[str, ...] = ("Who", "What", "Where", "Which")
    if match["number"]:
        words = ("When", "In what year", "What year") if _YEAR.fullmatch(match[0]) else ("How many", "How much", "What")
    return words[int(generator.integers(len(words)))]


def _windows(text: str, size: int) -> Iterator[str]:
    words = text.split()
    for first in range(0, len(words) - size + 1, size):
        yield " ".join(words[first : first + size])
