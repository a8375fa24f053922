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
        with self._serial_nowait():
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=type(self).__name__)
            executor = self._executor
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, lambda: function(*args, **kwargs))

    def _serial_nowait(self) -> threading.Lock:
        # The executor is created under a lock of its own: the serial lock may be held for seconds by a running model.
        lock = self.__dict__.get("_executor_lock")
        if lock is None:
            lock = self.__dict__.setdefault("_executor_lock", threading.Lock())
        return lock
