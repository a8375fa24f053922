"""
What a recipe names and must be there: looked for before anything runs, and reported at once with the settings.

Settings say so by their type, `InputFile` or `ModelName` (`config.py`). Names of a model hub are not looked up.
"""

import dataclasses
import typing
from collections.abc import Collection, Iterator
from typing import Any

from gr_components.errors import ConfigError, DataError, ModelNotFoundError
from gr_components.models.resolve import local_model
from gr_training.config import Names
from gr_training.sources import SourceConfig, is_absent, local_file


def check_inputs_exist(config: Any, needed: Collection[str] | None = None) -> None:
    """
    Make sure that the files and local models that a recipe names are there.

    :param config: The recipe.
    :param needed: Which of the names are still read; None for all.
    :raises ConfigError: With every setting that names what is not there.
    """
    problems = []
    for setting, name, kind in _named(config, "", _sets(config)):
        if needed is None or name in needed:
            try:
                local_model(name) if kind == "model" else local_file(name)
            except (DataError, ModelNotFoundError) as error:
                problems.append(f"{setting}: {error}")
    if problems:
        first = problems[0].partition(":")[0]
        lines = "\n  ".join(problems)
        msg = (
            f"The recipe names what is not there:\n  {lines}\n"
            f"Mend the recipe, or replace a setting: --set {first}=..., or a variable: --set variables.NAME=..."
        )
        raise ConfigError(msg)


def _sets(config: Any) -> set[str]:
    """Names of the sets that take part."""
    sources = getattr(config, "data", ())
    return {"validation", *(each.name for each in sources if not (each.optional and is_absent(each)))}


def _named(config: Any, path: str, sets: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield setting, name and kind."""
    if isinstance(config, SourceConfig) and config.optional:
        return  # training says itself what it goes on without
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        yield from _inside(getattr(config, field.name), path + field.name, _kind(hints[field.name]), sets)


def _inside(value: Any, path: str, kind: str | None, sets: Collection[str]) -> Iterator[tuple[str, str, str]]:
    if dataclasses.is_dataclass(value):
        yield from _named(value, f"{path}.", sets)
    elif isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from _inside(each, f"{path}.{number}", kind, sets)
    elif isinstance(value, dict) and kind is not None:  # runs by set; those of other sets are never read
        for key, each in value.items():
            if key in sets:
                yield from _inside(each, f"{path}.{key}", kind, sets)
    elif isinstance(value, str) and kind is not None:
        yield path, value, kind


def _kind(hint: Any) -> str | None:
    for each in getattr(hint, "__metadata__", ()):
        if isinstance(each, Names):
            return each.kind
    return next((kind for each in typing.get_args(hint) if (kind := _kind(each)) is not None), None)
