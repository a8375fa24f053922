"""The plain records that files are read into: passages and questions."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Passage:
    """
    One document of a corpus.

    :param id: Unique within its corpus.
    :param title: May be empty.
    :param text: The content.
    :param queries: Pseudo-queries: questions this passage answers. Never part of the content.
    :param meta: Everything else that its line carried.
    """

    id: str
    title: str
    text: str
    queries: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """
    One query.

    :param id: Unique within its file.
    :param text: What is asked.
    :param answers: Distinct acceptable answers.
    :param answers_all: The answers as annotated, repetitions included; empty where that is not recorded.
    :param meta: Everything else that its line carried.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()
    answers_all: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def searchable_text(title: str, text: str) -> str:
    """
    Return what encoders, rankers and the lexical index read of a passage.

    :param title: Its title; may be empty.
    :param text: Its text.
    """
    return f"{title} {text}".strip()
