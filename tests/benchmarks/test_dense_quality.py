"""
MiniLM through the product gives the published baseline: nDCG@10 on SQuAD's paragraphs (SciFact: `baselines.py`).

`GR_DENSE_MODEL` and `GR_BACKEND` choose another model, such as an exported copy, or another backend.
"""

import os
from pathlib import Path

import pytest

from gr_components.data.haystack import to_document
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.indexer import DenseIndexer
from gr_components.evaluation import evaluate_run
from gr_components.models.resolve import MINILM
from gr_components.retrievers.dense import DenseRetriever
from gr_pipelines.demo import data as demo

_TOLERANCE = 0.003
_SETTINGS = {"model": os.environ.get("GR_DENSE_MODEL", MINILM), "backend": os.environ.get("GR_BACKEND", "torch")}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def _ndcg(folder: Path, passages, questions, qrels) -> float:
    store = LocalDocumentStore(str(folder / "store"))
    store.write_documents([to_document(passage) for passage in passages])
    assert DenseIndexer(document_store=store, **_SETTINGS).run()["vectors_written"] == store.count_documents()
    retriever = DenseRetriever(document_store=store, top_k=10, **_SETTINGS)
    found = retriever.retrieve([question.text for question in questions])
    run = {q.id: [(d.id, d.score) for d in documents] for q, documents in zip(questions, found, strict=True)}
    store.close()
    return evaluate_run(run, qrels, measures=["nDCG@10"]).means["nDCG@10"]


def test_squad(tmp_path):
    questions = [question for split in demo.SPLITS for question in demo.questions(split)]
    qrels = {key: judged for split in demo.SPLITS for key, judged in demo.qrels(split).items()}
    assert len(questions) == len(qrels) == 5696
    value = _ndcg(tmp_path, demo.corpus(), questions, qrels)
    print(f"\nsquad nDCG@10 {value:.4f} (baseline .7774)")
    assert value == pytest.approx(0.7774, abs=_TOLERANCE)
