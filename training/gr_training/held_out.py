"""Keep held-out questions out of everything that is trained on: questions, pseudo-queries and plain text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from gr_components.data import Passage, leaks

Item = TypeVar("Item")


def without_leaks(forbidden: Sequence[str], items: Sequence[Item], text: Callable[[Item], str]) -> list[Item]:
    """
    Return the items whose text holds no held-out question.

    :param forbidden: Held-out questions.
    :param items: Training items.
    :param text: Gives an item's text.
    """
    if not forbidden:
        return list(items)
    leaking = {leak.position for leak in leaks(forbidden, map(text, items))}
    return [item for position, item in enumerate(items) if position not in leaking]


def without_leaking_queries(forbidden: Sequence[str], passages: Iterable[Passage]) -> tuple[list[Passage], int]:
    """
    Return the passages without those of their own pseudo-queries that hold a held-out question.

    :param forbidden: Held-out questions.
    :param passages: Passages; they all stay.
    :returns: Passages, and how many pseudo-queries were dropped.
    """
    kept = list(passages)
    places = [(row, query) for row, passage in enumerate(kept) for query in passage.queries]
    leaking = sorted({leak.position for leak in leaks(forbidden, (query for _, query in places))})
    for position in leaking:
        row, query = places[position]
        kept[row] = replace(kept[row], queries=tuple(other for other in kept[row].queries if other != query))
    return kept, len(leaking)
