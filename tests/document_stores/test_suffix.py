"""Generative indexes of a store: segments, tombstones, merging, lag."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

from gr_components.decoding.grammar import TokenizedDocument
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.document_stores.local_suffix import segments_to_merge
from gr_components.errors import ConfigError, IndexFormatError, IndexMissingError, TokenizerMismatchError

OVERWRITE = DuplicatePolicy.OVERWRITE
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "title", "query", "one", "two"]
CONFIG = {
    "fields": ("body", "title"), "boundary": 0, "tokenizer_fingerprint": "words", "vocabulary_size": len(WORDS) + 1
}  # fmt: skip


def ids_of(text):
    return [WORDS.index(word) + 1 for word in text.split()]


def tokenize(numbers, titles, texts, queries):
    assert len(numbers) == len(titles) == len(texts) == len(queries)
    return [
        TokenizedDocument(
            number=number,
            entries={"body": [ids_of(text), *(ids_of(query) for query in several)], "title": [ids_of(title)]},
        )
        for number, title, text, several in zip(numbers, titles, texts, queries, strict=True)
    ]


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents([
        Document(id="1", content="a b c", meta={"title": "title", "queries": ["query one", "query two"]}),
        Document(id="2", content="b c d", meta={"even": True}),
        Document(id="3", content=None, meta={"title": "a"}),
        Document(id="4", content=""),
    ])  # fmt: skip
    yield store
    store.close()


def build(store, name="generative", **changes):
    return store.build_suffix(name, tokenize, **{**CONFIG, **changes})


def found(store, text, field="body", filters=None, name="generative"):
    """Ids of the documents in which a token sequence occurs."""
    index = store.suffix_index(name).index
    states = index.extend(field, np.array([ids_of(text)]))
    allowed = index.document_set(store.allowed_numbers(filters))
    places = set(index.locate(states, allowed).documents_N.tolist())
    documents = store.documents([int(index.numbers_D[place]) for place in places])
    assert int(index.count(states, allowed)[0]) >= len(documents)
    return sorted(document.id for document in documents)


def segments(store):
    return sorted(path.name for path in Path(store.path).glob("indexes/suffix-*/*") if path.is_dir())


def test_builds_what_is_missing(store):
    assert build(store) == 3
    assert build(store) == 0
    assert len(segments(store)) == 1
    assert found(store, "b c") == ["1", "2"]
    assert found(store, "a", field="title") == ["3"]
    assert found(store, "query two") == ["1"]
    assert found(store, "c query") == [], "entries are apart"
    assert found(store, "b c", filters={"field": "meta.even", "operator": "==", "value": True}) == ["2"]
    snapshot = store.suffix_index()
    assert snapshot.config["fields"] == ["body", "title"]
    assert snapshot.lag == 0
    store.write_documents([Document(id="5", content="b c e")])
    assert found(store, "b c") == ["1", "2"], "building is explicit"
    assert store.suffix_index().lag == 1
    assert {state.name: state.lag for state in store.indexes()}["generative"] == 1
    assert [document.id for _, document in store.pending("generative")] == ["5"]
    assert build(store) == 1
    assert found(store, "b c") == ["1", "2", "5"]
    assert len(segments(store)) == 2


def test_deleted_and_changed_documents_are_dead_at_once(store):
    build(store)
    before = store.suffix_index().index
    store.delete_documents(["2"])
    assert found(store, "b c") == ["1"]
    store.write_documents([Document(id="1", content="d e", meta={"title": "title"})], OVERWRITE)
    assert found(store, "b c") == []
    assert found(store, "d e") == []
    assert store.suffix_index().lag == 1
    build(store)
    assert found(store, "d e") == ["1"]
    places = before.locate(before.extend("body", np.array([ids_of("b c")]))).documents_N
    assert len(places) == 2, "an index in use does not change"
    store.update_by_filter({"field": "id", "operator": "==", "value": "1"}, {"even": False})
    assert store.suffix_index().lag == 0, "metadata is no text"
    store.delete_all_documents()
    assert found(store, "d e") == []
    assert store.suffix_index().lag == 0


def test_the_index_object_is_kept_while_nothing_changes(store):
    build(store)
    index = store.suffix_index().index
    store.write_documents([Document(id="9", content="h", embedding=[1.0])])
    store.lexical_search(["h"], top_k=1)
    assert store.suffix_index().index is index
    build(store)
    assert store.suffix_index().index is not index


def test_segments_are_merged(store):
    build(store)
    for n in range(5, 30):
        store.write_documents([Document(id=str(n), content=f"e f {WORDS[n % 8]}", meta={"queries": ["query one"]})])
        build(store)
        assert len(segments(store)) <= 8
    assert found(store, "e f") == sorted(str(n) for n in range(5, 30))
    assert found(store, "query one") == sorted(["1", *(str(n) for n in range(5, 30))])
    assert found(store, "f query") == [], "entries stay apart when segments are merged"
    store.delete_documents([str(n) for n in range(5, 25)])
    assert build(store) == 0
    assert sum(len(segment.numbers_D) for segment in store.suffix_index().index.segments) < 15, "the dead are left out"
    assert found(store, "e f") == ["25", "26", "27", "28", "29"]
    store.delete_all_documents()
    build(store)
    assert segments(store) == []
    assert found(store, "e f") == []
    store.write_documents([Document(id="1", content="e f")])
    build(store)
    assert found(store, "e f") == ["1"]


def test_which_segments_are_merged():
    assert segments_to_merge([], [], []) == []
    assert segments_to_merge([10] * 8, [10] * 8, [5] * 8) == []
    assert segments_to_merge([10] * 9, [10] * 9, [90, 1, 2, 3, 4, 5, 6, 80, 70]) == [1, 2, 3, 4, 5, 6]
    assert segments_to_merge([10, 2], [10, 10], [5, 5]) == [1], "40 % are dead"
    assert segments_to_merge([10, 5], [10, 10], [5, 5]) == [], "25 % are dead"
    assert segments_to_merge([0], [4], [5]) == [0]
    assert segments_to_merge([1, 1, 9], [9, 9, 9], [1 << 29, 1 << 29, 9]) == [0, 1]
    assert segments_to_merge([1, 1, 9], [9, 9, 9], [1 << 30, 1 << 29, 9]) == [1], "not longer than a segment may be"


def test_damaged_segments(store, caplog):
    build(store)
    store.close()
    (folder,) = Path(store.path).glob("indexes/suffix-*/*-*")
    (folder / "body.text.npy").write_bytes(b"x")
    with pytest.raises(IndexFormatError, match=r"body\.text\.npy"):
        found(store, "b c")
    assert build(store) == 3
    assert "Building the index generative again" in caplog.text
    assert found(store, "b c") == ["1", "2"]
    store.close()
    shutil.rmtree(next(Path(store.path).glob("indexes/suffix-*/*-*")))
    with pytest.raises(IndexFormatError, match=r"missing .* Build the index again"):
        found(store, "b c")
    assert build(store) == 3
    assert found(store, "b c") == ["1", "2"]


def test_other_models(store):
    with pytest.raises(IndexMissingError, match=r"no index 'generative'\. It has no suffix index yet"):
        store.suffix_index()
    build(store, model_fingerprint="m", config={"grammar": {"layout": "x"}})
    snapshot = store.suffix_index()
    assert snapshot.model_fingerprint == "m"
    assert snapshot.config["grammar"] == {"layout": "x"}
    with pytest.raises(TokenizerMismatchError, match=r"made with the tokenizer words, not other.*delete_index"):
        build(store, tokenizer_fingerprint="other")
    with pytest.raises(ConfigError, match=r"made with fields=\['body', 'title'\], not \['body'\]"):
        build(store, fields=["body"])
    build(store, "second", fields=["body"], tokenizer_fingerprint="other")
    assert found(store, "b c", name="second") == ["1", "2"]
    store.delete_index("generative")
    assert build(store, tokenizer_fingerprint="other") == 3


def test_an_empty_store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "empty"))
    assert len(store.suffix_index().index.segments) == 0
    assert build(store) == 0
    assert store.suffix_index().lag == 0
    assert len(store.suffix_index().index.segments) == 0
    store.close()


def test_an_error_in_the_tokenizer_leaves_the_index_as_it_was(store):
    build(store)
    store.write_documents([Document(id="5", content="unknown words")])
    with pytest.raises(ValueError, match="unknown"):
        build(store)
    assert found(store, "b c") == ["1", "2"]
    assert len(segments(store)) == 1
    store.delete_documents(["5"])
    assert build(store) == 0


def test_readers_keep_merged_segments(store):
    build(store)
    reader = LocalDocumentStore(store.path, read_only=True)
    snapshot = reader.suffix_index()
    held = segments(store)
    store.delete_documents(["1", "2"])
    build(store)
    assert set(held) <= set(segments(store))
    index = snapshot.index
    assert len(index.locate(index.extend("body", np.array([ids_of("b c")]))).documents_N) == 2
    assert found(reader, "b c") == []
    del snapshot, index
    reader.close()
    store.write_documents([Document(id="6", content="a")])
    build(store)
    assert not set(held) & set(segments(store))


def test_another_configuration_is_refused_and_changes_nothing(store):
    reserved = {"layout": "reserved", "views": [{"name": "title", "suffix": " @@"}]}
    build(store, config={"grammar": reserved})
    store.write_documents([Document(id="5", content="b c e")])
    before, files = store.suffix_index().config, segments(store)
    for config, shown in (
        ({"grammar": {**reserved, "layout": "markers"}}, r"grammar\.layout='reserved', not 'markers'"),
        ({"grammar": {**reserved, "views": [{"name": "title", "suffix": ""}]}}, r"views\[0\]\.suffix=' @@', not ''"),
        ({"grammar": reserved, "more": 1}, "more=None, not 1"),
        ({}, r"grammar=\{.*\}, not None"),
    ):
        with pytest.raises(ConfigError, match=rf"'generative' was made with .*{shown}\. Use another.*delete_index"):
            build(store, config=config)
    assert store.suffix_index().config == before
    assert segments(store) == files
    assert build(store, config={"grammar": reserved}) == 1


def test_segments_of_former_generations_are_closed(store):
    reader = LocalDocumentStore(store.path, read_only=True)
    for n in range(5, 30):
        store.write_documents([Document(id=str(n), content=f"e f {WORDS[n % 8]}")])
        build(store)
        found(store, "e f")
        found(reader, "e f")
        for each in (store, reader):
            current = each.suffix_index().index.segments
            assert set(each._suffixes._segments) == {segment.path for segment in current}
    reader.close()


def test_an_index_that_is_deleted_while_it_is_built(store):
    """Its files are left to the builder, who finds it gone; they go with the next index that is deleted."""
    other = LocalDocumentStore(store.path)

    def deleted_meanwhile(*documents):
        other.delete_index("generative")
        return tokenize(*documents)

    with pytest.raises(IndexMissingError, match="'generative' was deleted while"):
        store.build_suffix("generative", deleted_meanwhile, **CONFIG)
    assert build(store) == 3
    assert found(store, "b c") == ["1", "2"]
    assert len(list(Path(store.path).glob("indexes/suffix-*"))) == 2
    other.delete_index("none")
    assert len(list(Path(store.path).glob("indexes/suffix-*"))) == 1
    other.close()
