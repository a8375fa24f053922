"""Batches of similar length, results in the order that was given, and smaller batches when memory runs out."""

import numpy as np
import pytest

from gr_components.errors import ModelError
from gr_components.models.batching import is_out_of_memory, run_sorted
from gr_components.progress import Silent, Task

LENGTHS = [5, 1, 9, 2, 9, 3, 7]


def test_rows_of_similar_length_share_a_batch_and_results_keep_their_order() -> None:
    seen: list[list[int]] = []

    def run(rows: list[int]) -> np.ndarray:
        seen.append([LENGTHS[row] for row in rows])
        return np.array([[row, LENGTHS[row]] for row in rows], dtype=np.float32)

    with Task(Silent(), "run", len(LENGTHS)) as task:
        found = run_sorted(LENGTHS, 3, run, task)
    assert seen == [[9, 9, 7], [5, 3, 2], [1]], "the longest first, so that memory runs out at once or never"
    assert found.tolist() == [[row, length] for row, length in enumerate(LENGTHS)]
    assert task.step == len(LENGTHS)


def test_memory_that_runs_out_loses_no_row(caplog: pytest.LogCaptureFixture) -> None:
    def run(rows: list[int]) -> np.ndarray:
        if len(rows) > 2:
            raise MemoryError
        return np.array(rows, dtype=np.float32)

    with Task(Silent(), "run", len(LENGTHS)) as task:
        assert run_sorted(LENGTHS, 5, run, task).tolist() == list(range(7))
    assert [r.getMessage() for r in caplog.records] == ["Out of memory with 5 inputs in a batch; going on with 2."]


def test_memory_for_not_even_one_row() -> None:
    def run(rows: list[int]) -> np.ndarray:
        raise MemoryError

    with (
        Task(Silent(), "run", 7) as task,
        pytest.raises(ModelError, match="single input of 9 tokens"),
    ):
        run_sorted(LENGTHS, 4, run, task)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("allocate"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
