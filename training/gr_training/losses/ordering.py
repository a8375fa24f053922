"""
Order of the passages of a list.

Shapes: B questions, D passages of each list.
"""

import torch
from torch import Tensor


def best_first(values_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """
    Places of the passages from the highest value to the lowest; equal values by place, those outside the mask last.

    :param values_BD: Finite numbers; anything outside the mask.
    :param mask_BD: True for the passages that are ordered.
    """
    filled_BD = torch.where(mask_BD, values_BD.detach(), -torch.inf)
    return filled_BD.argsort(dim=-1, descending=True, stable=True)


def ranks(values_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """
    Rank of each passage in the order of `best_first`, 0 for the first.

    :param values_BD: Finite numbers; anything outside the mask.
    :param mask_BD: True for the passages that are ranked.
    """
    return best_first(values_BD, mask_BD).argsort(dim=-1)
