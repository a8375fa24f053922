"""Log-probabilities of many keys, one by one and all at once, and gradient caching."""

import copy
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gr_components.errors import ConfigError
from gr_components.models.seq2seq.torch_decoder import TorchDecoder
from gr_training.checkpoint import load_weights
from gr_training.generative.key_scores import KeyBatches, key_log_probs

SCRIPT = Path(__file__).with_name("tiny_lists.py")
KINDS = ["bert", "bart"]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert sum(bool(g.any()) for g in found.values()) > 40, "nothing to compare"
    model.zero_grad(set_to_none=True)
    return found


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Gradients that are zero but for rounding, such as those of a key's bias, have no scale of their own.
        assert (tensor - second[name]).abs().max() <= tolerance * max(tensor.abs().max(), 0.1), name


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_decoder_that_searches(tiny, kind):
    model, tokenizer, grammar = tiny.model_of(kind).eval(), tiny.tokenizer_of(kind), tiny.grammar_of(kind)
    sources, keys, batch = tiny.key_batch(kind, [0, 1, 2, 3])
    found = key_log_probs(model, batch)
    assert found.shape == (4, 24)
    decoder = TorchDecoder(model)
    first, last = ([2], [3]) if kind == "bert" else ([0], [2])
    for b, (source, own) in enumerate(zip(sources, keys, strict=True)):
        for k, (name, tokens) in enumerate(own):
            view = grammar.view(name)
            suffix = tokenizer.encode([view.source_suffix])[0] if view.source_suffix else []
            ids = np.array([[*first, *source, *suffix, *last]])
            memory = decoder.encode(ids, np.ones_like(ids, dtype=bool))
            wanted = decoder.score(memory, np.array([tokens]), view.decoder_start, np.zeros(1, np.int64)).sum()
            assert found[b, k].item() == pytest.approx(wanted, rel=1e-4, abs=1e-4), (b, k, name)
        assert not found[b, len(own) :].any(), "padding is 0"
    assert found.min() < -3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 8, 20, 1000])
def test_chunks_change_nothing(tiny, kind, chunk):
    model = tiny.model_of(kind).eval()
    _, _, batch = tiny.key_batch(kind, [0, 1, 2, 3])
    assert torch.allclose(key_log_probs(model, batch, chunk=chunk), key_log_probs(model, batch), atol=1e-5)


def test_the_order_of_keys_is_kept_and_each_has_its_own_gradient(tiny):
    model = tiny.model_of("bert").eval()
    sources, keys, batch = tiny.key_batch("bert", [4, 1])
    order = np.random.default_rng(0).permutation(len(keys[0]))
    maker = KeyBatches(tiny.tokenizer_of("bert"), tiny.grammar_of("bert"))
    moved = maker.make(sources, [[keys[0][i] for i in order], keys[1]])
    first, second = key_log_probs(model, batch), key_log_probs(model, moved)
    assert torch.allclose(first[0][order], second[0], atol=1e-5)
    first[0, 3].backward()
    alone = gradients(model)
    _, _, single = sources, keys, maker.make(sources[:1], [keys[0][3:4]])
    key_log_probs(model, single).sum().backward()
    assert_close(gradients(model), alone, 1e-4)


@pytest.mark.parametrize(("kind", "passes"), [("bert", 1), ("bart", 3)])
def test_questions_are_encoded_and_projected_once(tiny, kind, passes, monkeypatch):
    model = tiny.model_of(kind).eval()
    calls = []
    for name in ("encode", "project"):
        original = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *a, n=name, f=original: calls.append(n) or f(*a))
    _, _, batch = tiny.key_batch(kind, [0, 1, 2, 3])
    key_log_probs(model, batch, chunk=8).sum().backward()
    assert sorted(calls) == ["encode"] * passes + ["project"] * passes


def test_little_is_wasted_on_padding(tiny):
    _, keys, batch = tiny.key_batch("bert", list(range(8)), 120)
    (group,) = batch["groups"]
    real = sum(len(tokens) for own in keys for _, tokens in own)
    assert int(group["real_RT"].sum()) == real
    padded = sum(8 * length for length in group["lengths"])
    assert padded < 1.12 * real


def test_questions_without_keys_and_no_keys_at_all(tiny):
    model = tiny.model_of("bart").eval()
    maker = KeyBatches(tiny.tokenizer_of("bart"), tiny.grammar_of("bart"))
    found = key_log_probs(model, maker.make([[10, 11], [12]], [[("body", (13, 14))], []]))
    assert found.shape == (2, 1)
    assert found[0, 0] < 0
    assert found[1, 0] == 0
    assert key_log_probs(model, maker.make([[10], [12]], [[], []])).shape == (2, 0)
    with pytest.raises(ConfigError, match="no view 'code'"):
        maker.make([[10]], [[("code", (11,))]])


# Gradient caching


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "dropout"), [(8, 0.0), (24, 0.3)])
def test_cached_equals_plain_gradients(tiny, kind, dropout, chunk):
    model = tiny.model_of(kind, dropout=dropout).train()
    _, _, batch = tiny.key_batch(kind, [0, 1, 2, 3])
    weights = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    values, grads = [], []
    for keep in (True, False, False):
        torch.manual_seed(7 if len(values) < 2 else 8)
        scores = key_log_probs(model, batch, chunk=chunk, keep_graph=keep)
        (scores.square() * weights).sum().backward()
        values.append(scores.detach())
        grads.append(gradients(model))
    assert torch.equal(values[0], values[1])
    assert_close(grads[0], grads[1], 1e-6)
    if dropout:
        assert not torch.allclose(values[1], values[2], atol=1e-2), "dropout was off, so its replay was not tested"


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_plain_gradients_without_chunks_and_with_shared_parameters(tiny, kind):
    """One further use of encoder and parameters outside the chunks, as the likelihood term is."""
    model = tiny.model_of(kind).train()
    _, _, batch = tiny.key_batch(kind, [0, 1, 2, 3])
    grads = []
    for chunk in (0, 16):
        first = key_log_probs(model, batch, chunk=chunk)
        other = key_log_probs(model, tiny.key_batch(kind, [5])[2])
        (first.square().mean() + other.mean()).backward()
        grads.append(gradients(model))
    assert_close(*grads, 1e-5)


def test_cached_under_autocast(tiny):
    model = tiny.model_of("bert", dropout=0.1).train()
    _, _, batch = tiny.key_batch("bert", [0, 1, 2, 3])
    grads = []
    for keep in (True, False):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            scores = key_log_probs(model, batch, chunk=16, keep_graph=keep)
        assert scores.dtype == torch.float32
        scores.mean().backward()
        grads.append(gradients(model))
    assert_close(*grads, 1e-6)


def test_nothing_is_kept_between_the_runs_but_the_scores(tiny):
    model = tiny.model_of("bert").train()
    _, _, batch = tiny.key_batch("bert", [0, 1, 2, 3])
    kept = {}
    for chunk in (0, 8):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):  # noqa: B023
            key_log_probs(model, batch, chunk=chunk)
        kept[chunk] = sum(sizes)
    assert kept[8] < 0.35 * kept[0], "what is left is the encoder's graph"


def test_no_gradient_is_asked_for(tiny):
    model = tiny.model_of("bert").eval()
    _, _, batch = tiny.key_batch("bert", [0, 1])
    with torch.no_grad():
        found = key_log_probs(model, batch, chunk=8)
    assert not found.requires_grad
    assert torch.allclose(found, key_log_probs(model, batch), atol=1e-5)


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_not_with_the_keys(tiny, load_script):
    """About 15 s."""
    allocated = load_script(Path(__file__).parents[1] / "benchmarks" / "rank_step.py").allocated

    def key_memory(keys: int, chunk: int) -> float:
        model, (_, _, batch) = tiny.model_of("bart", width=64, vocabulary=8000), tiny.key_batch("bart", [0, 1], keys)
        key_log_probs(model, tiny.key_batch("bart", [0, 1], 8)[2]).sum().backward()  # allocates the gradients
        return allocated(lambda: key_log_probs(model, batch, chunk=chunk).sum().backward())

    few, many = key_memory(200, 32), key_memory(400, 32)
    assert many < 1.15 * few
    assert key_memory(200, 128) > 1.3 * few
    assert key_memory(400, 0) > 1.8 * key_memory(200, 0) > 5 * many


def run_together(count: int, arguments: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "1"}  # fmt: skip
    command = [sys.executable, str(SCRIPT), *arguments]
    processes = [subprocess.Popen(command, env={**base, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(count)]
    try:
        assert [process.wait(timeout=280) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 8])
def test_two_processes_equal_one_for_a_ranking_loss(tiny, tmp_path, chunk):
    """About 20 s each: two processes that train together, and one."""
    before = copy.deepcopy(tiny.model_of("bert").state_dict())
    run_together(2, [str(tmp_path / "two"), f"chunk={chunk}"])
    tiny.train(tmp_path / "one", chunk=0)
    one, two = (load_weights(next((tmp_path / name).glob("best-*.safetensors"))) for name in ("one", "two"))
    assert one.keys() == two.keys()
    moved = [float((one[name] - before[name]).abs().max()) for name in one]
    assert sum(move > 1e-3 for move in moved) > 40, "it did not train"
    # Biases that shift all attention scores of a row alike have no gradient but rounding, which Adam makes large.
    checked = [name for name in one if not re.search(r"(key|previous|position)[.]bias$", name)]
    assert len(checked) > 60
    for name in checked:
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-5), name
    losses = [[json.loads(line).get("loss") for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
              for name in ("one", "two")]  # fmt: skip
    first, second = ([loss for loss in each if loss is not None] for each in losses)
    assert len(first) == 8
    assert first == pytest.approx(second, rel=1e-5)
