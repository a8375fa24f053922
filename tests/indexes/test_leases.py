"""Folders of forgotten indexes are removed, and only those."""

from pathlib import Path

import numpy as np
import pytest
from haystack import Document

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_lock import FileLock
from gr_components.indexes import registry
from gr_components.indexes.leases import LOCK, collect_indexes


@pytest.fixture
def store(tmp_path: Path) -> LocalDocumentStore:
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content=f"common word{n}") for n in range(3)])
    store.refresh()
    return store


def folders(store: LocalDocumentStore) -> list[str]:
    return sorted(path.name for path in Path(store.path, "indexes").iterdir())


def names_to_keep(store: LocalDocumentStore):
    with store._database.reading() as connection:
        return registry.names_to_keep(connection)


def test_an_index_made_after_the_registry_was_read_stays(store):
    keep = names_to_keep(store)
    other = LocalDocumentStore(store.path)
    other.delete_index("lexical")
    assert folders(store) == []
    assert len(other.lexical_search(["common"], top_k=9)[0]) == 3
    (made,) = folders(store)
    collect_indexes(Path(store.path), keep)
    assert folders(store) == [made]
    (Path(store.path) / "indexes" / made).rename(Path(store.path) / "indexes" / "mine")
    collect_indexes(Path(store.path), names_to_keep(other))
    assert folders(store) == ["mine"], "no folder of ours"


def test_a_folder_that_somebody_builds_in_stays_until_it_is_done(store):
    (folder,) = Path(store.path, "indexes").iterdir()
    with FileLock(folder / LOCK).hold(0):
        (folder / "unfinished").mkdir()
        store.delete_index("lexical")
        assert (folder / "unfinished").is_dir()
    store.delete_index("lexical")
    assert not folder.exists()


def test_the_folder_of_an_index_that_exists_stays(store):
    store.write_vectors("dense", [1], np.ones((1, 2)))
    store.delete_index("dense")
    assert len(folders(store)) == 1
    assert len(store.lexical_search(["common"], top_k=9)[0]) == 3
