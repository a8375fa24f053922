"""
The stage `joint`: train a generative retriever and its teacher, a cross-encoder, together on mined lists.

Both score the passages of a few questions' lists in each step. The retriever learns from the ranker's scores as they
are now, the ranker from labels and, if the recipe wants it, from the retriever's scores. Each of the two ways can be
detached: then only the one that learns gets a gradient. RocketQAv2 (https://arxiv.org/abs/2110.07367) trains a dual-
and a cross-encoder so, with one KL divergence whose gradient goes both ways.

Shapes: B questions, D passages of each list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gr_components.data.candidates import path_hash
from gr_components.data.runs import ranked
from gr_components.evaluation import evaluate_run
from gr_components.models.pair_scorer_torch import PairScorerModule
from gr_components.models.resolve import resolve_model
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_training.card import describe
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.cross_encoder import (
    RankerStartConfig,
    calibrate,
    list_scores,
    pair_batch,
    passage_text,
    score_candidates,
    start_ranker,
)
from gr_training.fitting import Natural, NonNegative
from gr_training.generative.rank_stage import (
    RankConfig,
    RankInputs,
    begin,
    likelihood_loss,
    publish_retriever,
    scaled_scores,
    searching,
)
from gr_training.generative.ranking_loss import GRADED, TAUGHT, TEMPERATURES, ranking_loss
from gr_training.generative.search_validation import SearchValidation
from gr_training.loop import LossSum, Progress, fit
from gr_training.losses.listwise import listwise_kl, listwise_softmax
from gr_training.mining.lists import CandidateLists
from gr_training.order import Turn
from gr_training.run import Run, identity, publish
from gr_training.sources import QuestionSet, texts_of

RANKER = "ranker"
_WIDTHS = {"float32": "full", "float16": "full", "int8": "int8"}


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class JointConfig(RankConfig):
    """
    How a generative retriever and a cross-encoder are trained together.

    What `RankConfig` has is about the retriever; `loss` is what it learns from the ranker, with `teachers: [ranker]`.
    Names of parameters, in `fit.groups`, begin with `retriever.` and `ranker.`.

    :param ranker: The cross-encoder to start from.
    :param distil_weight: Weight of `loss`; 0 leaves it out.
    :param detach_teacher: Whether the ranker gets no gradient from `loss`; false for `kl` and `margin_mse` alone, since
        the other losses read no more than its order.
    :param supervised_weight: Weight of the ranker's own loss: cross-entropy between labels and softmax over the list.
    :param mutual_weight: Weight of KL(retriever || ranker) over the list, at `loss.temperature` and
        `loss.teacher_temperature`: what the ranker learns from the retriever; 0 leaves it out.
    :param detach_student: Whether the retriever gets no gradient from that.
    :param head_start: Steps in which the ranker learns from labels alone before the two hear of each other.
    """

    ranker: RankerStartConfig
    distil_weight: NonNegative = 1.0
    detach_teacher: bool = True
    supervised_weight: NonNegative = 1.0
    mutual_weight: NonNegative = 0.0
    detach_student: bool = True
    head_start: Natural = 0

    def __post_init__(self) -> None:
        problems = []
        if self.loss.kind not in TAUGHT:
            problems.append(f"loss.kind {self.loss.kind} reads labels alone; choose one of {', '.join(TAUGHT)}.")
        elif self.loss.teachers != (RANKER,):
            problems.append(f"loss.teachers must be [{RANKER}], which is trained; got {list(self.loss.teachers)}.")
        if not self.detach_teacher and self.loss.kind not in GRADED:
            problems.append(f"detach_teacher: false needs a loss with a gradient for it: {', '.join(GRADED)}.")
        if not (self.distil_weight or (self.mutual_weight and not self.detach_student)):
            problems.append("the retriever learns nothing from the ranker: set distil_weight above 0.")
        if not (self.supervised_weight or self.mutual_weight or (self.distil_weight and not self.detach_teacher)):
            problems.append("the ranker learns nothing: set supervised_weight above 0, or use the recipe dgr.")
        if self.head_start and not self.supervised_weight:
            problems.append("head_start needs supervised_weight above 0.")
        if problems:
            raise ValueError(" ".join(problems))
        self.loss.check_read(TEMPERATURES)  # mutual_weight's, which one may switch off and leave them


class JointModel(nn.Module):
    """
    The two models that are trained together.

    :param retriever: The generative retriever.
    :param ranker: The cross-encoder.
    """

    def __init__(self, retriever: Seq2SeqModel, ranker: PairScorerModule) -> None:
        super().__init__()
        self.retriever, self.ranker = retriever, ranker


@dataclass(frozen=True)
class PairReader:
    """
    Builds what the ranker reads: question with title and text of each passage of the lists.

    :param sets: All training sets.
    :param ranker: The cross-encoder.
    :param config: How long pairs may be.
    """

    sets: Sequence[QuestionSet]
    ranker: PairScorerModule
    config: RankerStartConfig

    def make(self, places: Sequence[tuple[int, int]], documents: Sequence[npt.NDArray[np.int64]]) -> dict[str, Any]:
        """
        Build the ranker's part of a batch.

        :param places: For each list the number of its set and the row of its question.
        :param documents: For each list the rows of its passages.
        """
        pairs = [
            (self.sets[number].questions[row].text, passage_text(self.sets[number].passages[passage]))
            for (number, row), passages in zip(places, documents, strict=True)
            for passage in passages.tolist()
        ]
        return pair_batch(self.ranker, pairs, self.config.max_tokens, self.config.num_chunks)


def joint_loss(model: JointModel, batch: Mapping[str, Any], config: JointConfig, reference: float) -> LossSum:
    """
    Return all losses of a batch, summed over questions.

    :param model: Both models.
    :param batch: From `RankBatches.make` with a `PairReader`, and `apart`: whether the two do not hear of each other
        yet.
    :param config: Settings.
    :param reference: The retriever's scores are divided by it.
    """
    lists = batch["lists"]
    ranker_BD = list_scores(model.ranker, batch["read"], lists["real_BD"])
    loss_B = supervised_loss(config, ranker_BD, lists)
    if not batch["apart"]:
        scores_BD = scaled_scores(model.retriever, batch, config, reference)
        loss_B = loss_B + shared_loss(config, scores_BD, ranker_BD, lists)
    return LossSum(loss_B.sum() + likelihood_loss(model.retriever, batch, config), len(loss_B))


def supervised_loss(config: JointConfig, ranker_BD: Tensor, lists: Mapping[str, Tensor]) -> Tensor:
    """
    What the ranker learns from labels.

    :param config: Settings.
    :param ranker_BD: The ranker's scores.
    :param lists: From `ListBatch.tensors`.
    :returns: loss_B.
    """
    return config.supervised_weight * listwise_softmax(ranker_BD, lists["labels_BD"], lists["real_BD"])


def shared_loss(config: JointConfig, scores_BD: Tensor, ranker_BD: Tensor, lists: Mapping[str, Tensor]) -> Tensor:
    """
    What the two learn from each other; gradients go to the one that learns, and back where nothing is detached.

    :param config: Settings.
    :param scores_BD: The retriever's scores, on the scale of the loss.
    :param ranker_BD: The ranker's scores.
    :param lists: From `ListBatch.tensors`.
    :returns: loss_B.
    """
    loss, real_BD = config.loss, lists["real_BD"]
    loss_B = scores_BD.new_zeros(len(scores_BD))
    if config.distil_weight:
        loss_B = loss_B + config.distil_weight * ranking_loss(
            loss, scores_BD, lists["mined_BD"], lists["labels_BD"], ranker_BD, real_BD, lists["draws_B2"],
            detach_teacher=config.detach_teacher,
        )  # fmt: skip
    if config.mutual_weight:
        loss_B = loss_B + config.mutual_weight * listwise_kl(
            ranker_BD, scores_BD, real_BD, temperature=loss.teacher_temperature, teacher_temperature=loss.temperature,
            detach_teacher=config.detach_student,
        )  # fmt: skip
    return loss_B


def train_jointly(config: JointConfig, inputs: RankInputs, run: Run, previous: Path | None = None) -> Path:
    """
    Train a generative retriever and a cross-encoder on lists; the best state is chosen by the retriever's nDCG@10.

    :param config: Settings.
    :param inputs: What is read.
    :param run: Where and how; the retriever becomes `model` there, the cross-encoder `ranker`.
    :param previous: The ranker of the round before, in place of the configured one.
    :returns: The folder of the retriever.
    :raises ConfigError: If no list is left to learn from.
    :raises ModelError: If the ranker to start from is no cross-encoder with one score.
    """
    start = config.ranker if previous is None else replace(config.ranker, model=str(previous), build=None)
    ranker = start_ranker(start, lambda names: texts_of(inputs.sets, names), config.fit.seed)
    work = begin(config, inputs, run, PairReader(inputs.sets, ranker, start))
    hashes = {start.model: path_hash(resolve_model(start.model))}

    def make_batch(turn: Turn) -> dict[str, Any]:
        return {**work.batches.make(turn), "apart": turn.step < config.head_start}

    with searching(config, inputs, work) as search:
        progress = fit(
            JointModel(work.model, ranker), make_batch,
            lambda m, batch: joint_loss(m, batch, config, work.reference), config.fit,
            folder=run.out, resume=run.resume, device=run.device, report=run.report,
            validate=lambda m: _validate(m, search, inputs.validation, start.serving_tokens), metric="nDCG@10",
            identity={**identity(config, [inputs.hashes(), hashes]), **inputs.settings()},
            apart=("retriever.", "ranker."),
        )  # fmt: skip
        publish_retriever(inputs, work, progress, run)
        _publish_ranker(inputs, ranker, start, search, work.model, progress, run)
    return run.model


def _validate(model: JointModel, search: SearchValidation, questions: QuestionSet, max_tokens: int) -> dict[str, float]:
    """Measure the retriever, and what the ranker makes of the passages that it found."""
    found = search.search(model.retriever)
    lists = _candidates(questions, found)
    scored = score_candidates(model.ranker, questions, lists, max_tokens)
    reranked = {
        question.id: ranked(zip([questions.passages[row].id for row in rows], scores.tolist(), strict=True))
        for question, rows, scores in zip(questions.questions, lists.rows, scored, strict=True)
    }
    measured = evaluate_run(reranked, questions.qrels, ["nDCG@10"]).means
    return {**search.measure(found), "ranker nDCG@10": measured["nDCG@10"]}


def _candidates(questions: QuestionSet, found: Mapping[str, Sequence[tuple[str, float]]]) -> CandidateLists:
    row_of = {passage.id: row for row, passage in enumerate(questions.passages)}
    several = [found.get(question.id, ()) for question in questions.questions]
    rows = [np.array([row_of[passage] for passage, _ in each], dtype=np.int64) for each in several]
    return CandidateLists(rows, [np.array([score for _, score in each], dtype=np.float32) for each in several])


def _publish_ranker(
    inputs: RankInputs, ranker: PairScorerModule, start: RankerStartConfig, search: SearchValidation,
    retriever: Seq2SeqModel, progress: Progress, run: Run,
) -> None:  # fmt: skip
    """Calibrate the cross-encoder on what the retriever finds for the validation questions, and write it."""
    provenance = inputs.provenance("ranker", start.model, progress)

    def write(folder: Path) -> None:
        lists = _candidates(inputs.validation, search.search(retriever))
        calibrate(ranker, inputs.validation, lists, start.serving_tokens)
        ranker.save(folder, weights=_WIDTHS[inputs.weights])
        fingerprint = ranker.tokenizer.fingerprint
        describe(folder, provenance, tokenizer_fingerprint=fingerprint, max_tokens=start.serving_tokens)

    publish(run.out / RANKER, write)
