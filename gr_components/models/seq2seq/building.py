"""
Build a BERT-to-BERT encoder-decoder from a pretrained encoder (Rothe et al., 2020, https://arxiv.org/abs/1907.12461).

The decoder starts from the encoder's first layers, its cross-attention from their self-attention; embeddings are
shared. The vocabulary is cut to what the texts need, since the embedding matrix is most of a small model.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from gr_components.errors import ConfigError, ModelError
from gr_components.models.quiet import without_progress_bars
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.folder import tie_bert_decoder
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer

_NUM_RESERVED = 16
_LAST_LATIN = 0x250


def cut_vocabulary(
    encoder_folder: str | Path, texts: Iterable[str], *, min_count: int = 1
) -> tuple[TextTokenizer, list[int]]:
    """
    Cut a WordPiece vocabulary to the tokens that texts need.

    Special tokens, sixteen `[unusedN]` tokens and every single Latin character stay, so that any Latin text can be
    written with what is left.

    :param encoder_folder: Folder of a BERT-like encoder with a WordPiece `tokenizer.json`.
    :param texts: Everything that the model should be able to read and write without falling apart into characters.
    :param min_count: How often a token must occur in them to be kept.
    :returns: The tokenizer over the new ids, and the old id of each new one.
    :raises ConfigError: If the tokenizer is not WordPiece.
    """
    full = TextTokenizer.from_folder(encoder_folder)
    definition = json.loads(full.backend.to_str())
    if definition["model"]["type"] != "WordPiece":
        msg = f"Only WordPiece vocabularies can be cut; '{encoder_folder}' has {definition['model']['type']}."
        raise ConfigError(msg)
    old_ids: dict[str, int] = definition["model"]["vocab"]
    counts: Counter[int] = Counter()
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == 1000:
            counts.update(i for ids in full.encode(batch) for i in ids)
            batch.clear()
    counts.update(i for ids in full.encode(batch) for i in ids)
    used = {full.token(index) for index, count in counts.items() if count >= min_count}
    special = {full.token(i) for i in full.special.values()}
    special.update(f"[unused{i}]" for i in range(_NUM_RESERVED))
    keep = [
        token
        for token, _ in sorted(old_ids.items(), key=lambda item: item[1])
        if token in special or token in used or _single_latin(token)
    ]
    definition["model"]["vocab"] = {token: index for index, token in enumerate(keep)}
    new_ids = definition["model"]["vocab"]
    for added in definition["added_tokens"]:
        added["id"] = new_ids[added["content"]]
    _renumber_template(definition, new_ids)
    roles = {role: new_ids[full.token(index)] for role, index in full.special.items()}
    return TextTokenizer(Tokenizer.from_str(json.dumps(definition)), roles), [old_ids[token] for token in keep]


def build_seq2seq_from_encoder(
    encoder_folder: str | Path,
    keep_ids: Sequence[int],
    *,
    decoder_layers: int = 2,
    copy: CopyConfig | None = None,
    token_frequencies: npt.NDArray[np.float64] | None = None,
    dropout: float = 0.1,
) -> Seq2SeqModel:
    """
    Build a model whose encoder is a pretrained BERT-like encoder.

    :param encoder_folder: Its folder.
    :param keep_ids: Old id of each token of the new vocabulary, from `cut_vocabulary`.
    :param decoder_layers: Decoder layers, at most as many as the encoder has.
    :param copy: Configuration of the copy head; None for none.
    :param token_frequencies: Expected count of each target token (V,); their logarithms start the output bias.
    :param dropout: Dropout in both halves.
    :raises ModelError: If the encoder is not a BERT.
    """
    with without_progress_bars():
        encoder = AutoModel.from_pretrained(encoder_folder, local_files_only=True, dtype=torch.float32)
    if encoder.config.model_type != "bert":
        kind = encoder.config.model_type
        msg = f"Only BERT encoders can be extended to encoder-decoders; '{encoder_folder}' is of type '{kind}'."
        raise ModelError(msg)
    if not 1 <= decoder_layers <= encoder.config.num_hidden_layers:
        msg = f"decoder_layers must be 1 to {encoder.config.num_hidden_layers}, got {decoder_layers}."
        raise ConfigError(msg)
    _cut_embeddings(encoder, keep_ids)
    shape = {**encoder.config.to_dict(), "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    for key in ("dtype", "_name_or_path"):  # a path on this machine is nobody's business
        shape.pop(key, None)
    decoder_shape = {**shape, "num_hidden_layers": decoder_layers, "is_decoder": True, "add_cross_attention": True}
    encoder_config, decoder_config = BertConfig(**shape), BertConfig(**decoder_shape)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder_config, decoder_config)
    hf = EncoderDecoderModel(config=config)
    hf.encoder.load_state_dict(encoder.state_dict(), strict=False)
    _start_decoder(hf, encoder, decoder_layers)
    tie_bert_decoder(hf)
    _start_head(hf.decoder, encoder.embeddings.word_embeddings.weight, token_frequencies)
    return Seq2SeqModel(hf, copy)


def _single_latin(token: str) -> bool:
    bare = token.removeprefix("##")
    return len(bare) == 1 and ord(bare) < _LAST_LATIN


def _renumber_template(definition: dict[str, Any], new_ids: dict[str, int]) -> None:
    processor = definition.get("post_processor")
    if processor and processor["type"] == "TemplateProcessing":
        for token, entry in processor["special_tokens"].items():
            entry["ids"] = [new_ids[token]]
    elif processor and processor["type"] == "BertProcessing":
        for role in ("sep", "cls"):
            processor[role][1] = new_ids[processor[role][0]]


def _cut_embeddings(encoder: Any, keep_ids: Sequence[int]) -> None:
    embeddings = encoder.embeddings
    weight = embeddings.word_embeddings.weight.detach()[torch.tensor(list(keep_ids))].clone()
    embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(weight, freeze=False)
    encoder.config.vocab_size = len(keep_ids)
    # The padding row may be anywhere after the cut; nothing here relies on it staying zero.
    encoder.config.pad_token_id = None


def _start_decoder(hf: Any, encoder: Any, layers: int) -> None:
    decoder = hf.decoder.bert
    decoder.embeddings.load_state_dict(encoder.embeddings.state_dict(), strict=False)
    for target, source in zip(decoder.encoder.layer, encoder.encoder.layer[:layers], strict=True):
        target.load_state_dict(source.state_dict(), strict=False)
        target.crossattention.load_state_dict(source.attention.state_dict())


def _start_head(decoder: Any, embedding_VE: torch.Tensor, frequencies_V: npt.NDArray[np.float64] | None) -> None:
    head = decoder.cls.predictions
    width = embedding_VE.shape[1]
    with torch.no_grad():
        head.transform.dense.weight.copy_(torch.eye(width))
        head.transform.dense.bias.zero_()
        # Encoder embeddings are no output layer: this scale gives the first logits a standard deviation near one.
        norm = embedding_VE.norm(dim=1).mean().item()
        head.transform.LayerNorm.weight.fill_(16.0 / (norm * math.sqrt(width)))
        head.transform.LayerNorm.bias.zero_()
        head.decoder.bias.zero_()
        if frequencies_V is not None:
            smoothed = (frequencies_V + 0.3) / frequencies_V.sum()
            head.decoder.bias.copy_(torch.from_numpy(np.log(smoothed)).float())
