"""
The generative indexes of a store: immutable suffix segments that together hold every document's text as tokens.

`build` adds a segment with the documents that are missing. A document that was deleted or changed stays in its segment
and is dead: liveness is derived from the database whenever an index is opened, so it is never out of date.
"""

import json
import reprlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from haystack import logging

from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_lock import FileLock
from gr_components.document_stores.local_schema import read_last_deletion, read_sequence
from gr_components.errors import ConfigError, IndexFormatError, TokenizerMismatchError
from gr_components.extras import need
from gr_components.indexes import leases, registry
from gr_components.progress import Reporter, Silent, Task

if TYPE_CHECKING:
    from gr_components.indexes.suffix import SuffixSegment
    from gr_components.indexes.suffix_index import SuffixIndex

logger = logging.getLogger(__name__)

_PAGE = 512
_MAX_SEGMENTS = 8
_MERGED_SEGMENTS = 4  # how many are left after merging because of their number
_MAX_DEAD = 0.3
_MAX_TOKENS = 1 << 30  # in one field of a merged segment

#: Turns numbers, titles, texts and pseudo-queries of documents into what the index stores.
Tokenize = Callable[[Sequence[int], Sequence[str], Sequence[str], Sequence[Sequence[str]]], list[TokenizedDocument]]


@dataclass(frozen=True)
class SuffixSnapshot:
    """
    A generative index at one moment.

    :param index: What decoding searches in.
    :param config: What the index was made with: `fields`, `boundary`, `tokenizer_fingerprint`, `vocabulary_size`, and
        whatever its builder added.
    :param model_fingerprint: Of the model that it was made for, or None.
    :param generation: Counts the index's states.
    :param lag: Documents with text that the index lacks; `build_suffix` adds them.
    :param lease: Keeps its files.
    """

    index: "SuffixIndex"
    config: dict[str, Any]
    model_fingerprint: str | None
    generation: int
    lag: int
    lease: leases.Lease


class Suffixes:
    """
    All generative indexes of one store.

    :param database: The store's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.RLock()
        self._segments: dict[Path, SuffixSegment] = {}
        self._snapshots: dict[str, tuple[tuple[registry.IndexRow, int], SuffixSnapshot]] = {}

    def snapshot(self, name: str) -> SuffixSnapshot:
        """
        Return an index as it is now; an empty one if the whole store is empty.

        :param name: The index.
        :raises IndexMissingError: If there is no such index and the store is not empty.
        :raises IndexFormatError: If its files are damaged: building it again mends that.
        """
        with self._mutex:
            lost: registry.IndexRow | None = None
            while True:
                with self._database.reading() as connection:
                    row = registry.find(connection, name)
                    if row is None:
                        self._snapshots.pop(name, None)
                    if row is None and not connection.execute("SELECT 1 FROM documents LIMIT 1").fetchone():
                        return SuffixSnapshot(_suffix_index((), ()), {}, None, 0, 0, leases.Lease(()))
                    row = registry.require(connection, name, "suffix")
                    lag = _count_missing(connection, row.up_to_sequence)
                    key = (row, read_last_deletion(connection))
                    known = self._snapshots.get(name)
                    if known is not None and known[0] == key:
                        return replace(known[1], lag=lag)
                    numbers = _live_numbers(connection)
                    folder = registry.folder_of(self._database.folder, row)
                    try:
                        lease = leases.Lease(folder / file for file in row.files)
                    except FileNotFoundError as error:
                        if row == lost:
                            msg = f"Files of the index {name!r} are missing in '{folder}'. Build the index again."
                            raise IndexFormatError(msg) from error
                        lost = row  # perhaps a newer generation replaced them since the row was read
                        continue
                break
            segments = [self._segment(folder / file) for file in row.files]
            index = _suffix_index(segments, [_live_mask(segment, numbers) for segment in segments])
            snapshot = SuffixSnapshot(index, row.config, row.model_fingerprint, row.generation, lag, lease)
            self._snapshots[name] = (key, snapshot)
            self._drop_unused(row)
            return snapshot

    def build(
        self, name: str, tokenize: Tokenize, config: Mapping[str, Any], model_fingerprint: str | None,
        report: Reporter = Silent(),  # noqa: B008 - stateless
    ) -> int:  # fmt: skip
        """
        Add the documents that an index lacks, and merge its segments when they are many or mostly dead.

        :param name: The index; made if missing.
        :param tokenize: Turns documents into tokens.
        :param config: `fields`, `boundary`, `tokenizer_fingerprint`, `vocabulary_size` and anything else to remember.
        :param model_fingerprint: Of the model it is made for, or None.
        :param report: Where progress goes.
        :returns: How many documents were added.
        :raises TokenizerMismatchError: If the index was made with another tokenizer.
        :raises ConfigError: If anything else in its configuration differs, such as the fields or the grammar.
        :raises IndexMissingError: If it was deleted while this built it.
        """
        with self._database.writing() as connection:
            row = registry.register(connection, name, "suffix", config, model_fingerprint)
        _check_config(row, config)
        registered = row.id
        folder = registry.folder_of(self._database.folder, row)
        with self._database.translated():
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / leases.LOCK).hold(self._database.lock_timeout_s):
            row = self._sound_row(name)
            if row.id != registered:  # deleted and made again while this waited
                return self.build(name, tokenize, config, model_fingerprint, report)
            with self._database.reading() as connection:
                sequence, missing = read_sequence(connection), _count_missing(connection, row.up_to_sequence)
            files = row.files
            if missing:
                documents = self._missing(row, sequence, missing, tokenize, report)
                files += (self._write_segment(folder, row, documents, report),)
            if missing or sequence > row.up_to_sequence:
                row = self._publish(row, files, sequence, model_fingerprint)
            self._merge(row, folder, report)
            return missing

    def close(self) -> None:
        """Drop opened segments."""
        with self._mutex:
            self._snapshots.clear()  # leases end with the last user of a snapshot
            self._segments.clear()

    def _sound_row(self, name: str) -> registry.IndexRow:
        """Return the current generation, or an empty one if its files are damaged."""
        with self._database.reading() as connection:
            row = registry.require(connection, name, "suffix")
        folder = registry.folder_of(self._database.folder, row)
        try:
            for file in row.files:
                self._segment(folder / file)
        except IndexFormatError as error:
            logger.warning("Building the index {index} again: {error}", index=name, error=str(error))
            return replace(row, files=(), up_to_sequence=0)
        return row

    def _segment(self, path: Path) -> "SuffixSegment":
        need("numba", "generative")
        from gr_components.indexes.suffix import SuffixSegment

        with self._mutex:
            segment = self._segments.get(path)
            if segment is None:
                segment = self._segments[path] = SuffixSegment.open(path)
            return segment

    def _drop_unused(self, current: registry.IndexRow) -> None:
        """Close the segments that no current state of an index needs: open files keep their disk space."""
        with self._mutex:
            others = [key[0] for name, (key, _) in self._snapshots.items() if name != current.name]
            needed = registry.paths_of(self._database.folder, [current, *others])
            self._segments = {path: segment for path, segment in self._segments.items() if path in needed}

    def _missing(
        self, row: registry.IndexRow, sequence: int, total: int, tokenize: Tokenize, report: Reporter
    ) -> Iterator[TokenizedDocument]:
        last = 0
        sql = (
            "SELECT number, title, content, queries FROM documents "
            "WHERE sequence > ? AND sequence <= ? AND searchable AND number > ? ORDER BY number LIMIT ?"
        )
        with Task(report, f"tokenize for {row.name}", total) as task:
            while True:
                with self._database.reading() as connection:
                    page = connection.execute(sql, (row.up_to_sequence, sequence, last, _PAGE)).fetchall()
                if not page:
                    return
                numbers, titles, contents, queries = zip(*page, strict=True)
                texts = [content or "" for content in contents]
                yield from tokenize(numbers, titles, texts, [json.loads(q) if q else [] for q in queries])
                last = numbers[-1]
                task.advance(len(page))

    def _write_segment(
        self, folder: Path, row: registry.IndexRow, documents: Iterable[TokenizedDocument], report: Reporter
    ) -> str:
        need("numba", "generative")
        from gr_components.indexes.suffix import SuffixSegment

        path = folder / registry.new_name(row)
        with self._database.full_disk_explained():
            segment = SuffixSegment.build(
                path,
                documents,
                fields=row.config["fields"],
                boundary=row.config["boundary"],
                tokenizer_fingerprint=row.config["tokenizer_fingerprint"],
                vocabulary_size=row.config["vocabulary_size"],
                report=report,
            )
        with self._mutex:
            self._segments[path] = segment
        return path.name

    def _publish(
        self, row: registry.IndexRow, files: Sequence[str], sequence: int, model_fingerprint: str | None = None
    ) -> registry.IndexRow:
        with self._database.writing() as connection:
            registry.advance(connection, row, files=files, up_to_sequence=sequence, fingerprint=model_fingerprint)
            return registry.require(connection, row.name, "suffix")

    def _merge(self, row: registry.IndexRow, folder: Path, report: Reporter) -> None:
        with self._database.reading() as connection:
            numbers = _live_numbers(connection)
        segments = [self._segment(folder / file) for file in row.files]
        masks = [_live_mask(segment, numbers) for segment in segments]
        live = [
            segment.num_documents if m is None else int(m.sum()) for segment, m in zip(segments, masks, strict=True)
        ]
        tokens = [max((len(text.arrays.text_N) for text in segment.fields.values()), default=0) for segment in segments]
        chosen = segments_to_merge(live, [segment.num_documents for segment in segments], tokens)
        if chosen:
            documents = (
                document for s in chosen for document in _documents_of(segments[s], masks[s], row.config["boundary"])
            )
            files = [file for s, file in enumerate(row.files) if s not in chosen]
            if any(live[s] for s in chosen):
                files.append(self._write_segment(folder, row, documents, report))
            row = self._publish(row, files, row.up_to_sequence)
        with self._mutex:
            self._snapshots.pop(row.name, None)
        leases.collect(folder, row.files)
        self._drop_unused(row)


def segments_to_merge(live: Sequence[int], documents: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """
    Choose the segments that are written anew as one.

    :param live: Live documents of each segment.
    :param documents: All documents of each segment.
    :param tokens: Tokens of the longest field of each segment.
    :returns: Positions; empty if nothing needs to be done.
    """
    dead = [1 - alive / max(total, 1) for alive, total in zip(live, documents, strict=True)]
    chosen: list[int] = []
    if sum(live) < (1 - _MAX_DEAD) * sum(documents):
        chosen = [s for s in range(len(live)) if dead[s] > _MAX_DEAD]
    if len(live) - len(chosen) + bool(chosen) > _MAX_SEGMENTS:
        for s in sorted(range(len(live)), key=tokens.__getitem__):
            if s not in chosen and len(live) - len(chosen) + 1 > _MERGED_SEGMENTS:
                chosen.append(s)
    while sum(tokens[s] for s in chosen) > _MAX_TOKENS and len(chosen) > 1:
        chosen.remove(max(chosen, key=tokens.__getitem__))
    return sorted(chosen)


def _documents_of(
    segment: "SuffixSegment", mask: npt.NDArray[np.bool_] | None, boundary: int
) -> Iterator[TokenizedDocument]:
    """Read documents back from a segment."""
    for d, number in enumerate(segment.numbers_D.tolist()):
        if mask is None or mask[d]:
            entries: dict[str, list[list[int]]] = {}
            for name, text in segment.fields.items():
                tokens = text.tokens(d)  # a boundary before each entry
                starts = np.flatnonzero(tokens == boundary)
                entries[name] = [part[1:].tolist() for part in np.split(tokens, starts) if len(part)]
            yield TokenizedDocument(number=number, entries=entries)


def _suffix_index(segments: Sequence["SuffixSegment"], live: Sequence[npt.NDArray[np.bool_] | None]) -> "SuffixIndex":
    need("numba", "generative")
    from gr_components.indexes.suffix_index import SuffixIndex

    return SuffixIndex(segments, live)


def _live_mask(segment: "SuffixSegment", live_numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    mask = np.isin(segment.numbers_D, live_numbers)
    return None if mask.all() else mask


def _live_numbers(connection: Any) -> npt.NDArray[np.int64]:
    return np.array(connection.execute("SELECT number FROM documents").fetchall(), dtype=np.int64).reshape(-1)


def _count_missing(connection: Any, since: int) -> int:
    sql = "SELECT count(*) FROM documents WHERE sequence > ? AND searchable"
    return int(connection.execute(sql, (since,)).fetchone()[0])


def _check_config(row: registry.IndexRow, config: Mapping[str, Any]) -> None:
    remedy = f"Use another index name for another model, or call `delete_index({row.name!r})` first."
    if row.config["tokenizer_fingerprint"] != config["tokenizer_fingerprint"]:
        msg = (
            f"The index {row.name!r} was made with the tokenizer {row.config['tokenizer_fingerprint'][:12]}, not "
            f"{config['tokenizer_fingerprint'][:12]}. {remedy}"
        )
        raise TokenizerMismatchError(msg)
    for place, before, now in _differences(row.config, json.loads(json.dumps(dict(config)))):
        msg = f"The index {row.name!r} was made with {place}={before}, not {now}. {remedy}"
        raise ConfigError(msg)


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield where two configurations differ, and what is there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for at, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{place}[{at}]")
    elif before != now:
        yield place, reprlib.repr(before), reprlib.repr(now)
