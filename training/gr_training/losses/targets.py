"""
Targets for list-wise losses from a teacher's scores.

Shapes: B questions, D documents of each list.
"""

import torch
from torch import Tensor

from gr_training.losses.ordering import ranks


def positives_first(teacher_BD: Tensor, labels_BD: Tensor, mask_BD: Tensor, *, gap: float = 0.0) -> Tensor:
    """
    Raise a teacher's scores of relevant documents, all by the same amount, until the least one leads the others.

    What the teacher says within either kind stays; lists in which it agrees with the labels stay as they are. The
    amount is a constant: each score gets the gradient of its own target.

    :param teacher_BD: The teacher's scores, finite.
    :param labels_BD: Above 0 for relevant documents.
    :param mask_BD: True for real documents.
    :param gap: By how much the least relevant document must at least lead the best irrelevant one, >= 0.
    """
    good_BD, bad_BD = mask_BD & (labels_BD > 0), mask_BD & (labels_BD <= 0)
    fixed_BD = teacher_BD.detach()
    lowest_B1 = fixed_BD.masked_fill(~good_BD, torch.inf).amin(-1, keepdim=True)
    highest_B1 = fixed_BD.masked_fill(~bad_BD, -torch.inf).amax(-1, keepdim=True)
    return teacher_BD + torch.where(good_BD, (highest_B1 - lowest_B1 + gap).clamp(min=0.0), 0.0)


def rank_grades(teacher_BD: Tensor, mask_BD: Tensor, *, highest: float = 4.0) -> Tensor:
    """
    Turn a teacher's order into grades: evenly spaced from `highest` for its first document to 0 for its last.

    :param teacher_BD: The teacher's scores, finite; equal ones by place in the list.
    :param mask_BD: True for real documents; the others have grade 0.
    :param highest: The best grade; gains of nDCG are 2^grade - 1.
    """
    last_B1 = (mask_BD.sum(-1, keepdim=True) - 1).clamp(min=1)
    return torch.where(mask_BD, highest * (1 - ranks(teacher_BD, mask_BD) / last_B1), 0.0)
