"""
Pooling over tokens and the steps after it, as in sentence-transformers (with the same numbers, also in half precision).

Shapes: B texts, L tokens, H width of the Hugging Face model, E width of the vectors.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from gr_components.errors import ModelError, ModelNotFoundError
from gr_components.models.encoder_layout import Step


def pool(states_BLH: Tensor, mask_BL: Tensor, modes: Sequence[str]) -> Tensor:
    """
    Pool token states into one vector per text, by each mode, concatenated.

    :param states_BLH: Token states.
    :param mask_BL: 1 on the tokens that count.
    :param modes: Pooling modes of sentence-transformers.
    :returns: Vectors (B, H * number of modes).
    """
    weight_BL1 = mask_BL.unsqueeze(-1).to(states_BLH.dtype)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(_at(states_BLH, mask_BL.to(torch.int32).argmax(dim=1)))
        elif mode == "lasttoken":
            positions_L = torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
            parts.append(_at(states_BLH, (mask_BL * positions_L).to(torch.int32).argmax(dim=1)))
        elif mode == "max":
            parts.append(states_BLH.masked_fill(weight_BL1 == 0, -torch.inf).max(dim=1).values)
        elif mode == "weightedmean":
            positions_L1 = torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device).unsqueeze(-1)
            parts.append(_mean(states_BLH, weight_BL1.float() * positions_L1, root=False))
        else:
            parts.append(_mean(states_BLH, weight_BL1, root=mode == "mean_sqrt_len_tokens"))
    return torch.cat(parts, dim=-1)


def _at(states_BLH: Tensor, index_B: Tensor) -> Tensor:
    index_B1H = index_B.view(-1, 1, 1).expand(-1, 1, states_BLH.shape[-1])
    return states_BLH.gather(1, index_B1H).squeeze(1)


def _mean(states_BLH: Tensor, weight_BL1: Tensor, *, root: bool) -> Tensor:
    # Sums over hundreds of tokens lose digits in half precision, so they are made in float32.
    sum_BH = (states_BLH * weight_BL1).sum(dim=1, dtype=torch.float32)
    count_B1 = weight_BL1.sum(dim=1, dtype=torch.float32).clamp(min=1e-9)
    return (sum_BH / (count_B1.sqrt() if root else count_B1)).to(states_BLH.dtype)


class DenseStep(nn.Module):
    """
    A linear layer with an activation and, optionally, a residual connection.

    :param config: `config.json` of a sentence-transformers Dense module.
    :raises ModelError: If the activation is none of torch's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width_in, width_out = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(width_in, width_out, bias=bool(config.get("bias", True)))
        self.activation = _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        self.use_residual = bool(config.get("use_residual"))
        if self.use_residual and width_in != width_out:
            self.residual = nn.Linear(width_in, width_out, bias=False)

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Apply the layer: (B, in) to (B, out)."""
        output = self.activation(self.linear(vectors_BE))
        if self.use_residual:
            output = output + (self.residual(vectors_BE) if hasattr(self, "residual") else vectors_BE)
        return output


class LayerNormStep(nn.Module):
    """
    Layer normalisation of the vectors.

    :param config: `config.json` of a sentence-transformers LayerNorm module.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Normalise each vector by its own mean and variance."""
        return self.norm(vectors_BE)


class NormalizeStep(nn.Module):
    """Vectors of length one."""

    def forward(self, vectors_BE: Tensor) -> Tensor:
        """Divide each vector by its length."""
        return functional.normalize(vectors_BE, p=2, dim=-1)


def load_step(step: Step) -> nn.Module:
    """
    Build the module of a step and read its weights.

    :param step: Its description.
    :raises ModelNotFoundError: If the weights are missing.
    :raises ModelError: If they are damaged or do not fit.
    """
    if step.kind == "Normalize" or step.folder is None:
        return NormalizeStep()
    module = DenseStep(step.config) if step.kind == "Dense" else LayerNormStep(step.config)
    path = step.folder / "model.safetensors"
    if not path.is_file():
        msg = (
            f"'{step.folder}' has no model.safetensors (other formats are not read, because they can run code). "
            "Load the model once with SentenceTransformer and save it again."
        )
        raise ModelNotFoundError(msg)
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, OSError, SafetensorError) as error:
        msg = f"'{path}' is damaged or does not fit its config.json: {error}"
        raise ModelError(msg) from error
    return module


def save_step(folder: Path, step: Step, module: nn.Module) -> None:
    """
    Write a step's `config.json` and weights; nothing for steps that have none.

    :param folder: Where to; created if needed.
    :param step: Its description.
    :param module: Its module.
    """
    if step.kind == "Normalize":
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(step.config, indent=2) + "\n", encoding="utf-8")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _activation(path: str) -> nn.Module:
    package, _, name = path.rpartition(".")
    known = package in ("torch.nn.modules.activation", "torch.nn.modules.linear", "torch.nn")
    cls = getattr(importlib.import_module("torch.nn"), name, None) if known else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        msg = f"The activation {path!r} of a Dense module is none of torch.nn, and foreign code is never run."
        raise ModelError(msg)
    return cls()
