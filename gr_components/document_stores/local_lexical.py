"""
Keeping the lexical index of a store equal to its documents.

The tantivy folder is brought up to date before a search: it applies the changes since the commit that the registry
names. A crash between tantivy's commit and the registry's repeats them, which does no harm; a folder that is damaged,
or older than the registry says, is built again. Where nothing can be written, the index is made in memory instead.
"""

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack import logging

from gr_components.data.records import searchable_text
from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_lock import FileLock
from gr_components.document_stores.local_schema import has_changed, read_sequence
from gr_components.errors import ConfigError, IndexFormatError, StoreLockedError
from gr_components.indexes import leases, registry
from gr_components.indexes.lexical import Analysis, Hits, LexicalIndex, read_opstamp

logger = logging.getLogger(__name__)

NAME = "lexical"
_PATIENCE_S = 5.0  # a search waits this long for another process to finish the index, then uses it as it is


class Lexical:
    """
    The lexical index of one store.

    :param database: The store's database.
    :param options: Settings that differ from what the index has, or from the defaults for a new one: `language`,
        `stop_words`, `cjk_ngrams`, `queries`.
    """

    def __init__(self, database: Database, options: Mapping[str, Any]) -> None:
        self._database = database
        self._options = dict(options)
        _analysis(self._new_config())  # checks them
        self._mutex = threading.RLock()
        self._forget()

    def search(self, queries: Sequence[str], top_k: int, allowed: npt.NDArray[np.int64] | None) -> list[Hits]:
        """
        Find the best documents for each query.

        :param queries: Texts.
        :param top_k: Most hits for each query.
        :param allowed: Ascending numbers that may be found, or None for all.
        """
        if not self._database.exists() and not self._database.read_only:
            return [[] for _ in queries]  # reading makes no store
        index, behind = self.current()
        if behind and allowed is None:
            with self._database.reading() as connection:  # the index may still hold deleted documents
                allowed = _numbers(connection)
        try:
            return index.search(queries, top_k=top_k, allowed=allowed)
        except IndexFormatError as error:
            logger.warning("Building the lexical index again: {error}", error=str(error))
            with self._mutex:
                self._discard()
                index, _ = self.current()
            return index.search(queries, top_k=top_k, allowed=allowed)

    def current(self) -> tuple[LexicalIndex, int]:
        """
        Return the index, brought up to date, and how many documents it lacks: none unless another process is at it.

        :raises StoreLockedError: If there is no index yet and another process does not finish it in time.
        """
        with self._mutex:
            with self._database.reading() as connection:
                row = registry.find(connection, NAME)
                if row is not None:
                    self._check(row)
                if self._index is not None and row == self._row and not has_changed(connection, self._up_to):
                    return self._index, 0
            if self._database.read_only:
                return self._without_writing(row), 0
            try:
                return self._catch_up(), 0
            except StoreLockedError:
                if self._index is None:
                    raise
                with self._database.reading() as connection:
                    lag = _lag(connection, self._up_to)
                logger.warning("The lexical index lags {lag} documents: another process is writing", lag=lag)
                return self._index, max(lag, 1)

    def register(self, connection: sqlite3.Connection) -> None:
        """
        Enter the index into the registry, so that its settings are fixed.

        :param connection: A connection in a write transaction.
        """
        self._check(registry.register(connection, NAME, "lexical", self._new_config()))

    def close(self) -> None:
        """Drop the opened index."""
        with self._mutex:
            self._forget()

    def _forget(self) -> None:
        self._index: LexicalIndex | None = None
        self._row: registry.IndexRow | None = None  # the generation that `_index` is
        self._up_to = -1  # the last change that `_index` contains
        self._in_memory = False
        self._damaged: tuple[str, ...] = ()  # files that a read-only store has found to be damaged

    def _catch_up(self) -> LexicalIndex:
        with self._database.reading() as connection:
            row = registry.find(connection, NAME)
        if row is None:
            with self._database.writing() as connection:
                row = registry.register(connection, NAME, "lexical", self._new_config())
        folder = registry.folder_of(self._database.folder, row)
        with self._database.translated():
            folder.mkdir(parents=True, exist_ok=True)
        longest = self._database.lock_timeout_s
        patience = longest if self._index is None else min(_PATIENCE_S, longest)
        with self._database.translated(), FileLock(folder / leases.LOCK).hold(patience, own_timeout_s=longest):
            registered = row.id
            with self._database.reading() as connection:
                row = registry.find(connection, NAME)
            if row is None or row.id != registered:  # deleted while this waited
                return self._catch_up()
            index = self._opened(row, folder)
            if index is None:
                return self._build(row, folder)
            return self._apply(row, folder, index)

    def _opened(self, row: registry.IndexRow, folder: Path) -> LexicalIndex | None:
        """Return the index of a generation, or None if it has to be built."""
        if not row.files:
            return None
        try:
            path = folder / row.files[0]
            if read_opstamp(path) < row.generation:
                logger.warning("The lexical index '{path}' is older than the store", path=str(path))
                return None
            if self._index is None or self._row is None or self._row.files != row.files:
                self._index = LexicalIndex.open(path, _analysis(row.config))
            else:
                self._index.reload()
        except IndexFormatError as error:
            logger.warning("The lexical index has to be built again: {error}", error=str(error))
            return None
        return self._index

    def _apply(self, row: registry.IndexRow, folder: Path, index: LexicalIndex) -> LexicalIndex:
        try:
            with self._database.reading() as connection:
                sequence, live = read_sequence(connection), _count(connection)
                if has_changed(connection, row.up_to_sequence):
                    index.apply(
                        _removed(connection, row.up_to_sequence), _added(connection, row.config, row.up_to_sequence)
                    )
        except IndexFormatError as error:
            logger.warning("Building the lexical index again: {error}", error=str(error))
            return self._build(row, folder)
        if index.num_documents != live:
            logger.warning(
                "The lexical index holds {has} documents instead of {live}", has=index.num_documents, live=live
            )
            return self._build(row, folder)
        return self._publish(row, row.files, index, sequence)

    def _build(self, row: registry.IndexRow, folder: Path) -> LexicalIndex:
        name = registry.new_name(row)
        try:
            index = LexicalIndex.create(folder / name, _analysis(row.config))
            with self._database.reading() as connection:
                sequence = read_sequence(connection)
                index.apply((), _added(connection, row.config, 0))
                numbers = _numbers(connection)
        except BaseException:
            shutil.rmtree(folder / name, ignore_errors=True)
            raise
        self._publish(row, (name,), index, sequence, numbers)
        leases.collect(folder, (name,))
        return index

    def _publish(
        self, row: registry.IndexRow, files: tuple[str, ...], index: LexicalIndex, sequence: int,
        new: npt.NDArray[np.int64] | None = None,
    ) -> LexicalIndex:  # fmt: skip
        """Make a state of the index current; `new` are the numbers in files that were not current before."""
        generation = index.opstamp
        if (row.files, row.generation) != (files, generation):
            with self._database.writing() as connection:
                if new is not None:
                    registry.keep_deletions(connection, new)
                registry.advance(connection, row, files=files, up_to_sequence=sequence, generation=generation)
                registry.prune_deletions(connection)
                row = registry.require(connection, NAME, "lexical")
        self._index, self._row, self._up_to = index, row, sequence
        return index

    def _without_writing(self, row: registry.IndexRow | None) -> LexicalIndex:
        if row is not None and row.files and row.files != self._damaged:
            path = registry.folder_of(self._database.folder, row) / row.files[0]
            try:
                index = open_read_only(path, row)
                with self._database.reading() as connection:
                    current = not has_changed(connection, row.up_to_sequence)
                    if current and index.num_documents == _count(connection):
                        self._index, self._row, self._in_memory = index, row, False
                        self._up_to = read_sequence(connection)
                        return index
            except IndexFormatError as error:
                logger.warning("The lexical index cannot be read: {error}", error=str(error))
        config = self._new_config() if row is None else row.config
        with self._database.reading() as connection:
            if self._index is not None and self._in_memory:
                removed = _removed(connection, self._up_to)
                self._index.apply(removed, _added(connection, config, self._up_to))
            if self._index is None or not self._in_memory or self._index.num_documents != _count(connection):
                logger.warning("Building the lexical index in memory: the one on disk is behind and cannot be written")
                self._index, self._in_memory = LexicalIndex.create(None, _analysis(config)), True
                self._index.apply((), _added(connection, config, 0))
            self._row, self._up_to = row, read_sequence(connection)
        return self._index

    def _discard(self) -> None:
        """Make sure that the current files are not used again."""
        row = self._row
        self._forget()
        if self._database.read_only:
            self._damaged = row.files if row is not None else ()
            return
        with self._database.writing() as connection:
            row = registry.require(connection, NAME, "lexical")
            registry.advance(connection, row, files=(), up_to_sequence=0)

    def _new_config(self) -> dict[str, Any]:
        known = {**Analysis().to_dict(), "queries": False}
        return {key: known[key] if self._options.get(key) is None else self._options[key] for key in known}

    def _check(self, row: registry.IndexRow) -> None:
        for key, value in self._options.items():
            if value is not None and row.config[key] != value:
                msg = (
                    f"The lexical index of '{self._database.folder}' was made with {key}={row.config[key]!r}, not "
                    f"{value!r}. Leave the setting out, or call `delete_index({NAME!r})` to have it made again."
                )
                raise ConfigError(msg)


def open_read_only(path: Path, row: registry.IndexRow) -> LexicalIndex:
    """
    Open the files of a lexical index where they lie, without writing anything.

    :param path: Their folder.
    :param row: The generation that they are.
    :raises IndexFormatError: If they are damaged.
    """
    return LexicalIndex.open(path, _analysis(row.config), writable=False)


def _analysis(config: Mapping[str, Any]) -> Analysis:
    return Analysis(**{key: value for key, value in config.items() if key != "queries"})


def _added(connection: sqlite3.Connection, config: Mapping[str, Any], since: int) -> Iterator[tuple[int, str]]:
    sql = "SELECT number, title, content, queries FROM documents WHERE sequence > ? ORDER BY number"
    for number, title, content, queries in connection.execute(sql, (since,)):
        text = searchable_text(title, content or "")
        if config["queries"] and queries:
            text = "\n".join([text, *json.loads(queries)])
        yield number, text


def _removed(connection: sqlite3.Connection, since: int) -> Iterator[int]:
    for (number,) in connection.execute("SELECT number FROM deletions WHERE sequence > ?", (since,)):
        yield number


def _numbers(connection: sqlite3.Connection) -> npt.NDArray[np.int64]:
    found = connection.execute("SELECT number FROM documents ORDER BY number").fetchall()
    return np.array(found, dtype=np.int64).reshape(-1)


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])


def _lag(connection: sqlite3.Connection, since: int) -> int:
    return int(connection.execute("SELECT count(*) FROM documents WHERE sequence > ?", (since,)).fetchone()[0])
