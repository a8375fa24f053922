"""
Likelihood of token sequences.

Shapes: R rows, T tokens.
"""

import torch
from torch import Tensor


def sequence_nll(
    log_probs_RT: Tensor, real_RT: Tensor, *, smoothing: float = 0.0, uniform_RT: Tensor | None = None
) -> Tensor:
    """
    Negative log-likelihood of each token, in nats, with label smoothing as an option.

    With smoothing e the target distribution is (1 - e) on the token and e spread evenly over the vocabulary (Szegedy et
    al., 2016, https://arxiv.org/abs/1512.00567). Padding changes nothing. Zero exactly where the token has
    probability one and there is no smoothing.

    :param log_probs_RT: Log-probability of each target token, <= 0.
    :param real_RT: True on tokens that count.
    :param smoothing: e, from 0 to below 1.
    :param uniform_RT: Mean log-probability over the whole vocabulary at each position; needed with smoothing.
    :returns: loss_RT, float32 or wider, 0 without gradient where `real_RT` is false.
    :raises ValueError: If `smoothing` is out of range, or `uniform_RT` is missing.
    """
    if not 0 <= smoothing < 1:
        msg = f"smoothing must be in [0, 1), got {smoothing}."
        raise ValueError(msg)
    wide = torch.promote_types(log_probs_RT.dtype, torch.float32)
    # Replaced before the arithmetic: a padding of -inf times a weight would poison the gradient.
    loss_RT = -log_probs_RT.to(wide).masked_fill(~real_RT, 0.0)
    if smoothing:
        if uniform_RT is None:
            msg = "Label smoothing needs uniform_RT, the mean log-probability over the vocabulary."
            raise ValueError(msg)
        loss_RT = (1 - smoothing) * loss_RT - smoothing * uniform_RT.to(wide).masked_fill(~real_RT, 0.0)
    return loss_RT
