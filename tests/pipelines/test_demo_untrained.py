import pytest
import torch

from gr_components.decoding.grammar import reserved_grammar
from gr_components.errors import ModelError
from gr_components.models.resolve import MINILM
from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import load_seq2seq, save_seq2seq
from gr_components.tokenization import TextTokenizer
from gr_pipelines.demo import data
from gr_pipelines.demo.untrained import _old_ids, save_untrained


@pytest.fixture(scope="module")
def texts():
    return [passage.text for passage in data.corpus()[:40]]


@pytest.fixture(scope="module")
def twins(minilm, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    tokenizer, keep = cut_vocabulary(minilm, texts)
    model = build_seq2seq_from_encoder(minilm, keep, decoder_layers=1, copy=CopyConfig(continuation=True))
    with torch.no_grad():  # stands for training: moves every weight
        for weight in model.parameters():
            weight.add_(0.05)
    info = {
        "task": "generate",
        "grammar": reserved_grammar(tokenizer).to_dict(),
        "base_model": MINILM,
        "metrics": {"x": 1},
    }
    save_seq2seq(model, tokenizer, info, folder / "trained")
    save_untrained(str(folder / "trained"), texts, folder / "untrained")
    return load_seq2seq(str(folder / "trained"), device="cpu"), load_seq2seq(str(folder / "untrained"), device="cpu")


def test_the_twin_has_the_same_shape_vocabulary_and_grammar(twins):
    trained, untrained = twins
    shapes = [{name: tuple(w.shape) for name, w in twin.model.named_parameters()} for twin in twins]
    assert shapes[0] == shapes[1]
    assert trained.tokenizer.fingerprint == untrained.tokenizer.fingerprint
    assert trained.info["grammar"] == untrained.info["grammar"]
    assert untrained.info["metrics"] is None


def test_the_twin_has_the_base_models_weights_and_none_of_the_training(twins, minilm):
    trained, untrained = twins
    from safetensors.torch import load_file

    base = load_file(minilm / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    own = dict(untrained.model.hf.named_parameters())
    assert torch.equal(own[f"encoder.{name}"], base[name])
    assert torch.equal(own[f"decoder.bert.{name}"], base[name])
    moved = dict(trained.model.hf.named_parameters())
    assert (moved[f"encoder.{name}"] - base[name]).abs().min() > 0.04


def test_a_vocabulary_that_is_no_part_of_the_base_models_is_refused(minilm, texts):
    full = TextTokenizer.from_folder(minilm)
    cut, _ = cut_vocabulary(minilm, texts)
    with pytest.raises(ModelError, match=r"tokens that its base model lacks, such as '"):
        _old_ids(full, cut)
