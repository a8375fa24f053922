"""
The vector indexes of a store: SQLite holds every vector, shards on disk hold most of them again for fast search.

A shard also lists the numbers that it takes out of earlier shards. What changed after the newest shard is read from
SQLite and searched as a delta, so a search is exact whatever the shards hold; when the delta has grown, it becomes a
shard. When shards are many or mostly dead, all vectors are written anew into one.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from haystack import logging

from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_lock import FileLock
from gr_components.document_stores.local_rows import check_finite
from gr_components.document_stores.local_schema import read_last_deletion, read_sequence
from gr_components.document_stores.local_write import Changes, write_vector
from gr_components.errors import DimensionError, IndexFormatError, SearchIndexError, StoreLockedError
from gr_components.indexes import leases, registry
from gr_components.indexes.vector import Hits, Part, Similarity, VectorShard, make_part, search

logger = logging.getLogger(__name__)

SHARD_ROWS = 8192  # vectors in the delta that make a shard worth its files
_MAX_SHARDS = 8
_MAX_DEAD = 0.3
_BATCH = 4096


@dataclass(frozen=True)
class Snapshot:
    """
    A vector index at one moment.

    :param row: Its generation.
    :param up_to: The last change that it contains.
    :param parts: Shards and delta; a number is live in at most one.
    :param lease: Keeps the shards.
    :param mostly_dead: Whether the shards hold many vectors that do not count any more, or could not be read.
    """

    row: registry.IndexRow
    up_to: int
    parts: tuple[Part, ...]
    lease: leases.Lease
    mostly_dead: bool


class Vectors:
    """
    All vector indexes of one store.

    :param database: The store's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.RLock()
        self._snapshots: dict[str, Snapshot] = {}
        self._shards: dict[Path, VectorShard] = {}

    def search(
        self, name: str, queries_QE: npt.NDArray[np.float32], top_k: int, similarity: Similarity,
        allowed: npt.NDArray[np.int64] | None, fingerprint: str | None = None,
    ) -> list[Hits]:  # fmt: skip
        """
        Find the most similar vectors for each query.

        :param name: The index.
        :param queries_QE: Q query vectors.
        :param top_k: Most hits for each query.
        :param similarity: `cosine`, `dot` or `l2`.
        :param allowed: Ascending numbers that may be found, or None for all.
        :param fingerprint: Of the model that made the queries, or None if unknown.
        :raises IndexMissingError: If there is no such index and the store is not empty.
        :raises SearchIndexError: If the index holds vectors of another model.
        """
        snapshot = self.snapshot(name)
        known = None if snapshot is None else snapshot.row.model_fingerprint
        if known is not None and fingerprint is not None and known != fingerprint:
            msg = (
                f"The vector index {name!r} holds vectors of the model {known}, but the queries were encoded by "
                f"{fingerprint}. Search with the model that encoded the documents, or encode them again."
            )
            raise SearchIndexError(msg)
        parts = () if snapshot is None else snapshot.parts
        return search(parts, queries_QE, top_k=top_k, similarity=similarity, allowed=allowed)

    def snapshot(self, name: str) -> Snapshot | None:
        """
        Return an index as it is now, or None if the whole store is empty.

        :param name: The index.
        :raises IndexMissingError: If there is no such index and the store is not empty.
        """
        with self._mutex:
            known = self._snapshots.get(name)
            with self._database.reading() as connection:
                if registry.find(connection, name) is None:
                    self._snapshots.pop(name, None)
                    if not _any_document(connection):
                        return None
                row = registry.require(connection, name, "vector")
                if known is not None and known.row == row and not _moved(connection, row, known.up_to):
                    return known
                delta = _count(connection, row, row.up_to_sequence)
            del known
            self._snapshots.pop(name, None)  # files that only it holds can be collected now
            if delta >= SHARD_ROWS and not self._database.read_only:
                self._flush(row, anew=len(row.files) >= _MAX_SHARDS)
            snapshot = self._load(name)
            if snapshot.mostly_dead and not self._database.read_only:
                row = snapshot.row
                del snapshot
                self._flush(row, anew=True)
                snapshot = self._load(name)
            self._snapshots[name] = snapshot
            # Shards of former generations would keep their memory, and their disk space although they are deleted.
            needed = registry.paths_of(self._database.folder, [known.row for known in self._snapshots.values()])
            self._shards = {path: shard for path, shard in self._shards.items() if path in needed}
            return snapshot

    def write(
        self, name: str, numbers: Sequence[int], vectors_DE: npt.NDArray[np.float32], fingerprint: str | None
    ) -> int:
        """
        Write vectors of documents; documents that are gone are left out.

        :param name: The index; made if missing.
        :param numbers: D document numbers.
        :param vectors_DE: Their vectors.
        :param fingerprint: Of the model that made them, or None if unknown.
        :returns: How many were written.
        :raises DimensionError: If they are not as wide as the vectors in the index.
        :raises NumericsError: If one holds NaN or infinity.
        :raises SearchIndexError: If the index holds vectors of another model.
        """
        vectors_DE = np.ascontiguousarray(vectors_DE, dtype="<f4")
        if vectors_DE.ndim != 2 or len(vectors_DE) != len(numbers) or (len(numbers) and not vectors_DE.shape[1]):
            msg = f"Vectors of shape {vectors_DE.shape} do not fit {len(numbers)} document numbers."
            raise DimensionError(msg)
        check_finite(vectors_DE, list(numbers))
        if not len(numbers):
            return 0
        with self._database.writing() as connection:
            row = prepare(connection, name, vectors_DE.shape[1], fingerprint)
            changes, written = Changes(connection), 0
            for number, vector_E in zip(numbers, vectors_DE, strict=True):
                sql = "SELECT 1 FROM documents WHERE number = ?"
                if connection.execute(sql, (int(number),)).fetchone() is not None:
                    write_vector(changes, row.id, int(number), vector_E.tobytes(), None)
                    written += 1
            changes.save()
        return written

    def close(self) -> None:
        """Drop opened shards and cached vectors."""
        with self._mutex:
            self._snapshots.clear()  # leases end with the last user of a snapshot
            self._shards.clear()

    def _load(self, name: str) -> Snapshot:
        missing: registry.IndexRow | None = None
        while True:
            with self._database.reading() as connection:
                row = registry.require(connection, name, "vector")
                folder = registry.folder_of(self._database.folder, row)
                try:
                    lease = leases.Lease(folder / file for file in row.files)
                    shards = [self._shard(folder / file) for file in row.files]
                except (FileNotFoundError, IndexFormatError) as error:
                    if row != missing:  # perhaps a newer generation replaced these files since the row was read
                        missing = row
                        continue
                    logger.warning("Reading vectors from the database: {error}", error=str(error))
                    return _assembled(connection, row, None, leases.Lease(()))
                return _assembled(connection, row, shards, lease)

    def _shard(self, path: Path) -> VectorShard:
        shard = self._shards.get(path)
        if shard is None:
            shard = self._shards[path] = VectorShard.open(path)
        return shard

    def _flush(self, row: registry.IndexRow, anew: bool) -> None:
        """Write a shard, unless another process is at it."""
        folder = registry.folder_of(self._database.folder, row)
        with contextlib.suppress(StoreLockedError), self._database.translated():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / leases.LOCK).hold(0):
                path = folder / registry.new_name(row)
                with self._database.reading() as connection:
                    if registry.find(connection, row.name) != row:
                        return
                    sequence = read_sequence(connection)
                    _write_shard(connection, path, row, 0 if anew else row.up_to_sequence)
                files = (path.name,) if anew else (*row.files, path.name)
                with self._database.writing() as connection:
                    registry.keep_deletions(connection, VectorShard.open(path).part.numbers_N)
                    registry.advance(connection, row, files=files, up_to_sequence=sequence)
                    registry.prune_deletions(connection)
                leases.collect(folder, files)


def prepare(
    connection: sqlite3.Connection, name: str, dimension: int, fingerprint: str | None = None
) -> registry.IndexRow:
    """
    Look a vector index up, or make it, and check that vectors fit it.

    :param connection: A connection in a write transaction.
    :param name: The index.
    :param dimension: Width of the vectors.
    :param fingerprint: Of the model that made them, or None if unknown.
    :raises DimensionError: If the index holds vectors of another width.
    :raises SearchIndexError: If it holds vectors of another model.
    """
    row = registry.register(connection, name, "vector", {"dimension": dimension}, fingerprint)
    if row.config["dimension"] != dimension:
        msg = (
            f"The vector index {name!r} holds vectors of {row.config['dimension']} dimensions, got {dimension}. Use "
            f"another index name for another model, or call `delete_index({name!r})` first."
        )
        raise DimensionError(msg)
    if fingerprint is not None and row.model_fingerprint is None:
        connection.execute("UPDATE indexes SET model_fingerprint = ? WHERE id = ?", (fingerprint, row.id))
    elif fingerprint is not None and row.model_fingerprint != fingerprint:
        msg = (
            f"The vector index {name!r} holds vectors of the model {row.model_fingerprint}, not {fingerprint}. Use "
            f"another index name for another model, or call `delete_index({name!r})` first."
        )
        raise SearchIndexError(msg)
    return row


def _assembled(
    connection: sqlite3.Connection, row: registry.IndexRow, shards: list[VectorShard] | None, lease: leases.Lease
) -> Snapshot:
    """Put shards and the changes since together; without shards everything comes from the database."""
    since = 0 if shards is None else row.up_to_sequence
    numbers_N, vectors_NE = _read(connection, row, since)
    deleted = connection.execute("SELECT number FROM deletions WHERE sequence > ?", (since,)).fetchall()
    gone = [numbers_N, np.array(deleted, dtype=np.int64).reshape(-1)]
    parts, total, dead = [make_part(numbers_N, vectors_NE)], 0, 0
    for shard in reversed(shards or []):
        live_N = ~np.isin(shard.part.numbers_N, np.concatenate(gone))
        parts.append(replace(shard.part, live_N=None if live_N.all() else live_N))
        total, dead = total + len(live_N), dead + int((~live_N).sum())
        gone.append(shard.removed_N)
    wasteful = shards is None or (dead >= SHARD_ROWS and dead > _MAX_DEAD * total)
    return Snapshot(row, read_sequence(connection), tuple(parts), lease, wasteful)


def _count(connection: sqlite3.Connection, row: registry.IndexRow, since: int) -> int:
    sql = "SELECT count(*) FROM vectors WHERE index_id = ? AND sequence > ?"
    return int(connection.execute(sql, (row.id, since)).fetchone()[0])


def _write_shard(connection: sqlite3.Connection, path: Path, row: registry.IndexRow, since: int) -> None:
    where, values = "index_id = ? AND sequence > ?", (row.id, since)
    count = _count(connection, row, since)
    removed: list[tuple[int]] = []
    if since:
        removed = connection.execute(f"SELECT number FROM vectors WHERE {where}", values).fetchall()
        removed += connection.execute("SELECT number FROM deletions WHERE sequence > ?", (since,)).fetchall()
    cursor = connection.execute(f"SELECT number, vector FROM vectors WHERE {where} ORDER BY number", values)
    batches = (_stacked(batch) for batch in iter(lambda: cursor.fetchmany(_BATCH), []))
    VectorShard.write(path, batches, count, row.config["dimension"], np.array(removed, dtype=np.int64).reshape(-1))


def _read(
    connection: sqlite3.Connection, row: registry.IndexRow, since: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    sql = "SELECT number, vector FROM vectors WHERE index_id = ? AND sequence > ? ORDER BY number"
    rows = connection.execute(sql, (row.id, since)).fetchall()
    if not rows:
        return np.empty(0, np.int64), np.empty((0, row.config["dimension"]), np.float32)
    return _stacked(rows)


def _stacked(rows: list[tuple[int, bytes]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    numbers_N = np.array([number for number, _ in rows], dtype=np.int64)
    joined = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4")
    return numbers_N, joined.reshape(len(rows), -1)


def _moved(connection: sqlite3.Connection, row: registry.IndexRow, since: int) -> bool:
    sql = "SELECT EXISTS (SELECT 1 FROM vectors WHERE index_id = ? AND sequence > ?)"
    return bool(connection.execute(sql, (row.id, since)).fetchone()[0]) or read_last_deletion(connection) > since


def _any_document(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM documents)").fetchone()[0])
