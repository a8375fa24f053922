"""
Recipe files: YAML in, frozen dataclasses out, every problem reported at once.

A recipe is a mapping with the key `recipe` (its kind) and the fields of that kind's config class. Two extras:

- `variables: {name: value}` defines texts that `${name}` stands for anywhere in the file, such as `${data_root}/squad`;
- `--set a.b=value` replaces one field before anything is checked; the value is read as YAML.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import ArgsKwargs

from gr_components.data.files import shown
from gr_components.errors import ConfigError

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
STRICT_KEYS = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Names:
    """
    Says that a setting names something that must be there before a recipe begins (`inputs.py`).

    :param kind: `file` or `model`.
    """

    kind: str


InputFile = Annotated[str, Names("file")]
ModelName = Annotated[str, Names("model")]

__all__ = ["STRICT_KEYS", "InputFile", "ModelName", "Names", "checked_dataclass", "load_raw", "parse", "to_plain"]


def load_raw(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Read a recipe file, apply overrides and fill in variables; nothing is validated yet.

    :param path: A YAML file.
    :param overrides: `a.b=value` each.
    :raises ConfigError: If the file is missing or not a mapping, an override is malformed, or a variable is undefined.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"There is no recipe '{path}'."
        raise ConfigError(msg) from error
    except yaml.YAMLError as error:
        msg = f"The recipe '{path}' is not valid YAML: {error}"
        raise ConfigError(msg) from error
    if not isinstance(data, dict):
        msg = f"The recipe '{path}' must be a mapping of settings, got {type(data).__name__}."
        raise ConfigError(msg)
    for override in overrides:
        _apply(data, override)
    return _substitute(data, str(path))


def parse(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """
    Build a config dataclass from plain values.

    :param cls: A class made with `checked_dataclass`.
    :param data: Plain values, as YAML gives them. `1e-4`, which YAML reads as a text, is accepted for a number.
    :param where: Named in errors: the file.
    :raises ConfigError: With every problem: its path, what is wrong, the value, and for unknown keys the likely one.
    """
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        lines = [_describe(cls, item) for item in error.errors()]
        msg = f"{where} has {len(lines)} problem(s):\n  " + "\n  ".join(lines)
        raise ConfigError(msg) from error


def to_plain(config: Any) -> Any:
    """
    Return a config as JSON values: mappings, lists, numbers and texts.

    :param config: A config dataclass.
    """
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        msg = f"--set expects key=value, such as --set fit.steps=100; got {override!r}."
        raise ConfigError(msg)
    node: Any = data
    for depth, part in enumerate(parts[:-1]):
        node = _child(node, part, ".".join(parts[: depth + 1]), override)
    last, value = parts[-1], yaml.safe_load(text)
    if isinstance(node, list):
        node[_position(node, last, key, override)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_position(node, part, path, override)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        msg = f"--set {override}: '{path}' is {child!r}, which has no settings inside."
        raise ConfigError(msg)
    return child


def _position(node: list[Any], part: str, path: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        msg = f"--set {override}: '{path}' must be a position from 0 to {len(node) - 1}."
        raise ConfigError(msg)
    return int(part)


def _substitute(data: dict[str, Any], where: str) -> dict[str, Any]:
    variables = data.pop("variables", None) or {}
    if not isinstance(variables, dict):
        msg = f"{where}: 'variables' must be a mapping, got {variables!r}."
        raise ConfigError(msg)

    def fill(match: re.Match[str]) -> str:
        if match[1] not in variables:
            msg = f"{where} uses ${{{match[1]}}}, but 'variables' defines only {sorted(variables)}."
            raise ConfigError(msg)
        return str(variables[match[1]])

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(fill, value)
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return value

    return {key: walk(value) for key, value in data.items()}


def _describe(cls: Any, item: Any) -> str:
    loc = [part for part in item["loc"] if not isinstance(part, str) or not part.endswith(")")]
    path = ".".join(map(str, loc)) or "recipe"
    if item["type"] in _UNKNOWN_KEY:
        valid = _keys_at(cls, loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"{path}: unknown key.{hint} Valid keys: {', '.join(sorted(valid))}."
    if item["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{path}: this setting is required."
    if item["type"] == "value_error" and isinstance(item["input"], dict | ArgsKwargs):
        return f"{path}: {item['ctx']['error']}"  # a section's own check, which says what it is about
    return f"{path}: {item['msg']} (got {shown(item['input'])})"


def _keys_at(cls: Any, loc: Sequence[Any]) -> list[str]:
    """Names of the fields of the dataclass at a path inside `cls`."""
    candidates = list(_dataclasses_in(cls))
    for part in loc:
        found = []
        for candidate in candidates:
            hints = typing.get_type_hints(candidate)
            if isinstance(part, str) and part in hints:
                found += list(_dataclasses_in(hints[part]))
        candidates = found or candidates
    return sorted({field.name for candidate in candidates for field in dataclasses.fields(candidate)})


def _dataclasses_in(annotation: Any) -> Iterator[Any]:
    """Dataclasses that an annotation names: itself, members of a union, elements of a sequence."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    elif isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _dataclasses_in(argument)
