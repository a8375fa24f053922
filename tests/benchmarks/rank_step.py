"""
One DGR training step over lists of 6 passages with 40 keys each: time, peak memory, and what autograd keeps.

    python rank_step.py step MODEL CHUNK [QUESTIONS]    # MODEL: demo, bart-base, bart-large; CHUNK 0: all keys at once
    python rank_step.py kept MODEL                      # bytes that autograd keeps for each key token, with bfloat16

Prints JSON. `allocated_mib` is what forward and backward hold at most, besides weights, gradients and moments; resident
memory also has what malloc does not give back. BART has its real shapes and random weights. The keys of a list are all
different here; mined lists share many, so this is the worst case. Seconds are CPU seconds of this process, so that
other work on the machine counts little. `step` is forward, loss, backward and AdamW, without gradient clipping.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import BartConfig, BartForConditionalGeneration

from gr_components.decoding.grammar import Grammar, marker_grammar
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training.generative.key_scores import KeyBatches, key_log_probs
from gr_training.losses.identifier_score import passage_scores
from gr_training.losses.ranknet import distilled_ranknet

PASSAGES, KEYS = 6, 40
BART = {
    "bart-base": {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
                  "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
    "bart-large": {"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
                   "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096},
}  # fmt: skip
MARKERS = ["<s>", "<pad>", "</s>", "<unk>", "@@", "||", "+", "body", "title", "query"]


def model_of(name: str) -> tuple[Seq2SeqModel, TextTokenizer, Grammar]:
    torch.manual_seed(0)
    if name == "demo":
        loaded = load_seq2seq("package:gr_pipelines/models/generator", device="cpu")
        return loaded.model, loaded.tokenizer, Grammar.from_dict(loaded.info["grammar"])
    model = Seq2SeqModel(BartForConditionalGeneration(BartConfig(vocab_size=50265, dropout=0.1, **BART[name])))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(MARKERS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = TextTokenizer(words, {"bos": 0, "pad": 1, "eos": 2, "unk": 3})
    return model, tokenizer, marker_grammar(tokenizer)


def lists_of(
    model: Seq2SeqModel, tokenizer: TextTokenizer, grammar: Grammar, questions: int, keys: int
) -> tuple[dict[str, Any], int]:
    """Questions of 12 tokens; body n-grams of 2 to 10 tokens, and per ten of them a title and a pseudo-query."""
    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(200, model.vocabulary_size, rng.integers(low, high + 1)).tolist()

    def key(number: int) -> tuple[str, list[int]]:
        name = {0: "title", 1: "query"}.get(number % 12, "body")
        stop = grammar.view(name).stop
        return (name, tokens(2, 10)) if stop is None else (name, [*tokens(4, 12), stop])

    own = [[key(number) for number in range(keys)] for _ in range(questions)]
    batch = KeyBatches(tokenizer, grammar).make([tokens(12, 12) for _ in own], own)
    return batch, sum(len(each) for row in own for _, each in row)


def loss_of(model: Seq2SeqModel, batch: dict[str, Any], chunk: int) -> Tensor:
    log_probs_BK = key_log_probs(model, batch, chunk=chunk)
    questions, keys = log_probs_BK.shape
    places_BDN = torch.arange(keys).reshape(1, -1, keys // PASSAGES if keys >= PASSAGES else keys)
    places_BDN = places_BDN.expand(questions, -1, -1)
    ones = torch.ones(places_BDN.shape)
    # Random weights make keys improbable: with this frequency they still count.
    scores_BD = passage_scores(log_probs_BK, places_BDN, 1e-30 * ones, ones, ones > 0)
    order_BD = torch.arange(scores_BD.shape[1]).flip(0).expand_as(scores_BD)
    return distilled_ranknet(scores_BD, order_BD, (order_BD == order_BD.max()).long(), ones.any(-1)).sum()


def step(name: str, chunk: int, questions: int = 1) -> dict[str, Any]:
    model, tokenizer, grammar = model_of(name)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for keys in (PASSAGES, PASSAGES * KEYS):  # the first step allocates gradients and moments
        batch, tokens = lists_of(model, tokenizer, grammar, questions, keys)
        started = time.process_time()
        loss = loss_of(model, batch, chunk)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
        seconds = time.process_time() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = allocated(lambda: loss_of(model, batch, chunk).backward())
    return {
        "model": name, "chunk": chunk, "questions": questions, "tokens": tokens, "loss": loss.item(),
        "seconds": seconds, "tokens_per_s": tokens / seconds, "allocated_mib": peak, "resident_mib": resident,
    }  # fmt: skip


def allocated(work: Callable[[], object]) -> float:
    """Largest size in MiB of all tensors that some work holds at a time, those from before excluded."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return float(max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]") / 2**20)


def kept(name: str) -> dict[str, Any]:
    """Bytes of the tensors that the backward pass needs besides parameters, for each key token and each question."""
    model, tokenizer, grammar = model_of(name)
    model.train()
    sizes = []
    for keys in (24, 48):
        batch, tokens = lists_of(model, tokenizer, grammar, 1, keys)
        sizes.append((tokens, _kept(model, batch)))
    (few, small), (many, large) = sizes
    each = (large - small) / (many - few)
    return {"model": name, "parameters": sum(p.numel() for p in model.parameters()), "bytes_per_token": each,
            "bytes_per_question": small - each * few}  # fmt: skip


def _kept(model: Seq2SeqModel, batch: dict[str, Any]) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and not _is_weight(tensor, model):
            found[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch, 0)
        total = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    assert loss.requires_grad
    return total


def _is_weight(tensor: Tensor, model: nn.Module) -> bool:
    """Whether it is autocast's copy of a matrix: those do not grow with the keys."""
    return tensor.dim() == 2 and tensor.untyped_storage().nbytes() // 2 in {p.numel() for p in model.parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, name, *rest = sys.argv[1:]
    print(json.dumps(kept(name) if command == "kept" else step(name, *map(int, rest))))
