"""
The stage `rank`: train a generative retriever on mined lists.

Each step scores the passages of a few questions' lists by the identifiers that found them, with gradient, and adds the
likelihood of identifiers of a relevant passage, without which the model forgets how to write them.

Shapes: B questions, D passages of each list, N keys of each passage, K distinct keys of each question.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from gr_components.data.candidates import file_hash
from gr_components.decoding.grammar import Grammar
from gr_components.errors import ConfigError
from gr_components.models.seq2seq.folder import save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training.card import Provenance, describe, used
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig, Natural
from gr_training.generative.identifier_batches import IdentifierBatches
from gr_training.generative.key_scores import KeyBatches, key_log_probs
from gr_training.generative.pairs import PairSampler, PairsConfig
from gr_training.generative.ranking_lists import ListBatch, ListsConfig, violating
from gr_training.generative.ranking_loss import LossConfig, ranking_loss
from gr_training.generative.search_validation import SearchValidation, training_questions
from gr_training.likelihood import token_log_probs
from gr_training.loop import LossSum, Progress, fit
from gr_training.lora import LoraConfig
from gr_training.losses.identifier_score import as_searched, normalise, passage_scores
from gr_training.mining.candidate_lists import CandidateList, read_lists
from gr_training.order import Turn
from gr_training.run import Run, identity, publish
from gr_training.sources import QuestionSet
from gr_training.starts import StartConfig, start_seq2seq


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class RankConfig:
    """
    How a model is trained on lists.

    :param lists: Which passages and identifiers a list has.
    :param loss: The ranking loss.
    :param questions_per_step: Questions of each round.
    :param likelihood_weight: Weight of the likelihood term; 0 leaves it out.
    :param pairs: Which identifiers that term draws; null for those of the recipe.
    :param chunk: Identifiers that are scored at a time with gradient caching, for long lists on small devices; 0 scores
        all at once.
    :param dropout: Of hidden states.
    :param lora: Low-rank matrices that are trained in place of the weights; null trains all weights.
    :param fit: The training loop.
    """

    lists: ListsConfig = field(default_factory=ListsConfig)
    loss: LossConfig
    questions_per_step: Count = 6
    likelihood_weight: Annotated[float, Field(ge=0)]
    pairs: PairsConfig | None = None
    chunk: Natural = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    lora: LoraConfig | None = None
    fit: FitConfig


class PassageReader(Protocol):
    """Whatever else reads the passages of the lists, such as a teacher that is trained beside the model."""

    def make(self, places: Sequence[tuple[int, int]], documents: Sequence[npt.NDArray[np.int64]]) -> dict[str, Any]:
        """
        Build its part of a batch.

        :param places: For each list the number of its set and the row of its question.
        :param documents: For each list the rows of its passages.
        """
        ...


class RankBatches:
    """
    Batches of lists with the likelihood pairs of the same questions.

    :param config: Settings.
    :param lists: What was mined, of all sets.
    :param places: For each list the number of its set and the row of its question.
    :param sampler: Draws the identifiers of the likelihood term; None leaves it out.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param reader: Reads the passages and gives the teacher's scores; None for teachers that scored the lists before.
    """

    def __init__(
        self, config: RankConfig, lists: Sequence[CandidateList], places: Sequence[tuple[int, int]],
        sources: Sequence[list[int]], sampler: PairSampler | None, tokenizer: TextTokenizer, grammar: Grammar,
        reader: PassageReader | None = None,
    ) -> None:  # fmt: skip
        self._config, self._lists, self._places, self._sources = config, lists, places, sources
        self._sampler, self._reader = sampler, reader
        self._padded = IdentifierBatches(tokenizer, grammar)
        self._keys = KeyBatches(tokenizer, grammar)
        self._pool = violating(lists, config.lists.violating)
        if not self._pool:
            msg = (
                f"No list is left to learn from: the best positive of all {len(lists)} beats the best negative by more "
                f"than lists.violating = {config.lists.violating}."
            )
            raise ConfigError(msg)

    def __len__(self) -> int:
        return len(self._pool)

    def make(self, turn: Turn) -> dict[str, Any]:
        """
        Build this process's part of a batch.

        :param turn: Which one.
        """
        positions = turn.positions(self._config.questions_per_step)
        chosen = [self._pool[row] for row in turn.rows(positions, len(self._pool))]
        batch, pairs = ListBatch(self._config.lists, () if self._reader else self._config.loss.teachers), []
        for position, place in zip(positions.tolist(), chosen, strict=True):
            generator = turn.generator(position)
            batch.add(self._lists[place], generator)
            if self._sampler is not None:
                pairs.append(self._sampler.supervised(*self._places[place], generator))
        made: dict[str, Any] = {
            "lists": batch.tensors(),
            "keys": self._keys.make([self._sources[place] for place in chosen], batch.keys),
        }
        if self._reader is not None:
            made["read"] = self._reader.make([self._places[place] for place in chosen], batch.documents)
        if self._sampler is not None:
            shape = self._sampler.config
            made["pairs"] = self._padded.groups(pairs, shape.body + shape.title)
        return made


def rank_loss(model: Seq2SeqModel, batch: Mapping[str, Any], config: RankConfig, reference: float) -> LossSum:
    """
    Return the ranking loss plus the weighted likelihood loss, summed over questions.

    :param model: The generative retriever.
    :param batch: From `RankBatches.make`.
    :param config: Settings.
    :param reference: Scores are divided by it, so that margins do not depend on the number of identifiers.
    """
    lists, scores_BD = batch["lists"], scaled_scores(model, batch, config, reference)
    total = ranking_loss(
        config.loss, scores_BD, lists["mined_BD"], lists["labels_BD"], lists["teacher_BD"], lists["real_BD"],
        lists["draws_B2"],
    ).sum()  # fmt: skip
    return LossSum(total + likelihood_loss(model, batch, config), len(scores_BD))


def scaled_scores(model: Seq2SeqModel, batch: Mapping[str, Any], config: RankConfig, reference: float) -> Tensor:
    """
    Return the scores of the passages of each list on the scale of the loss, with gradient.

    :param model: The generative retriever.
    :param batch: From `RankBatches.make`.
    :param config: Settings.
    :param reference: Scores are divided by it.
    :returns: scores_BD; 0 for padding.
    """
    scores_BD = score_lists(model, batch, config) / reference
    return normalise(scores_BD, 1.0, alpha=config.loss.alpha) if config.loss.scale == "root" else scores_BD


def likelihood_loss(model: Seq2SeqModel, batch: Mapping[str, Any], config: RankConfig) -> Tensor | float:
    """
    Return the weighted likelihood loss, summed over questions; 0 without the term.

    :param model: The generative retriever.
    :param batch: From `RankBatches.make`.
    :param config: Settings.
    """
    if not config.likelihood_weight:
        return 0.0
    return config.likelihood_weight * mean_identifier_nll(model, batch["pairs"], len(batch["lists"]["real_BD"]))


def score_lists(model: Seq2SeqModel, batch: Mapping[str, Any], config: RankConfig) -> Tensor:
    """
    Return the scores of the passages of each list, with gradient.

    :param model: The generative retriever.
    :param batch: From `RankBatches.make`.
    :param config: Settings.
    :returns: scores_BD; 0 for padding.
    """
    lists = batch["lists"]
    log_probs_BK = key_log_probs(model, batch["keys"], chunk=config.chunk)
    if config.loss.query_view == "search":
        log_probs_BK = as_searched(log_probs_BK, lists["bias_BK"], lists["cap_BK"])
    return passage_scores(
        log_probs_BK, lists["keys_BDN"], lists["prior_BDN"], lists["cover_BDN"], lists["mask_BDN"],
        alpha=config.loss.alpha,
    )  # fmt: skip


def mean_identifier_nll(model: Seq2SeqModel, groups: Sequence[Mapping[str, Any]], num_questions: int) -> Tensor:
    """
    Return the sum over questions of the mean, over their identifiers, of the mean loss of an identifier's tokens.

    Means are taken within a question, so that the sum does not depend on how a batch is split over processes.

    :param model: The generative retriever.
    :param groups: From `IdentifierBatches.groups`.
    :param num_questions: Questions of the batch; each has the same number of identifiers.
    """
    totals, rows = [], 0
    for group in groups:
        memory = model.encode(group["ids_BL"], group["mask_BL"])
        for block in group["blocks"]:
            log_probs_RT, _ = token_log_probs(model, memory, block)
            totals.append(-(log_probs_RT.sum(-1) / block["real_RT"].sum(-1).clamp(min=1)).sum())
            rows += len(log_probs_RT)
    return torch.stack(totals).sum() * (num_questions / rows)


def reference_score(lists: Sequence[CandidateList]) -> float:
    """
    Return the median, over questions, of the score that the best positive had when it was mined.

    :param lists: What was mined.
    """
    best = [float(each.scores_D[each.labels_D > 0].max()) for each in lists]
    return max(float(np.median(best)), 1e-6)


@dataclass(frozen=True)
class RankInputs:
    """
    What the stage reads.

    :param model: Folder of the model to start from.
    :param candidates: For the name of each mined set its `candidates.jsonl.gz`.
    :param sets: All training sets.
    :param validation: Validation questions and what they search.
    :param pairs: Which identifiers the likelihood term draws.
    :param search: Settings of the validation's search.
    :param recipe: The whole recipe as plain values, for the model card.
    :param weights: How the trained weights are stored.
    """

    model: Path
    candidates: Mapping[str, Path]
    sets: Sequence[QuestionSet]
    validation: QuestionSet
    pairs: PairsConfig
    search: Mapping[str, Any]
    recipe: Mapping[str, Any]
    weights: Literal["float32", "float16", "int8"] = "float32"

    def hashes(self) -> dict[str, str]:
        """Return the hashes of the mined lists by path."""
        return {str(path): file_hash(path) for path in self.candidates.values()}

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint depends on besides the stage's own settings and the lists, as plain values."""
        return {"pairs_of_recipe": to_plain(self.pairs), "search": dict(self.search)}

    def provenance(self, task: str, base_model: str, progress: Progress) -> Provenance:
        """
        Say how a model came about.

        :param task: What it does.
        :param base_model: What it once started from.
        :param progress: How training ended.
        """
        return Provenance(
            task=task, recipe=self.recipe, base_model=base_model, data=used(self.sets), metrics=progress.best,
            steps=(progress.step, progress.best_step), minutes=progress.seconds / 60,
        )  # fmt: skip


@dataclass(frozen=True)
class RankWork:
    """
    A model with the lists that it is to be trained on.

    :param model: The generative retriever.
    :param tokenizer: Its tokenizer.
    :param grammar: Its grammar.
    :param base_model: What it once started from.
    :param batches: Batches of the lists.
    :param reference: Scores are divided by it.
    """

    model: Seq2SeqModel
    tokenizer: TextTokenizer
    grammar: Grammar
    base_model: str
    batches: RankBatches
    reference: float


def rank(config: RankConfig, inputs: RankInputs, run: Run) -> Path:
    """
    Train a generative retriever on lists.

    :param config: Settings.
    :param inputs: What it reads.
    :param run: Where and how.
    :returns: The folder of the model.
    :raises ConfigError: If no list is left to learn from.
    """
    work = begin(config, inputs, run)
    with searching(config, inputs, work) as search:
        progress = fit(
            work.model, work.batches.make, lambda m, batch: rank_loss(m, batch, config, work.reference), config.fit,
            folder=run.out, resume=run.resume, device=run.device, report=run.report,
            validate=search.evaluate, metric="nDCG@10",
            identity={**identity(config, [inputs.hashes()]), **inputs.settings()},
        )  # fmt: skip
    publish_retriever(inputs, work, progress, run)
    return run.model


def begin(config: RankConfig, inputs: RankInputs, run: Run, reader: PassageReader | None = None) -> RankWork:
    """
    Load the model and the lists.

    :param config: Settings.
    :param inputs: What is read.
    :param run: Where and how.
    :param reader: See `RankBatches`.
    :raises ConfigError: If no list is left to learn from.
    """
    start = StartConfig(model=str(inputs.model), dropout=config.dropout, lora=config.lora)
    started = start_seq2seq(start, list, lambda t: np.ones(1), config.fit.seed)
    tokenizer, grammar = started.tokenizer, Grammar.from_dict(started.info["grammar"])
    lists, places = _read(config, inputs, tokenizer, grammar, () if reader else config.loss.teachers)
    sampler = (
        PairSampler(inputs.sets, tokenizer, grammar, config.pairs or inputs.pairs) if config.likelihood_weight else None
    )
    sources = tokenizer.encode([inputs.sets[number].questions[row].text for number, row in places])
    batches = RankBatches(config, lists, places, sources, sampler, tokenizer, grammar, reader)
    reference = 1.0 if config.loss.scale == "raw" else reference_score(lists)
    run.report.event("lists", questions=len(lists), used=len(batches), reference=round(reference, 2))
    base_model = started.info.get("base_model", str(inputs.model))
    return RankWork(started.model, tokenizer, grammar, base_model, batches, reference)


@contextlib.contextmanager
def searching(config: RankConfig, inputs: RankInputs, work: RankWork) -> Iterator[SearchValidation]:
    """
    Validation by search, while the index is there.

    :param config: Settings.
    :param inputs: What is read.
    :param work: The model's tokenizer and grammar.
    """
    with tempfile.TemporaryDirectory(prefix="gr-validation-") as temporary:
        yield SearchValidation(
            inputs.validation, training_questions(inputs.sets, inputs.validation), work.tokenizer, work.grammar,
            inputs.search, Path(temporary), config.fit.precision,
        )  # fmt: skip


def publish_retriever(inputs: RankInputs, work: RankWork, progress: Progress, run: Run) -> None:
    """
    Write the trained retriever to `run.model`.

    :param inputs: What was read.
    :param work: The model.
    :param progress: How training ended.
    :param run: Where to.
    """
    provenance = inputs.provenance("generative_retriever", work.base_model, progress)

    def write(folder: Path) -> None:
        info = {"grammar": work.grammar.to_dict()}
        save_seq2seq(work.model, work.tokenizer, info, folder, weights=inputs.weights)
        describe(folder, provenance)

    publish(run.model, write)


def _read(
    config: RankConfig, inputs: RankInputs, tokenizer: TextTokenizer, grammar: Grammar, teachers: Sequence[str]
) -> tuple[list[CandidateList], list[tuple[int, int]]]:
    lists: list[CandidateList] = []
    places: list[tuple[int, int]] = []
    for number, each in enumerate(inputs.sets):
        if each.name in inputs.candidates:
            found = read_lists(
                inputs.candidates[each.name], each, tokenizer, grammar, model=inputs.model,
                teachers=teachers, keys=config.lists.keys,
            )  # fmt: skip
            lists += found
            places += [(number, one.question) for one in found]
    return lists, places
