"""
Tiny generative retrievers with questions and keys, for tests of key scoring and of ranking steps.

As a script, `tiny_lists.py FOLDER chunk=8` fits a ranking loss with the real loop; two processes may do it together.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)

from gr_components.decoding.grammar import Grammar, marker_grammar, reserved_grammar
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import tie_bert_decoder
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training.fitting import FitConfig
from gr_training.generative.key_scores import KeyBatches, key_log_probs
from gr_training.loop import LossSum, fit
from gr_training.losses.identifier_score import passage_scores
from gr_training.losses.ranknet import distilled_ranknet
from gr_training.order import Turn

WORDS = [f"w{i}" for i in range(50)]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "[unused2]", "[unused3]", *WORDS]
BART_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "@@", "||", "+", "body", "title", "query", *WORDS]
NUM_LISTS, BATCH = 24, 6


def tokenizer_of(kind: str) -> TextTokenizer:
    words = BERT_TOKENS if kind == "bert" else BART_TOKENS
    roles = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4} if kind == "bert" else {
        "bos": 0, "pad": 1, "eos": 2, "unk": 3}  # fmt: skip
    first, last = (2, 3) if kind == "bert" else (0, 2)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[roles["unk"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words[first]} $A {words[last]}", special_tokens=[(words[i], i) for i in (first, last)]
    )
    return TextTokenizer(tokenizer, roles)


def grammar_of(kind: str) -> Grammar:
    return reserved_grammar(tokenizer_of(kind)) if kind == "bert" else marker_grammar(tokenizer_of(kind), max_source=20)


def model_of(kind: str, *, dropout: float = 0.0, width: int = 32, vocabulary: int | None = None) -> Seq2SeqModel:
    torch.manual_seed(0)
    vocabulary = vocabulary or (len(BERT_TOKENS) if kind == "bert" else len(BART_TOKENS))
    if kind == "bert":
        shape = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 2 * width, "max_position_embeddings": 64, "initializer_range": 0.2,
                 "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}  # fmt: skip
        decoder = BertConfig(**shape, is_decoder=True, add_cross_attention=True)
        hf = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), decoder))
        tie_bert_decoder(hf)
        copy = CopyConfig(previous_state=True, position_bias=True, continuation=True, selective_read=True)
        return Seq2SeqModel(hf, copy)
    config = BartConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, max_position_embeddings=64,
        init_std=0.2, dropout=dropout, attention_dropout=dropout, activation_dropout=dropout,
    )  # fmt: skip
    return Seq2SeqModel(BartForConditionalGeneration(config))


Keys = list[tuple[str, tuple[int, ...]]]


def question(kind: str, number: int, keys: int = 0) -> tuple[list[int], Keys]:
    """A question and its keys: as many as asked for, or some number that is different for each question."""
    rng = np.random.default_rng(number)
    first = 8 if kind == "bert" else 10
    stop = grammar_of(kind).view("title").stop
    found: dict[tuple[str, tuple[int, ...]], None] = {}
    while len(found) < (keys or 3 + 7 * (number % 5)):
        view = str(rng.choice(["body", "body", "title", "query"]))
        tokens = rng.integers(first, first + len(WORDS), rng.integers(1, 10)).tolist()
        found[view, tuple(tokens if view == "body" else [*tokens[:6], stop])] = None
    return rng.integers(first, first + len(WORDS), rng.integers(2, 9)).tolist(), list(found)


def key_batch(kind: str, numbers: list[int], keys: int = 0) -> tuple[list[list[int]], list[Keys], dict[str, Any]]:
    sources, own = map(list, zip(*(question(kind, number, keys) for number in numbers), strict=True))
    return sources, own, KeyBatches(tokenizer_of(kind), grammar_of(kind)).make(sources, own)


def make_batch(turn: Turn) -> dict[str, Any]:
    rows = [int(row) for row in turn.rows(turn.positions(BATCH), NUM_LISTS)]
    _, own, keys = key_batch("bert", rows)
    shape = (5, 6)
    lists = [np.random.default_rng(row) for row in rows]
    places = [rng.integers(0, len(k), shape) for rng, k in zip(lists, own, strict=True)]
    return {
        "keys": keys,
        "places": torch.tensor(np.stack(places)),
        "cover": torch.tensor(np.stack([rng.uniform(0.2, 1, shape) for rng in lists])).float(),
        "teacher": torch.tensor(np.stack([rng.normal(size=5) for rng in lists])),
        "labels": torch.tensor([[1, 0, 1, 0, 0]] * len(rows)),
    }


def rank_loss(model: Seq2SeqModel, batch: dict[str, Any], chunk: int) -> LossSum:
    log_probs_BK = key_log_probs(model, batch["keys"], chunk=chunk)
    mask = torch.ones_like(batch["cover"], dtype=torch.bool)
    scores_BD = passage_scores(
        log_probs_BK, batch["places"], torch.full_like(batch["cover"], 1e-9), batch["cover"], mask
    )
    loss_B = distilled_ranknet(scores_BD, batch["teacher"], batch["labels"], mask.any(-1), margin=100, increment=30)
    return LossSum(loss_B.sum(), len(loss_B))


def train(folder: Path, *, chunk: int = 0) -> Seq2SeqModel:
    model = model_of("bert")
    config = FitConfig(steps=8, learning_rate=1e-3, warmup=2, precision="float32", validate_every=0,
                       checkpoint_every=4, log_every=1)  # fmt: skip
    fit(model, make_batch, lambda m, batch: rank_loss(m, batch, chunk), config, folder=folder, device="cpu")
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {key: int(value) for key, value in (word.split("=") for word in sys.argv[2:] if "=" in word)}
    train(Path(sys.argv[1]), **numbers)
    torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None
