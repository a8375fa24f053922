"""Vectors equal those of sentence-transformers, whatever the folder's modules; folders are read and written alike."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gr_components.errors import ConfigError, DeviceError, ModelError, ModelNotFoundError, NumericsError
from gr_components.models.text_encoder import load_text_encoder, text_encoder_fingerprint
from gr_components.models.text_encoder_torch import TextEncoderModule

_TEXTS = ["", "hello", "Ünïcode 北京, and a query?", *["a word " * n for n in (3, 40, 1, 17, 400)]]
_PROMPTS = {"query": "query: ", "passage": "passage: "}


def _transformer(folder: Path, tokenizer: Path, **settings) -> Path:
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.3, **settings,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, minilm):
    """A plain Hugging Face encoder of random weights."""
    return _transformer(tmp_path_factory.mktemp("plain"), minilm)


@pytest.fixture(scope="module")
def build(tmp_path_factory, plain):
    """Make a sentence-transformers folder of the given modules on top of `plain`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    def make(*steps, pooling="mean", include_prompt=True, prompts=None):
        torch.manual_seed(1)
        transformer = SentenceTransformer(str(plain), device="cpu")[0]
        pooler = Pooling(16, pooling_mode=pooling, include_prompt=include_prompt)
        model = SentenceTransformer(modules=[transformer, pooler, *[s() for s in steps]], device="cpu", prompts=prompts)
        folder = tmp_path_factory.mktemp("st")
        model.save(str(folder))
        return folder

    return make


def _theirs(folder: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _ours(folder: Path, **settings):
    return load_text_encoder(str(folder), device="cpu", **settings)


def _dense(width_in=16, width_out=8, **settings):
    from sentence_transformers.base.modules import Dense

    return lambda: Dense(width_in, width_out, **settings)


def _normalize():
    from sentence_transformers.base.modules import Normalize

    return Normalize()


def _layer_norm():
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    return LayerNorm(16)


def _assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.ptp(theirs, axis=0).max() > 1e-3, "all vectors are the same, so this test would be vacuous"


def test_minilm_equals_sentence_transformers(minilm):
    encoder, theirs = _ours(minilm), _theirs(minilm)
    _assert_equal(encoder.encode(_TEXTS, batch_size=3), theirs.encode(_TEXTS))
    _assert_equal(encoder.encode(_TEXTS, prefix="query: "), theirs.encode(_TEXTS, prompt="query: "))
    assert (encoder.dimension, encoder.info.max_length) == (384, 256)
    assert np.linalg.norm(encoder.encode(_TEXTS), axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        ((), {"pooling": "cls"}),
        ((), {"pooling": "max"}),
        ((), {"pooling": "lasttoken"}),
        ((), {"pooling": "mean_sqrt_len_tokens"}),
        ((), {"pooling": "weightedmean"}),
        ((), {"pooling": ("cls", "mean")}),
        ((_dense(), _normalize), {}),
        ((_dense(activation_function=None, bias=False), _dense(8, 24, use_residual=True), _layer_norm), {}),
        ((_normalize, _dense(16, 16, use_residual=True)), {"pooling": "cls"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else f"{len(value)} steps",
)
def test_every_module_equals_sentence_transformers(build, tmp_path, steps, settings):
    if steps and steps[-1] is _layer_norm:
        steps = (*steps[:-2], _dense(8, 16, use_residual=True), _layer_norm)
    folder = build(*steps, **settings)
    theirs = _theirs(folder)
    expected = theirs.encode(_TEXTS)
    encoder = _ours(folder)
    _assert_equal(encoder.encode(_TEXTS, batch_size=2), expected)
    assert encoder.dimension == expected.shape[1]
    TextEncoderModule.from_folder(folder).save(tmp_path / "saved")
    _assert_equal(_theirs(tmp_path / "saved").encode(_TEXTS), expected)
    assert _ours(tmp_path / "saved").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_equal_sentence_transformers(build, include_prompt):
    folder = build(_normalize, prompts=_PROMPTS, include_prompt=include_prompt)
    encoder, theirs = _ours(folder), _theirs(folder)
    assert (encoder.prompt("query"), encoder.prompt("document")) == ("query: ", "passage: ")
    _assert_equal(encoder.encode(_TEXTS, prefix=encoder.prompt("query")), theirs.encode_query(_TEXTS))
    passages = encoder.encode(_TEXTS, prefix=encoder.prompt("document"))
    _assert_equal(passages, theirs.encode(_TEXTS, prompt_name="passage"))
    assert np.abs(passages - encoder.encode(_TEXTS)).max() > 1e-3


def test_a_plain_encoder_uses_mean_pooling_or_what_is_asked_for(plain):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    mean, cls = _ours(plain), _ours(plain, pooling="cls")
    theirs = _theirs(plain)
    _assert_equal(mean.encode(_TEXTS), theirs.encode(_TEXTS))
    with_cls = SentenceTransformer(modules=[theirs[0], Pooling(16, pooling_mode="cls")], device="cpu")
    _assert_equal(cls.encode(_TEXTS), with_cls.encode(_TEXTS))
    assert mean.fingerprint != cls.fingerprint


def test_roberta_has_fewer_positions_than_it_stores(tmp_path, minilm):
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34, pad_token_id=0,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    encoder = _ours(tmp_path)
    assert encoder.info.max_length == 33
    assert not encoder.info.type_ids or encoder.encode(_TEXTS).shape == (len(_TEXTS), 16)


def test_lower_casing_of_the_folder_is_kept(build, tmp_path):
    folder = build()
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": False}))
    encoder = _ours(folder)
    np.testing.assert_allclose(encoder.encode(["A WORD"]), encoder.encode(["a word"]))
    _assert_equal(encoder.encode([t.upper() for t in _TEXTS]), _theirs(folder).encode([t.upper() for t in _TEXTS]))
    TextEncoderModule.from_folder(folder).save(tmp_path / "saved")
    _assert_equal(_ours(tmp_path / "saved").encode(["A WORD", "x"]), encoder.encode(["a word", "x"]))


def test_batches_do_not_matter(plain):
    encoder = _ours(plain)
    one_by_one = np.concatenate([encoder.encode([text]) for text in _TEXTS])
    for batch_size in (1, 3, 100):
        np.testing.assert_allclose(encoder.encode(_TEXTS, batch_size=batch_size), one_by_one, atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_training_changes_what_is_saved(build, tmp_path):
    folder = build(_dense(), _normalize)
    module = TextEncoderModule.from_folder(folder).train()
    before = _ours(folder)
    vectors_BE = module(**module.inputs(["one text", "another"]))
    (vectors_BE[0] @ vectors_BE[1]).backward()
    gradients = [name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any(name.startswith("encoder.") for name in gradients)
    assert any(name.startswith("steps.0.") for name in gradients)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    module.save(tmp_path / "trained")
    after = _ours(tmp_path / "trained")
    assert after.fingerprint != before.fingerprint
    assert np.abs(after.encode(_TEXTS) - before.encode(_TEXTS)).max() > 1e-4
    _assert_equal(after.encode(_TEXTS), _theirs(tmp_path / "trained").encode(_TEXTS))


def test_int8_rows_are_small_and_close(minilm, tmp_path):
    module = TextEncoderModule.from_folder(minilm)
    module.save(tmp_path / "int8", weights="int8")
    size = (tmp_path / "int8" / "model.int8.safetensors").stat().st_size
    assert size < 0.26 * (minilm / "model.safetensors").stat().st_size
    exact, rounded = _ours(minilm).encode(_TEXTS), _ours(tmp_path / "int8").encode(_TEXTS)
    assert (exact * rounded).sum(axis=1).min() > 0.99
    with pytest.raises(ConfigError, match="weights must be full or int8, got 'int4'"):
        module.save(tmp_path / "int4", weights="int4")


def test_narrow_types_give_float32_vectors_that_are_close(minilm):
    exact = _ours(minilm).encode(_TEXTS)
    narrow = _ours(minilm, dtype="bfloat16").encode(_TEXTS)
    assert narrow.dtype == np.float32
    assert (exact * narrow).sum(axis=1).min() > 0.99
    assert np.abs(exact - narrow).max() > 1e-5, "bfloat16 was not used"


def test_fingerprints_follow_the_model_and_not_its_file(minilm, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "copy")
    assert text_encoder_fingerprint(str(tmp_path / "copy")) == text_encoder_fingerprint(str(plain))
    assert text_encoder_fingerprint(str(plain)) == _ours(plain, max_length=9).fingerprint
    assert text_encoder_fingerprint(str(plain), pooling="cls") != text_encoder_fingerprint(str(plain))
    assert text_encoder_fingerprint(str(minilm)) != text_encoder_fingerprint(str(plain))


def test_memory_running_out_halves_the_batch(plain, monkeypatch, caplog):
    encoder = _ours(plain)
    expected = encoder.encode(_TEXTS)
    run, sizes = encoder._run, []

    def limited(arrays):
        sizes.append(len(arrays["ids_BL"]))
        if sizes[-1] > 2:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB"
            raise torch.OutOfMemoryError(msg)
        return run(arrays)

    monkeypatch.setattr(encoder, "_run", limited)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode(_TEXTS, batch_size=8), expected, atol=1e-6)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert "Out of memory with 8 inputs in a batch; going on with 4." in caplog.text


def test_memory_for_not_even_one_text_is_an_error(plain, monkeypatch):
    encoder = _ours(plain)

    def never(arrays):
        raise MemoryError

    monkeypatch.setattr(encoder, "_run", never)
    with pytest.raises(ModelError, match="Out of memory with a single input of 64 tokens"):
        encoder.encode(_TEXTS)


def test_other_failures_are_not_taken_for_memory(plain, monkeypatch):
    encoder = _ours(plain)
    monkeypatch.setattr(encoder, "_run", lambda arrays: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode(_TEXTS)


def test_nan_weights_are_an_error(plain, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(plain, tmp_path / "nan")
    state = load_file(tmp_path / "nan" / "model.safetensors")
    state["encoder.layer.0.output.dense.bias"][:] = float("nan")
    save_file(state, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="gave NaN or infinity for 2 of 2 texts, first for 'a'"):
        _ours(tmp_path / "nan").encode(["a", "b"])


def test_a_closed_encoder_says_so(plain):
    encoder = _ours(plain)
    encoder.close()
    with pytest.raises(ConfigError, match="was closed"):
        encoder.encode(["a"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"pooling": "median"}, ConfigError, "pooling must be one of cls, max, mean.* got 'median'"),
        ({"dtype": "float64"}, ConfigError, "dtype must be one of float32, float16, bfloat16, got 'float64'"),
        ({"backend": "jax"}, ConfigError, "backend must be one of torch, onnx, got 'jax'"),
        ({"max_length": 65}, ConfigError, "max_length must be at most 64 for this model, got 65"),
        ({"backend": "onnx"}, ModelNotFoundError, "holds no exported model. Run: gr export"),
        ({"backend": "onnx", "dtype": "float16"}, ConfigError, "dtype must be 'float32', got 'float16'"),
        ({"device": "cuda:9"}, DeviceError, "Device 'cuda:9' was asked for"),
        ({"model_kwargs": {"device_map": "auto"}}, ConfigError, "model_kwargs may not hold device_map"),
        ({"model_kwargs": {"attn_implementation": "a/b"}}, ConfigError, "may not hold attn_implementation='a/b'"),
    ],
)
def test_settings_that_cannot_be(plain, settings, error, message):
    with pytest.raises(error, match=message):
        load_text_encoder(str(plain), **{"device": "cpu", **settings})


def test_a_ranker_is_refused(tiny_ranker):
    with pytest.raises(ModelError, match="BertForSequenceClassification, which scores pairs and is no text encoder"):
        _ours(tiny_ranker)


def test_an_encoder_decoder_is_refused(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "bart")
    config = {"model_type": "bart", "is_encoder_decoder": True}
    (tmp_path / "bart" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="encoder-decoder of type 'bart', which is no text encoder"):
        _ours(tmp_path / "bart")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("config.json", None, ModelNotFoundError, r"has no config\.json"),
        ("model.safetensors", None, ModelNotFoundError, "has no weights in safetensors"),
        ("model.safetensors", "junk", ModelError, "could not be loaded as AutoModel"),
        ("tokenizer.json", "junk", ModelNotFoundError, "has no tokenizer that can be used"),
        ("1_Pooling/config.json", None, ModelNotFoundError, r"1_Pooling' has no config\.json"),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', ModelError, "asks for pooling 'median'"),
        ("2_Dense/model.safetensors", None, ModelNotFoundError, r"2_Dense' has no model\.safetensors"),
        ("2_Dense/model.safetensors", "junk", ModelError, "is damaged or does not fit"),
        ("modules.json", "[", ModelError, "is not valid JSON"),
        ("modules.json", '[{"idx": 0, "type": "a.b.CLIPModel", "path": ""}]', ModelError, "of the modules CLIPModel"),
    ],
)
def test_missing_and_damaged_files_are_named(build, tmp_path, name, content, error, message):
    shutil.copytree(build(_dense()), tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(error, match=message):
        _ours(tmp_path / "copy")


def test_a_foreign_activation_is_never_imported(build, tmp_path):
    shutil.copytree(build(_dense()), tmp_path / "copy")
    path = tmp_path / "copy" / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_function": "os.system"}))
    with pytest.raises(ModelError, match=r"activation 'os\.system' of a Dense module is none of torch\.nn"):
        _ours(tmp_path / "copy")
