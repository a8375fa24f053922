"""`GenerativeRetriever` over a real store, with a small real model of random weights."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from haystack import Document
from haystack.document_stores.types import FilterPolicy

from gr_components.decoding.calibration import Calibration
from gr_components.decoding.grammar import layout_documents, reserved_grammar
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import (
    ConfigError,
    IndexMissingError,
    ModelError,
    ModelNotFoundError,
    TokenizerMismatchError,
)
from gr_components.models.description import read_description, write_description
from gr_components.retrievers.generative import GenerativeRetriever
from gr_components.testing import ComponentContract

CALIBRATION = Calibration(slope=0.5, absent=1.0)
TEXTS = [
    ("Vienna", "Vienna is the capital of Austria.", "en", ["What is the capital of Austria?"]),
    ("Graz", "Graz is the second city of Austria.", "en", []),
    ("Danube", "The Danube flows through Vienna and Budapest.", "en", ["Which river flows through Vienna?"]),
    ("Wien", "Wien ist die Hauptstadt von Österreich.", "de", []),
    ("Budapest", "Budapest is the capital of Hungary.", "en", ["What is the capital of Hungary?"]),
]
# Frequencies mean something only where most words are elsewhere.
NAMES = ["Linz", "Krems", "Melk", "Wels", "Steyr", "Enns", "Hallein", "Baden", "Tulln", "Horn", "Retz", "Zwettl"]
TEXTS += [
    (name, f"{name} was founded in {900 + 17 * n} by monks of the order.", "en", []) for n, name in enumerate(NAMES)
]


def documents() -> list[Document]:
    return [
        Document(id=title, content=text, meta={"title": title, "language": language, "queries": queries})
        for title, text, language, queries in TEXTS
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> str:
    """MiniLM's encoder with one decoder layer and a copy head, not trained, vocabulary cut to the texts."""
    import torch

    from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
    from gr_components.models.seq2seq.copying import CopyConfig
    from gr_components.models.seq2seq.folder import save_seq2seq

    torch.manual_seed(0)
    texts = [part for title, text, _, queries in TEXTS for part in (title, text, *queries)]
    tokenizer, keep = cut_vocabulary(minilm, texts)
    built = build_seq2seq_from_encoder(minilm, keep, decoder_layers=1, copy=CopyConfig())
    folder = tmp_path_factory.mktemp("model") / "generator"
    grammar = reserved_grammar(tokenizer, body_tokens=5)
    info = {"task": "generative-retrieval", "grammar": grammar.to_dict(), "calibration": CALIBRATION.to_dict()}
    save_seq2seq(built, tokenizer, info, folder)
    return str(folder)


def build_index(store: LocalDocumentStore, model: str, index: str = "generative", **other: Any) -> None:
    from gr_components.models.seq2seq.folder import load_tokenizer

    tokenizer = load_tokenizer(Path(model))
    grammar = replace(reserved_grammar(tokenizer), **other)
    store.build_suffix(
        index,
        lambda *parts: layout_documents(*parts, grammar, tokenizer),
        fields=grammar.fields,
        boundary=grammar.boundary,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        config={"grammar": grammar.to_dict()},
    )


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory, model: str) -> str:
    folder = str(tmp_path_factory.mktemp("store") / "store")
    store = LocalDocumentStore(folder)
    store.write_documents(documents())
    build_index(store, model)
    store.close()
    return folder


@pytest.fixture
def store(store_folder: str) -> LocalDocumentStore:
    return LocalDocumentStore(store_folder)


@pytest.fixture
def own_store(tmp_path: Path, model: str) -> LocalDocumentStore:
    """A store that a test may change."""
    store = LocalDocumentStore(str(tmp_path / "own"))
    store.write_documents(documents())
    build_index(store, model)
    return store


class TestContract(ComponentContract):
    expected_type: ClassVar[str] = "gr_components.retrievers.generative.GenerativeRetriever"

    @pytest.fixture
    def component(self, store: LocalDocumentStore, model: str) -> GenerativeRetriever:
        return GenerativeRetriever(store, model, beams=4, top_k=3)

    @pytest.fixture
    def run_arguments(self) -> dict[str, Any]:
        return {"query": "What is the capital of Austria?"}

    @pytest.fixture
    def more_run_arguments(self) -> list[dict[str, Any]]:
        queries = ["capital of Hungary", "Danube", "Wien", "second city"]
        return [{"query": query, "top_k": k + 1} for k, query in enumerate(queries)]

    @pytest.fixture
    def other_init_arguments(self) -> dict[str, Any]:
        return {
            "index": "other", "filter_policy": FilterPolicy.MERGE, "preset": "minder", "beams": 2, "alpha": 1.5,
            "filters": {"field": "meta.a", "operator": "==", "value": 1}, "views": ["body"], "beta": 0.0,
            "search_settings": {"smoothing": 1.0}, "dtype": "bfloat16", "local_files_only": True, "batch_size": 1,
            "scale_score": True,
        }  # fmt: skip


@pytest.fixture
def retriever(store: LocalDocumentStore, model: str) -> GenerativeRetriever:
    return GenerativeRetriever(store, model)


def changed(model: str, folder: Path, calibration: dict[str, Any] | None) -> str:
    """A copy of a model with another calibration."""
    shutil.copytree(model, folder)
    info = {name: value for name, value in (read_description(folder) or {}).items() if name != "calibration"}
    write_description(folder, info if calibration is None else {**info, "calibration": calibration})
    return str(folder)


def test_scaled_scores_are_probabilities(retriever: GenerativeRetriever, store: LocalDocumentStore) -> None:
    query = "What is the capital of Austria?"
    scaling = GenerativeRetriever(store, retriever.model, scale_score=True)
    raw, scaled = (each.run(query, top_k=3)["documents"] for each in (retriever, scaling))
    assert [d.id for d in scaled] == [d.id for d in raw]
    everything = retriever.run(query, top_k=100)["documents"]
    expected = CALIBRATION.probabilities(np.array([d.score for d in everything]))
    assert [d.score for d in scaled] == pytest.approx(expected[:3].tolist())
    assert [d.meta["identifiers"] for d in scaled] == [d.meta["identifiers"] for d in raw]
    assert [d.score for d in scaling.run(query, top_k=3, scale_score=False)["documents"]] == [d.score for d in raw]
    assert [d.score for d in retriever.run(query, top_k=3, scale_score=True)["documents"]] == [d.score for d in scaled]


def test_a_model_without_calibration_says_so(store: LocalDocumentStore, model: str, tmp_path: Path) -> None:
    plain = changed(model, tmp_path / "plain", None)
    with pytest.raises(ModelError, match="no calibration"):
        GenerativeRetriever(store, plain, scale_score=True).warm_up()
    with pytest.raises(ModelError, match="set scale_score to false"):
        GenerativeRetriever(store, plain).run("Austria", scale_score=True)


def test_a_calibration_of_other_scores_is_refused(store: LocalDocumentStore, model: str) -> None:
    problem = r"The search has alpha=1, but the model's calibration was fitted with 2 .* set scale_score to false"
    with pytest.raises(ConfigError, match=problem):
        GenerativeRetriever(store, model, alpha=1.0, scale_score=True).warm_up()
    plain = GenerativeRetriever(store, model, alpha=1.0)
    assert plain.run("Austria")["documents"]
    with pytest.raises(ConfigError, match=problem):
        plain.run("Austria", scale_score=True)


def test_a_damaged_calibration_is_named(store: LocalDocumentStore, model: str, tmp_path: Path) -> None:
    damaged = changed(model, tmp_path / "damaged", {"slope": -1})
    with pytest.raises(ModelError, match=r"The calibration of '.*damaged' is damaged"):
        GenerativeRetriever(store, damaged).warm_up()


def test_hits_carry_their_identifiers(retriever: GenerativeRetriever) -> None:
    found = retriever.run(query="What is the capital of Austria?")["documents"]
    assert found
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    for document in found:
        identifiers = document.meta["identifiers"]
        assert sum(i["contribution"] for i in identifiers) == pytest.approx(document.score)
        assert all(set(i) == {"text", "view", "log_probability", "count", "contribution"} for i in identifiers)
        entries = {"title": [document.meta["title"]], "body": [document.content], "query": document.meta["queries"]}
        for identifier in identifiers:
            assert any(identifier["text"] in " ".join(retokenized(entry)) for entry in entries[identifier["view"]])
        assert "index_lag" not in document.meta


def retokenized(text: str) -> list[str]:
    """Lower-cased words and punctuation, as the tokenizer writes them back."""
    from tokenizers.normalizers import BertNormalizer

    plain = BertNormalizer().normalize_str(text)
    return [plain, plain.replace(".", " .").replace("?", " ?")]


def test_query_batches_equal_single_runs(retriever: GenerativeRetriever) -> None:
    queries = ["What is the capital of Austria?", "", "river through Budapest"]
    together = retriever.retrieve(queries, top_k=4)
    alone = [retriever.run(query=query, top_k=4)["documents"] for query in queries]
    assert [[d.id for d in found] for found in together] == [[d.id for d in found] for found in alone]
    assert together[1] == []


#: The model is not trained, so filtered searches in one or two documents rely on matching alone.
MATCHING = {"search_settings": {"constant_log_probability": -0.1}}


def test_filters_act_while_decoding(store: LocalDocumentStore, model: str) -> None:
    retriever = GenerativeRetriever(store, model, **MATCHING)
    german = {"field": "meta.language", "operator": "==", "value": "de"}
    found = retriever.run(query="What is the capital of Austria?", filters=german)["documents"]
    assert {d.id for d in found} == {"Wien"}
    # Counted inside the filter: "." is in every other document too.
    assert {i["count"] for i in found[0].meta["identifiers"]} == {1}
    unknown = {"field": "meta.colour", "operator": "==", "value": "red"}
    assert retriever.run(query="capital", filters=unknown)["documents"] == []


def test_filter_policy(store: LocalDocumentStore, model: str) -> None:
    german = {"field": "meta.language", "operator": "==", "value": "de"}
    titled = {"field": "meta.title", "operator": "==", "value": "Graz"}
    merging = GenerativeRetriever(store, model, filters=german, filter_policy="merge", **MATCHING)
    replacing = GenerativeRetriever(store, model, filters=german, **MATCHING)
    assert {d.id for d in merging.run(query="city")["documents"]} == {"Wien"}
    assert merging.run(query="city of Austria", filters=titled)["documents"] == []
    assert {d.id for d in replacing.run(query="city of Austria", filters=titled)["documents"]} == {"Graz"}


def test_top_k_zero_and_negative(retriever: GenerativeRetriever) -> None:
    assert retriever.run(query="capital", top_k=0)["documents"] == []
    with pytest.raises(ConfigError, match="top_k must be a whole number of at least 0, got -1"):
        retriever.run(query="capital", top_k=-1)


def test_a_lagging_index_says_so(own_store: LocalDocumentStore, model: str, caplog: pytest.LogCaptureFixture) -> None:
    retriever = GenerativeRetriever(own_store, model)
    own_store.write_documents(
        [Document(id="new", content="Linz is a city of Austria."), Document(id="x", content="Salzburg")]
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = retriever.run(query="city of Austria")["documents"]
            assert found
            assert {d.meta["index_lag"] for d in found} == {2}
    assert [r.message for r in caplog.records if "lacks 2 documents" in r.message and "generative" in r.message][
        1:
    ] == []
    assert any("lacks 2 documents" in r.message for r in caplog.records)
    build_index(own_store, model)
    again = retriever.run(query="Linz is a city of Austria.")["documents"]
    assert again[0].id == "new"
    assert all("index_lag" not in d.meta for d in again)


def test_deleted_and_changed_documents(own_store: LocalDocumentStore, model: str) -> None:
    from haystack.document_stores.types import DuplicatePolicy

    retriever = GenerativeRetriever(own_store, model)
    assert "Graz" in {d.id for d in retriever.run(query="second city of Austria")["documents"]}
    own_store.delete_documents(["Graz"])
    assert "Graz" not in {d.id for d in retriever.run(query="second city of Austria")["documents"]}
    own_store.write_documents([Document(id="Danube", content="A river.")], policy=DuplicatePolicy.OVERWRITE)
    found = retriever.run(query="The Danube flows through Vienna and Budapest.")["documents"]
    assert "Danube" not in {d.id for d in found}
    build_index(own_store, model)
    assert "Danube" in {d.id for d in retriever.run(query="a river")["documents"]}


def test_an_empty_store_finds_nothing(tmp_path: Path, model: str) -> None:
    retriever = GenerativeRetriever(LocalDocumentStore(str(tmp_path / "empty")), model)
    assert retriever.run(query="capital")["documents"] == []


def test_a_missing_index_is_named(store: LocalDocumentStore, model: str) -> None:
    with pytest.raises(IndexMissingError, match=r"no index 'nope'.*generative"):
        GenerativeRetriever(store, model, index="nope").run(query="capital")


def test_a_missing_model_is_named(store: LocalDocumentStore) -> None:
    with pytest.raises(ModelNotFoundError, match="/no/such/model"):
        GenerativeRetriever(store, "/no/such/model").run(query="capital")


def test_an_index_of_another_tokenizer_or_grammar_is_refused(
    own_store: LocalDocumentStore, model: str, tmp_path: Path, minilm: Path
) -> None:
    import shutil

    from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
    from gr_components.models.seq2seq.folder import save_seq2seq

    tokenizer, keep = cut_vocabulary(minilm, ["quite another text"])
    other = build_seq2seq_from_encoder(minilm, keep, decoder_layers=1)
    save_seq2seq(other, tokenizer, {"grammar": reserved_grammar(tokenizer).to_dict()}, tmp_path / "other")
    with pytest.raises(TokenizerMismatchError, match="Build the index again with this model"):
        GenerativeRetriever(own_store, str(tmp_path / "other")).run(query="capital")
    build_index(own_store, model, "marked", title_end=7)
    with pytest.raises(TokenizerMismatchError, match="other tokens than the model"):
        GenerativeRetriever(own_store, model, index="marked").run(query="capital")
    shutil.rmtree(tmp_path / "other")


def test_long_queries_are_cut_with_a_warning(retriever: GenerativeRetriever, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = retriever.run(query="the capital of Austria and " * 40)["documents"]
    assert found
    assert ["their end is left out" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"beams": 0}, "beams must be a whole number of at least 1"),
        ({"beta": 2.0}, "beta must be between 0 and 1"),
        ({"preset": "best"}, "preset must be one of"),
        ({"search_settings": {"smoothnig": 1.0}}, r"unknown names \['smoothnig'\]"),
        ({"backend": "onnx"}, "backend must be 'torch'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"filter_policy": "both"}, "both"),
    ],
)
def test_bad_settings_are_refused(
    store: LocalDocumentStore, model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerativeRetriever(store, model, **settings)


def test_the_store_must_be_a_local_one(model: str) -> None:
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    with pytest.raises(ConfigError, match="must be a LocalDocumentStore, got InMemoryDocumentStore"):
        GenerativeRetriever(InMemoryDocumentStore(), model)  # type: ignore[arg-type]


def test_presets_and_settings_reach_the_search(store: LocalDocumentStore, model: str) -> None:
    settings = {"preset": "minder", "beams": 3, "views": ["body"], "search_settings": {"smoothing": 2.0}}
    retriever = GenerativeRetriever(store, model, **settings)
    config = retriever._engine().config
    assert (config.beams, config.views, config.smoothing, config.query_ngrams) == (3, ("body",), 2.0, 3)
    found = retriever.run(query="the capital of Austria")["documents"]
    assert {i["view"] for d in found for i in d.meta["identifiers"]} <= {"body", "words"}
