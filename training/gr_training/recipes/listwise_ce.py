"""
`listwise_ce`: a cross-encoder that tells a question's passage from hard negatives.

Each example is a list: one relevant passage and `num_negatives` drawn from the top of what retrieval found. The loss is
the softmax cross-entropy over the list. With `base_weight` the fused retrieval score, standardised over the list, is
added to the model's score inside the loss only: the model then learns what is to be added to retrieval, which is how
its score is used in a pipeline that fuses both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from gr_components.data import searchable_text
from gr_components.data.runs import ranked, read_run
from gr_components.evaluation import evaluate_run
from gr_components.models.quiet import without_progress_bars
from gr_components.models.resolve import MINILM, resolve_model
from gr_components.tokenization import TextTokenizer
from gr_training.attention import register
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig
from gr_training.loop import LossSum, fit
from gr_training.losses.listwise import listwise_softmax
from gr_training.mining.lists import CandidateLists, fuse, to_lists
from gr_training.order import Turn
from gr_training.pairs_encoding import PairEncoder
from gr_training.run import Run, identity
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    local_file,
    weighted_rows,
)


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param model: The encoder to start from.
    :param layers: How many of its layers are kept, from the bottom; null keeps all.
    :param max_tokens: Longest pair in training.
    :param dropout: Of hidden states; attention weights have none, which costs much on a CPU and gave nothing.
    :param questions_per_step: Lists of each round.
    :param num_negatives: Negatives of each list.
    :param depth: Negatives are drawn from this many passages at the top.
    :param base_weight: Weight of the retrieval score inside the loss.
    :param runs: TREC runs to take candidates from, by the name of the training set (`validation` for validation); sets
        without any are searched with BM25 and with the encoder that training starts from.
    :param validation_depth: How many passages of each validation question are ranked.
    :param num_chunks: Into how many batches of similar length a round is divided.
    """

    recipe: Literal["listwise_ce"] = "listwise_ce"
    model: str = MINILM
    layers: Count | None = None
    max_tokens: Annotated[int, Field(ge=16)] = 192
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    questions_per_step: Count = 8
    num_negatives: Count = 7
    depth: Count = 30
    base_weight: Annotated[float, Field(ge=0)] = 0.0
    validation_depth: Count = 20
    num_chunks: Count = 4
    fit: FitConfig


def train(config: Config, run: Run) -> Path:
    """
    Train a cross-encoder.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation)
    lists = [_candidates(config, each, config.depth) for each in sets]
    judged = _candidates(config, validation, config.validation_depth)
    folder = resolve_model(config.model)
    tokenizer = TextTokenizer.from_folder(folder)
    encoder = PairEncoder(tokenizer, config.max_tokens)
    model = _build(folder, config)
    examples = _Examples(config, sets, lists, encoder)
    files = [each.files or {} for each in (*sets, validation)]
    progress = fit(
        model, examples.batch, lambda m, batch: _loss(m, batch, config.base_weight), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report, metric="fused nDCG@10",
        validate=lambda m: _validate(m, validation, judged, encoder), identity=identity(config, files),
    )  # fmt: skip
    _save(model, tokenizer, config, Provenance(
        task="ranker", recipe=to_plain(config), base_model=config.model, data=used(sets), metrics=progress.best,
        steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    ), run.model)  # fmt: skip
    return run.model


@dataclass(frozen=True)
class _Examples:
    """Lists of passages for training questions."""

    config: Config
    sets: Sequence[QuestionSet]
    lists: Sequence[CandidateLists]
    encoder: PairEncoder

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(set, question) of each example; questions without any negative are left out."""
        return [
            (number, row)
            for number, row in weighted_rows(self.sets, self.config.fit.seed)
            if len(np.setdiff1d(self.lists[number].rows[row], self.sets[number].positives[row]))
        ]

    def batch(self, turn: Turn) -> dict[str, Any]:
        """Build the lists of a turn: B questions, D = 1 + num_negatives passages, the relevant one first."""
        positions = turn.positions(self.config.questions_per_step)
        shape = (len(positions), 1 + self.config.num_negatives)
        labels_BD, base_BD = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        mask_BD = np.zeros(shape, bool)
        pairs, places = [], []
        for b, (position, example) in enumerate(zip(positions, turn.rows(positions, len(self.rows)), strict=True)):
            number, row = self.rows[example]
            chosen, base = self._draw(number, row, turn.generator(position))
            question, passages = self.sets[number].questions[row], self.sets[number].passages
            labels_BD[b, 0], mask_BD[b, : len(chosen)], base_BD[b, : len(chosen)] = 1.0, True, base
            for d, passage in enumerate(chosen):
                pairs.append((question.text, searchable_text(passages[passage].title, passages[passage].text)))
                places.append(b * shape[1] + d)
        chunks, order = self.encoder.chunks(pairs, self.config.num_chunks)
        arrays = {"labels_BD": labels_BD, "mask_BD": mask_BD, "base_BD": base_BD, "places": np.array(places)}
        return {"chunks": chunks, "order": order, **{name: torch.from_numpy(value) for name, value in arrays.items()}}

    def _draw(self, number: int, row: int, generator: np.random.Generator) -> tuple[list[int], list[float]]:
        positives, found = self.sets[number].positives[row], self.lists[number].rows[row]
        scores = dict(zip(found.tolist(), self.lists[number].scores[row].tolist(), strict=True))
        negatives = [passage for passage in found.tolist() if passage not in positives]
        count = min(self.config.num_negatives, len(negatives))
        drawn = generator.choice(len(negatives), count, replace=False)
        chosen = [positives[int(generator.integers(len(positives)))], *(negatives[i] for i in drawn)]
        lowest = min(scores.values())
        return chosen, [scores.get(passage, lowest) for passage in chosen]


def _loss(model: nn.Module, batch: dict[str, Any], base_weight: float) -> LossSum:
    scores_P = torch.cat([model(**chunk).logits[:, 0].float() for chunk in batch["chunks"]])[batch["order"]]
    mask_BD = batch["mask_BD"]
    scores_BD = (
        torch.zeros(mask_BD.numel(), device=scores_P.device).index_put((batch["places"],), scores_P).view_as(mask_BD)
    )
    loss_B = listwise_softmax(scores_BD + base_weight * batch["base_BD"], batch["labels_BD"], mask_BD)
    return LossSum(loss_B.sum(), len(loss_B))


def _validate(
    model: nn.Module, questions: QuestionSet, lists: CandidateLists, encoder: PairEncoder
) -> dict[str, float]:
    """Rank the candidates by the model alone, and by the sum of its standardised score and retrieval's."""
    passages = [searchable_text(passage.title, passage.text) for passage in questions.passages]
    runs: dict[str, dict[str, list[tuple[str, float]]]] = {"base ": {}, "": {}, "fused ": {}}
    for question, rows, base in zip(questions.questions, lists.rows, lists.scores, strict=True):
        ids = [questions.passages[row].id for row in rows]
        scores = _scores(model, [(question.text, passages[row]) for row in rows], encoder)
        fused = base + (scores - scores.mean()) / (scores.std() or 1.0) if len(ids) else scores
        for name, values in (("base ", base), ("", scores), ("fused ", fused)):
            runs[name][question.id] = ranked(zip(ids, values.tolist(), strict=True))
    means = {name: evaluate_run(found, questions.qrels, ["nDCG@10", "Success@1"]).means for name, found in runs.items()}
    return {f"{name}{measure}": value for name, values in means.items() for measure, value in values.items()}


def _scores(model: nn.Module, pairs: list[tuple[str, str]], encoder: PairEncoder) -> np.ndarray:
    if not pairs:
        return np.zeros(0, np.float32)
    device = next(model.parameters()).device
    chunks, order = encoder.chunks(pairs, 2)
    with torch.autocast(device.type, torch.bfloat16):
        parts = [model(**{k: v.to(device) for k, v in chunk.items()}).logits[:, 0].float().cpu() for chunk in chunks]
    return torch.cat(parts)[order].numpy()


def _candidates(config: Config, questions: QuestionSet, depth: int) -> CandidateLists:
    paths = config.runs.get(questions.name, ())
    return to_lists(
        fuse([read_run(local_file(path)) for path in paths]), questions.questions, questions.passages, depth
    )


def _build(folder: Path, config: Config) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {} if config.layers is None else {"num_hidden_layers": config.layers}
    with without_progress_bars():
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, attn_implementation=register(), hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=0.0, **options,
        )  # fmt: skip
    return model


def _save(model: Any, tokenizer: TextTokenizer, config: Config, provenance: Provenance, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    describe(folder, provenance, tokenizer_fingerprint=tokenizer.fingerprint, max_tokens=config.max_tokens)
