"""Compile index kernels once and keep the machine code between processes where the disk allows it."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from gr_components.extras import need

#: A number inside a kernel; numba infers its type.
Scalar = Any

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

numba = need("numba", "generative")


def kernel(function: F) -> F:
    """
    Compile a function with numba: the GIL is released, sums keep their order (no fastmath).

    Machine code is cached beside the source, else in the user's cache folder or `NUMBA_CACHE_DIR`. Where none of them
    can be written (a read-only installation), the function is compiled again in every process.

    :param function: A function of arrays and scalars.
    """
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        logger.info("No folder for compiled kernels can be written; set NUMBA_CACHE_DIR to save the time: %s", error)
        compiled = numba.njit(nogil=True)(function)
    result: F = compiled
    return result
