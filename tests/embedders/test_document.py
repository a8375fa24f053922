"""DocumentEmbedder and DenseIndexer: the contract of components, vectors, stored fingerprints, bad input."""

import json

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import ComponentDevice

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.document import DocumentEmbedder
from gr_components.embedders.indexer import DenseIndexer
from gr_components.embedders.pending import embed_pending
from gr_components.errors import ConfigError, DataError, SearchIndexError
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import JsonLines
from gr_components.testing import ComponentContract

_CPU = ComponentDevice.from_str("cpu")


def _documents() -> list[Document]:
    return [
        Document(id="1", content="Ada Lovelace wrote the first program.", meta={"title": "Ada Lovelace"}),
        Document(id="2", content="Bananas are yellow.", meta={"title": ""}),
        Document(id="3", content=None, meta={"title": "Only a title"}),
    ]


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    yield store
    store.close()


@pytest.fixture
def embedder(tiny_encoder):
    return DocumentEmbedder(model=str(tiny_encoder), device=_CPU)


class TestEmbedderContract(ComponentContract):
    expected_type = "gr_components.embedders.document.DocumentEmbedder"

    @pytest.fixture
    def component(self, embedder):
        return embedder

    @pytest.fixture
    def run_arguments(self):
        return {"documents": _documents()}

    @pytest.fixture
    def other_init_arguments(self):
        return {"prefix": "passage: ", "meta_fields_to_embed": [], "max_length": 16, "normalize_embeddings": True}


class TestIndexerContract(ComponentContract):
    expected_type = "gr_components.embedders.indexer.DenseIndexer"

    @pytest.fixture
    def component(self, store, tiny_encoder):
        store.write_documents(_documents())
        indexer = DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU)
        yield indexer
        indexer.close()

    @pytest.fixture
    def run_arguments(self):
        return {"documents_written": 3}

    @pytest.fixture
    def empty_run_arguments(self, store):
        store.delete_all_documents()
        return {}

    @pytest.fixture
    def other_init_arguments(self):
        return {"index": "other", "prefix": "passage: ", "batch_size": 7}

    def comparable(self, output):
        """The first run writes and the next finds nothing to do: what counts is the state after it."""
        return sorted(output)


def test_vectors_are_those_of_title_and_content(embedder, tiny_encoder):
    documents = embedder.run(documents=_documents())["documents"]
    texts = ["Ada Lovelace Ada Lovelace wrote the first program.", "Bananas are yellow.", "Only a title"]
    expected_BE = load_text_encoder(str(tiny_encoder), device="cpu").encode(texts)
    np.testing.assert_allclose([d.embedding for d in documents], expected_BE, atol=1e-6)
    assert [(d.id, d.content, d.meta["title"]) for d in documents] == [
        (d.id, d.content, d.meta["title"]) for d in _documents()
    ]


def test_prefix_suffix_fields_and_normalisation(tiny_encoder):
    settings = {
        "prefix": "p: ",
        "suffix": " end",
        "meta_fields_to_embed": ["kind", "title"],
        "embedding_separator": "|",
    }
    embedder = DocumentEmbedder(str(tiny_encoder), device=_CPU, normalize_embeddings=True, **settings)
    document = Document(content="text", meta={"title": "head", "kind": 7})
    vector_E = load_text_encoder(str(tiny_encoder), device="cpu").encode(["p: 7|head|text end"])[0]
    found = embedder.run(documents=[document])["documents"][0].embedding
    np.testing.assert_allclose(found, vector_E / np.linalg.norm(vector_E), atol=1e-6)


def test_documents_without_text_get_no_vector(embedder, caplog):
    documents = [Document(id="empty"), *_documents(), Document(id="blank", content=" ", meta={"title": None})]
    embedded = embedder.run(documents=documents)["documents"]
    assert [d.id for d in embedded if d.embedding is None] == ["empty", "blank"]
    assert "2 document(s) have no text and get no embedding" in caplog.text


@pytest.mark.parametrize(("value", "name"), [("a text", "str"), ([Document(content="x"), "y"], "a list with str")])
def test_something_else_than_documents_is_refused(embedder, value, name):
    with pytest.raises(DataError, match=f"DocumentEmbedder needs a list of documents, got {name}"):
        embedder.run(documents=value)


def test_the_store_keeps_the_model_of_an_indexing_pipeline(store, embedder, tiny_encoder, minilm):
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("writer", DocumentWriter(document_store=store, policy=DuplicatePolicy.OVERWRITE))
    pipeline.connect("embedder.documents", "writer.documents")
    assert pipeline.run({"embedder": {"documents": _documents()}})["writer"]["documents_written"] == 3
    state = next(state for state in store.indexes() if state.name == "dense")
    assert state.model_fingerprint == load_text_encoder(str(tiny_encoder), device="cpu").fingerprint
    assert state.lag == 0
    other = DocumentEmbedder(str(tiny_encoder), device=_CPU, pooling="cls").run(documents=_documents())["documents"]
    with pytest.raises(SearchIndexError, match="The vector index 'dense' holds vectors of the model"):
        store.write_documents(other, policy=DuplicatePolicy.OVERWRITE)


def test_the_indexer_does_only_what_changed(store, tiny_encoder):
    indexer = DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU, batch_size=2)
    assert indexer.run() == {"vectors_written": 0}
    store.write_documents([Document(id=str(n), content=f"document number {n}") for n in range(5)])
    assert indexer.run() == {"vectors_written": 5}
    assert indexer.run() == {"vectors_written": 0}
    store.write_documents([Document(id="2", content="changed")], policy=DuplicatePolicy.OVERWRITE)
    store.delete_documents(["3"])
    assert indexer.run() == {"vectors_written": 1}
    encoder = load_text_encoder(str(tiny_encoder), device="cpu")
    expected_BE = encoder.encode(["document number 0", "changed"])
    found = {d.id: d.embedding for d in store.filter_documents()}
    np.testing.assert_allclose([found["0"], found["2"]], expected_BE, atol=1e-6)
    other = DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU, pooling="cls")
    store.write_documents([Document(id="new", content="one more")])
    with pytest.raises(SearchIndexError, match="Use another index name for another model"):
        other.run()
    other.index = "second"
    assert other.run() == {"vectors_written": 5}


def test_the_indexer_follows_the_writer_in_a_pipeline(store, tiny_encoder):
    pipeline = Pipeline()
    pipeline.add_component("writer", DocumentWriter(document_store=store))
    pipeline.add_component("indexer", DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU))
    pipeline.connect("writer.documents_written", "indexer.documents_written")
    assert pipeline.run({"writer": {"documents": _documents()}})["indexer"] == {"vectors_written": 3}


def test_only_local_stores_are_indexed():
    with pytest.raises(ConfigError, match="document_store must be a LocalDocumentStore, got str"):
        DenseIndexer(document_store="folder")


def test_progress_is_that_of_batches(store, tiny_encoder, tmp_path):
    store.write_documents([Document(id=str(n), content=f"Passage {n}.") for n in range(40)])
    encoder = load_text_encoder(str(tiny_encoder), device="cpu")
    assert embed_pending(store, encoder, batch_size=16, report=JsonLines(tmp_path / "progress.jsonl")) == 40
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert {(event["event"], event["total"]) for event in events} == {("index dense", 40)}
    assert [event["step"] for event in events] == [0, 16, 32, 40, 40]
