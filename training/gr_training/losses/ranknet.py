"""
Losses over pairs of passages in a teacher's order: DGR's distilled RankNet, and RankNet itself.

Shapes: B questions, D passages of each list (second D: the other passage of a pair).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gr_training.losses.ordering import ranks


def distilled_ranknet(
    scores_BD: Tensor, teacher_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *,
    margin: float = 300.0, increment: float = 100.0, head_weight: float = 3.0, position_weights: bool = True,
    heads: Literal["positives", "teacher"] = "positives",
) -> Tensor:  # fmt: skip
    """
    Hinge over all pairs of the teacher's order, with margins that grow with the distance of the two ranks.

    DGR's distilled RankNet (Li et al., 2024, https://arxiv.org/abs/2402.10769). Of a list u[0], u[1], ... in the wanted
    order, each pair i < j adds

        w[i] * max(0, s[u[j]] - s[u[i]] + margin + (j - i - 1) * increment),    w[0] = 3, w[i] = 1 / (i + 1),

    and the sum is divided by the number of pairs that are not zero (by 1 if all are). Each relevant passage heads a
    list of its own, followed by the irrelevant ones in the teacher's order; the loss is the mean over these lists.

    Zero exactly where every margin holds. Unchanged by a shift of a list's scores, by any increasing function of the
    teacher's scores, by the order of the passages (equal teacher scores: by place in the list) and by padding.

    :param scores_BD: Passage scores, any real numbers.
    :param teacher_BD: The teacher's scores; only their order counts. No gradient.
    :param labels_BD: Above 0 for relevant passages.
    :param mask_BD: True for real passages.
    :param margin: Of neighbours in the order, >= 0; in the unit of the scores. 0 only asks for the order.
    :param increment: Added for each rank between two passages, >= 0; 0 gives all pairs the same margin.
    :param head_weight: Weight of the pairs with the head of the list.
    :param position_weights: Whether pairs have the weights above; otherwise all have 1.
    :param heads: `positives` as above; `teacher` follows the teacher alone: one list of all passages.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, where there is no pair.
    :raises ValueError: If `margin` or `increment` is negative, or `heads` is unknown.
    """
    if margin < 0 or increment < 0 or heads not in ("positives", "teacher"):
        msg = (f"margin and increment must be >= 0 and heads 'positives' or 'teacher', "
               f"got margin={margin}, increment={increment}, heads={heads!r}.")  # fmt: skip
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)).masked_fill(~mask_BD, 0.0)
    head_BD = mask_BD & (labels_BD > 0) if heads == "positives" else torch.zeros_like(mask_BD)
    body_BD = mask_BD & ~head_BD
    # After a head, the first of the others has rank 1. Without one it has rank 0.
    rank_BD = (ranks(teacher_BD, body_BD) + (heads == "positives")).to(wide_BD)
    gap_BDD = wide_BD[:, None, :] - wide_BD[:, :, None]  # [b, i, j] = s_j - s_i
    distance_BDD = rank_BD[:, None, :] - rank_BD[:, :, None]
    hinge_BDD = torch.relu(gap_BDD + margin + (distance_BDD - 1) * increment)
    weight_BD = torch.where(rank_BD == 0, head_weight, 1 / (rank_BD + 1)) if position_weights else rank_BD * 0 + 1
    pair_BDD = body_BD[:, :, None] & body_BD[:, None, :] & (distance_BDD > 0)
    below_BDD = torch.where(pair_BDD, weight_BD[..., None] * hinge_BDD, 0.0)
    total_B, count_B = below_BDD.sum((1, 2)), (below_BDD > 0).sum((1, 2))
    if heads == "teacher":
        return total_B / count_B.clamp(min=1)
    first_BDD = torch.relu(gap_BDD + margin + (rank_BD[:, None, :] - 1) * increment)
    first_BDD = torch.where(head_BD[:, :, None] & body_BD[:, None, :], first_BDD, 0.0)
    first_BDD = first_BDD * (head_weight if position_weights else 1.0)
    total_BD = first_BDD.sum(-1) + total_B[:, None]
    mean_BD = total_BD / ((first_BDD > 0).sum(-1) + count_B[:, None]).clamp(min=1)
    return torch.where(head_BD, mean_BD, 0.0).sum(-1) / head_BD.sum(-1).clamp(min=1)


def logistic_ranknet(scores_BD: Tensor, teacher_BD: Tensor, mask_BD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """
    Mean of log(1 + exp(s_j - s_i)) over the pairs of a list in which the teacher prefers i, in nats.

    RankNet (Burges et al., 2005, https://doi.org/10.1145/1102351.1102363) with certain preferences. Unchanged by a
    shift of a list's scores, by the order of its passages and by padding. Zero in the limit of scores far apart in the
    teacher's order; pairs that the teacher does not tell apart count nothing.

    :param scores_BD: Scores, any real numbers.
    :param teacher_BD: The teacher's scores; only their order counts. No gradient.
    :param mask_BD: True for real passages.
    :param temperature: Divides the scores, > 0. Sums of squared log-odds are hundreds; about 100 then.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, where there is no pair.
    :raises ValueError: If `temperature` is not positive.
    """
    if temperature <= 0:
        msg = f"temperature must be > 0, got {temperature}."
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)).masked_fill(~mask_BD, 0.0)
    pair_BDD = mask_BD[:, :, None] & mask_BD[:, None, :] & (teacher_BD[:, :, None] > teacher_BD[:, None, :])
    loss_BDD = F.softplus((wide_BD[:, None, :] - wide_BD[:, :, None]) / temperature)
    return torch.where(pair_BDD, loss_BDD, 0.0).sum((1, 2)) / pair_BDD.sum((1, 2)).clamp(min=1)
