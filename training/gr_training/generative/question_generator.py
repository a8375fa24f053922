"""
A question generator: an encoder-decoder that reads a passage and writes a question about it.

Here are its format, its training batches and its sampling; `question_training.py` trains it, and
`pseudo_queries.py` runs it over a corpus (doc2query, https://arxiv.org/abs/1904.08375).

Shapes: B passages, L passage tokens, R = B * k questions, T question tokens, V vocabulary.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from gr_components.data import Passage, searchable_text
from gr_components.decoding.interfaces import Decoder
from gr_components.errors import ModelError
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer, pad
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Count, Fraction, Natural, Positive
from gr_training.likelihood import token_log_probs
from gr_training.loop import LossSum
from gr_training.losses.sequence import sequence_nll
from gr_training.order import Turn
from gr_training.sources import QuestionSet, weighted_rows

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Six tokens before it are the views of the generative retriever and the structure of the reader.
_START = "[unused6]"


@dataclass(frozen=True, kw_only=True)
class QuestionLayout:
    """
    What the generator reads and writes; stored under `question_generator` in `gr_model.json`.

    :param first: Tokens before the passage.
    :param last: Tokens after it.
    :param decoder_start: Tokens fed to the decoder before a question.
    :param stop: Token that ends a question.
    :param never: Tokens that no question contains.
    :param spaced: Whether texts begin with a space, as inside a text of BART or T5.
    :param max_passage_tokens: Longest input, everything included; a passage that is longer loses its end.
    :param max_question_tokens: Longest question, `stop` included.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    decoder_start: tuple[int, ...]
    stop: int
    never: tuple[int, ...]
    spaced: bool
    max_passage_tokens: int
    max_question_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_info(cls, info: Mapping[str, Any], where: object) -> "QuestionLayout":
        """
        Rebuild from a model's `gr_model.json`.

        :param info: Its content.
        :param where: Named in errors: the model.
        :raises ModelError: If the model is no question generator.
        """
        data = info.get("question_generator")
        if not data:
            msg = f"'{where}' is no question generator. Train one with the recipe 'question_generator'."
            raise ModelError(msg)
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**plain)

    def tokenize(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
        """
        Tokenize passages or questions.

        :param tokenizer: The model's tokenizer.
        :param texts: The texts.
        """
        return tokenizer.encode([" " + text.strip() for text in texts] if self.spaced else list(texts))

    def source(self, passage: Sequence[int]) -> list[int]:
        """
        Return the encoder's input.

        :param passage: Tokens of title and text.
        """
        room = self.max_passage_tokens - len(self.first) - len(self.last)
        return [*self.first, *passage[:room], *self.last]


def layout_for(
    model: Seq2SeqModel, tokenizer: TextTokenizer, info: Mapping[str, Any], *, passage_tokens: int, question_tokens: int
) -> QuestionLayout:
    """
    Return the format that a model has already, or the one that fits its kind.

    :param model: An encoder-decoder.
    :param tokenizer: Its tokenizer.
    :param info: Its `gr_model.json`.
    :param passage_tokens: Longest input.
    :param question_tokens: Longest question, its end included.
    """
    if info.get("question_generator"):
        return QuestionLayout.from_info(info, "the model to start from")
    special, reserved = tokenizer.special, tokenizer.id(_START)
    stop = special.get("sep", special.get("eos")) if reserved is not None else special.get("eos", special.get("sep"))
    if stop is None:
        msg = "A question generator needs a tokenizer with an end token (eos or sep); this one has none."
        raise ModelError(msg)
    never = {i for i in range(tokenizer.vocabulary_size) if tokenizer.token(i).startswith("[unused")}
    never |= {index for index in special.values() if index != stop}
    first: tuple[int, ...]
    start: tuple[int, ...]
    if reserved is not None:
        first, start = (special["cls"],), (reserved,)
    else:
        around = tokenizer.encode([""], special=True)[0]
        first = tuple(around[: around.index(stop)]) if stop in around else tuple(around)
        start = (model.family.decoder_start, *first)  # BART writes <s> after its start token, T5 nothing
    return QuestionLayout(
        first=first, last=(stop,), decoder_start=start, stop=stop, never=tuple(sorted(never)), spaced=reserved is None,
        max_passage_tokens=passage_tokens, max_question_tokens=question_tokens,
    )  # fmt: skip


class QuestionBatches:
    """
    Passages with questions about them; a batch is a function of seed and step.

    :param sets: Training sets.
    :param tokenizer: The model's tokenizer.
    :param layout: The model's format.
    :param each: Questions of each passage, k.
    :param seed: Of fractional weights.
    """

    def __init__(
        self, sets: Sequence[QuestionSet], tokenizer: TextTokenizer, layout: QuestionLayout, each: int, seed: int
    ) -> None:
        self._layout, self._each, self._pad_id = layout, each, tokenizer.pad_id
        self._rows = weighted_rows(sets, seed)
        self._positives = [one.positives for one in sets]
        self._passages = [
            layout.tokenize(tokenizer, [searchable_text(p.title, p.text) for p in one.passages]) for one in sets
        ]
        self._questions = [layout.tokenize(tokenizer, [q.text for q in one.questions]) for one in sets]
        self._about: list[dict[int, list[int]]] = [{} for _ in sets]
        for about, positives in zip(self._about, self._positives, strict=True):
            for row, passages in enumerate(positives):
                for passage in passages:
                    about.setdefault(passage, []).append(row)

    def make(self, turn: Turn, batch_size: int) -> dict[str, torch.Tensor]:
        """
        Build this process's part of a batch.

        :param turn: Which one.
        :param batch_size: Passages of one round over all processes.
        """
        positions = turn.positions(batch_size)
        rows = turn.rows(positions, len(self._rows))
        sources, questions = [], []
        for position, row in zip(positions.tolist(), rows, strict=True):
            generator = turn.generator(position)
            number, question = self._rows[row]
            positives = self._positives[number][question]
            passage = positives[int(generator.integers(len(positives)))]
            others = self._about[number][passage]
            drawn = [question, *(others[int(generator.integers(len(others)))] for _ in range(self._each - 1))]
            sources.append(self._passages[number][passage])
            questions += [self._questions[number][one] for one in drawn]
        return self._padded(sources, questions)

    def all(self, batch_size: int) -> list[dict[str, torch.Tensor]]:
        """
        Return every question once, with its first relevant passage: for validation.

        :param batch_size: Passages of a batch.
        """
        batches = []
        for first in range(0, len(self._rows), batch_size):
            chunk = self._rows[first : first + batch_size]
            sources = [self._passages[number][self._positives[number][row][0]] for number, row in chunk]
            batches.append(self._padded(sources, [self._questions[number][row] for number, row in chunk]))
        return batches

    def _padded(self, sources: Sequence[list[int]], questions: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        layout, start = self._layout, self._layout.decoder_start
        full = [[*question, layout.stop][: layout.max_question_tokens] for question in questions]
        ids_BL, mask_BL = pad([layout.source(source) for source in sources], self._pad_id)
        inputs_RT, _ = pad([[*start, *question[:-1]] for question in full], self._pad_id)
        targets_RT, real_RT = pad([[*start[1:], *question] for question in full], self._pad_id)
        real_RT[:, : len(start) - 1] = False
        arrays = {"ids_BL": ids_BL, "mask_BL": mask_BL, "inputs_RT": inputs_RT, "targets_RT": targets_RT,
                  "real_RT": real_RT}  # fmt: skip
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def question_loss(model: Seq2SeqModel, batch: Mapping[str, torch.Tensor]) -> LossSum:
    """
    Negative log-likelihood of questions, summed over tokens.

    :param model: An encoder-decoder.
    :param batch: From `QuestionBatches`.
    """
    memory = model.encode(batch["ids_BL"], batch["mask_BL"])
    log_probs_RT, _ = token_log_probs(model, memory, batch)
    return LossSum(sequence_nll(log_probs_RT, batch["real_RT"]).sum(), batch["real_RT"].sum())


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class SamplingConfig:
    """
    How questions are drawn.

    :param per_document: Questions drawn for each passage; repetitions among them are dropped.
    :param top_k: Only so many of the most probable tokens can be drawn; 0 for all.
    :param top_p: Of these, only the most probable ones that together have this share.
    :param temperature: Below 1 sharpens the distribution, above 1 flattens it.
    :param batch_size: Passages at a time.
    :param seed: Each passage draws from a generator of its own, made of this and its id: neither the batch nor the
        other passages matter.
    """

    per_document: Count = 5
    top_k: Natural = 10
    top_p: Fraction = 0.95
    temperature: Positive = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 16
    seed: Natural = 13


class QuestionSampler:
    """
    Draws questions about passages.

    :param decoder: The model.
    :param tokenizer: Its tokenizer.
    :param layout: Its format.
    :param config: How to draw.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: TextTokenizer, layout: QuestionLayout, config: SamplingConfig
    ) -> None:
        self._decoder, self._tokenizer, self._layout, self._config = decoder, tokenizer, layout, config

    def sample(self, passages: Sequence[Passage]) -> list[list[str]]:
        """
        Draw questions.

        :param passages: Any number; `batch_size` of them at a time.
        :returns: Different questions about each, in the order in which they were drawn; fewer than `per_document`
            where some were drawn twice or are empty.
        """
        found: list[list[str]] = []
        for first in range(0, len(passages), self._config.batch_size):
            found += self._batch(passages[first : first + self._config.batch_size])
        return found

    def _batch(self, passages: Sequence[Passage]) -> list[list[str]]:
        layout, each = self._layout, self._config.per_document
        texts = layout.tokenize(self._tokenizer, [searchable_text(p.title, p.text) for p in passages])
        source = self._decoder.encode(*pad([layout.source(ids) for ids in texts], self._tokenizer.pad_id))
        state = self._decoder.start(source, each)
        chances_RT = np.concatenate([self._chances(passage.id) for passage in passages])
        rows = len(chances_RT)
        in_place_R, ended_R = np.arange(rows), np.zeros(rows, dtype=bool)
        for token in layout.decoder_start[:-1]:
            self._decoder.step(np.full(rows, token, dtype=np.int64), in_place_R, state)
        tokens_R = np.full(rows, layout.decoder_start[-1], dtype=np.int64)
        written: list[list[int]] = [[] for _ in range(rows)]
        for step in range(layout.max_question_tokens):
            log_probs_RV = self._decoder.step(tokens_R, in_place_R, state)
            log_probs_RV[:, [*layout.never, *([layout.stop] if step == 0 else [])]] = -np.inf
            log_probs_RV[:, self._tokenizer.vocabulary_size :] = -np.inf
            for row in np.nonzero(~ended_R)[0]:
                tokens_R[row] = draw(log_probs_RV[row], float(chances_RT[row, step]), self._config)
                written[row].append(int(tokens_R[row]))
            ended_R |= tokens_R == layout.stop
            if ended_R.all():
                break
        questions = [self._text(tokens) for tokens in written]
        return [_different(questions[first : first + each]) for first in range(0, rows, each)]

    def _chances(self, identity: str) -> Float64:
        """Return the numbers (k, T) in [0, 1) that decide about a passage's questions."""
        digest = hashlib.sha256(f"{self._config.seed}\0{identity}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        return generator.random((self._config.per_document, self._layout.max_question_tokens))

    def _text(self, tokens: list[int]) -> str:
        """Return a question; one that was cut at its longest is no question."""
        if tokens[-1] != self._layout.stop:
            return ""
        return self._tokenizer.decode(tokens[:-1]).strip()


def draw(log_probs_V: Float32, chance: float, config: SamplingConfig) -> int:
    """
    Draw a token.

    :param log_probs_V: Log-probabilities; -inf for tokens that cannot be drawn.
    :param chance: In [0, 1): where in the cumulative distribution, tokens by id, to look.
    :param config: `top_k`, `top_p` and `temperature`.
    """
    size = len(log_probs_V) if config.top_k == 0 else min(config.top_k, len(log_probs_V))
    best_N = np.argpartition(-log_probs_V, size - 1)[:size]
    best_N = best_N[np.isfinite(log_probs_V[best_N])]
    logits_N = log_probs_V[best_N].astype(np.float64) / config.temperature
    shares_N = np.exp(logits_N - logits_N.max())
    shares_N /= shares_N.sum()
    order_N = np.argsort(-shares_N, kind="stable")
    before_N = np.cumsum(shares_N[order_N]) - shares_N[order_N]
    kept_N = order_N[(before_N < config.top_p) | (np.arange(len(order_N)) == 0)]
    kept_N = kept_N[np.argsort(best_N[kept_N])]
    cumulative_N = np.cumsum(shares_N[kept_N])
    place = int(np.searchsorted(cumulative_N, chance * cumulative_N[-1], side="right"))
    return int(best_N[kept_N[min(place, len(kept_N) - 1)]])


def _different(questions: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(question for question in questions if question))
