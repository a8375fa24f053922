"""
Contrastive losses with in-batch negatives.

Shapes: B questions, P passages (each question's own, hard negatives, and those of the other questions).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def in_batch_contrastive(
    scores_BP: Tensor, positive_B: Tensor, allowed_BP: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """
    Negative log-probability of each question's passage among all passages of the batch, in nats.

    InfoNCE as DPR uses it (Karpukhin et al., 2020, https://arxiv.org/abs/2004.04906). Unchanged by a shift of a
    question's scores and by the order of the passages. Zero in the limit of a positive far above everything else, and
    zero where a question is allowed no other passage.

    :param scores_BP: Similarities, any real numbers.
    :param positive_B: Column of each question's own passage.
    :param allowed_BP: False on passages that must not be negatives of a question, such as its other positives, and on
        padding; the positive itself counts in any case, unless the whole row is false: such a row is padding.
    :param temperature: Divides the scores; above 0. Cosines need about 0.05, dot products 1.
    :returns: loss_B, float32 or wider; 0, without gradient, for rows of padding.
    :raises ValueError: If `temperature` is not positive.
    """
    if temperature <= 0:
        msg = f"temperature must be > 0, got {temperature}."
        raise ValueError(msg)
    wide_BP = scores_BP.to(torch.promote_types(scores_BP.dtype, torch.float32)) / temperature
    own_BP = F.one_hot(positive_B, scores_BP.shape[1]).bool()
    real_B = allowed_BP.any(-1)
    fill = torch.finfo(wide_BP.dtype).min
    log_p_BP = F.log_softmax(wide_BP.masked_fill(~(allowed_BP | own_BP), fill), dim=-1)
    return -log_p_BP.gather(1, positive_B[:, None])[:, 0].where(real_B, 0.0)
