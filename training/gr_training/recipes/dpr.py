"""
`dpr`: a dense retriever with hard negatives and in-batch negatives (https://arxiv.org/abs/2004.04906).

One encoder for questions and passages, or one for each (`two_towers`). Each question brings a relevant passage and hard
negatives; the passages of all other questions of the batch, over all processes, are negatives too, except those that
are relevant to it. Starts from a sentence-transformers folder or any Hugging Face encoder, and is saved as a
sentence-transformers folder; with two towers the questions' encoder is in the folder `question` inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gr_components.data import Passage, searchable_text
from gr_components.evaluation import evaluate_run
from gr_components.models.resolve import MINILM, resolve_model
from gr_components.models.text_encoder import padded
from gr_components.models.text_encoder_torch import TextEncoderModule
from gr_training import estimate
from gr_training.attention import register
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass, to_plain
from gr_training.distributed import check_divisible, gathered, rank
from gr_training.fitting import Count, FitConfig, Natural, Positive
from gr_training.loop import LossSum, fit
from gr_training.losses.contrastive import in_batch_contrastive
from gr_training.mining.lists import CandidateLists, MiningConfig, mine, nearest
from gr_training.order import Turn
from gr_training.run import Run, identity, publish
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    weighted_rows,
)
from gr_training.stages import Step

_ENCODE_BATCH = 64
_KEY = 1 << 32


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param model: The encoder to start from.
    :param two_towers: Whether questions get an encoder of their own, which starts equal.
    :param pooling: In place of the model's own: `mean`, `cls`, ...
    :param similarity: `cosine` or `dot`.
    :param temperature: Divides similarities; about 0.05 for cosines, 1 for dot products.
    :param question_prefix: Put in front of each question, such as `query: `.
    :param passage_prefix: Put in front of each passage.
    :param max_question_tokens: Longest question in training.
    :param max_passage_tokens: Longest passage, in training and serving.
    :param dropout: Of hidden states; attention weights have none.
    :param data: Training sets.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the model.
    :param mining: Where hard negatives come from.
    :param depth: Hard negatives are drawn from this many passages at the top.
    :param num_negatives: Hard negatives of each question; filled up with random passages where mining found too few.
    :param questions_per_step: Questions of each round, over all processes.
    :param weights: How the trained weights are stored.
    :param fit: The training loop.
    """

    recipe: Literal["dpr"] = "dpr"
    model: ModelName = MINILM
    two_towers: bool = False
    pooling: str | None = None
    similarity: Literal["cosine", "dot"] = "cosine"
    temperature: Positive = 0.05
    question_prefix: str = ""
    passage_prefix: str = ""
    max_question_tokens: Annotated[int, Field(ge=8)] = 64
    max_passage_tokens: Annotated[int, Field(ge=16)] = 192
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    mining: MiningConfig = field(default_factory=lambda: MiningConfig(dense=None))
    depth: Count = 30
    num_negatives: Natural = 1
    questions_per_step: Count = 16
    weights: Literal["full", "int8"] = "full"
    fit: FitConfig


class Towers(nn.Module):
    """
    Encoders of questions and passages, which may be the same.

    :param passage: Encodes passages.
    :param question: Encodes questions; None to share the passages' encoder.
    :param cosine: Whether vectors are scaled to length 1.
    """

    def __init__(self, passage: TextEncoderModule, question: TextEncoderModule | None, cosine: bool) -> None:
        super().__init__()
        self.passage, self.own_question, self._cosine = passage, question, cosine

    @property
    def question(self) -> TextEncoderModule:
        """The encoder of questions."""
        return self.passage if self.own_question is None else self.own_question

    def encode(self, tower: TextEncoderModule, arrays: dict[str, Tensor]) -> Tensor:
        """
        Encode a padded batch to float32 vectors.

        :param tower: `question` or `passage`.
        :param arrays: Arguments of its forward.
        """
        vectors: Tensor = tower(**arrays).float()
        return nn.functional.normalize(vectors, dim=-1) if self._cosine else vectors


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    questions = config.questions_per_step * config.fit.accumulate

    def minutes() -> float | None:
        passages = 1 + config.num_negatives
        tokens = estimate.QUESTION_TOKENS + passages * min(config.max_passage_tokens, estimate.PASSAGE_TOKENS)
        return estimate.encoder_minutes(estimate.shape_of(config.model), config.fit.steps, questions * tokens)

    return [
        Step("mine", f"{config.mining.depth} passages for all questions"),
        Step("train", f"{config.fit.steps:,} steps of {questions} questions", minutes),
    ]


def train(config: Config, run: Run) -> Path:
    """
    Train a dense retriever.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation, config.held_out, run.report)
    folder = run.out / "candidates"
    lists = [mine(s, config.mining, config.depth, folder / f"{s.name}.jsonl.gz", run.report) for s in sets]
    model = _build(config)
    examples = _Examples(config, sets, lists, model)
    files = [each.files or {} for each in (*sets, validation)]
    progress = fit(
        model, examples.batch, lambda m, batch: _loss(m, batch, config.temperature), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report, metric="nDCG@10",
        validate=lambda m: validate(m, validation, config), identity=identity(config, files),
    )  # fmt: skip
    provenance = Provenance(
        task="dense", recipe=to_plain(config), base_model=config.model, data=used(sets),
        metrics=progress.best, steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip
    more = {
        "tokenizer_fingerprint": model.passage.tokenizer.fingerprint, "similarity": config.similarity,
        "prefixes": {"question": config.question_prefix, "passage": config.passage_prefix},
    }  # fmt: skip

    def write(folder: Path) -> None:
        model.passage.save(folder, weights=config.weights)
        if model.own_question is not None:
            model.own_question.save(folder / "question", weights=config.weights)
        describe(folder, provenance, **more)

    publish(run.model, write)
    return run.model


@dataclass(frozen=True)
class _Examples:
    """Questions with their passages."""

    config: Config
    sets: Sequence[QuestionSet]
    lists: Sequence[CandidateLists]
    model: Towers

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(set, question) of each example."""
        return weighted_rows(self.sets, self.config.fit.seed)

    def batch(self, turn: Turn) -> dict[str, Any]:
        """Build a turn's questions B and their passages P = B * (1 + num_negatives), each question's own one first."""
        config = self.config
        check_divisible(config.questions_per_step, "questions_per_step")
        positions = turn.positions(config.questions_per_step)
        questions, passages, keys, positives = [], [], [], []
        for position, example in zip(positions, turn.rows(positions, len(self.rows)), strict=True):
            number, row = self.rows[example]
            each = self.sets[number]
            questions.append(config.question_prefix + each.questions[row].text)
            positives.append([number * _KEY + passage for passage in each.positives[row]])
            for passage in self._draw(number, row, turn.generator(int(position))):
                passages.append(config.passage_prefix + _text(each.passages[passage]))
                keys.append(number * _KEY + passage)
        positives_BM = np.full((len(positives), max(map(len, positives))), -1, dtype=np.int64)
        for b, several in enumerate(positives):
            positives_BM[b, : len(several)] = several
        return {
            "questions": _tensors(self.model.question, questions, config.max_question_tokens),
            "passages": _tensors(self.model.passage, passages, config.max_passage_tokens),
            "keys_P": torch.tensor(keys, dtype=torch.int64),
            "positives_BM": torch.from_numpy(positives_BM),
        }

    def _draw(self, number: int, row: int, generator: np.random.Generator) -> list[int]:
        each, wanted = self.sets[number], self.config.num_negatives
        positives = each.positives[row]
        negatives = [p for p in self.lists[number].rows[row].tolist() if p not in positives]
        chosen = [negatives[i] for i in generator.permutation(len(negatives))[:wanted]]
        while len(chosen) < wanted:  # a random passage; should it be relevant, the loss leaves it out
            chosen.append(int(generator.integers(len(each.passages))))
        return [positives[int(generator.integers(len(positives)))], *chosen]


def _loss(model: Towers, batch: dict[str, Any], temperature: float) -> LossSum:
    questions_BE = model.encode(model.question, batch["questions"])
    passages_PE = gathered(model.encode(model.passage, batch["passages"]))
    keys_P, positives_BM = gathered(batch["keys_P"]), batch["positives_BM"]
    num_questions = len(questions_BE)
    per_question = len(batch["keys_P"]) // num_questions
    own_B = (torch.arange(num_questions, device=keys_P.device) + rank() * num_questions) * per_question
    relevant_BP = (keys_P[None, :, None] == positives_BM[:, None, :]).any(-1)
    loss_B = in_batch_contrastive(
        questions_BE @ passages_PE.T, own_B, _allowed(relevant_BP, own_B), temperature=temperature
    )
    return LossSum(loss_B.sum(), num_questions)


def _allowed(relevant_BP: Tensor, own_B: Tensor) -> Tensor:
    """Passages that count: each question's own one, and all that are not relevant to it."""
    return (~relevant_BP).scatter(1, own_B[:, None], True)


def validate(model: Towers, questions: QuestionSet, config: Config) -> dict[str, float]:
    """
    Search all passages exactly and measure.

    :param model: In evaluation mode.
    :param questions: Validation questions and the passages to be searched.
    :param config: Prefixes and lengths.
    """
    asked = [config.question_prefix + question.text for question in questions.questions]
    texts = [config.passage_prefix + _text(passage) for passage in questions.passages]
    found = nearest(
        _vectors(model, model.question, asked, config.max_question_tokens),
        _vectors(model, model.passage, texts, config.max_passage_tokens),
        depth=20,
    )
    run = {
        question.id: [(questions.passages[row].id, score) for row, score in several]
        for question, several in zip(questions.questions, found, strict=True)
    }
    return evaluate_run(run, questions.qrels, ["nDCG@10", "Success@1", "R@20"]).means


def _vectors(model: Towers, tower: TextEncoderModule, texts: Sequence[str], max_tokens: int) -> Any:
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    vectors_NE = np.zeros((len(texts), tower.dimension), dtype=np.float32)
    for first in range(0, len(order), _ENCODE_BATCH):
        rows = order[first : first + _ENCODE_BATCH]
        arrays = _tensors(tower, [texts[row] for row in rows], max_tokens)
        with torch.autocast(device.type, torch.bfloat16):
            batch_BE = model.encode(tower, {name: array.to(device) for name, array in arrays.items()})
        vectors_NE[rows] = batch_BE.cpu().numpy()
    return vectors_NE


def _tensors(tower: TextEncoderModule, texts: Sequence[str], max_tokens: int) -> dict[str, Tensor]:
    encoded = tower.tokenizer.encode_templated(texts, max_length=max_tokens)
    arrays = padded(encoded, tower.tokenizer.pad_id, type_ids=tower.type_ids)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _text(passage: Passage) -> str:
    return searchable_text(passage.title, passage.text)


def _build(config: Config) -> Towers:
    folder = resolve_model(config.model)
    towers = [_tower(folder, config) for _ in range(2 if config.two_towers else 1)]
    return Towers(towers[0], towers[1] if config.two_towers else None, config.similarity == "cosine")


def _tower(folder: Path, config: Config) -> TextEncoderModule:
    options = {"attn_implementation": register(), "hidden_dropout_prob": config.dropout,
               "attention_probs_dropout_prob": 0.0}  # fmt: skip
    return TextEncoderModule.from_folder(
        folder, pooling=config.pooling, max_length=config.max_passage_tokens, model_kwargs=options
    )
