"""
Model weights as int8 with one scale per matrix row: less than a quarter of the size; dequantised when loaded.

A matrix `name` becomes the bytes `name.deflated`, its int8 rows compressed by zlib (a tenth smaller, and with a
checksum), and the float32 tensor `name.row_scale`; vectors are kept as float16. Rows that are stored as the int8 tensor
`name` are read, too.
"""

import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gr_components.errors import ModelError, ModelNotFoundError

FILE_NAME = "model.int8.safetensors"
SCALE, DEFLATED = ".row_scale", ".deflated"


def save_rows(module: nn.Module, folder: Path) -> None:
    """
    Write a module's weights as int8 rows; tensors that share memory are written once.

    :param module: The module.
    :param folder: An existing folder, which gets `model.int8.safetensors`.
    """
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors.update(quantise(name, tensor.detach().cpu()))
    save_file(tensors, folder / FILE_NAME, metadata={"format": "pt"})


def read_rows(folder: Path) -> dict[str, Tensor]:
    """
    Read int8 rows back as float32 tensors.

    :param folder: A folder with `model.int8.safetensors`.
    :raises ModelNotFoundError: If there is no such file.
    :raises ModelError: If it is damaged or truncated.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        msg = f"'{folder}' has no {FILE_NAME}."
        raise ModelNotFoundError(msg)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        msg = f"'{path}' is damaged or truncated: {error}"
        raise ModelError(msg) from error
    return dequantised(tensors)


def dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Multiply int8 rows by their scales; every floating-point tensor comes back as float32.

    :param tensors: Tensors as `quantise` made them, or full ones.
    :raises ModelError: If rows are damaged.
    """
    state = {name: tensor for name, tensor in tensors.items() if not name.endswith((SCALE, DEFLATED))}
    for name, scale_N in tensors.items():
        if name.endswith(SCALE):
            matrix = name.removesuffix(SCALE)
            packed = tensors.get(matrix + DEFLATED)
            rows_NM = state[matrix] if packed is None else _inflated(matrix, packed, len(scale_N))
            state[matrix] = rows_NM.float() * scale_N[:, None]
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def quantise(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """
    Return what is stored for a tensor: int8 rows and their scales for a matrix, float16 for anything else.

    :param name: The tensor's name.
    :param tensor: The tensor, on the CPU.
    """
    if tensor.dim() != 2 or not tensor.is_floating_point() or min(tensor.shape) < 2:
        return {name: tensor.to(torch.float16).contiguous() if tensor.is_floating_point() else tensor.contiguous()}
    scale_N = tensor.float().abs().amax(dim=1).clamp_min(1e-12) / 127.0
    rounded = (tensor.float() / scale_N[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {name + DEFLATED: _deflated(rounded), name + SCALE: scale_N}


def _deflated(rows_NM: Tensor) -> Tensor:
    # Weights have no repetitions that are worth looking for: what compresses them is their distribution.
    packer = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = packer.compress(rows_NM.contiguous().numpy().tobytes()) + packer.flush()
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _inflated(name: str, packed: Tensor, rows: int) -> Tensor:
    try:
        plain = torch.frombuffer(bytearray(zlib.decompress(packed.numpy().tobytes())), dtype=torch.int8)
        return plain.reshape(rows, -1)
    except (zlib.error, RuntimeError) as error:
        msg = f"The weights '{name}' are damaged: {error}"
        raise ModelError(msg) from error
