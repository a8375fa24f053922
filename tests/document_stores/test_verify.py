"""`gr index --verify` and `gr doctor --verify` find damage in the database and in every kind of index."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from haystack import Document

from gr_components.cli import main
from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores import local_vectors
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_verify import verify

SUFFIX = {"fields": ["body"], "boundary": 0, "tokenizer_fingerprint": "lengths", "vocabulary_size": 99}


def tokenize(numbers, titles, texts, queries):
    return [
        TokenizedDocument(number=number, entries={"body": [[len(word) for word in text.split()]]})
        for number, text in zip(numbers, texts, strict=True)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(local_vectors, "SHARD_ROWS", 5)
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([Document(id=str(n), content=f"some text {n}" * 20) for n in range(200)])
    store.write_vectors("dense", range(1, 10), np.eye(9, 3))
    store.build_suffix("generative", tokenize, **SUFFIX)
    store.refresh()
    store.close()
    return tmp_path / "store"


def files(folder):
    """What SQLite makes beside its file to read it does not count."""
    found = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    return {path: time for path, time in found.items() if not path.name.endswith(("-wal", "-shm"))}


def problems(folder):
    checked = list(verify(folder))
    assert len(checked) >= 1
    return {found.name.split("-")[0]: found.problem for found in checked if found.problem}


def test_a_sound_store(folder):
    before = files(folder)
    kinds = [found.name.split("-")[0] for found in verify(folder)]
    assert sorted(kinds) == ["indexes/lexical", "indexes/suffix", "indexes/vector", "store.sqlite"]
    assert problems(folder) == {}
    assert files(folder) == before
    store = LocalDocumentStore(str(folder))
    store.delete_documents(["1"])
    assert problems(folder) == {}, "an index that lags is not damaged"
    store.close()
    result = CliRunner().invoke(main, ["index", "--verify", "--store", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("as written") == 4


@pytest.mark.parametrize("kind", ["lexical", "vector", "suffix"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_every_file_of_an_index(folder, kind, damage):
    for current in sorted(path for path in folder.glob(f"indexes/{kind}-*/*/*") if "lock" not in path.name):
        data = current.read_bytes()
        if damage == "remove":
            current.unlink()
        elif kind == "lexical" and current.suffix == ".json":  # these have no checksum
            current.write_bytes(data[:-9])
        else:
            middle = len(data) // 2
            current.write_bytes(data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :])
        found = problems(folder)
        assert list(found) == [f"indexes/{kind}"], (current.name, found)
        assert "gr index makes it again" in found[f"indexes/{kind}"]
        current.write_bytes(data)
    assert problems(folder) == {}


@pytest.mark.parametrize("kind", ["lexical", "vector", "suffix"])
def test_a_folder_that_is_gone(folder, kind):
    (gone,) = (path for path in folder.glob(f"indexes/{kind}-*/*") if path.is_dir())
    shutil.rmtree(gone)
    result = CliRunner().invoke(main, ["index", "--verify", "--store", str(folder)])
    assert result.exit_code == 1
    assert f"{gone.relative_to(folder)} missing, though the store names it" in " ".join(result.stdout.split())


def test_the_database(folder):
    connection = sqlite3.connect(folder / "store.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents_sequence'").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    data = bytearray((folder / "store.sqlite").read_bytes())
    data[(page - 1) * size + 8 : page * size] = bytes([0xA5]) * (size - 8)
    (folder / "store.sqlite").write_bytes(data)
    found = problems(folder)
    assert list(found) == ["store.sqlite"]
    assert "into a new folder" in found["store.sqlite"]


def test_another_number_of_documents_than_the_store_has(folder):
    """As after restoring an older copy of the database."""
    connection = sqlite3.connect(folder / "store.sqlite")
    connection.execute("DELETE FROM documents WHERE number = 3")
    connection.commit()
    connection.close()
    assert "holds 200 documents instead of 199" in problems(folder)["indexes/lexical"]


def test_what_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "none", Path(__file__)):
        result = CliRunner().invoke(main, ["index", "--verify", "--store", str(folder)])
        assert result.exit_code == 1
        assert "gr index" in result.stdout
    assert list(tmp_path.iterdir()) == []
