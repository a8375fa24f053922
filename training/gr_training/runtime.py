"""
The process that trains: memory allocation on Linux CPUs, and threads.

glibc gives large tensors back to the system after every use, and the next step faults every page in again; with these
settings it keeps them. On two cores that brought a training step from 12 s to 1.5 s.
"""

import os
import platform
import sys
from pathlib import Path

_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_MARK = "GR_TRAIN_MALLOC"


def tune_malloc() -> None:
    """
    Start this process again with allocation tuned, once, if it runs on Linux with glibc and without an accelerator.

    Does nothing when the user has set any of the variables, or `GR_TRAIN_MALLOC=0`.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    if _MARK in os.environ or any(name in os.environ for name in _MALLOC) or _accelerated():
        return
    environment = {**os.environ, **_MALLOC, _MARK: "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _accelerated() -> bool:
    """Whether the machine seems to have an accelerator, without importing torch."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128"))
