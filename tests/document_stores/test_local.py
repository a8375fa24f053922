"""Documents of a local store: round trips, versions, policies, lifecycle, bad input."""

import asyncio
import importlib
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_lock import FileLock
from gr_components.errors import (
    ConfigError,
    DataError,
    DimensionError,
    NumericsError,
    SearchIndexError,
    StoreError,
    StoreLockedError,
    StoreVersionError,
)

OVERWRITE, SKIP, FAIL = DuplicatePolicy.OVERWRITE, DuplicatePolicy.SKIP, DuplicatePolicy.FAIL


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    yield store
    store.close()


def number(store, identifier):
    return store.allowed_numbers({"field": "id", "operator": "==", "value": identifier}).tolist()[0]


def test_documents_come_back_as_they_were(store):
    meta = {"title": "T", "queries": ["a", "b"], "nested": {"x": [1, 2.5, None, True, {"y": "z"}]}, "big": 10**40}
    blob = ByteStream(b"\x00\xff", meta={"m": 1}, mime_type="image/png")
    sparse = SparseEmbedding([1, 5], [0.5, 0.1])
    text = "text\x00 with\nevery 名 thing"
    documents = [
        Document(
            id="all", content=text, score=0.25, meta=meta, blob=blob, embedding=[0.1, 0.2], sparse_embedding=sparse
        ),
        Document(id="empty", content=""),
        Document(id="none"),
        Document(id="blob only", blob=ByteStream(b"data")),
        Document(id="odd queries", content="x", meta={"queries": "not a list", "title": 5}),
        Document(id="exact", content="x", embedding=[float(np.float32(0.1)), 1.0]),
    ]
    assert store.write_documents(documents) == 6
    assert store.filter_documents() == documents
    numbers = [number(store, document.id) for document in documents]
    assert store.documents(numbers[::-1]) == [replace(d, embedding=None) for d in documents[::-1]]
    assert store.scored_documents([(numbers[0], 0.5), (999, 0.4)]) == [replace(documents[0], embedding=None, score=0.5)]
    with pytest.raises(StoreError, match="999"):
        store.documents([numbers[0], 999])


def test_a_new_text_is_a_new_version(store):
    one = Document(id="1", content="text", meta={"title": "t", "queries": ["q"], "k": 1}, embedding=[1.0, 2.0])
    store.write_documents([one, Document(id="2", content="other")])
    first = number(store, "1")
    store.write_documents([one], OVERWRITE)
    store.write_documents([replace(one, meta={**one.meta, "k": 2}, embedding=None)], OVERWRITE)
    assert number(store, "1") == first, "metadata is no text"
    assert store.filter_documents()[0].embedding == [1.0, 2.0], "the text is the same, so is its vector"
    assert store.filter_documents()[0].meta["k"] == 2
    store.write_documents([replace(one, embedding=[3.0, 4.0])], OVERWRITE)
    assert number(store, "1") == first
    assert store.filter_documents()[0].embedding == [3.0, 4.0]

    store.write_documents([replace(one, meta={**one.meta, "queries": ["q", "r"]}, embedding=None)], OVERWRITE)
    second = number(store, "1")
    assert second > first
    assert store.filter_documents()[-1].embedding == [3.0, 4.0], "title and content are the same"
    store.write_documents([replace(one, content="new", embedding=None)], OVERWRITE)
    assert number(store, "1") > second
    assert store.filter_documents()[-1].embedding is None
    assert store.count_documents() == 2


def test_numbers_are_never_used_again(store):
    store.write_documents([Document(id="1", content="a"), Document(id="2", content="b")])
    last = number(store, "2")
    store.delete_documents(["2", "unknown"])
    store.delete_all_documents()
    store.close()
    store.write_documents([Document(id="2", content="b")])
    assert number(store, "2") > last


def test_duplicates(store):
    a, b, c = Document(id="1", content="a"), Document(id="1", content="b"), Document(id="2", content="c")
    with pytest.raises(DuplicateDocumentError, match="Nothing was written"):
        store.write_documents([c, a, b])
    assert store.count_documents() == 0
    assert store.write_documents([a, b, c], SKIP) == 2
    assert store.filter_documents() == [a, c]
    with pytest.raises(DuplicateDocumentError, match="'1'"):
        store.write_documents([Document(id="3", content="d"), b], FAIL)
    assert store.count_documents() == 2
    assert store.write_documents([a, b, Document(id="3", content="d")], OVERWRITE) == 3
    assert sorted(d.content for d in store.filter_documents()) == ["b", "c", "d"]
    assert store.write_documents([], OVERWRITE) == 0


def test_update_by_filter_keeps_versions_of_unchanged_texts(store):
    store.write_documents([Document(id=str(n), content="x", meta={"n": n}, embedding=[1.0 * n, 1.0]) for n in range(4)])
    low = {"field": "meta.n", "operator": "<", "value": 2}
    before = [number(store, str(n)) for n in range(4)]
    assert store.update_by_filter(low, {"n": 10}) == 2
    assert [number(store, str(n)) for n in range(4)] == before
    assert store.update_by_filter({"field": "meta.n", "operator": "==", "value": 10}, {"title": "new"}) == 2
    after = [number(store, str(n)) for n in range(4)]
    assert after[2:] == before[2:]
    assert min(after[:2]) > max(before)
    by_id = {document.id: document for document in store.filter_documents()}
    assert by_id["0"].meta == {"n": 10, "title": "new"}
    assert by_id["0"].embedding is None, "it was made from another title"
    assert by_id["2"].embedding == [2.0, 1.0]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (Document(id="x", content="a", meta={"when": object()}), DataError, "not JSON"),
        (Document(id="x", content="a", meta={"n": float("nan")}), DataError, "NaN to None"),
        (Document(id="x", content="a", meta={"deep": [{1: 2}]}), DataError, "the key 1 is no string"),
        (Document(id="x", content="\ud800"), DataError, "not valid Unicode"),
        (Document(id="\udfff"), DataError, "not valid Unicode"),
        (Document(id="x", embedding=[1.0, float("nan")]), NumericsError, "document.*'x'"),
        (Document(id="x", embedding=[1.0, 1e39]), NumericsError, "NaN or infinity"),
        (Document(id="x", embedding=[]), DimensionError, "'x' has shape"),
        (Document(id="x", embedding=[1.0]), DimensionError, "holds vectors of 2 dimensions, got 1"),
    ],
)
def test_bad_documents_are_refused_and_nothing_is_written(store, document, error, message):
    good = Document(id="good", embedding=[1.0, 2.0])
    with pytest.raises(error, match=message):
        store.write_documents([good, document])
    assert store.count_documents() == 0
    assert store.write_documents([good]) == 1


def test_settings(store, tmp_path):
    data = store.to_dict()
    assert data["type"] == "gr_components.document_stores.local.LocalDocumentStore"
    assert data["init_parameters"]["path"] == str(tmp_path / "store")
    assert not (tmp_path / "store").exists(), "nothing is created before the first use"
    again = LocalDocumentStore.from_dict(data)
    assert again.to_dict() == data
    other = LocalDocumentStore(str(tmp_path), read_only=True, embedding_index="e", language="german", stop_words=False,
                               cjk_ngrams=0, lexical_queries=True, lock_timeout_s=1.5)  # fmt: skip
    assert LocalDocumentStore.from_dict(other.to_dict()).to_dict() == other.to_dict()
    with pytest.raises(ConfigError, match="Unknown language 'klingon'"):
        LocalDocumentStore(str(tmp_path), language="klingon")
    with pytest.raises(ConfigError, match="cjk_ngrams"):
        LocalDocumentStore(str(tmp_path), cjk_ngrams=-1)


def test_works_in_pipelines_sync_and_async(store):
    pipeline = Pipeline()
    pipeline.add_component("writer", DocumentWriter(store, policy=OVERWRITE))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["gr_components"])
    documents = [Document(id="1", content="a")]
    assert again.run({"writer": {"documents": documents}}) == {"writer": {"documents_written": 1}}
    assert asyncio.run(pipeline.run_async({"writer": {"documents": documents}})) == {"writer": {"documents_written": 1}}
    assert store.filter_documents() == documents
    pipeline.close()
    again.close()


def test_close_and_use_again(store):
    store.write_documents([Document(id="1", content="a cat", embedding=[1.0, 0.0])])
    for close in (store.close, store.close, lambda: asyncio.run(store.close_async())):
        assert len(store.lexical_search(["cats"], top_k=1)[0]) == 1
        assert len(store.vector_search(np.ones((1, 2)), top_k=1)[0]) == 1
        close()
    assert asyncio.run(store.count_documents_async()) == 1


def test_several_stores_and_threads_on_one_folder(store):
    stores = [store, *[LocalDocumentStore(store.path, lock_timeout_s=120) for _ in range(3)]]

    def work(n):
        mine = stores[n % len(stores)]
        mine.write_documents([Document(id=f"{n}", content=f"common word{n}", embedding=[float(n + 1), 1.0])])
        assert [n for n, _ in mine.lexical_search([f"word{n}"], top_k=5)[0]] == [number(mine, str(n))]
        assert mine.vector_search(np.array([[n + 1.0, 1.0]]), top_k=1)[0][0][0] == number(mine, str(n))
        if n % 3 == 0:
            mine.delete_documents([str(n)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(24)))
    for each in stores:
        assert each.count_documents() == 16
        assert len(each.lexical_search(["common"], top_k=100)[0]) == 16
        assert len(each.vector_search(np.ones((1, 2)), top_k=100)[0]) == 16
        each.close()


def test_async_calls_overlap(store):
    started = threading.Event()

    async def main():
        with store._database.writing():  # another writer is at work
            task = asyncio.ensure_future(store.write_documents_async([Document(id="1")]))
            await asyncio.sleep(0.05)
            assert not task.done()
            assert await store.count_documents_async() == 0, "readers do not wait for writers"
            started.set()
        assert await task == 1

    asyncio.run(main())
    assert started.is_set()


def test_other_versions_and_other_files(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "s"))
    store.write_documents([Document(id="1")])
    store.close()
    connection = sqlite3.connect(tmp_path / "s" / "store.sqlite")
    connection.execute("UPDATE store SET value = 2 WHERE key = 'format'")
    connection.commit()
    with pytest.raises(StoreVersionError, match=r"format 2, this version .* reads format 1\. Upgrade"):
        store.count_documents()
    connection.execute("UPDATE store SET value = 0 WHERE key = 'format'")
    connection.commit()
    with pytest.raises(StoreVersionError, match="too old to be upgraded"):
        store.count_documents()
    connection.execute("DROP TABLE store")
    connection.close()
    for read_only in (True, False):
        with pytest.raises(StoreVersionError, match="no document store"):
            LocalDocumentStore(str(tmp_path / "s"), read_only=read_only).count_documents()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "store.sqlite").write_text("a text file, no database, long enough to look like one " * 20)
    with pytest.raises(StoreError, match="damaged or no document store"):
        LocalDocumentStore(str(tmp_path / "t")).count_documents()
    with pytest.raises(StoreError, match="Choose a folder"):
        LocalDocumentStore(str(tmp_path / "t" / "store.sqlite")).count_documents()
    with pytest.raises(StoreError, match=r"no store in .* `gr index`"):
        LocalDocumentStore(str(tmp_path / "nowhere"), read_only=True).count_documents()


def test_embeddings_of_another_model(store):
    store.write_documents([Document(id="1", embedding=[1.0], meta={"embedding_model": "a"})])
    with pytest.raises(SearchIndexError, match="vectors of the model a, not b"):
        store.write_documents([Document(id="2", embedding=[1.0], meta={"embedding_model": "b"})])
    assert store.count_documents() == 1


def test_metadata_queries(store):
    metas = [{"a": 1, "t": "x"}, {"a": 2.5, "t": "y"}, {"a": None}, {"t": 1, "l": [1, "b"]}, {"l": [1, "b"], "b": True}]
    store.write_documents([Document(id=str(n), meta=meta) for n, meta in enumerate(metas)])
    assert store.get_metadata_fields_info() == {
        "a": {"type": "float"}, "t": {"type": "keyword"}, "l": {"type": "keyword"}, "b": {"type": "boolean"},
    }  # fmt: skip
    assert store.get_metadata_field_min_max("meta.a") == {"min": 1, "max": 2.5}
    assert store.get_metadata_field_min_max("t") == {"min": None, "max": None}, "texts and numbers do not compare"
    assert store.get_metadata_field_unique_values("l") == ([[1, "b"]], 1)
    some = {"field": "meta.t", "operator": "!=", "value": None}
    assert store.count_unique_metadata_by_filter(some, ["a", "meta.t"]) == {"a": 2, "t": 3}


def test_a_store_whose_creation_failed_works_when_the_lock_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    store = LocalDocumentStore(str(folder), lock_timeout_s=0.05)
    with FileLock(folder / "write.lock").hold(1), pytest.raises(StoreLockedError):
        store.write_documents([])
    assert store.count_documents() == 0
    assert store.write_documents([Document(id="a", content="text")]) == 1


def test_reading_where_there_is_no_store_finds_nothing_and_creates_nothing(tmp_path):
    missing, documents = tmp_path / "missing", tmp_path / "documents"
    documents.mkdir()
    (documents / "a.txt").write_text("text")
    for folder in (missing, documents):
        store = LocalDocumentStore(str(folder))
        some = {"field": "meta.a", "operator": "==", "value": 1}
        assert not store.exists()
        assert store.count_documents() == store.count_documents_by_filter(some) == 0
        assert store.filter_documents() == store.filter_documents(some) == store.indexes() == []
        assert store.lexical_search(["a", "b"], top_k=3) == store.vector_search([[1.0], [2.0]], top_k=3) == [[], []]
        assert len(store.suffix_index().index.segments) == 0
        assert list(store.pending("dense")) == store.scored_documents([(1, 1.0)]) == []
        assert store.get_metadata_fields_info() == {}
        assert asyncio.run(store.count_documents_async()) == 0
        store.refresh()
        store.close()
    assert not missing.exists()
    assert [path.name for path in documents.iterdir()] == ["a.txt"]


def test_a_store_that_another_object_creates_is_seen(tmp_path):
    reader, writer = (LocalDocumentStore(str(tmp_path / "store")) for _ in range(2))
    assert reader.count_documents() == 0
    writer.write_documents([Document(id="1", content="text")])
    assert reader.exists()
    assert reader.count_documents() == len(reader.lexical_search(["text"], top_k=3)[0]) == 1


def test_what_a_killed_first_writing_leaves_is_an_empty_store(tmp_path):
    connection = sqlite3.connect(tmp_path / "store.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    store = LocalDocumentStore(str(tmp_path))
    assert store.count_documents() == 0
    assert store.write_documents([Document(id="1")]) == 1
    assert store.count_documents() == 1


def test_a_new_title_drops_the_embedding(store):
    store.write_documents([Document(id="1", content="x", meta={"title": "a", "n": 1}, embedding=[1.0, 2.0])])
    wanted = {"field": "id", "operator": "==", "value": "1"}
    store.update_by_filter(wanted, {"n": 2})
    assert store.filter_documents()[0].embedding == [1.0, 2.0]
    store.update_by_filter(wanted, {"title": "b"})
    assert store.filter_documents()[0].embedding is None


def test_a_system_without_its_file_locks_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.delitem(sys.modules, "gr_components.posix")
    with pytest.raises(ImportError, match="file locks of Linux or macOS"):
        importlib.import_module("gr_components.posix")
