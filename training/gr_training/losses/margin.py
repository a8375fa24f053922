"""
LTRGR's margin loss between a relevant and an irrelevant passage.

Shapes: B questions, D passages of each list.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gr_training.losses.ordering import best_first


class Picks(NamedTuple):
    """
    The four passages of each list that the loss compares, as places in the list.

    :param top_positive_B: The relevant passage that the retriever ranked highest.
    :param top_negative_B: The irrelevant one that it ranked highest.
    :param random_positive_B: Any relevant passage.
    :param random_negative_B: Any irrelevant passage.
    """

    top_positive_B: Tensor
    top_negative_B: Tensor
    random_positive_B: Tensor
    random_negative_B: Tensor


def pick(mined_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, draws_B2: Tensor) -> Picks:
    """
    Pick the passages to compare.

    :param mined_BD: Scores that the lists were mined with.
    :param labels_BD: Above 0 for relevant passages.
    :param mask_BD: True for real passages.
    :param draws_B2: Numbers from 0 to below 1 that choose the random positive and the random negative; as in the
        published code these may be the top ones.
    :returns: Places; where a list has no passage of a kind, some place of the other kind (its pairs count nothing).
    """
    columns = []
    for relevant, draw_B in ((True, draws_B2[:, 0]), (False, draws_B2[:, 1])):
        member_BD = mask_BD & ((labels_BD > 0) == relevant)
        order_BD = best_first(mined_BD, member_BD)
        number_B = (draw_B * member_BD.sum(-1)).long()
        columns += [order_BD[:, 0], order_BD.gather(1, number_B[:, None])[:, 0]]
    return Picks(columns[0], columns[2], columns[1], columns[3])


def ltrgr_margin(
    scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, picks: Picks, *,
    margin: float = 300.0, random_extra: float = 100.0, weights: tuple[float, float] = (0.5, 0.5),
) -> Tensor:  # fmt: skip
    """
    Hinge on the score difference of a top pair and of a random pair (Li et al., 2024, https://arxiv.org/abs/2306.15222).

        w0 max(0, s[top negative] - s[top positive] + margin)
        + w1 max(0, s[random negative] - s[random positive] + margin + random_extra)

    Zero exactly where both margins hold. Unchanged by a shift of a list's scores, by the order of its passages and by
    padding. Defaults are the published code's; the paper has margin 500, no extra and weights (1, 1), see `presets`.

    :param scores_BD: Passage scores, any real numbers.
    :param labels_BD: Above 0 for relevant passages.
    :param mask_BD: True for real passages.
    :param picks: What to compare; a pair that is not of a real relevant and a real irrelevant passage counts nothing.
    :param margin: Least score difference asked for, >= 0; in the unit of the scores.
    :param random_extra: Added to the margin of the random pair.
    :param weights: Of the top pair and of the random pair; 0 leaves a pair out.
    :returns: loss_B >= 0, float32 or wider.
    :raises ValueError: If a margin is negative.
    """
    if margin < 0 or margin + random_extra < 0:
        msg = f"margin and margin + random_extra must be >= 0, got {margin} and {margin + random_extra}."
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)).masked_fill(~mask_BD, 0.0)
    good_BD, bad_BD = mask_BD & (labels_BD > 0), mask_BD & (labels_BD <= 0)
    loss_B = wide_BD.new_zeros(len(wide_BD))
    top = (picks.top_positive_B, picks.top_negative_B, margin)
    random = (picks.random_positive_B, picks.random_negative_B, margin + random_extra)
    for weight, (positive_B, negative_B, wanted) in zip(weights, (top, random), strict=True):
        real_B = _at(good_BD, positive_B) & _at(bad_BD, negative_B)
        hinge_B = torch.relu(_at(wide_BD, negative_B) - _at(wide_BD, positive_B) + wanted)
        loss_B = loss_B + weight * torch.where(real_B, hinge_B, 0.0)
    return loss_B


def _at(values_BD: Tensor, place_B: Tensor) -> Tensor:
    return values_BD.gather(1, place_B[:, None])[:, 0]
