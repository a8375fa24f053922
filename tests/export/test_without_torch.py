"""Exported models run in an environment that has no torch: a fresh one is made for this test."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from gr_export.exporting import export_model

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
from haystack import Document, Pipeline
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.indexer import DenseIndexer
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_components.retrievers.dense import DenseRetriever

folder, encoder, ranker = sys.argv[1:]
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("transformers") is None
store = LocalDocumentStore(folder + "/store")
texts = json.loads(Path(folder, "texts.json").read_text())
store.write_documents([Document(id=str(n), content=text) for n, text in enumerate(texts)])
DenseIndexer(document_store=store, model=encoder, backend="onnx").run()
pipeline = Pipeline()
pipeline.add_component("retriever", DenseRetriever(document_store=store, model=encoder, backend="onnx"))
pipeline.add_component("ranker", CrossEncoderRanker(ranker, backend="onnx", scale_score=False))
pipeline.connect("retriever.documents", "ranker.documents")
pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["gr_components"])
inputs = {"retriever": {"query": "a yellow fruit"}, "ranker": {"query": "a yellow fruit"}}
found = pipeline.run(inputs, include_outputs_from={"retriever"})
print(json.dumps({name: {d.id: d.score for d in output["documents"]} for name, output in found.items()}))
try:
    DenseRetriever(document_store=store, model=encoder).warm_up()
except ImportError as error:
    print(error)
"""
_TEXTS = ["Bananas are yellow.", "Cars have four wheels.", "", "The lemon is a fruit, and yellow. " * 30]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with the project's extras `onnx` and `faiss` and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    source = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".venv", ".git", ".tools", "runs", "stores", "build", "dist", "*cache*")
    shutil.copytree(_ROOT, source, ignore=ignored)  # installing writes beside the sources
    project = f"{source}[onnx,faiss]"
    uv = shutil.which("uv") or next((str(p) for p in _ROOT.glob(".tools/bin/uv")), None)
    if uv is not None:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", project], check=True)
    else:
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", project], check=True)
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_components_run_without_torch(python, tmp_path, tiny_encoder, tiny_ranker):
    import json

    from gr_components.models.pair_scorer import load_pair_scorer
    from gr_components.models.text_encoder import load_text_encoder

    export_model(str(tiny_encoder), tmp_path / "encoder")
    export_model(str(tiny_ranker), tmp_path / "ranker")
    (tmp_path / "texts.json").write_text(json.dumps(_TEXTS))
    environment = {"PATH": os.environ["PATH"], "HAYSTACK_TELEMETRY_ENABLED": "false"}
    command = [python, "-c", _PROGRAM, tmp_path, tmp_path / "encoder", tmp_path / "ranker"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    scores, message = done.stdout.strip().splitlines()[-2:]
    found = json.loads(scores)

    encoder, scorer = (
        load_text_encoder(str(tiny_encoder), device="cpu"),
        load_pair_scorer(str(tiny_ranker), device="cpu"),
    )
    query_E, *vectors_DE = encoder.encode(["a yellow fruit", *_TEXTS])
    logits_D = scorer.score([("a yellow fruit", text) for text in _TEXTS])
    with_text = [n for n, text in enumerate(_TEXTS) if text]
    cosine = {
        str(n): float(query_E @ vectors_DE[n] / (query_E @ query_E) ** 0.5 / (vectors_DE[n] @ vectors_DE[n]) ** 0.5)
        for n in with_text
    }
    assert found["retriever"] == pytest.approx(cosine, abs=1e-4)
    assert found["ranker"] == pytest.approx({str(n): float(logits_D[n]) for n in with_text}, abs=1e-4)
    assert message.startswith("This needs 'torch', which is not installed. Run: pip install 'gr-components[torch]'")
