"""Stores that are opened read-only, also where nothing can be written at all."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from haystack import Document

from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import StoreError


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content=f"common word{n}", embedding=[n, 1.0]) for n in range(9)])
    store.refresh()
    yield store
    store.close()


def search(store):
    lexical = {d.id for d in store.scored_documents(store.lexical_search(["common"], top_k=99)[0])}
    vector = {d.id for d in store.scored_documents(store.vector_search(np.ones((1, 2)), top_k=99)[0])}
    assert lexical == vector == {document.id for document in store.filter_documents()}
    return len(lexical)


def test_writing_is_refused(store):
    reader = LocalDocumentStore(store.path, read_only=True)
    for change in (
        lambda: reader.write_documents([Document(id="x")]),
        lambda: reader.delete_documents(["1"]),
        lambda: reader.delete_all_documents(),
        lambda: reader.write_vectors("dense", [1], np.ones((1, 2))),
        lambda: reader.delete_index("dense"),
    ):
        with pytest.raises(StoreError, match="opened with read_only=True"):
            change()
    assert search(reader) == 9
    reader.close()


def test_a_reader_beside_a_writer_that_does_not_search(store, caplog):
    reader = LocalDocumentStore(store.path, read_only=True)
    assert search(reader) == 9
    for n in range(9, 12):
        store.write_documents([Document(id=str(n), content=f"common word{n}", embedding=[n, 1.0])])
        store.delete_documents([str(n - 9)])
        assert search(reader) == 9
        assert reader.lexical_search([f"word{n}"], top_k=5)[0]
    assert caplog.text.count("in memory") == 1, "built once, then kept up to date"
    store.refresh()
    assert search(reader) == 9
    store.delete_documents(["10"])
    store.refresh()
    assert search(reader) == 8
    reader.close()


def test_without_any_lexical_index(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"), language="german")
    store.write_documents([Document(id="1", content="Häuser")])
    store.close()
    reader = LocalDocumentStore(store.path, read_only=True)
    assert len(reader.lexical_search(["Haus"], top_k=5)[0]) == 1
    reader.close()


def test_on_a_read_only_mount(store, tmp_path, monkeypatch, zygote):
    monkeypatch.setattr(local_vectors, "SHARD_ROWS", 5)
    store.close()
    store.refresh()
    mounted, answers = tmp_path / "mounted", tmp_path / "answers"
    mounted.mkdir()
    store.write_documents([])
    shutil.copytree(store.path, mounted / "with log and shared memory")
    shutil.copytree(store.path, mounted / "with log")
    (mounted / "with log" / "store.sqlite-shm").unlink()
    assert (mounted / "with log" / "store.sqlite-wal").stat().st_size, "else this would not test the log"
    store.write_documents([Document(id="late", content="common", embedding=[5.0, 1.0])])
    shutil.copytree(store.path, mounted / "behind")
    store.delete_documents(["late"])
    store.refresh()
    store.close()
    shutil.copytree(store.path, mounted / "closed")
    names = ["closed", "with log and shared memory", "with log", "behind"]
    status = zygote.wait(zygote.start("read_mounted", str(mounted), names, str(answers)))
    if not answers.exists():
        pytest.skip("mounting is not allowed here")
    lines = answers.read_text().splitlines()
    assert lines[:6] == ["9 9 9 [0, 0]"] * 6
    assert lines[6:8] == ["10 10 10 [0, 1]"] * 2
    assert lines[8].startswith("StoreError")
    assert "read_only=True" in lines[8]
    assert status == 0
    assert not list(Path(tempfile.gettempdir()).glob("gr-store-*")), "copies are removed"
