"""
LambdaLoss: a logistic pair loss whose weights bound nDCG.

Shapes: B questions, D documents of each list (second D: the other document of a pair).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gr_training.losses.ordering import ranks


def lambda_loss(
    scores_BD: Tensor, grades_BD: Tensor, mask_BD: Tensor, *, temperature: float = 1.0, mu: float = 10.0
) -> Tensor:
    """
    NDCG-Loss2++ of the LambdaLoss framework (Wang et al., 2018, https://doi.org/10.1145/3269206.3271784), in bits.

    Over the pairs in which document i has the higher grade, the sum of

        |G_i - G_j| * (|1 / d(r_i) - 1 / d(r_j)| + mu * |1 / d(|r_i - r_j|) - 1 / d(|r_i - r_j| + 1)|)
        * log2(1 + exp((s_j - s_i) / temperature)),

    with gain G = (2^grade - 1) / (best DCG of the list), discount d(r) = log2(1 + r) and r the rank, from 1, by the
    present scores. The first weight is LambdaRank's, the second one bounds nDCG. Weights have no gradient.

    Unchanged by a shift of a list's scores, by the order of its documents (equal scores: by place in the list) and by
    padding. Zero in the limit of scores far apart in the order of the grades, and where all grades are equal.

    :param scores_BD: Scores, any real numbers.
    :param grades_BD: Relevance >= 0, at most about 10 (gains are exponential); see `targets.rank_grades` for teachers.
    :param mask_BD: True for real documents.
    :param temperature: Divides the scores, > 0. Sums of squared log-odds are hundreds; about 100 then.
    :param mu: Weight of the second term, >= 0; 0 gives LambdaRank.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, where there is no pair.
    :raises ValueError: If `temperature` is not positive or `mu` is negative.
    """
    if temperature <= 0 or mu < 0:
        msg = f"temperature must be > 0 and mu >= 0, got temperature={temperature}, mu={mu}."
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)).masked_fill(~mask_BD, 0.0)
    gain_BD = torch.where(mask_BD, 2.0 ** grades_BD.detach().to(wide_BD) - 1, 0.0)
    ideal_BD = gain_BD.sort(-1, descending=True).values / torch.log2(
        2.0 + torch.arange(gain_BD.shape[1], device=gain_BD.device)
    )
    gain_BD = gain_BD / ideal_BD.sum(-1, keepdim=True).clamp(min=torch.finfo(wide_BD.dtype).tiny)
    rank_BD = 1 + ranks(wide_BD, mask_BD).to(wide_BD)
    lambda_BDD = (_inverse_discount(rank_BD)[:, :, None] - _inverse_discount(rank_BD)[:, None, :]).abs()
    apart_BDD = (rank_BD[:, :, None] - rank_BD[:, None, :]).abs().clamp(min=1)
    bound_BDD = _inverse_discount(apart_BDD) - _inverse_discount(apart_BDD + 1)
    lead_BDD = gain_BD[:, :, None] - gain_BD[:, None, :]
    pair_BDD = mask_BD[:, :, None] & mask_BD[:, None, :] & (lead_BDD > 0)
    loss_BDD = F.softplus((wide_BD[:, None, :] - wide_BD[:, :, None]) / temperature) / math.log(2.0)
    weight_BDD = lead_BDD * (lambda_BDD + mu * bound_BDD)
    return torch.where(pair_BDD, weight_BDD * loss_BDD, 0.0).sum((1, 2))


def _inverse_discount(rank: Tensor) -> Tensor:
    return 1 / torch.log2(1.0 + rank)
