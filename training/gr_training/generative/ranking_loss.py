"""
Which ranking loss a recipe uses, as settings; the losses themselves are in `losses/`.

Shapes: B questions, D passages of each list; a list starts with its positives, the best one first.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import torch
from torch import Tensor

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import NonNegative, Positive
from gr_training.losses.lambda_loss import lambda_loss
from gr_training.losses.listwise import list_mle, listwise_infonce, listwise_kl, listwise_softmax
from gr_training.losses.margin import ltrgr_margin, pick
from gr_training.losses.ranknet import distilled_ranknet, logistic_ranknet
from gr_training.losses.regression import margin_mse
from gr_training.losses.targets import positives_first, rank_grades

TEMPERATURES = ("temperature", "teacher_temperature")
# Losses that read the scores of teachers, those of them with a gradient for the teacher (the others read its order
# alone), and losses that read labels alone.
TAUGHT = ("dgr", "logistic_ranknet", "listnet", "listmle", "lambda_loss", "kl", "margin_mse")
GRADED = ("kl", "margin_mse")
LABELLED = ("ltrgr", "infonce")
# What of the settings that not all losses read a loss reads.
_READ: dict[str, tuple[str, ...]] = {
    "ltrgr": ("margin", "random_extra", "pair_weights"),
    "infonce": ("temperature",),
    "dgr": ("margin", "increment", "head_weights"),
    "logistic_ranknet": ("temperature",),
    "listmle": ("temperature",),
    "lambda_loss": ("temperature",),
    "listnet": TEMPERATURES,
    "kl": TEMPERATURES,
    "margin_mse": TEMPERATURES,
}


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class LossConfig:
    """
    A ranking loss.

    :param kind: `ltrgr` (margins between positives and negatives), `infonce` (LTRGR's list-wise variant), `dgr`
        (distilled RankNet), or instead `logistic_ranknet`, `listnet`, `listmle`, `lambda_loss`, `kl`, `margin_mse`.
    :param teachers: Names of the teachers whose scores are combined; none for `ltrgr` and `infonce`.
    :param margin: Least difference of scores that costs nothing.
    :param increment: `dgr`: what each further rank between two passages adds to the margin.
    :param head_weights: `dgr`: whether pairs with the head of the list count 3, those of row i 1 / (i + 1).
    :param random_extra: `ltrgr`: added to the margin of the random pair.
    :param pair_weights: `ltrgr`: weights of the top pair (best positive, best negative) and of the random pair, 0 to
        leave one out; (.5, .5) in the released code, (1, 1) in the paper.
    :param temperature: Divides the scores in losses with a softmax or a logistic function.
    :param teacher_temperature: Divides the scores of teachers there: standardised ones, or as they are where the
        teacher is trained too.
    :param scale: `raw`: margins are in units of scores, as published. `reference`: scores are divided by the median
        score of the best positives when they were mined, so that margins do not depend on the corpus or the number of
        identifiers. `root`: of that the alpha-th root, so that they do not depend on `alpha` either.
    :param alpha: Exponent of an identifier's weight, as in inference.
    :param query_view: Log-probabilities of pseudo-queries: as the mining `search` counts them, with its
        `query_view_bias` and `query_view_cap` (an identifier at the cap then learns nothing), or `plain`, as published.
    """

    kind: Literal[
        "ltrgr", "infonce", "dgr", "logistic_ranknet", "listnet", "listmle", "lambda_loss", "kl", "margin_mse"
    ]
    teachers: tuple[str, ...] = ()
    margin: NonNegative = 300.0
    increment: NonNegative = 100.0
    head_weights: bool = True
    random_extra: NonNegative = 100.0
    pair_weights: tuple[NonNegative, NonNegative] = (0.5, 0.5)
    temperature: Positive = 1.0
    teacher_temperature: Positive = 1.0
    scale: Literal["raw", "reference", "root"] = "raw"
    alpha: Positive = 2.0
    query_view: Literal["search", "plain"] = "search"

    def __post_init__(self) -> None:
        if self.kind in TAUGHT and not self.teachers:
            msg = f"loss.kind {self.kind} learns from teachers; name them in loss.teachers."
            raise ValueError(msg)
        if self.kind in LABELLED and self.teachers:
            msg = f"loss.kind {self.kind} reads labels alone; take loss.teachers out, or choose {TAUGHT[0]}."
            raise ValueError(msg)
        if not any(self.pair_weights):
            msg = "loss.pair_weights leaves both pairs out; one of them must be above 0."
            raise ValueError(msg)

    def check_read(self, more: Sequence[str] = ()) -> None:
        """
        Make sure that every setting that differs from its default does something.

        :param more: Settings that something else reads, whatever the kind.
        :raises ValueError: If `kind` does not read one; names all of them.
        """
        some = {name for several in _READ.values() for name in several} - {*_READ[self.kind], *more}
        defaults = {field.name: field.default for field in fields(self) if field.name in some}
        unread = [name for name, default in defaults.items() if getattr(self, name) != default]
        if unread:
            back = ", ".join(f"{name}={json.dumps(defaults[name])}" for name in unread)
            msg = (
                f"loss.kind {self.kind} does not read {', '.join(f'loss.{name}' for name in unread)}. "
                f"Take that out, or set the default: {back}."
            )
            raise ValueError(msg)


def ranking_loss(
    config: LossConfig, scores_BD: Tensor, mined_BD: Tensor, labels_BD: Tensor, teacher_BD: Tensor, mask_BD: Tensor,
    draws_B2: Tensor, *, detach_teacher: bool = True,
) -> Tensor:  # fmt: skip
    """
    Compute the configured loss.

    Teachers are followed within relevant and within irrelevant passages; a relevant one always leads, as in DGR.

    :param config: Which loss.
    :param scores_BD: Scores of the model, with gradient.
    :param mined_BD: Scores that the lists were mined with.
    :param labels_BD: Above 0 for relevant passages.
    :param teacher_BD: Scores of the teachers.
    :param mask_BD: True for real passages.
    :param draws_B2: Random numbers from 0 to below 1, two for each question.
    :param detach_teacher: Whether the teacher gets no gradient; false only for losses in `GRADED`.
    :returns: loss_B.
    """
    temperature = config.temperature
    teacher_BD = teacher_BD.detach() if detach_teacher else teacher_BD
    if config.kind == "ltrgr":
        picks = pick(mined_BD, labels_BD, mask_BD, draws_B2)
        return ltrgr_margin(
            scores_BD, labels_BD, mask_BD, picks, margin=config.margin, random_extra=config.random_extra,
            weights=config.pair_weights,
        )  # fmt: skip
    if config.kind == "infonce":
        return listwise_infonce(scores_BD, labels_BD, mask_BD, temperature=temperature)
    if config.kind == "dgr":
        return distilled_ranknet(
            scores_BD, teacher_BD, labels_BD, mask_BD, margin=config.margin, increment=config.increment,
            position_weights=config.head_weights,
        )  # fmt: skip
    target_BD = positives_first(teacher_BD, labels_BD, mask_BD)
    if config.kind == "logistic_ranknet":
        return logistic_ranknet(scores_BD, target_BD, mask_BD, temperature=temperature)
    if config.kind == "listmle":
        return list_mle(scores_BD, target_BD, mask_BD, temperature=temperature)
    if config.kind == "lambda_loss":
        return lambda_loss(scores_BD, rank_grades(target_BD, mask_BD), mask_BD, temperature=temperature)
    soft_BD = target_BD / config.teacher_temperature
    if config.kind == "margin_mse":
        return margin_mse(scores_BD, soft_BD, labels_BD, mask_BD, temperature=temperature,
                          detach_teacher=detach_teacher)  # fmt: skip
    if config.kind == "listnet":
        shares_BD = torch.softmax(soft_BD.masked_fill(~mask_BD, -torch.inf), dim=-1)
        return listwise_softmax(scores_BD, shares_BD, mask_BD, temperature=temperature)
    return listwise_kl(scores_BD, target_BD, mask_BD, temperature=temperature,
                       teacher_temperature=config.teacher_temperature, detach_teacher=detach_teacher)  # fmt: skip
