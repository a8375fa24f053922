"""
Loading, closing and asynchronous running, the same for every component.

A component with a model loads it once, under a lock, and runs it on one thread of its own in asynchronous pipelines, so
that neither loading nor inference blocks the event loop. Models and tokenizers are not safe under concurrent calls, so
`_engine()` hands out the engine and `_serial` is the lock to hold around its use.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

Engine = TypeVar("Engine")
P = ParamSpec("P")
R = TypeVar("R")


class Lifecycle(Generic[Engine]):
    """
    Mixin: a subclass calls `_start_lifecycle()` in `__init__` and implements `_load()`.

    `_release()` may be overridden to free what the engine holds; dropping the reference is the default.
    """

    def _start_lifecycle(self) -> None:
        self._loaded: Engine | None = None
        self._serial = threading.RLock()
        # Not the serial lock, which a running model may hold for seconds while the event loop wants to submit.
        self._executor_lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def _load(self) -> Engine:
        raise NotImplementedError

    def _release(self, engine: Engine) -> None:
        """Free what the engine holds beyond memory."""

    def warm_up(self) -> None:
        """Load what `run` needs. Safe to call any number of times and from several threads."""
        with self._serial:
            if self._loaded is None:
                self._loaded = self._load()

    async def warm_up_async(self) -> None:
        """Load what `run` needs without blocking the event loop."""
        await self._in_thread(self.warm_up)

    def close(self) -> None:
        """Drop the loaded model and the worker thread. The next `run` loads again."""
        with self._serial:
            if self._loaded is not None:
                self._release(self._loaded)
                self._loaded = None
        with self._executor_lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    async def close_async(self) -> None:
        """Drop the loaded model without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def _engine(self) -> Engine:
        self.warm_up()
        engine = self._loaded
        if engine is None:  # closed by another thread between the two lines
            return self._engine()
        return engine

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        with self._executor_lock:  # submitting under the lock: `close` cannot shut the executor down in between
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=type(self).__name__)
            future = self._executor.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(future)
