"""
Gradient caching: large batches of scores with the memory of a small one.

GradCache (Gao et al., 2021, https://arxiv.org/abs/2101.06983) first scores everything without a graph, takes the
gradient of the loss with respect to the scores, and then runs chunk by chunk again, this time with a graph, pushing
that gradient back. Here each chunk is a checkpoint of autograd, which does the same from within the backward pass: a
chunk keeps nothing but its scores, and when their gradient is there it is run again and its graph is freed. So the loss
remains an ordinary scalar with a gradient: data-parallel training, accumulation and further loss terms know nothing of
it. The price is one more forward pass.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def cached(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """
    Call a function now without keeping its graph, and again when the gradient of its result is known.

    Both runs see the same random numbers (dropout), autocast and parameters; the gradients equal those of a plain call.

    :param function: Depends on nothing that changes between the runs; parameters that it uses get their gradients.
    :param arguments: Its arguments; tensors among them get their gradients too.
    """
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=True)
    return result
