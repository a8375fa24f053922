"""
Pipeline definitions: Haystack's YAML plus a section `parameters`, whose values replace `${name}` in the rest.

```yaml
parameters:
  store: <required>        # must be given
  top_k: 10                # a default; a value given must be of the same type
components:
  retriever:
    type: gr_components.retrievers.bm25.BM25Retriever
    init_parameters:
      top_k: ${top_k}      # keeps its type
```

The sections `inputs` and `outputs` name what goes in and comes out, as Hayhooks reads them: `query: [a.query, b.query]`
and `documents: joiner.documents`. Substitution works on the parsed tree, so a value can never change the structure.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gr_components.errors import ConfigError

_FOLDER = Path(__file__).parent / "definitions"
_REQUIRED = "<required>"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Definition:
    """
    A pipeline definition whose parameters are not filled in yet.

    :param name: Shipped name or file path, for messages.
    :param parameters: Defaults; `<required>` marks those without.
    :param body: Everything else: `components`, `connections`, `inputs`, `outputs`.
    :param source: The YAML text as it was read.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def fill(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return the plain Haystack definition.

        :param parameters: Values for parameters that differ from their defaults.
        :raises ConfigError: If a parameter is unknown, missing, of the wrong type, or used but not declared.
        """
        problems = [self._unknown(name) for name in parameters if name not in self.parameters]
        values = {**self.parameters, **{name: v for name, v in parameters.items() if name in self.parameters}}
        problems += [f"parameter '{name}' must be given" for name, value in values.items() if value == _REQUIRED]
        problems += [
            f"parameter '{name}' must be of type {type(self.parameters[name]).__name__}, like its default"
            f" {self.parameters[name]!r}, got {value!r}"
            for name, value in values.items()
            if not _same_type(self.parameters[name], value)
        ]
        used = set(_references(self.body))
        problems += [
            f"'${{{name}}}' is used but not declared under 'parameters'" for name in sorted(used - set(values))
        ]
        if problems:
            raise ConfigError(_listing(f"Pipeline '{self.name}'", problems))
        return {key: _substitute(value, values) for key, value in self.body.items()}

    def _unknown(self, name: str) -> str:
        near = did_you_mean(name, self.parameters)
        return f"unknown parameter '{name}'.{near} Parameters: {', '.join(self.parameters) or 'none'}"


def names() -> list[str]:
    """Return the names of the shipped definitions."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read(name_or_path: str | Path) -> Definition:
    """
    Read a shipped definition or a YAML file.

    :param name_or_path: A name from `names()`, or a path that ends in `.yaml` or `.yml` or contains a slash.
    :raises ConfigError: If there is none, or the file is no pipeline definition.
    """
    name = str(name_or_path)
    path = _FOLDER / f"{name}.yaml" if name in names() else Path(name)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = did_you_mean(name, names())
        msg = f"There is no pipeline '{name}'.{near} Shipped are {', '.join(names())}; or give the path of a YAML file."
        raise ConfigError(msg) from error
    return parse(source, name)


def parse(source: str, name: str) -> Definition:
    """
    Parse YAML text.

    :param source: The text.
    :param name: How messages call it.
    :raises ConfigError: If the text is no pipeline definition.
    """
    try:
        data = yaml.safe_load(source)
    except yaml.YAMLError as error:
        msg = f"Pipeline '{name}' is not valid YAML: {error}"
        raise ConfigError(msg) from error
    if not isinstance(data, dict) or not isinstance(data.get("components"), dict) or not data["components"]:
        msg = f"Pipeline '{name}' has no section 'components', a mapping of names to components."
        raise ConfigError(msg)
    parameters = data.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        msg = f"Pipeline '{name}': 'parameters' must be a mapping of names to default values, got {parameters!r}."
        raise ConfigError(msg)
    return Definition(name=name, parameters=parameters, body=data, source=source)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    Return " Did you mean 'x'?", or nothing if no known name is near.

    :param name: What was written.
    :param known: What exists.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _listing(where: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{where}: {problems[0]}."
    return f"{where} has {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)


def _same_type(default: Any, value: Any) -> bool:
    if default is None or value is None or default == _REQUIRED:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _references(node: Any) -> Iterable[str]:
    if isinstance(node, str):
        yield from _REFERENCE.findall(node)
    elif isinstance(node, dict):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _substitute(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, str):
        whole = _REFERENCE.fullmatch(node)
        return values[whole[1]] if whole else _REFERENCE.sub(lambda match: str(values[match[1]]), node)
    if isinstance(node, dict):
        return {key: _substitute(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, values) for value in node]
    return node
