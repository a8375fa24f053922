"""Run rows of different lengths through a model in batches of similar length, in smaller ones when memory runs out."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gr_components.errors import ModelError, NumericsError
from gr_components.progress import Task

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_NO_MEMORY = re.compile(r"out of memory|can.t allocate memory|failed to allocate memory|bad.?alloc", re.IGNORECASE)


def run_batches(
    items: Sequence[Item],
    batch_size: int,
    run: Callable[[list[Item]], Result],
    hopeless: Callable[[Item], str],
) -> Iterator[tuple[list[Item], Result]]:
    """
    Run items in batches; when memory runs out, the batch size is halved for the rest of the call, which is logged.

    :param items: What to run, in order.
    :param batch_size: Items per batch.
    :param run: Takes a batch.
    :param hopeless: Says what to do when memory does not even suffice for this one item.
    :returns: Each batch with what `run` made of it.
    :raises ModelError: If memory does not even suffice for one item.
    """
    done = 0
    while done < len(items):
        batch = list(items[done : done + batch_size])
        try:
            result = run(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError(hopeless(batch[0])) from error
            batch_size = len(batch) // 2
            logger.warning("Out of memory with %d inputs in a batch; going on with %d.", len(batch), batch_size)
            continue
        yield batch, result
        done += len(batch)


def run_sorted(
    lengths: Sequence[int], batch_size: int, run: Callable[[list[int]], npt.NDArray[np.float32]], task: Task
) -> npt.NDArray[np.float32]:
    """
    Run all rows, the longest first, and return the results in the order of the rows.

    Rows of similar length share a batch, so little is spent on padding. When memory runs out, the batch size is halved
    for the rest of the call, which is logged.

    :param lengths: Length of each of B rows; at least one.
    :param batch_size: Rows per batch.
    :param run: Takes row numbers and returns one result per row, (b,) or (b, E).
    :param task: Where progress goes.
    :returns: Results, (B,) or (B, E).
    :raises ModelError: If memory does not even suffice for one row.
    """

    def hopeless(row: int) -> str:
        return f"Out of memory with a single input of {lengths[row]} tokens. Set a smaller max_length."

    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    results: list[npt.NDArray[np.float32]] = []
    for rows, result in run_batches(order, batch_size, run, hopeless):
        results.append(result)
        task.advance(len(rows))
    sorted_results = np.concatenate(results)
    output = np.empty_like(sorted_results)
    output[order] = sorted_results
    return output


def check_finite(values: npt.NDArray[np.float32], what: str, texts: Sequence[str]) -> None:
    """
    Check a model's output.

    :param values: Results, (B,) or (B, E).
    :param what: What they are, for the message.
    :param texts: The B inputs, for the message.
    :raises NumericsError: If any is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        msg = (
            f"The model gave NaN or infinity for {len(bad)} of {len(values)} {what}, first for {texts[bad[0]][:80]!r}. "
            "Its weights are damaged, or dtype is too narrow for it: try dtype='float32'."
        )
        raise NumericsError(msg)


def is_out_of_memory(error: Exception) -> bool:
    """
    Tell whether an error says that memory ran out, on a CPU or an accelerator, in torch or onnxruntime.

    :param error: What was raised.
    """
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or _NO_MEMORY.search(str(error)) is not None
