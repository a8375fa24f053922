"""
How a reader's input is written: one passage with its question, for the encoder.

Two layouts, chosen by the model and stored under `reader` in `gr_model.json`:

- `text` (BART, T5): `question: ... title: ... context: ...`, plain words as in Fusion-in-Decoder
  (https://arxiv.org/abs/2007.01282);
- `reserved` (WordPiece models trained here): `[CLS] question [SEP] title [unused5] context [SEP]`. Text can never
  produce the reserved tokens, so nothing in a passage is mistaken for structure.

Questions, titles and contexts are tokenized apart and put together, so that training tokenizes its corpus once and
serving cannot differ from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError
from gr_components.tokenization import Encoded, TextTokenizer

_KINDS = ("text", "reserved")
# The first three reserved tokens are the views of the generative retriever.
ANSWER_TOKEN, CONTEXT_TOKEN = "[unused4]", "[unused5]"
_LEAST_CONTEXT = 16


@dataclass(frozen=True, kw_only=True)
class ReaderLayout:
    """
    The pieces of a reader's input and output.

    :param kind: `text` or `reserved`.
    :param first: Tokens before the question.
    :param before_title: Tokens between question and title.
    :param before_context: Tokens between title and context.
    :param last: Tokens after the context.
    :param answer_start: Tokens fed to the decoder before an answer.
    :param stop: Token that ends an answer.
    :param never: Tokens that no answer contains.
    :param max_passage_tokens: Longest input, everything included; what is longer loses the end of its context.
    :param max_question_tokens: Longest question.
    :param max_title_tokens: Longest title.
    :param max_answer_tokens: Longest answer, `stop` included.
    """

    kind: str
    first: tuple[int, ...]
    before_title: tuple[int, ...]
    before_context: tuple[int, ...]
    last: tuple[int, ...]
    answer_start: tuple[int, ...]
    stop: int
    never: tuple[int, ...] = ()
    max_passage_tokens: int = 250
    max_question_tokens: int = 64
    max_title_tokens: int = 32
    max_answer_tokens: int = 50

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            msg = f"reader.kind must be one of {', '.join(_KINDS)}, got {self.kind!r}."
            raise ConfigError(msg)
        if self.max_answer_tokens < 2:
            msg = f"max_answer_tokens must be at least 2 (one token and the end), got {self.max_answer_tokens}."
            raise ConfigError(msg)
        if min(self.max_question_tokens, self.max_title_tokens) < 1:
            limits = f"{self.max_question_tokens} and {self.max_title_tokens}"
            msg = f"max_question_tokens and max_title_tokens must be at least 1, got {limits}."
            raise ConfigError(msg)
        structure = sum(map(len, (self.first, self.before_title, self.before_context, self.last)))
        least = structure + self.max_question_tokens + self.max_title_tokens + _LEAST_CONTEXT
        if self.max_passage_tokens < least:
            msg = (
                f"max_passage_tokens={self.max_passage_tokens} leaves no room for a context beside questions of "
                f"{self.max_question_tokens} and titles of {self.max_title_tokens} tokens; use at least {least}."
            )
            raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `gr_model.json`."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ReaderLayout":
        """
        Rebuild from `to_dict`.

        :param data: Plain values.
        """
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**plain)

    def tokenize(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> list[Encoded]:
        """
        Tokenize questions, titles or contexts as they stand in an input.

        :param tokenizer: The model's tokenizer.
        :param texts: The texts.
        :returns: Token ids, and the characters of the texts that each covers.
        """
        if self.kind == "reserved":
            return tokenizer.encode_with_offsets(texts)
        # Every piece follows a word, and these tokenizers write the space before a word as part of its token.
        encoded = tokenizer.encode_with_offsets([" " + text if text else "" for text in texts])
        return [Encoded(e.ids, [(max(0, a - 1), max(0, b - 1)) for a, b in e.offsets]) for e in encoded]

    def assemble(
        self, question: Sequence[int], title: Sequence[int], context: Sequence[int]
    ) -> tuple[list[int], int, int]:
        """
        Put one input together.

        :param question: Token ids; cut to the longest question.
        :param title: Token ids, possibly none; cut to the longest title.
        :param context: Token ids; cut to the space that is left.
        :returns: The input, and where its context begins and ends.
        """
        head = [*self.first, *question[: self.max_question_tokens]]
        if title or self.kind == "reserved":
            head += [*self.before_title, *title[: self.max_title_tokens]]
        head += self.before_context
        room = self.max_passage_tokens - len(head) - len(self.last)
        ids = [*head, *context[:room], *self.last]
        return ids, len(head), len(ids) - len(self.last)


@dataclass(frozen=True)
class Inputs:
    """
    Padded inputs of B questions with N passages each.

    :param ids_BNL: Token ids.
    :param mask_BNL: True on real tokens; passages that only fill up the batch have none.
    :param context_BNL: True on context tokens.
    """

    ids_BNL: npt.NDArray[np.int64]
    mask_BNL: npt.NDArray[np.bool_]
    context_BNL: npt.NDArray[np.bool_]


def pad_inputs(rows: Sequence[Sequence[tuple[list[int], int, int]]], pad_id: int) -> Inputs:
    """
    Pad assembled inputs to the same number of passages and tokens.

    :param rows: For each question its passages, from `ReaderLayout.assemble`.
    :param pad_id: What to fill with.
    """
    num_passages = max((len(row) for row in rows), default=0)
    length = max((len(ids) for row in rows for ids, _, _ in row), default=0)
    shape = (len(rows), num_passages, length)
    inputs = Inputs(np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool))
    for b, row in enumerate(rows):
        for n, (ids, begin, end) in enumerate(row):
            inputs.ids_BNL[b, n, : len(ids)] = ids
            inputs.mask_BNL[b, n, : len(ids)] = True
            inputs.context_BNL[b, n, begin:end] = True
    return inputs


def reserved_layout(
    tokenizer: TextTokenizer,
    *,
    max_passage_tokens: int = 224,
    max_question_tokens: int = 50,
    max_title_tokens: int = 20,
    max_answer_tokens: int = 24,
) -> ReaderLayout:
    """
    Layout of the readers that are trained here from BERT-like encoders.

    :param tokenizer: A WordPiece tokenizer with `[CLS]`, `[SEP]` and the reserved tokens.
    :param max_passage_tokens: Longest input.
    :param max_question_tokens: Longest question.
    :param max_title_tokens: Longest title.
    :param max_answer_tokens: Longest answer, its end included.
    :raises ConfigError: If a token is missing.
    """
    needed = ("[CLS]", "[SEP]", ANSWER_TOKEN, CONTEXT_TOKEN)
    cls, sep, start, context = (tokenizer.require(token, "The reserved layout") for token in needed)
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocabulary_size)]
    never = {i for i, token in enumerate(tokens) if token.startswith("[unused")}
    never |= {i for role, i in tokenizer.special.items() if role not in ("sep", "eos", "unk")}
    return ReaderLayout(
        kind="reserved", first=(cls,), before_title=(sep,), before_context=(context,), last=(sep,),
        answer_start=(start,), stop=sep, never=tuple(sorted(never)), max_passage_tokens=max_passage_tokens,
        max_question_tokens=max_question_tokens, max_title_tokens=max_title_tokens, max_answer_tokens=max_answer_tokens,
    )  # fmt: skip


def text_layout(
    tokenizer: TextTokenizer,
    *,
    answer_start: Sequence[int],
    max_passage_tokens: int = 250,
    max_question_tokens: int = 64,
    max_title_tokens: int = 32,
    max_answer_tokens: int = 50,
) -> ReaderLayout:
    """
    Layout of Fusion-in-Decoder on BART and T5.

    :param tokenizer: The model's tokenizer.
    :param answer_start: What the decoder is fed first: T5's padding token; BART's `</s>`, then `<s>`.
    :param max_passage_tokens: Longest input.
    :param max_question_tokens: Longest question.
    :param max_title_tokens: Longest title.
    :param max_answer_tokens: Longest answer, its end included.
    :raises ConfigError: If the tokenizer has no end token.
    """
    if "eos" not in tokenizer.special:
        msg = "The text layout needs a tokenizer with an end token (eos); this one has none."
        raise ConfigError(msg)
    stop = tokenizer.special["eos"]
    # A template such as BART's `<s> ... </s>` shows on empty text.
    around = tokenizer.encode([""], special=True)[0]
    first = tuple(around[: around.index(stop)]) if stop in around else tuple(around)
    question, title, context = tokenizer.encode(["question:", " title:", " context:"])
    return ReaderLayout(
        kind="text", first=(*first, *question), before_title=tuple(title), before_context=tuple(context), last=(stop,),
        answer_start=tuple(answer_start), stop=stop, never=(tokenizer.pad_id,), max_passage_tokens=max_passage_tokens,
        max_question_tokens=max_question_tokens, max_title_tokens=max_title_tokens, max_answer_tokens=max_answer_tokens,
    )  # fmt: skip
