"""
`candidates.jsonl`: what mining writes, and what every ranking or distillation loss reads.

One line is one question with one document. A sidecar `candidates.jsonl.meta.json` says what made the file and from
which inputs; `check_inputs` refuses to go on when one of them has changed since.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

from gr_components.data.files import read_objects, shown, write_objects, writing
from gr_components.errors import DataError, ProvenanceError
from gr_components.packages import located

__all__ = [
    "Candidate",
    "Key",
    "candidate_line",
    "check_inputs",
    "file_hash",
    "is_current",
    "numbered_candidates",
    "path_hash",
    "read_candidates",
    "write_candidates",
    "write_sidecar",
]

LABEL_SOURCES = ("qrels", "answer_string", "pseudo")
_BLOCK = 1 << 20
_TEXT, _WHOLE, _NUMBER, _NOTHING = (str,), (int,), (int, float), type(None)
# Types of an identifier's values in the order of `Key`: the first four, or more of them.
_KEY_TYPES = (_TEXT, _TEXT, _NUMBER, _WHOLE, (list,), (*_NUMBER, _NOTHING), (*_NUMBER, _NOTHING))
_KEY_SHAPES = frozenset(shape for size in range(4, 8) for shape in product(*_KEY_TYPES[:size]))
_MODEL_FILES = (".json", ".safetensors")


@dataclass(frozen=True)
class Key:
    """
    An identifier that matched a document.

    A line holds `[text, view, log_probability, count]`, then, where they are known, `tokens, cover, prior`.

    :param text: The identifier.
    :param view: `body`, `title` or `query`; `words` for n-grams of the question's own words.
    :param log_probability: Of the identifier given the question, in nats.
    :param count: Occurrences in the corpus.
    :param tokens: What the model generated, stop included: text would not always be tokenized into the same again.
    :param cover: Share of the identifier's weight that counted in this document, since better ones overlap it.
    :param prior: P(n), the share of the corpus that the identifier is, as the search computed it.
    """

    text: str
    view: str
    log_probability: float
    count: int
    tokens: tuple[int, ...] = ()
    cover: float | None = None
    prior: float | None = None


@dataclass(frozen=True)
class Candidate:
    """
    A document found for a question.

    :param query: Question id.
    :param document: Document id.
    :param rank: From 1. A positive below those that were kept has its own rank, so that ranks may have gaps.
    :param score: What it was ranked by.
    :param label: Grade; 0 = not relevant. None where nobody judged.
    :param label_source: `qrels`, `answer_string` or `pseudo`; None without a label.
    :param keys: Identifiers that matched it.
    :param teachers: Scores of teachers by their names.
    """

    query: str
    document: str
    rank: int
    score: float
    label: int | None = None
    label_source: str | None = None
    keys: tuple[Key, ...] = ()
    teachers: dict[str, float] = field(default_factory=dict)


def write_candidates(
    path: str | Path, candidates: Iterable[Candidate], *, made_by: Mapping[str, Any], inputs: Iterable[str | Path]
) -> int:
    """
    Write candidates and their sidecar.

    :param path: The file; `.gz` is compressed.
    :param candidates: What to write.
    :param made_by: What made them: command, settings, models. Plain values.
    :param inputs: The files that were read; their hashes are recorded.
    :returns: How many were written.
    """
    hashes = {str(name): path_hash(name) for name in inputs}
    count = write_objects(path, (candidate_line(candidate) for candidate in candidates))
    write_sidecar(path, made_by=made_by, hashes=hashes)
    return count


def write_sidecar(
    path: str | Path, *, made_by: Mapping[str, Any], hashes: Mapping[str, str], summary: Mapping[str, Any] | None = None
) -> None:
    """
    Write what made a finished file, and the hashes of the file and of its inputs.

    :param path: The file.
    :param made_by: Plain values that say how it was made.
    :param hashes: Of the files and model folders that were read, by path, from before they were read.
    :param summary: Anything else worth knowing about the file.
    """
    sidecar = {
        "format": "gr.candidates/1",
        "made_by": dict(made_by),
        "inputs": dict(hashes),
        "sha256": file_hash(path),
        "summary": dict(summary or {}),
    }
    with writing(_sidecar(path)) as file:
        file.write(json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n")


def read_candidates(path: str | Path) -> Iterator[Candidate]:
    """
    Yield the candidates of a file.

    :param path: The file.
    :raises DataError: On malformed lines.
    """
    for _, candidate in numbered_candidates(path):
        yield candidate


def numbered_candidates(path: str | Path) -> Iterator[tuple[int, Candidate]]:
    """
    Yield the candidates of a file with their line numbers.

    :param path: The file.
    :raises DataError: On malformed lines.
    """
    for number, data in read_objects(path):
        try:
            candidate = _candidate(data.pop("keys", []), data)
        except TypeError as error:
            msg = f"{path}, line {number}: not a candidate ({error}): {shown(data)}"
            raise DataError(msg) from error
        if candidate.label_source is not None and candidate.label_source not in LABEL_SOURCES:
            wanted = ", ".join(LABEL_SOURCES)
            msg = f"{path}, line {number}: label_source must be one of {wanted}, got {candidate.label_source!r}."
            raise DataError(msg)
        yield number, candidate


def check_inputs(path: str | Path) -> dict[str, Any]:
    """
    Make sure that a candidate file and everything it was made from are as they were.

    :param path: The candidate file.
    :returns: The sidecar.
    :raises ProvenanceError: If the sidecar is missing, or a file is missing or has changed.
    """
    sidecar_path = _sidecar(path)
    if not sidecar_path.is_file():
        msg = f"'{path}' has no '{sidecar_path.name}', so nobody knows what it was made from. Make it again."
        raise ProvenanceError(msg)
    sidecar: dict[str, Any] = json.loads(sidecar_path.read_text(encoding="utf-8"))
    for name, wanted in {str(path): sidecar["sha256"], **sidecar["inputs"]}.items():
        place = _place(name, Path(path))
        if not place.exists():
            msg = f"'{path}' was made from '{name}', which is gone. Bring it back, or make the candidates again."
            raise ProvenanceError(msg)
        found = path_hash(place)
        if found != wanted:
            msg = f"'{name}' changed since '{path}' was made (sha256 {found[:12]}…, was {wanted[:12]}…). Make it again."
            raise ProvenanceError(msg)
    return sidecar


def _place(name: str, path: Path) -> Path:
    """Find an input, also in a folder of runs that was moved, or that is seen from another working directory."""
    found = located(name)
    if not found.exists():
        ends = [Path(*found.parts[first:]) for first in range(1, len(found.parts))]
        places = (folder / end for folder in (path.parent, path.parent.parent) for end in ends)
        return next((place for place in places if place.exists()), found)
    return found


def is_current(path: str | Path, made_by: Mapping[str, Any]) -> bool:
    """
    Say whether a candidate file is there, was made in this way, and nothing that it was made from has changed.

    :param path: The candidate file.
    :param made_by: What would make it.
    """
    if not Path(path).is_file():
        return False
    try:
        return bool(check_inputs(path)["made_by"] == made_by)
    except ProvenanceError:
        return False


def file_hash(path: str | Path) -> str:
    """
    Return the SHA-256 of a file's bytes.

    :param path: The file.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def path_hash(path: str | Path) -> str:
    """
    Return the SHA-256 of a file, or of a model folder: names and contents of its `.json` and `.safetensors` files.

    :param path: The file or folder, or `package:NAME/PATH`.
    """
    path = located(path)
    if not path.is_dir():
        return file_hash(path)
    files = sorted(file for file in path.rglob("*") if file.suffix in _MODEL_FILES and file.is_file())
    parts = [f"{file.relative_to(path).as_posix()} {file_hash(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def candidate_line(candidate: Candidate) -> dict[str, Any]:
    """
    Return a candidate as the values of its line.

    :param candidate: What was found.
    """
    return {
        "query": candidate.query,
        "document": candidate.document,
        "rank": candidate.rank,
        "score": candidate.score,
        "label": candidate.label,
        "label_source": candidate.label_source,
        "keys": [_key_values(key) for key in candidate.keys],
        "teachers": candidate.teachers,
    }


def _candidate(keys: Any, data: dict[str, Any]) -> Candidate:
    """Build a candidate from the values of a line. Types are those of JSON, so that `type` tells true from 1."""
    if type(keys) is not list or any(type(key) is not list for key in keys):
        msg = f"keys must be a list of lists, got {shown(keys)}"
        raise TypeError(msg)
    # A file has millions of identifiers: what is wrong is only looked for in a line where something is.
    known = {tuple(map(type, key)) for key in keys} <= _KEY_SHAPES
    if not (known and _are_whole(chain.from_iterable(key[4] for key in keys if len(key) > 4))):
        for key in keys:
            _check_key(*key)
    candidate = Candidate(keys=tuple(_key(*key) for key in keys), **data)
    _check("query", candidate.query, _TEXT, "a text")
    _check("document", candidate.document, _TEXT, "a text")
    _check("rank", candidate.rank, _WHOLE, "a whole number")
    _check("score", candidate.score, _NUMBER, "a number")
    _check("label", candidate.label, (*_WHOLE, _NOTHING), "a whole number or null")
    _check("label_source", candidate.label_source, (*_TEXT, _NOTHING), "a text or null")
    _check("teachers", candidate.teachers, (dict,), "a mapping of names to numbers")
    for name, score in candidate.teachers.items():
        _check(f"teachers.{name}", score, _NUMBER, "a number")
    return candidate


def _key(
    text: str, view: str, log_probability: float, count: int, tokens: Sequence[int] = (), cover: float | None = None,
    prior: float | None = None,
) -> Key:  # fmt: skip
    return Key(text, view, log_probability, count, tuple(tokens), cover, prior)


def _check_key(
    text: Any, view: Any, log_probability: Any, count: Any, tokens: Any = (), cover: Any = None, prior: Any = None
) -> None:
    """Say what is wrong with an identifier, if anything is."""
    _check("the text of an identifier", text, _TEXT, "a text")
    where = f"of the identifier {shown(text)}"
    _check(f"the view {where}", view, _TEXT, "a text")
    _check(f"the log-probability {where}", log_probability, _NUMBER, "a number")
    _check(f"the count {where}", count, _WHOLE, "a whole number")
    _check(f"the cover {where}", cover, (*_NUMBER, _NOTHING), "a number or null")
    _check(f"the prior {where}", prior, (*_NUMBER, _NOTHING), "a number or null")
    if type(tokens) not in (list, tuple) or not _are_whole(tokens):
        msg = f"the tokens {where} must be a list of whole numbers, got {shown(tokens)}"
        raise TypeError(msg)


def _are_whole(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= {int}


def _check(name: str, value: Any, types: tuple[type, ...], wanted: str) -> None:
    if type(value) not in types:
        msg = f"{name} must be {wanted}, got {shown(value)}"
        raise TypeError(msg)


def _key_values(key: Key) -> list[Any]:
    values = [key.text, key.view, key.log_probability, key.count]
    if key.tokens or key.cover is not None or key.prior is not None:
        values += [list(key.tokens), key.cover, key.prior]
    return values


def _sidecar(path: str | Path) -> Path:
    return Path(f"{path}.meta.json")
