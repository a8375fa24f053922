"""Texts that are longer than a model reads: every component says so once after loading, in the same words."""

import logging
from collections.abc import Iterator

import pytest
from haystack import Document
from haystack.utils import ComponentDevice

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.document import DocumentEmbedder
from gr_components.embedders.indexer import DenseIndexer
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_components.readers.fid import FiDReader
from gr_components.retrievers.dense import DenseRetriever
from gr_components.retrievers.generative import GenerativeRetriever
from gr_components.writers.generative import GenerativeIndexer

_SENTENCE = "the old river runs past the town and the mill "
_LONG = _SENTENCE * 60
_SHORT = Document(id="short", content=_SENTENCE, meta={"title": "River"})
_DOCUMENTS = [Document(id="long", content=_LONG, meta={"title": _LONG}), _SHORT]
_GENERATOR, _READER, _RANKER = (f"package:gr_pipelines/models/{name}" for name in ("generator", "reader", "ranker"))

#: For each component an input that is too long, one that is not, and what is cut of the first.
_CASES = {
    DenseRetriever: ({"query": _LONG}, {"query": "river"}, ["1 of 1 queries"]),
    GenerativeRetriever: ({"query": _LONG}, {"query": "river"}, ["1 of 1 queries"]),
    DocumentEmbedder: ({"documents": _DOCUMENTS}, {"documents": [_SHORT]}, ["1 of 2 documents"]),
    CrossEncoderRanker: (
        {"query": _LONG, "documents": _DOCUMENTS},
        {"query": "river", "documents": [_SHORT]},
        ["2 of 2 queries with their passage", "1 of 2 passages with their query"],
    ),
    FiDReader: (
        {"query": _LONG, "documents": _DOCUMENTS},
        {"query": "which river?", "documents": [_SHORT]},
        ["1 of 1 questions", "1 of 2 titles", "1 of 2 passages with their question"],
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDocumentStore]:
    store = LocalDocumentStore(tmp_path_factory.mktemp("long") / "store")
    store.write_documents([_SHORT])
    DenseIndexer(document_store=store).run()
    GenerativeIndexer(document_store=store, model=_GENERATOR).run()
    yield store
    store.close()


@pytest.mark.parametrize("cls", _CASES)
def test_what_is_lost_is_said_once(cls, store: LocalDocumentStore, caplog: pytest.LogCaptureFixture) -> None:
    models = {GenerativeRetriever: _GENERATOR, FiDReader: _READER, CrossEncoderRanker: _RANKER}
    settings = {"device": ComponentDevice.from_str("cpu")}
    settings |= {"document_store": store} if cls in (DenseRetriever, GenerativeRetriever) else {}
    settings |= {"model": models[cls]} if cls in models else {}
    component = cls(**settings)
    long, short, cut = _CASES[cls]

    def said(given: dict[str, object]) -> list[tuple[int, str]]:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="gr_components"):
            component.run(**given)
        return [(r.levelno, r.getMessage()) for r in caplog.records if "their end is left out" in r.getMessage()]

    assert said(short) == []
    first = said(long)
    assert [level for level, _ in first] == [logging.WARNING] * len(cut)
    for (_, message), start in zip(first, cut, strict=True):
        assert message.startswith(f"{start} are longer than the "), message
        assert "tokens that the model reads; their end is left out (said once; more at level DEBUG)" in message
        assert message.endswith(f"The first is: {_LONG[:60].strip()}")
    again = said(long)
    assert [level for level, _ in again] == [logging.DEBUG] * len(cut)
    assert said(short) == []
    component.close()
    assert said(long) == first, "the model was loaded anew"


def test_indexing_says_it_too(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    store = LocalDocumentStore(tmp_path / "store")
    store.write_documents(_DOCUMENTS)
    with caplog.at_level(logging.WARNING):
        DenseIndexer(document_store=store).run()
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 2 documents are longer than the 256 tokens that the model reads")
