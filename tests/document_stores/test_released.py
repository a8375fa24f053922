"""Stores of every released format can be used, after `gr migrate` where the format is older."""

import sqlite3
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gr_components.cli import main
from gr_components.document_stores import local_schema
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_lock import FileLock
from gr_components.document_stores.local_migration import Migrated, migrate
from gr_components.document_stores.local_verify import verify
from gr_components.errors import StoreError, StoreLockedError, StoreVersionError

HERE = Path(__file__).parent
ARCHIVES = sorted((HERE / "released").glob("format-*.tar.gz"))


@pytest.fixture(scope="module")
def released(load_script):
    return load_script(HERE / "released.py")


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / "store"


@pytest.fixture
def folder(tmp_path):
    return unpack(HERE / "released" / "format-1.tar.gz", tmp_path)


def test_there_is_a_store_of_the_current_format():
    assert ARCHIVES[-1].name == f"format-{local_schema.FORMAT}.tar.gz"
    assert sum(archive.stat().st_size for archive in ARCHIVES) < 20_000 * len(ARCHIVES)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_it_is_searched_and_changed(archive, released, tmp_path, caplog):
    folder = unpack(archive, tmp_path)
    migrate(folder)
    assert [checked.problem for checked in verify(folder)] == [None] * len(list(verify(folder)))
    for read_only in (True, False):
        store = LocalDocumentStore(str(folder), read_only=read_only)
        assert store.filter_documents() == released.DOCUMENTS
        old = {"field": "meta.year", "operator": "<", "value": 1820}
        assert [document.id for document in store.filter_documents(old)] == ["goethe"]
        assert ids(store, store.lexical_search(["volcano wrote"], top_k=9)[0]) == {"ada", "goethe", "java"}
        assert [n for n, _ in store.vector_search(np.array([[1.0, 0, 0]]), top_k=9)[0]] == [3, 2]
        assert {state.name: state.model_fingerprint for state in store.indexes()} == {
            "dense": None, "generative": None, "lexical": None, "named": "some-model",
        }  # fmt: skip
        snapshot = store.suffix_index()
        assert snapshot.lag == 0
        places = snapshot.index.locate(snapshot.index.extend("body", np.array([released.ids_of("volcano")])))
        assert [int(snapshot.index.numbers_D[place]) for place in places.documents_N] == [3]
        store.close()
    assert "again" not in caplog.text, "no index had to be made again"
    store.write_documents([replace(released.DOCUMENTS[0], id="new", content="about faust")])
    assert store.build_suffix("generative", released.tokenize, **released.SUFFIX, config=config_of(snapshot)) == 1
    assert ids(store, store.lexical_search(["faust"], top_k=9)[0]) == {"goethe", "new"}
    store.close()


def config_of(snapshot):
    return {"grammar": snapshot.config["grammar"]}


def ids(store, hits):
    return {document.id for document in store.scored_documents(hits)}


def set_format(folder, version):
    connection = sqlite3.connect(folder / "store.sqlite")
    connection.execute("UPDATE store SET value = ? WHERE key = 'format'", (version,))
    connection.commit()
    connection.close()


def gr(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_current_store_stays_as_it_is(folder):
    before = (folder / "store.sqlite").read_bytes()
    for arguments in ((folder,), ("--store", folder)):
        result = gr("migrate", *arguments)
        assert result.exit_code == 0, result.output
        assert "has format 1, which is current" in result.stdout
    assert (folder / "store.sqlite").read_bytes() == before
    assert gr("migrate").exit_code == gr("migrate", folder, "--store", folder).exit_code == 2


def test_a_newer_store_and_one_that_is_too_old_are_refused(folder):
    for version, remedy in (
        (7, "Upgrade gr-components"),
        (0, "too old to be upgraded"),
        ("x", "Upgrade gr-components"),
    ):
        set_format(folder, version)
        result = gr("migrate", "--store", folder)
        assert result.exit_code == 2
        assert f"has format {version}, this version" in result.stderr
        assert remedy in result.stderr
        with pytest.raises(StoreVersionError, match=remedy):
            LocalDocumentStore(str(folder)).count_documents()


def test_no_store(tmp_path, folder):
    with pytest.raises(StoreError, match=r"There is no store in .*gr index DOCS"):
        migrate(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with FileLock(folder / "write.lock").hold(0), pytest.raises(StoreLockedError):
        migrate(folder, lock_timeout_s=0.01)
    for path in folder.glob("store.sqlite*"):
        path.unlink()
    (folder / "store.sqlite").write_text("no database, but long enough to be taken for one " * 20)
    with pytest.raises(StoreError, match="damaged or no document store"):
        migrate(folder)


def test_steps_run_in_order_and_wholly_or_not_at_all(folder, monkeypatch):
    def add_column(connection):
        connection.execute("ALTER TABLE documents ADD COLUMN language TEXT")

    def fill_column(connection):
        connection.execute("UPDATE documents SET language = 'en'")
        if broken:
            msg = "no room"
            raise OSError(28, msg)

    monkeypatch.setattr(local_schema, "FORMAT", 3)
    monkeypatch.setattr(local_schema, "MIGRATIONS", {1: add_column, 2: fill_column})
    store = LocalDocumentStore(str(folder))
    with pytest.raises(StoreVersionError, match=f"reads format 3. Run: gr migrate --store {folder}"):
        store.count_documents()
    broken = True
    with pytest.raises(StoreError, match="Nothing of this operation was kept"):
        migrate(folder)
    connection = sqlite3.connect(folder / "store.sqlite")
    assert connection.execute("SELECT value FROM store WHERE key = 'format'").fetchone() == (1,)
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(documents)")]
    assert "id" in columns
    assert "language" not in columns
    broken = False
    assert migrate(folder) == Migrated(1, 3)
    assert migrate(folder) == Migrated(3, 3)
    assert connection.execute("SELECT DISTINCT language FROM documents").fetchall() == [("en",)]
    connection.close()
    assert store.count_documents() == 4
    assert len(store.lexical_search(["wrote"], top_k=9)[0]) == 2
    store.close()
