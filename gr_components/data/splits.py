"""Divide questions by committed lists of ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from gr_components.errors import DataError


class HasId(Protocol):
    """Anything with an id: passages, questions."""

    @property
    def id(self) -> str:
        """The id."""
        ...


Item = TypeVar("Item", bound=HasId)


def select(items: Iterable[Item], ids: Sequence[str]) -> list[Item]:
    """
    Return the items of a list of ids, in the order of the list.

    :param items: Passages or questions.
    :param ids: Which ones.
    :raises DataError: If an id has no item.
    """
    by_id = {item.id: item for item in items}
    missing = [identity for identity in ids if identity not in by_id]
    if missing:
        msg = f"{len(missing)} of {len(ids)} ids are not among the items, the first one is {missing[0]!r}."
        raise DataError(msg)
    return [by_id[identity] for identity in ids]


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """
    Make sure that no id is in two splits.

    :param splits: Ids by the name of their split.
    :raises DataError: If one is, naming it and both splits.
    """
    owner: dict[str, str] = {}
    for name, ids in splits.items():
        for identity in ids:
            if owner.setdefault(identity, name) != name:
                msg = f"The id {identity!r} is in the split {owner[identity]!r} and in {name!r}."
                raise DataError(msg)
