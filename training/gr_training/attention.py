"""
Plain matrix-product attention for training on a CPU, where the backward pass of fused attention is slow.

Scores and softmax stay in the dtype of the inputs (bfloat16 under autocast), unlike transformers' `eager`, which widens
them; one third of a training step was spent in fused attention's backward pass, and the widening costs 5 %.
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "gr_plain"


def register() -> str:
    """
    Make the attention known to transformers.

    :returns: Its name, for `attn_implementation`.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """
    Attend with explicit matrix products.

    :param module: The attention layer, for its training flag.
    :param query: (B, H, T, E).
    :param key: (B, H, S, E).
    :param value: (B, H, S, E).
    :param attention_mask: Added to the scores, or None.
    :param scaling: Of the scores; one over the root of E by default.
    :param dropout: On the attention weights.
    :returns: Mixed values (B, T, H, E), and None in place of the weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)
    if dropout and module.training:
        weights = nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
