"""
Low-rank adaptation (LoRA): train two thin matrices beside each chosen weight instead of the weight.

W x becomes W x + (alpha / rank) B (A x) with A (rank, inputs) and B (outputs, rank) (Hu et al., 2021,
https://arxiv.org/abs/2106.09685). The matrices are parameters of the layer itself, so names, saving and loading of all
other weights stay as they are; gradients and optimiser states are only kept for them. `merge_lora` adds them to the
weights: what is saved and served is an ordinary model.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr_components.errors import ConfigError
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Count, Pattern, Positive

_DOWN, _UP, _SCALE, _HOOK = "lora_down", "lora_up", "lora_scale", "_lora_hook"

ATTENTION = r"(q_proj|v_proj|self[.]query|self[.]value|[.]q|[.]v)$"
"""Query and value projections of BART, BERT and T5, as in the paper."""


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class LoraConfig:
    """
    Low-rank adaptation as a recipe's setting: everything else of the model stays as it is.

    :param rank: Rank of the change of each weight.
    :param alpha: The change is multiplied by alpha / rank.
    :param pattern: Regular expression that is searched in the names of linear layers, such as `(query|value|dense)$`.
    """

    rank: Count = 8
    alpha: Positive = 16.0
    pattern: Pattern = ATTENTION


def add_lora(model: nn.Module, *, rank: int = 8, alpha: float = 16.0, pattern: str = ATTENTION) -> list[str]:
    """
    Freeze a model and put trainable low-rank matrices beside some of its linear layers; its output stays as it is.

    :param model: Changed in place.
    :param rank: Rank of the change, >= 1.
    :param alpha: The change is multiplied by alpha / rank.
    :param pattern: Regular expression that is searched in the layers' names.
    :returns: The names of the layers.
    :raises ConfigError: If the rank is below 1, or the pattern matches no linear layer or one that shares its weight
        (such as an output layer with the embeddings), which could not be merged.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(pattern, name)}
    if rank < 1 or not layers:
        msg = f"LoRA needs a rank >= 1 and a pattern that matches linear layers; got rank {rank}, pattern {pattern!r}."
        raise ConfigError(msg)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = [name for name, layer in layers.items() if len(names[id(layer.weight)]) > 1]
    if shared:
        msg = f"The LoRA pattern {pattern!r} matches {shared}, whose weights other layers share. Choose a narrower one."
        raise ConfigError(msg)
    model.requires_grad_(False)
    for layer in layers.values():
        weight = layer.weight
        down = torch.randn(rank, layer.in_features, device=weight.device, dtype=weight.dtype) * layer.in_features**-0.5
        layer.register_parameter(_DOWN, nn.Parameter(down))
        layer.register_parameter(_UP, nn.Parameter(torch.zeros_like(weight[:, :1]).repeat(1, rank)))
        setattr(layer, _SCALE, alpha / rank)
        setattr(layer, _HOOK, layer.register_forward_hook(_add_low_rank))
    return list(layers)


def merge_lora(model: nn.Module) -> int:
    """
    Add the low-rank matrices to the weights and take them out; all parameters can be trained again.

    :param model: Changed in place; a model without LoRA stays as it is.
    :returns: How many layers were merged.
    """
    layers = [module for module in model.modules() if hasattr(module, _DOWN)]
    for layer in layers:
        with torch.no_grad():
            down, up = getattr(layer, _DOWN), getattr(layer, _UP)
            change = getattr(layer, _SCALE) * (up.double() @ down.double())
            layer.weight.copy_(layer.weight.double() + change)  # type: ignore[operator]
        getattr(layer, _HOOK).remove()
        for name in (_DOWN, _UP, _SCALE, _HOOK):
            delattr(layer, name)
    if layers:
        model.requires_grad_(True)
    return len(layers)


def _add_low_rank(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    low = functional.linear(inputs[0], getattr(layer, _DOWN))
    return output + getattr(layer, _SCALE) * functional.linear(low, getattr(layer, _UP))
