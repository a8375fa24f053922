"""What an encoder-decoder starts from: a saved one, or one built from a pretrained encoder with a cut vocabulary."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn

from gr_components.models.resolve import MINILM, resolve_model
from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training.attention import register
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass
from gr_training.fitting import Count
from gr_training.lora import LoraConfig, add_lora

Frequencies = Callable[[TextTokenizer], npt.NDArray[np.float64]]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class BuildConfig:
    """
    How an encoder-decoder is built from an encoder.

    :param decoder_layers: Decoder layers, taken from the encoder's first.
    :param copy: The copy head; null for none.
    :param vocabulary: Names of the training sets whose texts decide which tokens are kept; all sets if empty.
    :param min_token_count: Tokens that are rarer in these texts are left out.
    """

    decoder_layers: Count = 2
    copy: CopyConfig | None = None
    vocabulary: tuple[str, ...] = ()
    min_token_count: Count = 1


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class StartConfig:
    """
    Where an encoder-decoder comes from.

    :param model: An encoder-decoder (a folder written here, or BART or T5); with `build`, an encoder.
    :param build: How to make an encoder-decoder of an encoder; null if `model` is one already.
    :param dropout: Of hidden states; null keeps the model's own. Attention weights have none.
    :param lora: Low-rank matrices that are trained in place of the weights and merged into them in the end; null trains
        all weights.
    """

    model: ModelName = MINILM
    build: BuildConfig | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = 0.1
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.build is not None and self.lora is not None:
            msg = "lora changes trained weights a little; a model that build makes has new ones. Leave one of them out."
            raise ValueError(msg)


@dataclass(frozen=True)
class Started:
    """
    A model to be trained.

    :param model: Torch module.
    :param tokenizer: Its tokenizer.
    :param info: Its `gr_model.json`; empty for a model that was built or is a plain Hugging Face one.
    """

    model: Seq2SeqModel
    tokenizer: TextTokenizer
    info: dict[str, Any]


def start_seq2seq(
    config: StartConfig, texts: Callable[[], Iterable[str]], frequencies: Frequencies, seed: int
) -> Started:
    """
    Load or build the model, ready for training: plain attention on CPUs, dropout and LoRA as configured.

    :param config: Where it comes from.
    :param texts: Texts that decide the vocabulary of a model that is built.
    :param frequencies: Expected counts of target tokens (V,), given the tokenizer; they start the output bias.
    :param seed: Of the parts that start at random.
    """
    torch.manual_seed(seed)
    if config.build is None:
        loaded = load_seq2seq(config.model, device="cpu")
        started = Started(loaded.model, loaded.tokenizer, loaded.info)
    else:
        folder = resolve_model(config.model)
        tokenizer, keep = cut_vocabulary(folder, texts(), min_count=config.build.min_token_count)
        model = build_seq2seq_from_encoder(
            folder, keep, decoder_layers=config.build.decoder_layers, copy=config.build.copy,
            token_frequencies=frequencies(tokenizer), dropout=config.dropout or 0.0,
        )  # fmt: skip
        started = Started(model, tokenizer, {})
    _prepare(started.model, config.dropout)
    if config.lora is not None:
        add_lora(started.model, rank=config.lora.rank, alpha=config.lora.alpha, pattern=config.lora.pattern)
    return started


def _prepare(model: Seq2SeqModel, dropout: float | None) -> None:
    encoder = model.hf.get_encoder()
    if model.hf.config.model_type != "t5" and model.device.type == "cpu":
        encoder.set_attn_implementation(register())
    if dropout is None:
        return
    model.family.dropout = dropout
    model.family.attention_dropout = 0.0
    for name, module in model.hf.named_modules():
        if isinstance(module, nn.Dropout):
            # BERT names the dropout of its attention weights `attention.self.dropout`.
            module.p = 0.0 if name.endswith("self.dropout") else dropout
        elif hasattr(module, "attention_dropout"):  # BartDecoderLayer and its attention keep plain numbers
            module.attention_dropout = 0.0
