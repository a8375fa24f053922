"""An encoder with a smaller vocabulary: the embedding matrix is most of a small model."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModel

from gr_components.models.quiet import without_progress_bars
from gr_components.models.seq2seq.building import cut_vocabulary


def write_cut_encoder(folder: Path, texts: Iterable[str], out: Path) -> None:
    """
    Write a copy of a WordPiece encoder that has only the tokens which texts need.

    :param folder: Folder of the encoder.
    :param texts: Everything that it should be able to read without falling apart into characters.
    :param out: Where to; made if needed.
    :raises ConfigError: If its tokenizer is not WordPiece.
    """
    tokenizer, keep = cut_vocabulary(folder, texts)
    with without_progress_bars():
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        old = model.get_input_embeddings()
        weight = old.weight.detach()[torch.tensor(keep)].clone()
        new = torch.nn.Embedding(len(keep), old.embedding_dim, padding_idx=tokenizer.pad_id)
        with torch.no_grad():
            new.weight.copy_(weight)
        model.set_input_embeddings(new)
        model.config.vocab_size, model.config.pad_token_id = len(keep), tokenizer.pad_id
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
    tokenizer.save(out)
