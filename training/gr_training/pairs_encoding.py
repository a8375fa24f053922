"""Question-passage pairs as padded batches for cross-encoders, sorted by length so that little is padded."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gr_components.tokenization import TextTokenizer


class PairEncoder:
    """
    Tokenizes pairs with the tokenizer's own template; the longer text is cut first, as sentence-transformers does.

    :param tokenizer: The model's tokenizer.
    :param max_tokens: Longest pair, special tokens included.
    """

    def __init__(self, tokenizer: TextTokenizer, max_tokens: int) -> None:
        # A copy: truncation is state of the tokenizer, and the given one is shared.
        self._tokenizer = Tokenizer.from_str(tokenizer.backend.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._pad_id = tokenizer.pad_id

    def chunks(self, pairs: Sequence[tuple[str, str]], num_chunks: int) -> tuple[list[dict[str, Tensor]], Tensor]:
        """
        Encode pairs into a few padded batches of similar length.

        :param pairs: Questions and passages.
        :param num_chunks: Into how many batches they are divided, at most.
        :returns: Model inputs of each batch, and for each pair its place in their concatenation.
        """
        encodings = self._tokenizer.encode_batch(list(pairs))
        order = np.argsort([len(e.ids) for e in encodings], kind="stable")
        chunks = []
        for rows in np.array_split(order, max(1, min(num_chunks, len(pairs)))):
            length = max(len(encodings[row].ids) for row in rows)
            ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
            types, mask = np.zeros_like(ids), np.zeros_like(ids)
            for place, row in enumerate(rows):
                n = len(encodings[row].ids)
                ids[place, :n], types[place, :n], mask[place, :n] = encodings[row].ids, encodings[row].type_ids, 1
            arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            chunks.append({name: torch.from_numpy(array) for name, array in arrays.items()})
        places = np.empty(len(pairs), dtype=np.int64)
        places[order] = np.arange(len(pairs))
        return chunks, torch.from_numpy(places)
