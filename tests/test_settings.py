"""Settings that cannot be are refused where they are made, by every component alike, and before anything is loaded."""

import pytest
from haystack.document_stores.types import FilterPolicy
from haystack.utils import ComponentDevice, Device, DeviceMap, Secret

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.document import DocumentEmbedder
from gr_components.embedders.indexer import DenseIndexer
from gr_components.errors import ConfigError, DeviceError
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_components.readers.fid import FiDReader
from gr_components.retrievers.bm25 import BM25Retriever
from gr_components.retrievers.dense import DenseRetriever
from gr_components.retrievers.embedding import LocalEmbeddingRetriever
from gr_components.retrievers.generative import GenerativeRetriever
from gr_components.settings import effective_filters, load_arguments
from gr_components.writers.generative import GenerativeIndexer

_STORE = (BM25Retriever, DenseRetriever, LocalEmbeddingRetriever, GenerativeRetriever, DenseIndexer, GenerativeIndexer)
_MODEL = (DenseRetriever, GenerativeRetriever, CrossEncoderRanker, FiDReader, DocumentEmbedder, DenseIndexer)
_ENCODER = (DenseRetriever, DocumentEmbedder, DenseIndexer)
_LENGTH = (*_ENCODER, CrossEncoderRanker)
_TOP_K = (BM25Retriever, DenseRetriever, LocalEmbeddingRetriever, GenerativeRetriever, CrossEncoderRanker, FiDReader)
_WHOLE = "must be a whole number of at least 1, got"


def _made(cls, store, **settings):
    given = {"document_store": store} if cls in _STORE else {}
    if cls not in (BM25Retriever, LocalEmbeddingRetriever):
        given["model"] = "/nowhere/model"
    return cls(**{**given, **settings})


@pytest.fixture
def store(tmp_path):
    return LocalDocumentStore(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("classes", "name", "value", "message"),
    [
        *((_TOP_K, "top_k", value, f"top_k {_WHOLE} {value!r}") for value in (0, -1, True, 2.5, "5", None)),
        *((_MODEL, "batch_size", value, f"batch_size {_WHOLE} {value!r}") for value in (0, -1, True, "8")),
        *((_LENGTH, "max_length", value, f"max_length {_WHOLE} {value!r}") for value in (0, -5, 2.5)),
        (_MODEL, "dtype", "float8", "dtype must be one of float32, float16, bfloat16, got 'float8'"),
        (_MODEL, "dtype", None, "dtype must be one of .*, got None"),
        (_LENGTH, "backend", "tf", "backend must be one of torch, onnx, got 'tf'"),
        (_ENCODER, "pooling", "x", "pooling must be one of cls, max, mean, .*, got 'x'"),
        (_STORE, "document_store", "folder", "document_store must be a LocalDocumentStore, got str"),
        ((FiDReader,), "max_answer_tokens", 1, "max_answer_tokens must be a whole number of at least 2, got 1"),
        ((FiDReader,), "max_passage_tokens", 0, f"max_passage_tokens {_WHOLE} 0"),
        ((FiDReader,), "num_answers", 3, "num_answers=3 needs as many beams; num_beams is 1"),
        ((FiDReader,), "length_penalty", float("nan"), "length_penalty must be a number, got nan"),
        ((CrossEncoderRanker,), "retrieval_weight", "high", "retrieval_weight must be a number, got 'high'"),
        ((CrossEncoderRanker,), "score_threshold", True, "score_threshold must be a number, got True"),
    ],
)
def test_at_construction(store, classes, name, value, message):
    for cls in classes:
        with pytest.raises(ConfigError, match=message):
            _made(cls, store, **{name: value})


@pytest.mark.parametrize("cls", _LENGTH)
def test_onnx_runs_what_was_exported(store, cls):
    with pytest.raises(ConfigError, match="dtype must be 'float32', got 'float16'"):
        _made(cls, store, backend="onnx", dtype="float16")


@pytest.mark.parametrize("value", [-1, True, 2.5, "5"])
def test_the_same_at_run_time_and_before_loading(store, value):
    texts = {"query": "q"}
    for cls in _TOP_K:
        component = _made(cls, store)
        documents = {"documents": []} if cls in (CrossEncoderRanker, FiDReader) else {}
        given = {"query_embedding": [1.0]} if cls is LocalEmbeddingRetriever else texts
        with pytest.raises(ConfigError, match=f"top_k must be a whole number of at least 0, got {value!r}"):
            component.run(**given, **documents, top_k=value)
    with pytest.raises(ConfigError, match="num_answers=2 needs as many beams"):
        _made(FiDReader, store).run(query="q", documents=[], num_answers=2)


@pytest.mark.parametrize("cls", [BM25Retriever, DenseRetriever, LocalEmbeddingRetriever, GenerativeRetriever])
def test_filter_policies_have_names(store, cls, monkeypatch):
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", "gr_components")
    for value in ("merge", FilterPolicy.MERGE):
        component = _made(cls, store, filter_policy=value)
        assert component.to_dict()["init_parameters"]["filter_policy"] == "merge"
        assert cls.from_dict(component.to_dict()).filter_policy is FilterPolicy.MERGE


@pytest.mark.parametrize("cls", _MODEL)
def test_what_a_user_sets_about_a_model_reaches_its_loader(store, cls, monkeypatch):
    monkeypatch.setenv("MY_HUB_TOKEN", "secret")
    plain = {"dtype": "bfloat16", "revision": "v2", "local_files_only": True, "model_kwargs": {"a": 1}}
    device, token = ComponentDevice.from_str("cuda:1"), Secret.from_env_var("MY_HUB_TOKEN")
    component = _made(cls, store, device=device, token=token, **plain)
    assert load_arguments(component) == {**plain, "device": "cuda:1", "token": "secret"}
    assert load_arguments(_made(cls, store))["device"] is None, "the loader takes the best there is"
    several = DeviceMap({"encoder": Device.gpu(0), "decoder": Device.gpu(1)})
    with pytest.raises(DeviceError, match="A device map over several devices is not supported"):
        load_arguments(_made(cls, store, device=ComponentDevice.from_multiple(several)))


def test_empty_filters_mean_none_and_not_the_configured_ones():
    configured = {"field": "id", "operator": "==", "value": "1"}
    assert effective_filters(FilterPolicy.REPLACE, configured, {}) is None
    assert effective_filters(FilterPolicy.REPLACE, configured, None) == configured
    assert effective_filters(FilterPolicy.MERGE, configured, {}) == configured
