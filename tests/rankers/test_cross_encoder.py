"""CrossEncoderRanker: the contract of components, equality with sentence-transformers, settings, bad input."""

import json
import logging
import shutil

import numpy as np
import pytest
from haystack import Document
from haystack.utils import ComponentDevice

from gr_components.errors import ConfigError, DeviceError, ModelError, ModelNotFoundError, NumericsError
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_components.testing import ComponentContract

_CPU = ComponentDevice.from_str("cpu")
_TEXTS = ["Lyon is a city in France.", "Paris is the capital of France. " * 20, "", "Bananas are yellow."]


def _documents() -> list[Document]:
    titles = ["Lyon", "Paris", "Nothing", ""]
    rows = enumerate(zip(_TEXTS, titles, strict=True))
    return [Document(id=str(n), content=text, meta={"title": t}, score=float(n)) for n, (text, t) in rows]


@pytest.fixture
def ranker(tiny_ranker):
    return CrossEncoderRanker(model=str(tiny_ranker), device=_CPU)


class TestContract(ComponentContract):
    expected_type = "gr_components.rankers.cross_encoder.CrossEncoderRanker"

    @pytest.fixture
    def component(self, ranker):
        return ranker

    @pytest.fixture
    def run_arguments(self):
        return {"query": "capital of France", "documents": _documents()}

    @pytest.fixture
    def more_run_arguments(self):
        return [{"query": f"what is number {n}?", "documents": _documents()[: n + 1]} for n in range(4)]

    @pytest.fixture
    def other_init_arguments(self):
        return {
            "top_k": 3,
            "scale_score": False,
            "score_threshold": 0.0,
            "retrieval_weight": 0.5,
            "meta_fields_to_embed": [],
            "embedding_separator": "\n",
            "label": "LABEL_0",
            "max_length": 64,
            "device": None,
            "model_kwargs": {"attn_implementation": "eager"},
        }


def test_scores_equal_sentence_transformers(ranker, tiny_ranker):
    from sentence_transformers import CrossEncoder

    query, documents = "capital of France", _documents()
    pairs = [(query, (d.meta["title"] + " " + d.content).strip()) for d in documents]
    expected = CrossEncoder(str(tiny_ranker), device="cpu").predict(pairs)
    found = {d.id: d.score for d in ranker.run(query=query, documents=documents)["documents"]}
    assert [found[d.id] for d in documents] == pytest.approx(list(expected), abs=1e-5)
    assert np.ptp(expected) > 0.01, "all scores are the same, so this test would be vacuous"


def test_documents_are_sorted_and_cut(ranker):
    everything = ranker.run(query="q", documents=_documents())["documents"]
    assert [d.score for d in everything] == sorted((d.score for d in everything), reverse=True)
    assert ranker.run(query="q", documents=_documents(), top_k=2)["documents"] == everything[:2]
    assert ranker.run(query="q", documents=_documents(), top_k=0)["documents"] == []


def test_false_and_zero_override_settings(tiny_ranker):
    ranker = CrossEncoderRanker(model=str(tiny_ranker), device=_CPU, score_threshold=2.0, retrieval_weight=1.0)
    assert ranker.run(query="q", documents=_documents())["documents"] == []
    plain = CrossEncoderRanker(model=str(tiny_ranker), device=_CPU)
    logits = ranker.run(
        query="q", documents=_documents(), scale_score=False, score_threshold=-100.0, retrieval_weight=0.0
    )["documents"]
    probabilities = plain.run(query="q", documents=_documents())["documents"]
    assert [d.id for d in logits] == [d.id for d in probabilities]
    assert [1 / (1 + np.exp(-d.score)) for d in logits] == pytest.approx([d.score for d in probabilities])
    above = plain.run(query="q", documents=_documents(), scale_score=False, score_threshold=0.0)["documents"]
    assert above == [d for d in logits if d.score >= 0]
    assert 0 < len(above) < len(logits), "the threshold 0 must cut between the documents"


def test_retrieval_scores_are_mixed_in(ranker):
    documents = _documents()
    logits = {d.id: d.score for d in ranker.run(query="q", documents=documents, scale_score=False)["documents"]}
    own, incoming = np.array([logits[d.id] for d in documents]), np.array([d.score for d in documents])
    expected = 0.3 * (own - own.mean()) / own.std() + 0.7 * (incoming - incoming.mean()) / incoming.std()
    mixed = ranker.run(query="q", documents=documents, retrieval_weight=0.7, scale_score=False)["documents"]
    found = {d.id: d.score for d in mixed}
    assert [found[d.id] for d in documents] == pytest.approx(list(expected), abs=1e-5)
    only_retrieval = ranker.run(query="q", documents=documents, retrieval_weight=1.0)["documents"]
    assert [d.id for d in only_retrieval] == ["3", "2", "1", "0"]
    assert all(0 < d.score < 1 for d in only_retrieval)


def test_a_document_without_incoming_score_counts_as_the_lowest(ranker, caplog):
    documents = [*_documents(), Document(id="new", content="unscored")]
    ids = [d.id for d in ranker.run(query="q", documents=documents, retrieval_weight=1.0)["documents"]]
    assert ids == ["3", "2", "1", "0", "new"]
    unscored = [Document(id=str(n), content=text) for n, text in enumerate(_TEXTS)]
    with caplog.at_level("WARNING"):
        ranker.run(query="q", documents=unscored, retrieval_weight=1.0)
    assert "retrieval_weight is 1.0, but the documents have no scores" in caplog.text


def test_duplicates_keep_the_highest_incoming_score(ranker):
    low, high = Document(id="a", content="x", score=0.1), Document(id="a", content="y", score=0.9)
    other = Document(id="b", content="z")
    documents = ranker.run(query="q", documents=[low, other, high])["documents"]
    assert {d.id: d.content for d in documents} == {"a": "y", "b": "z"}


def test_documents_without_content_and_long_texts_are_ranked(ranker):
    documents = [
        Document(id="none"),
        Document(id="meta", meta={"title": 7}),
        Document(id="long", content="w " * 50_000),
    ]
    assert {d.id for d in ranker.run(query="", documents=documents)["documents"]} == {"none", "meta", "long"}


def test_queries_and_passages_that_are_cut_are_told_apart(ranker, caplog):
    documents = [Document(id=str(n), content="a long text " * 100) for n in range(3)]
    with caplog.at_level(logging.WARNING, logger="gr_components"):
        ranker.run(query="capital of France", documents=documents)
        (record,) = caplog.records
        assert record.message.startswith("3 of 3 passages with their query are longer than the 128 tokens")
        caplog.clear()
        ranker.run(query="the capital of France and " * 20, documents=[*documents, Document(id="short", content="x")])
        (record,) = caplog.records
        assert record.message.startswith("3 of 4 queries with their passage are longer than the 128 tokens")


def test_prefixes_are_read(ranker, tiny_ranker):
    wrapped = CrossEncoderRanker(
        model=str(tiny_ranker),
        device=_CPU,
        query_prefix="<",
        query_suffix=">",
        document_prefix="[",
        document_suffix="]",
    )
    document = Document(id="1", content="text")
    by_hand = ranker.run(query="<q>", documents=[Document(id="1", content="[text]")])["documents"][0].score
    assert wrapped.run(query="q", documents=[document])["documents"][0].score == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"top_k": -3}, "top_k must be a whole number of at least 1, got -3"),
        ({"retrieval_weight": 1.5}, "retrieval_weight must be between 0 and 1, got 1.5"),
    ],
)
def test_bad_settings(tiny_ranker, settings, message):
    with pytest.raises(ConfigError, match=message):
        CrossEncoderRanker(model=str(tiny_ranker), **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": -1}, "top_k must be a whole number of at least 0, got -1"),
        ({"retrieval_weight": -0.1}, "retrieval_weight must be between 0 and 1, got -0.1"),
    ],
)
def test_bad_arguments(ranker, arguments, message):
    with pytest.raises(ConfigError, match=message):
        ranker.run(query="q", documents=_documents(), **arguments)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_length": 3}, ConfigError, "max_length must be at least 4 for this tokenizer, got 3"),
        ({"max_length": 4096}, ConfigError, "max_length must be at most 128 for this model, got 4096"),
        ({"label": "relevant"}, ConfigError, r"label 'relevant' is no class of .* which has 0 \(LABEL_0\)"),
        ({"model_kwargs": {"trust_remote_code": True}}, ConfigError, "code that comes with a model is never run"),
        ({"model": "/nowhere/model"}, ModelNotFoundError, "There is no model folder '/nowhere/model'"),
        ({"model": "someone/ranker"}, ModelNotFoundError, "no local folder, and it could not be had"),
        ({"backend": "onnx"}, ModelNotFoundError, "holds no exported model. Run: gr export"),
        ({"device": ComponentDevice.from_str("cuda:7")}, DeviceError, "'cuda:7' was asked for, but"),
    ],
)
def test_what_cannot_be_loaded(tiny_ranker, settings, error, message):
    ranker = CrossEncoderRanker(**{"model": str(tiny_ranker), "device": _CPU, **settings})
    with pytest.raises(error, match=message):
        ranker.run(query="q", documents=_documents())


def test_a_text_encoder_is_refused(minilm):
    with pytest.raises(ModelError, match="is a text encoder, which gives vectors and no scores of pairs"):
        CrossEncoderRanker(model=str(minilm), device=_CPU).warm_up()


def test_missing_and_damaged_files_are_named(tiny_ranker, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_ranker, folder)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="could not be loaded as AutoModelForSequenceClassification"):
        CrossEncoderRanker(model=str(folder), device=_CPU).warm_up()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="has no weights in safetensors"):
        CrossEncoderRanker(model=str(folder), device=_CPU).warm_up()
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        CrossEncoderRanker(model=str(folder), device=_CPU).warm_up()


def test_an_untrained_head_is_refused(tiny_ranker, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(tiny_ranker, folder)
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 of the model's weights \(classifier"):
        CrossEncoderRanker(model=str(folder), device=_CPU).warm_up()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(ModelError, match="holds a BertModel, which has no trained classification head"):
        CrossEncoderRanker(model=str(folder), device=_CPU).warm_up()


def test_nan_is_an_error(tiny_ranker, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(tiny_ranker, folder)
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"][0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ranker = CrossEncoderRanker(model=str(folder), device=_CPU)
    with pytest.raises(NumericsError, match="gave NaN or infinity for 4 of 4 pairs"):
        ranker.run(query="q", documents=_documents())
