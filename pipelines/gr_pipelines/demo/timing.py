"""Milliseconds of one question, one at a time, on one core."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from gr_components.extras import installed, need

TIMED_QUESTIONS = 20


def milliseconds(answer: Callable[[str], object], questions: Sequence[str]) -> float:
    """
    Return the median time of one question. The first one is asked twice, so that loading and compiling do not count.

    :param answer: Answers one question.
    :param questions: Which ones.
    """
    if not questions:
        return 0.0
    answer(questions[0])
    return median(_one(answer, question) for question in questions)


@contextmanager
def one_core() -> Iterator[None]:
    """Let torch, FAISS and numba use one thread while the block runs."""
    torch = need("torch", "torch")
    before = torch.get_num_threads()
    faiss = need("faiss", "faiss") if installed("faiss") else None
    numba = need("numba", "generative") if installed("numba") else None
    faiss_before = faiss.omp_get_max_threads() if faiss else 0
    numba_before = numba.get_num_threads() if numba else 0
    try:
        torch.set_num_threads(1)
        if faiss:
            faiss.omp_set_num_threads(1)
        if numba:
            numba.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
        if faiss:
            faiss.omp_set_num_threads(faiss_before)
        if numba:
            numba.set_num_threads(numba_before)


def _one(answer: Callable[[str], object], question: str) -> float:
    started = time.perf_counter()
    answer(question)
    return 1000 * (time.perf_counter() - started)
