"""
Losses over a list of documents for each question.

Shapes: B questions, D documents of each list.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gr_training.losses.ordering import best_first


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


def list_mle(scores_BD: Tensor, teacher_BD: Tensor, mask_BD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """
    Negative log-likelihood of the teacher's order under the Plackett-Luce model of the scores, in nats.

    ListMLE (Xia et al., 2008, https://doi.org/10.1145/1390156.1390306): the first passage is drawn from the softmax
    over the list, the next one from the softmax over the rest, and so on. Unchanged by a shift of a list's scores, by
    the order of its passages (equal teacher scores: by place in the list) and by padding. Zero in the limit of scores
    far apart in the teacher's order, and for a list of one.

    :param scores_BD: Scores, any real numbers; higher is better.
    :param teacher_BD: The teacher's scores, finite; only their order counts. No gradient.
    :param mask_BD: True for real documents.
    :param temperature: Divides the scores; above 0. Sums of squared log-odds are hundreds; about 100 then.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, for lists without documents.
    :raises ValueError: If `temperature` is not positive.
    """
    wide_BD = _scaled(scores_BD, mask_BD, temperature)
    order_BD = best_first(teacher_BD, mask_BD)
    # Padding comes last, far below every score, and so adds nothing to the sums over the rest of the list.
    sorted_BD = wide_BD.gather(1, order_BD)
    rest_BD = sorted_BD.flip(-1).logcumsumexp(-1).flip(-1)
    return torch.where(mask_BD.gather(1, order_BD), rest_BD - sorted_BD, 0.0).sum(-1)


def listwise_kl(
    scores_BD: Tensor, teacher_BD: Tensor, mask_BD: Tensor, *,
    temperature: float = 1.0, teacher_temperature: float = 1.0, detach_teacher: bool = True,
) -> Tensor:  # fmt: skip
    """
    KL(teacher || student) between the softmax distributions over each list, in nats.

    Zero exactly where both agree up to a constant (after division by the temperatures). Unchanged by a shift of either
    list of scores, by the order of the documents and by padding. Not multiplied by the square of a temperature.

    :param scores_BD: The student's scores, any real numbers.
    :param teacher_BD: The teacher's scores, any real numbers.
    :param mask_BD: True for real documents.
    :param temperature: Divides the student's scores; above 0. Sums of squared log-odds are hundreds; about 100 then.
    :param teacher_temperature: Divides the teacher's; above 0.
    :param detach_teacher: Whether the teacher gets no gradient; false for joint training.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, for lists without documents.
    :raises ValueError: If a temperature is not positive.
    """
    log_p_BD = F.log_softmax(_scaled(scores_BD, mask_BD, temperature), dim=-1)
    teacher_BD = teacher_BD.detach() if detach_teacher else teacher_BD
    log_q_BD = F.log_softmax(_scaled(teacher_BD, mask_BD, teacher_temperature), dim=-1)
    return torch.where(mask_BD, log_q_BD.exp() * (log_q_BD - log_p_BD), 0.0).sum(-1)


def listwise_infonce(scores_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *, temperature: float = 1.0) -> Tensor:
    """
    Negative log-probability of a relevant document against all irrelevant ones, mean over the relevant ones, in nats.

    The list-wise loss that LTRGR compares its margins with (https://arxiv.org/abs/2306.15222). Other relevant documents
    are no negatives, unlike in `listwise_softmax`. Unchanged by a shift of a list's scores, by the order of its
    documents and by padding. Zero in the limit of relevant documents far above the others.

    :param scores_BD: Scores, any real numbers.
    :param labels_BD: Above 0 for relevant documents.
    :param mask_BD: True for real documents.
    :param temperature: Divides the scores; above 0. Sums of squared log-odds are hundreds; about 100 then.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, where a list lacks relevant or irrelevant documents.
    :raises ValueError: If `temperature` is not positive.
    """
    wide_BD = _scaled(scores_BD, mask_BD, temperature)
    good_BD, bad_BD = mask_BD & (labels_BD > 0), mask_BD & (labels_BD <= 0)
    others_B1 = torch.logsumexp(wide_BD.masked_fill(~bad_BD, torch.finfo(wide_BD.dtype).min), dim=-1, keepdim=True)
    counts_BD = good_BD & bad_BD.any(-1, keepdim=True)
    # log(1 + exp(others - score)); replaced first where it does not count, since the fill would overflow.
    loss_BD = F.softplus(torch.where(counts_BD, others_B1 - wide_BD, 0.0))
    return torch.where(counts_BD, loss_BD, 0.0).sum(-1) / counts_BD.sum(-1).clamp(min=1)


def _scaled(scores_BD: Tensor, mask_BD: Tensor, temperature: float) -> Tensor:
    """Scores in float32 or wider over the temperature; padding finite and far below every score."""
    if temperature <= 0:
        msg = f"temperature must be > 0, got {temperature}."
        raise ValueError(msg)
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)) / temperature
    return wide_BD.masked_fill(~mask_BD, torch.finfo(wide_BD.dtype).min)
