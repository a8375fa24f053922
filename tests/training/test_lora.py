"""Low-rank adaptation of small encoder-decoders: what trains, and that merging changes nothing."""

import copy

import pytest
import torch

from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import load_seq2seq, save_seq2seq
from gr_training.checkpoint import put_weights, weights_of
from gr_training.generative.key_scores import key_log_probs
from gr_training.lora import add_lora, merge_lora

KINDS = ["bert", "bart"]


def trained(model, batch, steps=3, chunk=0):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (-key_log_probs(model, batch, chunk=chunk).mean()).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_only_low_rank_matrices_train_and_merging_changes_nothing(tiny, kind):
    model = tiny.model_of(kind).eval()
    _, _, batch = tiny.key_batch(kind, [0, 1, 3])
    start, before = key_log_probs(model, batch).detach(), copy.deepcopy(weights_of(model))
    names = add_lora(model, rank=4, alpha=8.0)
    assert len(names) == 2 * 2 + 2 * 4, "query and value of 2 encoder and 2 decoder layers, there twice"
    assert torch.equal(key_log_probs(model, batch).detach(), start), "B starts at zero"
    trained(model, batch)
    after = weights_of(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    own = {name for name in after if name not in before}
    assert own == {f"{name}.lora_{part}" for name in names for part in ("down", "up")}
    assert all(after[name].any() for name in own)
    unmerged = key_log_probs(model, batch).detach()
    assert (unmerged - start).abs().max() > 0.1, "it did not train"
    assert merge_lora(model) == len(names)
    assert weights_of(model).keys() == before.keys()
    assert torch.allclose(key_log_probs(model, batch).detach(), unmerged, atol=1e-4, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert merge_lora(model) == 0


def test_with_gradient_caching_and_dropout_off(tiny):
    _, _, batch = tiny.key_batch("bert", [0, 1, 3])
    found = []
    for chunk in (0, 8):
        model = tiny.model_of("bert").eval()
        torch.manual_seed(1)
        add_lora(model, rank=2, pattern=r"(query|dense)$")
        found.append(weights_of(trained(model, batch, steps=2, chunk=chunk)))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


def test_checkpoints_put_the_matrices_back(tiny):
    _, _, batch = tiny.key_batch("bart", [0, 1])
    model, other = tiny.model_of("bart").eval(), tiny.model_of("bart").eval()
    add_lora(model, rank=2)
    add_lora(other, rank=2)
    trained(model, batch)
    put_weights(other, weights_of(model))
    assert torch.equal(key_log_probs(other, batch), key_log_probs(model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_saved_as_an_ordinary_one(tiny, kind, tmp_path):
    model, (_, _, batch) = tiny.model_of(kind).eval(), tiny.key_batch(kind, [0, 1])
    add_lora(model, rank=2)
    merge_lora(trained(model, batch))
    save_seq2seq(model, tiny.tokenizer_of(kind), {}, tmp_path / "model")
    again = load_seq2seq(str(tmp_path / "model"), device="cpu").model
    assert torch.allclose(key_log_probs(again, batch), key_log_probs(model, batch), atol=1e-5)


def test_errors(tiny):
    with pytest.raises(ConfigError, match="rank 0"):
        add_lora(tiny.model_of("bart"), rank=0)
    with pytest.raises(ConfigError, match="pattern 'nothing'"):
        add_lora(tiny.model_of("bart"), pattern="nothing")
    with pytest.raises(ConfigError, match=r"lm_head.*share"):
        add_lora(tiny.model_of("bart"), pattern="lm_head|q_proj")
