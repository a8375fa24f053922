"""
`listwise_ce`: a cross-encoder that tells a question's passage from hard negatives.

Each example is a list: one relevant passage and `num_negatives` drawn from the top of what retrieval found. The loss is
the softmax cross-entropy over the list. Afterwards scale and offset of the scores, which that loss leaves open, are
fitted to validation questions, so that their sigmoid is a probability. With `base_weight` the fused retrieval score,
standardised over the list, is added to the model's score inside the loss only: the model then learns what is to be
added to retrieval, which is how its score is used in a pipeline that fuses both.

The model is selected by what the shipped pipeline `hybrid` makes of its score: the probability is added to the
retrieval score, which is the fusion of the 100 best of each search. The searches are those of `mining`: the pipeline's
generative retriever takes part only where `mining.runs` has its run for `validation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from gr_components.data import searchable_text
from gr_components.data.runs import ranked
from gr_components.evaluation import evaluate_run
from gr_components.models.pair_scorer_torch import PairScorerModule
from gr_components.models.resolve import MINILM
from gr_training import estimate
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass, to_plain
from gr_training.cross_encoder import (
    build_ranker,
    calibrate,
    list_scores,
    pair_batch,
    passage_text,
    platt,
    score_candidates,
)
from gr_training.fitting import Count, FitConfig
from gr_training.loop import LossSum, fit
from gr_training.losses.listwise import listwise_softmax
from gr_training.mining.lists import CandidateLists, MiningConfig, mine, standardise
from gr_training.order import Turn
from gr_training.run import Run, identity, publish
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    load_sources,
    load_validation,
    texts_of,
    weighted_rows,
)
from gr_training.stages import Step
from gr_training.windows import Windows

_PIPELINE_DEPTH = 100  # `candidates` of the pipeline `hybrid`


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param model: The encoder to start from.
    :param layers: How many of its layers are kept, from the bottom; null keeps all.
    :param vocabulary: Names of training sets whose texts decide which tokens are kept (WordPiece only); all tokens if
        empty.
    :param max_tokens: Longest pair in training.
    :param serving_tokens: Longest pair in validation and serving.
    :param window_words: Training reads this many words of a passage, around those that it shares with the question;
        null reads whole passages. Validation and serving always do.
    :param dropout: Of hidden states; attention weights have none, which costs much on a CPU.
    :param data: Training sets.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the model.
    :param mining: Where negatives, and the passages that validation ranks, come from.
    :param depth: Negatives are drawn from this many passages at the top.
    :param num_negatives: Negatives of each list.
    :param validation_depth: Ranked passages of each validation question: `ranked` of the pipeline `hybrid`.
    :param fusion: How searches are fused when models are selected: `combine` of the pipeline `hybrid`.
    :param ranker_weight: Weight of the model's probability beside the retrieval score then; also a parameter there.
    :param questions_per_step: Lists of each round.
    :param num_chunks: Into how many batches of similar length the pairs of a round are divided.
    :param base_weight: Weight of the retrieval score inside the loss.
    :param weights: How the trained weights are stored.
    :param fit: The training loop.
    """

    recipe: Literal["listwise_ce"] = "listwise_ce"
    model: ModelName = MINILM
    layers: Count | None = None
    vocabulary: tuple[str, ...] = ()
    max_tokens: Annotated[int, Field(ge=16)] = 192
    serving_tokens: Annotated[int, Field(ge=16)] = 256
    window_words: Annotated[int, Field(ge=10)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    mining: MiningConfig = field(default_factory=MiningConfig)
    depth: Count = 20
    num_negatives: Count = 7
    validation_depth: Count = 10
    fusion: Literal["max", "sum", "mean"] = "sum"
    ranker_weight: Annotated[float, Field(ge=0)] = 0.25
    questions_per_step: Count = 8
    num_chunks: Count = 4
    base_weight: Annotated[float, Field(ge=0)] = 0.0
    weights: Literal["full", "int8"] = "full"
    fit: FitConfig


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    lists = config.questions_per_step * config.fit.accumulate

    def minutes() -> float | None:
        shape = estimate.shape_of(config.model, encoder_layers=config.layers)
        return estimate.pair_minutes(shape, config.fit.steps, lists * (1 + config.num_negatives))

    return [
        Step("mine", f"{config.mining.depth} passages for all questions"),
        Step("train", f"{config.fit.steps:,} steps of {lists} lists", minutes),
    ]


def train(config: Config, run: Run) -> Path:
    """
    Train a cross-encoder.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    sets = load_sources(config.data, config.held_out, run.report)
    validation = load_validation(config.validation, config.held_out, run.report)
    folder = run.out / "candidates"
    lists = [mine(s, config.mining, config.depth, folder / f"{s.name}.jsonl.gz", run.report) for s in sets]
    as_served = replace(config.mining, fusion=config.fusion, depth=max(config.mining.depth, _PIPELINE_DEPTH))
    judged = mine(validation, as_served, config.validation_depth, folder / "validation.jsonl.gz", run.report)
    model = _build(config, sets)
    examples = _Examples(config, sets, lists, model)
    files = [each.files or {} for each in (*sets, validation)]
    progress = fit(
        model, examples.batch, lambda m, batch: _loss(m, batch, config.base_weight), config.fit,
        folder=run.out, resume=run.resume, device=run.device, report=run.report, metric="fused nDCG@10",
        validate=lambda m: validate(m, validation, judged, config.serving_tokens, config.ranker_weight),
        identity=identity(config, files),
    )  # fmt: skip
    calibrate(model, validation, judged, config.serving_tokens)
    provenance = Provenance(
        task="ranker", recipe=to_plain(config), base_model=config.model, data=used(sets), metrics=progress.best,
        steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
    )  # fmt: skip
    more = {"tokenizer_fingerprint": model.tokenizer.fingerprint, "max_tokens": config.serving_tokens}

    def write(folder: Path) -> None:
        model.save(folder, weights=config.weights)
        describe(folder, provenance, **more)

    publish(run.model, write)
    return run.model


@dataclass(frozen=True)
class _Examples:
    """Lists of passages for training questions."""

    config: Config
    sets: Sequence[QuestionSet]
    lists: Sequence[CandidateLists]
    model: PairScorerModule

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
        pairs = []
        for b, (position, example) in enumerate(zip(positions, turn.rows(positions, len(self.rows)), strict=True)):
            number, row = self.rows[example]
            generator = turn.generator(int(position))
            chosen, base = self._draw(number, row, generator)
            question = self.sets[number].questions[row]
            labels_BD[b, 0], mask_BD[b, : len(chosen)], base_BD[b, : len(chosen)] = 1.0, True, base
            pairs += [(question.text, self._read(number, passage, question.text, generator)) for passage in chosen]
        batch = pair_batch(self.model, pairs, self.config.max_tokens, self.config.num_chunks)
        arrays = {"labels_BD": labels_BD, "mask_BD": mask_BD, "base_BD": base_BD}
        return {**batch, **{name: torch.from_numpy(value) for name, value in arrays.items()}}

    @cached_property
    def _windows(self) -> list[Windows]:
        return [Windows(each.passages, self.config.window_words or 0) for each in self.sets]

    def _read(self, number: int, row: int, question: str, generator: np.random.Generator) -> str:
        passage = self.sets[number].passages[row]
        if self.config.window_words is None:
            return passage_text(passage)
        return searchable_text(passage.title, self._windows[number].cut(row, question, generator))

    def _draw(self, number: int, row: int, generator: np.random.Generator) -> tuple[list[int], list[float]]:
        positives, found = self.sets[number].positives[row], self.lists[number].rows[row]
        scores = dict(zip(found.tolist(), standardise(self.lists[number].scores[row]).tolist(), strict=True))
        negatives = [passage for passage in found.tolist() if passage not in positives]
        count = min(self.config.num_negatives, len(negatives))
        drawn = generator.choice(len(negatives), count, replace=False)
        chosen = [positives[int(generator.integers(len(positives)))], *(negatives[i] for i in drawn)]
        lowest = min(scores.values())
        return chosen, [scores.get(passage, lowest) for passage in chosen]


def _loss(model: PairScorerModule, batch: dict[str, Any], base_weight: float) -> LossSum:
    scores_BD = list_scores(model, batch, batch["mask_BD"])
    loss_B = listwise_softmax(scores_BD + base_weight * batch["base_BD"], batch["labels_BD"], batch["mask_BD"])
    return LossSum(loss_B.sum(), len(loss_B))


def validate(
    model: PairScorerModule, questions: QuestionSet, lists: CandidateLists, max_tokens: int, ranker_weight: float = 0.25
) -> dict[str, float]:
    """
    Rank candidates by retrieval (`base`), by the model, and by the sum of the retrieval score and its probability.

    The sum (`fused`) is that of the pipeline `hybrid`, with a probability that is calibrated on these questions, as the
    finished model's will be.

    :param model: In evaluation mode.
    :param questions: Validation questions.
    :param lists: Their candidates.
    :param max_tokens: Longest pair.
    :param ranker_weight: Weight of the probability.
    """
    scored = score_candidates(model, questions, lists, max_tokens)
    slope, offset = platt(questions, lists, scored)
    runs: dict[str, dict[str, list[tuple[str, float]]]] = {"base ": {}, "": {}, "fused ": {}}
    for question, rows, base, scores in zip(questions.questions, lists.rows, lists.scores, scored, strict=True):
        ids = [questions.passages[row].id for row in rows]
        chances = 1 / (1 + np.exp(-np.clip(slope * scores + offset, -500, 500)))
        for name, values in (("base ", base), ("", scores), ("fused ", base + ranker_weight * chances)):
            runs[name][question.id] = ranked(zip(ids, values.tolist(), strict=True))
    means = {name: evaluate_run(found, questions.qrels, ["nDCG@10", "Success@1"]).means for name, found in runs.items()}
    return {f"{name}{measure}": value for name, values in means.items() for measure, value in values.items()}


def _build(config: Config, sets: Sequence[QuestionSet]) -> PairScorerModule:
    return build_ranker(
        config.model, texts_of(sets, config.vocabulary) if config.vocabulary else None, layers=config.layers,
        dropout=config.dropout, max_length=config.serving_tokens, seed=config.fit.seed,
    )  # fmt: skip
