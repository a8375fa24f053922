"""
Losses that copy a teacher's score differences.

Shapes: B questions, D documents of each list (second D: the other document of a pair).
"""

import torch
from torch import Tensor


def margin_mse(
    scores_BD: Tensor, teacher_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *,
    temperature: float = 1.0, detach_teacher: bool = True,
) -> Tensor:  # fmt: skip
    """
    Mean squared error between the student's and the teacher's margins of relevant over irrelevant documents.

    Margin-MSE (Hofstaetter et al., 2020, https://arxiv.org/abs/2010.02666), over all pairs of a relevant and an
    irrelevant document of a list. Zero exactly where all these margins agree. Unchanged by a shift of either list of
    scores, by the order of the documents and by padding.

    :param scores_BD: The student's scores, any real numbers.
    :param teacher_BD: The teacher's scores, any real numbers; the loss has their unit, squared.
    :param labels_BD: Above 0 for relevant documents.
    :param mask_BD: True for real documents.
    :param temperature: Divides the student's scores, > 0: a generative retriever's are hundreds, a cross-encoder's
        about ten.
    :param detach_teacher: Whether the teacher gets no gradient; false for joint training.
    :returns: loss_B >= 0, float32 or wider; 0, without gradient, where there is no pair.
    :raises ValueError: If `temperature` is not positive.
    """
    if temperature <= 0:
        msg = f"temperature must be > 0, got {temperature}."
        raise ValueError(msg)
    teacher_BD = teacher_BD.detach() if detach_teacher else teacher_BD
    wide_BD = scores_BD.to(torch.promote_types(scores_BD.dtype, torch.float32)) / temperature
    excess_BD = (wide_BD - teacher_BD.to(wide_BD)).masked_fill(~mask_BD, 0.0)
    good_BD, bad_BD = mask_BD & (labels_BD > 0), mask_BD & (labels_BD <= 0)
    pair_BDD = good_BD[:, :, None] & bad_BD[:, None, :]
    error_BDD = (excess_BD[:, :, None] - excess_BD[:, None, :]).square()
    return torch.where(pair_BDD, error_BDD, 0.0).sum((1, 2)) / pair_BDD.sum((1, 2)).clamp(min=1)
