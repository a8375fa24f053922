"""Device and number-type names as users write them, checked before a model is loaded."""

from typing import Any

from gr_components.errors import DeviceError
from gr_components.extras import need
from gr_components.models.checks import DTYPES, check_choice


def torch_device(device: str | None) -> Any:
    """
    Return the torch device of a name; with None the best one that is there.

    :param device: `cpu`, `cuda`, `cuda:1`, `mps` or None.
    :raises DeviceError: If the device is absent.
    """
    torch = need("torch", "torch")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        msg = f"Device '{device}' was asked for, but {found} CUDA device(s) are visible. Use device='cpu' or null."
        raise DeviceError(msg)
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        msg = "Device 'mps' was asked for, but this machine has none. Use device='cpu' or null."
        raise DeviceError(msg)
    return wanted


def torch_dtype(dtype: str) -> Any:
    """
    Return the torch number type of a name.

    :param dtype: `float32`, `float16` or `bfloat16`.
    :raises ConfigError: If it is another.
    """
    check_choice("dtype", dtype, DTYPES)
    return getattr(need("torch", "torch"), dtype)


def fast_dtype() -> str:
    """
    Return the number type in which models run fastest here without losing quality that shows in rankings.

    `bfloat16` on CPUs that multiply matrices in it (a third of the time of float32) and on CUDA devices; else
    `float32`. Scores differ from those of float32 in the third digit.
    """
    torch = need("torch", "torch")
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if any(found.get(name) for name in ("avx512_bf16", "amx_bf16")) else "float32"
