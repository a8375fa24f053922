"""Bringing a store that an older version wrote to the format of this one."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gr_components.document_stores import local_schema
from gr_components.document_stores.local_database import Database
from gr_components.document_stores.local_schema import read_format, refusal
from gr_components.errors import StoreError


@dataclass(frozen=True)
class Migrated:
    """
    What a store was and is.

    :param before: Its format version before.
    :param after: Its format version now.
    """

    before: int
    after: int


def migrate(folder: Path, *, lock_timeout_s: float = 30.0) -> Migrated:
    """
    Upgrade a store to the format that this version reads: all steps in one transaction, so wholly or not at all.

    Index files are not touched. Those of a format that is not read any more are made again: by searching, or by
    `gr index`.

    :param folder: The store.
    :param lock_timeout_s: How long to wait for another writer.
    :raises StoreError: If there is no store.
    :raises StoreVersionError: If the store is newer than this version, or too old to be upgraded.
    :raises StoreLockedError: If another writer does not finish in time.
    """
    database = Database(folder, read_only=False, lock_timeout_s=lock_timeout_s)
    if not database.exists():
        msg = f"There is no store in '{folder}' (no file {local_schema.FILE}). Make one with: gr index DOCS --store DIR"
        raise StoreError(msg)
    with database.locked(), closing(database.connect_unchecked()) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            before = _upgrade(connection, folder)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.rollback()
    return Migrated(before, local_schema.FORMAT)


def _upgrade(connection: sqlite3.Connection, folder: Path) -> int:
    before = read_format(connection, folder)
    known = range(before, local_schema.FORMAT) if isinstance(before, int) and before <= local_schema.FORMAT else None
    if known is None or not all(version in local_schema.MIGRATIONS for version in known):
        raise refusal(folder, before)
    for version in known:
        local_schema.MIGRATIONS[version](connection)
        connection.execute("UPDATE store SET value = ? WHERE key = 'format'", (version + 1,))
    return before
