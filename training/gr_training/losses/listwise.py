"""
Losses over a list of documents for each question.

Shapes: B questions, D documents of each list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def listwise_softmax(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """
    Cross-entropy between the labels' distribution and the softmax of the scores, for each question, in nats.

    ListNet's top-one loss (Cao et al., 2007, https://dl.acm.org/doi/10.1145/1273496.1273513). With one relevant
    document it is its negative log-probability. Unchanged by a shift of a list's scores, by the order of its documents
    and by padding. Its least value is the entropy of the labels, zero with one relevant document.

    :param scores_BD: Scores, any real numbers; higher is better.
    :param labels_BD: Grades >= 0; they are divided by their sum.
    :param mask_BD: True for real documents.
    :param temperature: Divides the scores; above 0.
    :returns: loss_B (float32 or wider); 0, without gradient, where no real document has a label.
    :raises ValueError: If `temperature` is not positive.
    """
    if temperature <= 0:
        msg = f"temperature must be > 0, got {temperature}."
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)) / temperature
    labels_BD = labels_BD.to(wide_BD).masked_fill(~mask_BD, 0.0)
    total_B1 = labels_BD.sum(-1, keepdim=True)
    # A finite fill, far below every score: a fully masked list then gives 0 and not NaN.
    fill = torch.finfo(wide_BD.dtype).min
    log_p_BD = F.log_softmax(wide_BD.masked_fill(~mask_BD, fill), dim=-1)
    share_BD = labels_BD / total_B1.clamp(min=torch.finfo(wide_BD.dtype).tiny)
    return -torch.where(share_BD > 0, share_BD * log_p_BD, 0.0).sum(-1)
