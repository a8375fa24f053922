"""Run a torch module on padded numpy batches."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


class TorchRunner:
    """
    Runs a module without gradients.

    :param module: Takes padded integer tensors by name and returns one tensor.
    :param device: Where it runs; the module is moved there.
    """

    def __init__(self, module: nn.Module, device: Any) -> None:
        self._module = module.to(device).eval()
        self._device = device

    def __call__(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """
        Run one batch.

        :param arrays: Inputs (B, L) by name.
        :returns: The module's output as float32.
        """
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
            output: npt.NDArray[np.float32] = self._module(**tensors).float().cpu().numpy()
        return output
