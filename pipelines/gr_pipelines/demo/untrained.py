"""The generator as it was before training, to tell what the training adds to matching words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gr_components.errors import ModelError
from gr_components.extras import need
from gr_components.models.resolve import MINILM, resolve_model
from gr_components.tokenization import TextTokenizer

SEED = 13


def save_untrained(generator: str, texts: Sequence[str], folder: Path) -> Path:
    """
    Build a generator's untrained twin: same vocabulary and shape, encoder and decoder layers as in the base model.

    :param generator: The trained model, a BERT-to-BERT with a cut vocabulary.
    :param texts: The corpus, whose token frequencies start the output bias, as in training.
    :param folder: Where the twin is saved.
    :returns: The folder.
    :raises ModelError: If its vocabulary is no part of the base model's.
    """
    torch = need("torch", "torch")
    from gr_components.models.seq2seq.building import build_seq2seq_from_encoder
    from gr_components.models.seq2seq.folder import load_seq2seq, save_seq2seq

    trained = load_seq2seq(generator, device="cpu")
    base = resolve_model(MINILM)
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in trained.tokenizer.encode(texts)])
    torch.manual_seed(SEED)
    twin = build_seq2seq_from_encoder(
        base,
        _old_ids(trained.tokenizer, TextTokenizer.from_folder(base)),
        decoder_layers=trained.model.hf.config.decoder.num_hidden_layers,
        copy=None if trained.model.copy is None else trained.model.copy.config,
        token_frequencies=np.bincount(tokens, minlength=trained.tokenizer.vocabulary_size).astype(np.float64),
    )
    save_seq2seq(twin, trained.tokenizer, {**trained.info, "recipe": None, "metrics": None}, folder)
    return folder


def _old_ids(cut: TextTokenizer, full: TextTokenizer) -> list[int]:
    tokens = [cut.token(index) for index in range(cut.vocabulary_size)]
    ids = [full.id(token) for token in tokens]
    missing = [token for token, index in zip(tokens, ids, strict=True) if index is None]
    if missing:
        msg = f"The generator's vocabulary has {len(missing)} tokens that its base model lacks, such as {missing[0]!r}."
        raise ModelError(msg)
    return [index for index in ids if index is not None]
