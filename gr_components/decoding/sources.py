"""
Encoder inputs of queries: one encoding for each distinct source suffix among the views.

Shapes: B queries, L source tokens.
"""

from collections.abc import Sequence
from typing import Any

from gr_components.decoding.grammar import Grammar, View
from gr_components.decoding.interfaces import Decoder
from gr_components.tokenization import TextTokenizer, pad


class Sources:
    """
    Encodes a batch of queries on demand and keeps the encodings.

    :param queries: B texts.
    :param decoder: The model.
    :param tokenizer: Its tokenizer.
    :param grammar: Its grammar: layout and longest source.
    """

    def __init__(self, queries: Sequence[str], decoder: Decoder, tokenizer: TextTokenizer, grammar: Grammar) -> None:
        self._queries = list(queries)
        self._decoder, self._tokenizer, self._grammar = decoder, tokenizer, grammar
        self._encoded: dict[str, Any] = {}

    def get(self, suffix: str) -> Any:
        """
        Return the encoded queries, each followed by a suffix.

        :param suffix: Text such as ` || body || +`; empty for none.
        """
        if suffix not in self._encoded:
            ids = source_ids(self._queries, suffix, self._tokenizer, self._grammar)
            self._encoded[suffix] = self._decoder.encode(*pad(ids, self._tokenizer.pad_id))
        return self._encoded[suffix]


def source_ids(queries: Sequence[str], suffix: str, tokenizer: TextTokenizer, grammar: Grammar) -> list[list[int]]:
    """
    Token ids of the encoder's input.

    A query that is too long loses its end, never the suffix or the special tokens around it.

    :param queries: Texts.
    :param suffix: Text that follows each of them.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    """
    texts = _texts(queries, grammar)
    rows = tokenizer.encode([text + suffix for text in texts], special=True)
    for place, row in enumerate(rows):
        if len(row) > grammar.max_source:
            rows[place] = _shortened(texts[place], suffix, len(row), tokenizer, grammar.max_source)
    return rows


def too_long(queries: Sequence[str], views: Sequence[View], tokenizer: TextTokenizer, grammar: Grammar) -> list[bool]:
    """
    Say of each query whether it loses its end because the model takes no more.

    :param queries: Texts.
    :param views: What is going to be written.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    """
    suffix = max((view.source_suffix for view in views), key=len, default="")
    rows = tokenizer.encode([text + suffix for text in _texts(queries, grammar)], special=True)
    return [len(row) > grammar.max_source for row in rows]


def _texts(queries: Sequence[str], grammar: Grammar) -> list[str]:
    # Markers are words of BART's text, and its words begin with a space.
    space = " " if grammar.layout == "markers" else ""
    return [space + query.strip() for query in queries]


def _shortened(text: str, suffix: str, length: int, tokenizer: TextTokenizer, limit: int) -> list[int]:
    offsets = tokenizer.encode_with_offsets([text])[0].offsets
    keep = len(offsets) - (length - limit)
    while True:
        cut = text[: offsets[keep - 1][1]] if keep > 0 else ""
        row = tokenizer.encode([cut + suffix], special=True)[0]
        if len(row) <= limit or keep <= 0:
            return row
        keep -= 1
