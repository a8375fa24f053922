"""
The engine of Fusion-in-Decoder (Izacard & Grave, 2021, https://arxiv.org/abs/2007.01282).

Each passage is encoded alone together with the question; the decoder attends to the states of all of them and writes
the answer. The order of the passages makes no difference. One batched method serves component, trainer and evaluator.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gr_components.data.records import Passage
from gr_components.errors import ConfigError, ModelError, NumericsError
from gr_components.models.batching import is_out_of_memory
from gr_components.models.cut_texts import CutTexts
from gr_components.models.seq2seq.folder import LoadedSeq2Seq
from gr_components.progress import Reporter, Silent, Task
from gr_components.readers.config import ReadConfig
from gr_components.readers.generation import GenerationConfig, Hypothesis, Spans, generate, span_sources
from gr_components.readers.layout import Inputs, ReaderLayout, pad_inputs, text_layout
from gr_components.readers.surface import surface_form
from gr_components.tokenization import Encoded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """
    One answer to a question.

    :param text: As a passage writes it; as the tokenizer does if no passage contains it.
    :param generated: The generated text itself.
    :param log_probability: Of the generated tokens, natural logarithm.
    :param passage: Position of the passage that `text` was taken from; None if it is in none.
    :param span: First and one past last character in that passage's text.
    """

    text: str
    generated: str
    log_probability: float
    passage: int | None
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Reading:
    """
    What a reader makes of one question.

    :param answers: Best first; empty if there was nothing to read.
    :param relevance: For each given passage how much the decoder attended to it before its first token (a mean of
        attention logits, the weighted scores included, comparable within one question); None for passages without text.
    """

    answers: list[Answer]
    relevance: list[float | None]


@dataclass(frozen=True)
class _Prepared:
    """A question with its passages, tokenized. `kept` are the positions of those with text, `scores` their scores."""

    index: int
    texts: list[str]
    kept: list[int]
    contexts: list[Encoded]
    rows: list[tuple[list[int], int, int]]
    scores: list[float]


class FusionReader:
    """
    A Fusion-in-Decoder reader over a loaded model.

    :param loaded: An encoder-decoder.
    :param layout: How its input is written; by default what the model's `gr_model.json` says, and for a plain BART or
        T5 the text layout.
    :param max_passage_tokens: Longest input instead of the layout's.
    :raises ModelError: If the model says nothing and is no BART or T5, or takes shorter inputs than the layout needs.
    """

    def __init__(
        self, loaded: LoadedSeq2Seq, layout: ReaderLayout | None = None, max_passage_tokens: int | None = None
    ) -> None:
        self.tokenizer = loaded.tokenizer
        self.decoder = loaded.decoder
        self.layout = layout_of(loaded) if layout is None else layout
        self._cut = CutTexts()
        if max_passage_tokens is not None:
            self.layout = dataclasses.replace(self.layout, max_passage_tokens=max_passage_tokens)
        longest = loaded.model.family.max_positions
        if longest is not None and max(self.layout.max_passage_tokens, self.layout.max_answer_tokens) > longest:
            asked = f"passages of {self.layout.max_passage_tokens} and answers of {self.layout.max_answer_tokens}"
            msg = f"The model takes at most {longest} tokens, but {asked} are asked for. Set max_passage_tokens."
            raise ModelError(msg)

    def read(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage]],
        config: ReadConfig = ReadConfig(),  # noqa: B008 - frozen
        report: Reporter = Silent(),  # noqa: B008 - without state
        scores: Sequence[Sequence[float | None]] | None = None,
    ) -> list[Reading]:
        """
        Answer questions, each from its own passages.

        :param questions: The questions.
        :param passages: For each question its passages; those without text are skipped.
        :param config: Settings.
        :param report: Where progress goes.
        :param scores: For each question the scores of its passages, for `config.retrieval_weight`; a passage without
            one counts as the least of its question.
        :returns: One reading per question, in the same order.
        :raises ConfigError: If a setting does not fit the model, or there are not as many passages or scores as needed.
        :raises NumericsError: If the model gives NaN, or a score is NaN or infinite.
        :raises ModelError: If memory does not suffice for one passage at a time.
        """
        self._check(config)
        if len(questions) != len(passages):
            msg = f"There are {len(questions)} questions and {len(passages)} lists of passages; give one list each."
            raise ConfigError(msg)
        if scores is None or not config.retrieval_weight:
            scores = [[None] * len(given) for given in passages]
        if [len(own) for own in scores] != [len(given) for given in passages]:
            msg = "scores must have a list for each question, and in it a score or None for each of its passages."
            raise ConfigError(msg)
        readings = [Reading([], [None] * len(given)) for given in passages]
        with Task(report, "read", len(questions)) as task:
            for batch in self._batches(questions, passages, scores, config):
                for item, reading in zip(batch, self._read_in_memory(batch, config), strict=True):
                    relevance: list[float | None] = [None] * len(passages[item.index])
                    for position, value in zip(item.kept, reading.relevance[: len(item.kept)], strict=True):
                        relevance[position] = value
                    readings[item.index] = Reading(reading.answers, relevance)
                task.advance(len(batch))
        return readings

    def _check(self, config: ReadConfig) -> None:
        if config.extractive and self.layout.kind != "reserved":
            msg = (
                "extractive=True needs a model with the reserved layout: BART and T5 write the first token of an "
                "answer differently from the same word inside a passage."
            )
            raise ConfigError(msg)

    def _batches(
        self, questions: Sequence[str], passages: Sequence[Sequence[Passage]],
        scores: Sequence[Sequence[float | None]], config: ReadConfig,
    ) -> Iterator[list[_Prepared]]:  # fmt: skip
        # Batches are filled with questions that have as many passages of the same length, tokenized a window at a time.
        window = 64 * config.batch_size
        for first in range(0, len(questions), window):
            chosen = range(first, min(first + window, len(questions)))
            prepared = self._prepare(
                [questions[i] for i in chosen], [passages[i] for i in chosen], [scores[i] for i in chosen], first,
                closed_book=config.closed_book,
            )  # fmt: skip
            prepared.sort(key=lambda item: (len(item.rows), max(len(ids) for ids, _, _ in item.rows)))
            batch: list[_Prepared] = []
            for item in prepared:
                if batch and (len(batch) + 1) * len(item.rows) > config.batch_size:
                    yield batch
                    batch = []
                batch.append(item)
            if batch:
                yield batch

    def _prepare(
        self, questions: Sequence[str], passages: Sequence[Sequence[Passage]],
        scores: Sequence[Sequence[float | None]], first: int, *, closed_book: bool,
    ) -> list[_Prepared]:  # fmt: skip
        layout, tokenizer = self.layout, self.tokenizer
        kept = [[n for n, p in enumerate(given) if p.text.strip()] for given in passages]
        chosen = [given[n] for given, positions in zip(passages, kept, strict=True) for n in positions]
        question_tokens = layout.tokenize(tokenizer, questions)
        titles = layout.tokenize(tokenizer, [p.title for p in chosen])
        contexts = layout.tokenize(tokenizer, [p.text for p in chosen])
        next_title, next_context = iter(titles), iter(contexts)
        prepared: list[_Prepared] = []
        shortened: list[bool] = []
        for index, positions in enumerate(kept):
            own = [next(next_context) for _ in positions]
            rows = [layout.assemble(question_tokens[index].ids, next(next_title).ids, c.ids) for c in own]
            shortened += [end - begin < len(c.ids) for (_, begin, end), c in zip(rows, own, strict=True)]
            if closed_book and not rows:
                rows = [layout.assemble(question_tokens[index].ids, [], [])]
            if rows and questions[index].strip():
                texts = [passages[index][n].text for n in positions]
                known = _known([scores[index][n] for n in positions] or [None])
                prepared.append(_Prepared(first + index, texts, positions, own, rows, known))
        limit = layout.max_question_tokens
        self._cut.report("questions", questions, [len(q.ids) > limit for q in question_tokens], limit)
        limit = layout.max_title_tokens
        self._cut.report("titles", [p.title for p in chosen], [len(t.ids) > limit for t in titles], limit)
        passage_texts = [p.text for p in chosen]
        self._cut.report("passages with their question", passage_texts, shortened, layout.max_passage_tokens)
        return prepared

    def _read_in_memory(self, batch: list[_Prepared], config: ReadConfig) -> list[Reading]:
        """Read a batch; when memory runs out, in halves, and in the end one passage at a time."""
        try:
            return self._read_batch(batch, config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            passages = len(batch[0].rows)
            size = len(batch) * passages if len(batch) > 1 else min(config.batch_size, passages)
            if size == 1 or config.batch_size == 1:
                msg = (
                    f"Out of memory with {passages} passages of a question. Set a smaller top_k or max_passage_tokens."
                )
                raise ModelError(msg) from error
        logger.warning("Out of memory with %d passages in a batch; going on with %d.", size, size // 2)
        smaller = dataclasses.replace(config, batch_size=size // 2)
        middle = (len(batch) + 1) // 2
        return [
            reading
            for part in (batch[:middle], batch[middle:])
            if part
            for reading in self._read_in_memory(part, smaller)
        ]

    def _read_batch(self, batch: list[_Prepared], config: ReadConfig) -> list[Reading]:
        inputs = pad_inputs([item.rows for item in batch], self.tokenizer.pad_id)
        prior_BN = None
        if config.retrieval_weight:
            prior_BN = np.zeros(inputs.ids_BNL.shape[:2], dtype=np.float32)
            for b, item in enumerate(batch):
                prior_BN[b, : len(item.scores)] = config.retrieval_weight * (np.array(item.scores) - max(item.scores))
        source = self.decoder.encode_fused(
            inputs.ids_BNL, inputs.mask_BNL, inputs.context_BNL, chunk=config.batch_size, prior_BN=prior_BN
        )
        relevance_BN = self.decoder.relevance(source, inputs.ids_BNL.shape[1], self.layout.answer_start[0])
        if np.isnan(relevance_BN).any():
            msg = "The reader's attention is NaN: its weights are damaged, or they overflow in this dtype. Use float32."
            raise NumericsError(msg)
        if prior_BN is not None:
            relevance_BN = relevance_BN + prior_BN  # the logits that the decoder really has
        found = self._generate(source, inputs, config)
        return [
            self._reading(item, hypotheses, relevance_BN[b, : len(item.rows)].tolist(), config.num_answers)
            for b, (item, hypotheses) in enumerate(zip(batch, found, strict=True))
        ]

    def _generate(self, source: Any, inputs: Inputs, config: ReadConfig) -> list[list[Hypothesis]]:
        layout = self.layout
        longest = layout.max_answer_tokens if config.max_answer_tokens is None else config.max_answer_tokens
        settings = GenerationConfig(
            start=layout.answer_start, stop=layout.stop, beams=config.num_beams, max_tokens=longest,
            length_penalty=config.length_penalty, never=layout.never,
        )  # fmt: skip
        spans = None
        if config.extractive:
            ids_BS = span_sources(inputs.ids_BNL, inputs.context_BNL)
            spans = Spans(ids_BS, self.tokenizer.continuation_V, config.num_beams)
        return generate(self.decoder, source, len(inputs.ids_BNL), settings, spans)

    def _reading(
        self, item: _Prepared, hypotheses: list[Hypothesis], relevance: list[float], num_answers: int
    ) -> Reading:
        order = sorted(range(len(item.kept)), key=lambda n: -relevance[n])
        answers = []
        for hypothesis in hypotheses[:num_answers]:
            generated = self.tokenizer.decode(hypothesis.tokens).strip()
            surface = surface_form(hypothesis.tokens, generated, item.texts, item.contexts, order)
            passage = None if surface.passage is None else item.kept[surface.passage]
            answers.append(Answer(surface.text, generated, hypothesis.log_probability, passage, surface.span))
        return Reading(answers, list(relevance))


def _known(scores: Sequence[float | None]) -> list[float]:
    """Return scores with the least of them where there is none."""
    least = min((score for score in scores if score is not None), default=0.0)
    known = [least if score is None else float(score) for score in scores]
    if not np.isfinite(known).all():
        msg = f"Passages have the scores {known}, which retrieval_weight cannot use. Set it to 0."
        raise NumericsError(msg)
    return known


def layout_of(loaded: LoadedSeq2Seq, **lengths: int) -> ReaderLayout:
    """
    Return how a model's input is written.

    :param loaded: The model.
    :param lengths: Limits other than what the model says; for a plain BART or T5, other than those of `text_layout`.
    :raises ModelError: If it is neither a reader nor a BART or T5.
    """
    stored = loaded.info.get("reader")
    if stored is not None:
        return ReaderLayout.from_dict({**stored, **lengths})
    family = loaded.model.family
    if family.name not in ("bart", "t5"):
        msg = (
            f"'{loaded.folder}' is no reader: its gr_model.json has no 'reader' entry. Use a model that the recipe "
            "'fid' made, or a BART or T5."
        )
        raise ModelError(msg)
    start: tuple[int, ...] = (family.decoder_start,)
    if family.name == "bart":
        # BART was trained to write its own start token first.
        start = (family.decoder_start, loaded.tokenizer.special["bos"])
    return text_layout(loaded.tokenizer, answer_start=start, **lengths)
