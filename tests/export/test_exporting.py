"""Exported models give torch's numbers for any batch size and length, and components run them."""

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from haystack import Document
from haystack.utils import ComponentDevice

from gr_components.embedders.document import DocumentEmbedder
from gr_components.errors import ConfigError, DeviceError, ExportError, ModelError, ModelNotFoundError, ParityError
from gr_components.models.description import read_description, write_description
from gr_components.models.pair_scorer import load_pair_scorer
from gr_components.models.text_encoder import load_text_encoder, text_encoder_fingerprint
from gr_components.models.text_encoder_torch import TextEncoderModule
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_export.cli import command
from gr_export.exporting import detect_task, export_model, verify

_CPU = ComponentDevice.from_str("cpu")
_TEXTS = ["", "hello", "Ünïcode 北京, and a query?", *["a word " * n for n in (3, 40, 1, 17, 400)]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_encoder):
    """The tiny encoder with a prompt that is left out of pooling, a Dense layer and normalisation, exported."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    root = tmp_path_factory.mktemp("export")
    transformer = SentenceTransformer(str(tiny_encoder), device="cpu")[0]
    modules = [transformer, Pooling(16, pooling_mode="mean", include_prompt=False), Dense(16, 8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", prompts={"query": "find: "}).save(str(root / "torch"))
    export_model(str(root / "torch"), root / "onnx")
    return root


@pytest.fixture(scope="module")
def ranker(tmp_path_factory, tiny_ranker):
    """The tiny ranker with a description, exported through the command with a smaller length."""
    root = tmp_path_factory.mktemp("export")
    shutil.copytree(tiny_ranker, root / "source")
    write_description(root / "source", {"task": "ranker", "licence": "MIT"})
    arguments = [str(root / "source"), str(root / "onnx"), "--max-length", "100"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    return root / "onnx", result.output


def test_vectors_equal_torch(encoder):
    torch, onnx_ = (load_text_encoder(str(encoder / kind), backend=kind, device="cpu") for kind in ("torch", "onnx"))
    for prefix in ("", torch.prompt("query")):
        expected, found = torch.encode(_TEXTS, prefix=prefix), onnx_.encode(_TEXTS, prefix=prefix, batch_size=3)
        assert np.abs(expected - found).max() < 1e-5
        assert np.ptp(expected, axis=0).max() > 1e-3, "all vectors are the same, so this test would be vacuous"
    assert onnx_.info == torch.info
    assert text_encoder_fingerprint(str(encoder / "onnx")) == torch.fingerprint


def test_scores_equal_torch_and_the_report_says_so(ranker, tiny_ranker):
    folder, output = ranker
    pairs = [("a query", text) for text in _TEXTS]
    expected = load_pair_scorer(str(tiny_ranker), device="cpu", max_length=100).score(pairs)
    found = load_pair_scorer(str(folder), backend="onnx", device="cpu").score(pairs, batch_size=3)
    assert np.abs(expected - found).max() < 1e-5
    assert "ranker, 4." in output
    assert "largest difference from torch" in output
    assert "over batches 1x3, 2x7, 5x33, 3x64, 1x100, 2x100" in output


def test_the_ranker_component_runs_it(ranker, tiny_ranker):
    documents = [Document(id=str(n), content=text) for n, text in enumerate(_TEXTS)]
    torch = CrossEncoderRanker(str(tiny_ranker), device=_CPU, max_length=100)
    expected = torch.run(query="q", documents=documents)["documents"]
    exported = CrossEncoderRanker(str(ranker[0]), backend="onnx", model_kwargs={"intra_op_num_threads": 1})
    found = exported.run(query="q", documents=documents)["documents"]
    assert [d.id for d in found] == [d.id for d in expected]
    assert [d.score for d in found] == pytest.approx([d.score for d in expected], abs=1e-5)


def test_the_embedder_component_runs_it(encoder):
    documents = [Document(id=str(n), content=text) for n, text in enumerate(_TEXTS)]
    expected = DocumentEmbedder(str(encoder / "torch"), device=_CPU).run(documents=documents)["documents"]
    found = DocumentEmbedder(str(encoder / "onnx"), backend="onnx").run(documents=documents)["documents"]
    for one, other in zip(expected, found, strict=True):
        assert one.meta == other.meta
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)


def test_the_folder_describes_itself(encoder):
    description = read_description(encoder / "onnx")
    assert description["task"] == "dense"
    about = description["onnx"]
    assert about["max_abs_diff"] < 1e-4
    assert {tuple(shape) for shape in about["probes"]} == {(1, 3), (2, 7), (5, 33), (3, 64), (1, 64), (2, 64)}
    graph = onnx.load(str(encoder / "onnx" / "model.onnx"))
    assert about["opset"] == graph.opset_import[0].version
    assert {node.name for node in graph.graph.input} == {"ids_BL", "mask_BL", "type_ids_BL", "pooled_BL"}
    assert not list((encoder).glob("onnx.*")), "a temporary folder was left behind"


def test_a_description_of_the_source_is_kept(ranker):
    description = read_description(ranker[0])
    assert (description["licence"], description["onnx"]["info"]["max_length"]) == ("MIT", 100)


@pytest.mark.slow
def test_other_numbers_are_never_written(tiny_encoder, tmp_path):
    with pytest.raises(ParityError, match=r"ONNX and torch differ by .* \(allowed: 1e-12\) on inputs of shape"):
        export_model(str(tiny_encoder), tmp_path / "out", atol=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_verify_notices_changed_weights(encoder):
    import torch

    module = TextEncoderModule.from_folder(encoder / "torch")
    _, difference = verify(module, encoder / "onnx" / "model.onnx", atol=1e-4)
    assert difference < 1e-5
    with torch.no_grad():
        module.steps[0].linear.bias += 0.01
    with pytest.raises(ParityError, match="ONNX and torch differ by"):
        verify(module, encoder / "onnx" / "model.onnx", atol=1e-4)


def test_tasks_are_detected(tiny_encoder, tiny_ranker, minilm, encoder, tmp_path):
    found = [detect_task(folder) for folder in (tiny_encoder, tiny_ranker, minilm, encoder / "torch")]
    assert found == ["dense", "ranker", "dense", "dense"]
    write_description(tmp_path, {"task": "generator"})
    with pytest.raises(ExportError, match="is a model for the task 'generator'; only dense and ranker"):
        detect_task(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task": "reader"}, ConfigError, "task must be one of dense, ranker, got 'reader'"),
        ({"atol": 0.0}, ConfigError, "atol must be greater than 0, got 0"),
        ({"task": "ranker"}, ModelError, "which has no trained classification head"),
        ({"model": "/nowhere"}, ModelNotFoundError, "There is no model folder '/nowhere'"),
    ],
)
def test_bad_arguments(tiny_encoder, tmp_path, settings, error, message):
    arguments = {"model": str(tiny_encoder), "folder": tmp_path / "out", **settings}
    with pytest.raises(error, match=message):
        export_model(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tiny_encoder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        export_model(str(tiny_encoder), tmp_path / "out")


def test_the_wrong_component_or_backend_is_named(encoder, ranker):
    with pytest.raises(ModelError, match="exported for the task 'dense', not 'ranker'"):
        load_pair_scorer(str(encoder / "onnx"), backend="onnx")
    with pytest.raises(ModelError, match="exported for the task 'ranker', not 'dense'"):
        load_text_encoder(str(ranker[0]), backend="onnx")
    with pytest.raises(ModelError, match="holds a model exported to ONNX"):
        load_text_encoder(str(encoder / "onnx"), device="cpu")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"device": "cuda:0"}, DeviceError, "Device 'cuda:0' was asked for, but this onnxruntime offers"),
        ({"dtype": "bfloat16"}, ConfigError, "dtype must be 'float32', got 'bfloat16'"),
        ({"pooling": "cls"}, ConfigError, "pooling is part of an exported model and cannot be set to 'cls'"),
        ({"model_kwargs": {"optimized_model_filepath": "x"}}, ConfigError, "got 'optimized_model_filepath'"),
    ],
)
def test_settings_that_cannot_be(encoder, settings, error, message):
    with pytest.raises(error, match=message):
        load_text_encoder(str(encoder / "onnx"), backend="onnx", **settings)


def test_missing_and_damaged_files_are_named(encoder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(encoder / "onnx", folder)
    (folder / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ModelError, match="could not be loaded by onnxruntime"):
        load_text_encoder(str(folder), backend="onnx")
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelNotFoundError, match=r"lacks model\.onnx, which its gr_model\.json names"):
        load_text_encoder(str(folder), backend="onnx")
    (folder / "tokenizer.json").unlink()
    shutil.copyfile(encoder / "onnx" / "model.onnx", folder / "model.onnx")
    with pytest.raises(ModelNotFoundError, match=r"No tokenizer\.json"):
        load_text_encoder(str(folder), backend="onnx")
    description = json.loads((folder / "gr_model.json").read_text())
    (folder / "gr_model.json").write_text(json.dumps({**description, "format": "gr.model/99"}))
    with pytest.raises(ModelError, match=r"holds format 'gr\.model/99'"):
        load_text_encoder(str(folder), backend="onnx")


def test_a_path_outside_the_folder_is_not_followed(encoder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(encoder / "onnx", folder)
    description = json.loads((folder / "gr_model.json").read_text())
    description["onnx"]["file"] = "../../elsewhere.onnx"
    (folder / "gr_model.json").write_text(json.dumps(description))
    with pytest.raises(ModelNotFoundError, match=r"lacks elsewhere\.onnx"):
        load_text_encoder(str(folder), backend="onnx")
