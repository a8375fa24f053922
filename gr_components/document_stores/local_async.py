"""The asynchronous twins of a store's methods: the same work on threads of the store's own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 4


class AsyncTwins:
    """
    Mixin for a store: `name_async` does what `name` does, without blocking the event loop.

    Each method has the parameters, results and errors of the one it is named after.
    """

    count_documents: Callable[..., int]
    filter_documents: Callable[..., list[Document]]
    write_documents: Callable[..., int]
    delete_documents: Callable[..., None]
    delete_all_documents: Callable[..., None]
    delete_by_filter: Callable[..., int]
    update_by_filter: Callable[..., int]
    count_documents_by_filter: Callable[..., int]
    count_unique_metadata_by_filter: Callable[..., dict[str, int]]
    get_metadata_fields_info: Callable[..., dict[str, dict[str, str]]]
    get_metadata_field_min_max: Callable[..., dict[str, Any]]
    get_metadata_field_unique_values: Callable[..., tuple[list[Any], int]]
    close: Callable[[], None]

    _executor: ThreadPoolExecutor | None
    _executor_lock: threading.Lock

    async def count_documents_async(self) -> int:
        """See `count_documents`."""
        return await self._in_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """See `filter_documents`."""
        return await self._in_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """See `write_documents`."""
        return await self._in_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """See `delete_documents`."""
        await self._in_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """See `delete_all_documents`."""
        await self._in_thread(self.delete_all_documents, recreate_index)

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """See `delete_by_filter`."""
        return await self._in_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """See `update_by_filter`."""
        return await self._in_thread(self.update_by_filter, filters, meta)

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """See `count_documents_by_filter`."""
        return await self._in_thread(self.count_documents_by_filter, filters)

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """See `count_unique_metadata_by_filter`."""
        return await self._in_thread(self.count_unique_metadata_by_filter, filters, metadata_fields)

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """See `get_metadata_fields_info`."""
        return await self._in_thread(self.get_metadata_fields_info)

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """See `get_metadata_field_min_max`."""
        return await self._in_thread(self.get_metadata_field_min_max, metadata_field)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """See `get_metadata_field_unique_values`."""
        return await self._in_thread(
            self.get_metadata_field_unique_values, metadata_field, search_term, from_, size, filters
        )

    async def close_async(self) -> None:
        """See `close`."""
        await asyncio.to_thread(self.close)

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        with self._executor_lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=type(self).__name__)
            executor = self._executor
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: function(*args, **kwargs))
