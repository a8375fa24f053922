"""
One tokenizer class for indexes, models and exported models: the `tokenizers` library, without transformers or torch.

Shapes are plain lists; padding is done by `pad`, never by the tokenizer, whose state is therefore never changed after
construction. A `TextTokenizer` is safe to use from several threads.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from gr_components.errors import ConfigError, ModelNotFoundError

_SPECIAL_NAMES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


@dataclass(frozen=True)
class Encoded:
    """
    One tokenized text.

    :param ids: Token ids.
    :param offsets: Start and end character of each token in the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Templated:
    """
    One text or pair of texts in the tokenizer's own template, such as `[CLS] query [SEP] passage [SEP]`.

    :param ids: Token ids.
    :param type_ids: Segment of each token, as BERT's `token_type_ids`.
    :param cut: Tokens of the first and of the second text that were left out because there was no room for them.
    """

    ids: list[int]
    type_ids: list[int]
    cut: tuple[int, int] = (0, 0)


class TextTokenizer:
    """
    A tokenizer with its special tokens.

    :param tokenizer: The tokenizer; its truncation and padding are switched off.
    :param special: Ids of special tokens by role (`pad`, `unk`, `cls`, `sep`, `mask`, `bos`, `eos`), each optional.
    """

    def __init__(self, tokenizer: Tokenizer, special: dict[str, int]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.special = special
        self.pad_id = special.get("pad", 0)
        self._continuation: npt.NDArray[np.bool_] | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> "TextTokenizer":
        """
        Read `tokenizer.json`, and `tokenizer_config.json` or `special_tokens_map.json` for the roles of special tokens.

        :param folder: A model folder.
        :raises ModelNotFoundError: If there is no `tokenizer.json`.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            msg = f"No tokenizer.json in '{folder}'. Save the model together with its fast tokenizer."
            raise ModelNotFoundError(msg)
        tokenizer = Tokenizer.from_file(str(path))
        special: dict[str, int] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            config_path = Path(folder) / name
            if config_path.is_file():
                config = json.loads(config_path.read_text(encoding="utf-8"))
                for role in _SPECIAL_NAMES:
                    token = config.get(f"{role}_token")
                    token = token["content"] if isinstance(token, dict) else token
                    index = tokenizer.token_to_id(token) if isinstance(token, str) else None
                    if role not in special and index is not None:
                        special[role] = index
        return cls(tokenizer, special)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special and added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical definition; equal exactly when two tokenizers are the same."""
        definition = json.loads(self._tokenizer.to_str())
        definition["truncation"] = definition["padding"] = None
        return hashlib.sha256(json.dumps(definition, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """
        Write `tokenizer.json` and a `tokenizer_config.json` that transformers understands.

        :param folder: An existing folder.
        """
        folder = Path(folder)
        self._tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        roles = {f"{role}_token": self.token(index) for role, index in self.special.items()}
        config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
        if any(self.encode_templated([""], [""])[0].type_ids):  # a model trained with segments must get them again
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8"
        )

    def token(self, index: int) -> str:
        """
        Return the token string of an id.

        :param index: A token id.
        """
        return str(self._tokenizer.id_to_token(index))

    def id(self, token: str) -> int | None:
        """
        Return the id of a token string, or None.

        :param token: The token as the vocabulary writes it.
        """
        index = self._tokenizer.token_to_id(token)
        return None if index is None else int(index)

    def require(self, token: str, purpose: str) -> int:
        """
        Return the id of a token string.

        :param token: The token as the vocabulary writes it.
        :param purpose: What needs it, for the message.
        :raises ConfigError: If the vocabulary lacks it.
        """
        index = self.id(token)
        if index is None:
            msg = f"{purpose} needs the token {token}, which this tokenizer does not have."
            raise ConfigError(msg)
        return index

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """
        Token ids of texts.

        :param texts: Texts.
        :param special: Whether the tokenizer's own template (such as `[CLS] ... [SEP]`) is applied.
        """
        return [encoding.ids for encoding in self._encode(list(texts), special)]

    def encode_templated(
        self, firsts: Sequence[str], seconds: Sequence[str] | None = None, *, max_length: int | None = None
    ) -> list[Templated]:
        """
        Token ids of texts or pairs of texts in the tokenizer's template, truncated as transformers does it.

        Texts are cut on the right; of a pair, the longer text is cut first (`longest_first`).

        :param firsts: Texts, or the first texts of pairs.
        :param seconds: The second texts of pairs, as many as `firsts`.
        :param max_length: Largest number of tokens, those of the template included; None for no limit.
        :raises ConfigError: If `max_length` leaves no room for text.
        """
        room = None
        if max_length is not None:
            reserved = int(self._tokenizer.num_special_tokens_to_add(seconds is not None))
            room = max_length - reserved
            if room < 1:
                msg = f"max_length must be at least {reserved + 1} for this tokenizer, got {max_length}."
                raise ConfigError(msg)
        texts = list(dict.fromkeys([*firsts, *(seconds or ())]))
        plain = dict(zip(texts, self._encode(texts, special=False), strict=True))
        if seconds is None:
            pairs: list[tuple[Encoding, Encoding | None]] = [(plain[text], None) for text in firsts]
        else:
            pairs = [(plain[first], plain[second]) for first, second in zip(firsts, seconds, strict=True)]
        with self._lock:
            return [self._template(first, second, room) for first, second in pairs]

    def _template(self, first: Encoding, second: Encoding | None, room: int | None) -> Templated:
        lengths = len(first), 0 if second is None else len(second)
        kept = lengths if room is None else _longest_first(*lengths, room)
        first = _truncated(first, kept[0])
        second = None if second is None else _truncated(second, kept[1])
        encoding = self._tokenizer.post_process(first, second)
        cut = max(0, lengths[0] - kept[0]), max(0, lengths[1] - kept[1])
        return Templated(list(encoding.ids), list(encoding.type_ids), cut)

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """
        Token ids and character offsets of texts, without special tokens.

        :param texts: Texts.
        """
        return [Encoded(list(e.ids), list(e.offsets)) for e in self._encode(list(texts), special=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """
        Text of token ids.

        :param ids: Token ids.
        :param skip_special: Whether special tokens are left out.
        """
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    @property
    def continuation_V(self) -> npt.NDArray[np.bool_]:
        """
        For each id, whether the token continues a word rather than starting one (WordPiece `##`, BPE without `Ġ`/`▁`).

        All false when the vocabulary marks neither.
        """
        if self._continuation is None:
            tokens = [self.token(i) for i in range(self.vocabulary_size)]
            if any(t.startswith("##") for t in tokens):
                flags = [t.startswith("##") for t in tokens]
            elif any(t.startswith(("Ġ", "▁")) for t in tokens):
                reserved = set(self.special.values())
                flags = [i not in reserved and not t.startswith(("Ġ", "▁")) for i, t in enumerate(tokens)]
            else:
                flags = [False] * len(tokens)
            self._continuation = np.array(flags, dtype=bool)
        return self._continuation

    @property
    def backend(self) -> Tokenizer:
        """The underlying tokenizer; do not change its state."""
        return self._tokenizer

    def _encode(self, texts: list[str] | list[tuple[str, str]], special: bool) -> list:  # type: ignore[type-arg]
        # The Rust tokenizer is shared state: concurrent calls with different settings die with "Already borrowed".
        with self._lock:
            return list(self._tokenizer.encode_batch(texts, add_special_tokens=special))


def _truncated(encoding: Encoding, length: int) -> Encoding:
    if len(encoding) <= length:
        return encoding
    copy = Encoding.merge([encoding], growing_offsets=False)  # `truncate` works in place, and texts are shared
    copy.truncate(length)
    return copy


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths after taking tokens from the longer of two texts until both fit."""
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """
    Pad rows on the right.

    :param rows: Token ids, B rows of any length.
    :param pad_id: What to fill with.
    :param length: Columns L; the longest row by default. Longer rows are cut.
    :returns: ids (B, L) and a mask (B, L) that is true on real tokens.
    """
    length = max((len(row) for row in rows), default=0) if length is None else length
    ids_BL = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask_BL = np.zeros((len(rows), length), dtype=bool)
    for b, row in enumerate(rows):
        n = min(len(row), length)
        ids_BL[b, :n] = row[:n]
        mask_BL[b, :n] = True
    return ids_BL, mask_BL
