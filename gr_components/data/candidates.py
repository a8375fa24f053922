"""
`candidates.jsonl`: what mining writes, and what every ranking or distillation loss reads.

One line is one question with one document. A sidecar `candidates.jsonl.meta.json` says what made the file and from
which inputs; `check_inputs` refuses to go on when one of them has changed since.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gr_components.data.files import read_objects, shown, write_objects, writing
from gr_components.errors import DataError, ProvenanceError

LABEL_SOURCES = ("qrels", "answer_string", "pseudo")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Key:
    """
    An identifier that matched a document.

    :param text: The identifier.
    :param view: `body`, `title` or `query`.
    :param log_probability: Of the identifier given the question, in nats.
    :param count: Occurrences in the corpus.
    """

    text: str
    view: str
    log_probability: float
    count: int


@dataclass(frozen=True)
class Candidate:
    """
    A document found for a question.

    :param query: Question id.
    :param document: Document id.
    :param rank: From 1.
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
    hashes = {str(name): file_hash(name) for name in inputs}
    count = write_objects(path, (_line(candidate) for candidate in candidates))
    sidecar = {"format": "gr.candidates/1", "made_by": dict(made_by), "inputs": hashes, "sha256": file_hash(path)}
    with writing(_sidecar(path)) as file:
        file.write(json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n")
    return count


def read_candidates(path: str | Path) -> Iterator[Candidate]:
    """
    Yield the candidates of a file.

    :param path: The file.
    :raises DataError: On malformed lines.
    """
    for number, data in read_objects(path):
        try:
            keys = tuple(Key(*key) for key in data.pop("keys", ()))
            candidate = Candidate(keys=keys, **data)
        except TypeError as error:
            msg = f"{path}, line {number}: not a candidate ({error}): {shown(data)}"
            raise DataError(msg) from error
        if candidate.label_source is not None and candidate.label_source not in LABEL_SOURCES:
            wanted = ", ".join(LABEL_SOURCES)
            msg = f"{path}, line {number}: label_source must be one of {wanted}, got {candidate.label_source!r}."
            raise DataError(msg)
        yield candidate


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
        if not Path(name).is_file():
            msg = f"'{path}' was made from '{name}', which is gone. Bring it back, or make the candidates again."
            raise ProvenanceError(msg)
        found = file_hash(name)
        if found != wanted:
            msg = f"'{name}' changed since '{path}' was made (sha256 {found[:12]}…, was {wanted[:12]}…). Make it again."
            raise ProvenanceError(msg)
    return sidecar


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


def _sidecar(path: str | Path) -> Path:
    return Path(f"{path}.meta.json")


def _line(candidate: Candidate) -> dict[str, Any]:
    data = asdict(candidate)
    data["keys"] = [[key.text, key.view, key.log_probability, key.count] for key in candidate.keys]
    return data
