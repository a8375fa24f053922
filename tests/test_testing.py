"""The conformance suite accepts a good component and notices each kind of bad one."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from haystack import Document, component

from gr_components.lifecycle import Lifecycle
from gr_components.testing import ComponentContract


class _Base(Lifecycle[int]):
    def __init__(self, *, factor: int = 2, top_k: int = 10) -> None:
        self.factor = factor
        self.top_k = top_k
        self._start_lifecycle()

    def _load(self) -> int:
        return self.factor

    def _run(self, documents: list[Document], top_k: int | None) -> dict[str, Any]:
        top_k = self.top_k if top_k is None else top_k
        with self._serial:
            factor = self._engine()
            return {"documents": [replace(d, score=float(factor * len(d.content or ""))) for d in documents][:top_k]}


@component
class Good(_Base):
    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)


@component
class Blocking(_Base):
    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self.run(documents, top_k)


@component
class Mutating(_Base):
    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        for document in documents:
            document.meta["seen"] = True
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)


@component
class Eager(_Base):
    def __init__(self, *, factor: int = 2, top_k: int = 10) -> None:
        _Base.__init__(self, factor=factor, top_k=top_k)
        self.warm_up()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int = 10) -> dict[str, Any]:
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int = 10) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)


@component
class Defaulting(_Base):
    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents, top_k or None)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)


@component
class Batching(_Base):
    def __init__(self, *, factor: int = 2, top_k: int = 10, batch_size: int = 2) -> None:
        _Base.__init__(self, factor=factor, top_k=top_k)
        self.batch_size = batch_size

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents[: self.batch_size], top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)


@component
class Retrieving(_Base):
    def __init__(self, *, factor: int = 2, top_k: int = 10) -> None:
        _Base.__init__(self, factor=factor, top_k=top_k)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, Any]:
        return self._run([Document(id=query, content=query)], top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, query, top_k)

    def retrieve(self, queries: list[str]) -> list[list[Document]]:
        return [self.run(max(queries, key=len))["documents"] for _ in queries]


@component
class Fragile(_Base):
    def __init__(self, *, factor: int = 2, top_k: int = 10) -> None:
        _Base.__init__(self, factor=factor, top_k=top_k)
        self._pool = ThreadPoolExecutor(1)

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        self._pool = ThreadPoolExecutor(1)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        pool = self._pool
        await asyncio.sleep(0.05)  # what lies between taking the pool and using it
        return await asyncio.wrap_future(pool.submit(self.run, documents, top_k))


@component
class Racing(_Base):
    def warm_up(self) -> None:
        if self._loaded is None:  # no lock
            self._loaded = self._load()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return self._run(documents, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        return await self._in_thread(self.run, documents, top_k)

    def to_dict(self) -> dict[str, Any]:
        return {"type": f"{__name__}.Racing", "init_parameters": {"factor": self.factor}}


def _arguments() -> dict[str, Any]:
    return {"documents": [Document(id="1", content="one"), Document(id="2", content="three")]}


class TestGood(ComponentContract):
    expected_type = f"{__name__}.Good"

    @pytest.fixture
    def component(self):
        return Good()

    @pytest.fixture
    def run_arguments(self):
        return _arguments()

    @pytest.fixture
    def other_init_arguments(self):
        return {"factor": 3, "top_k": 1}


@pytest.mark.parametrize(
    ("bad", "test"),
    [
        (Blocking, "test_run_async_leaves_the_event_loop_free"),
        (Mutating, "test_inputs_are_not_mutated"),
        (Eager, "test_init_loads_nothing"),
        (Eager, "test_overrides_default_to_none"),
        (Defaulting, "test_zero_and_false_are_values"),
        (Batching, "test_a_batch_is_its_parts"),
        (Retrieving, "test_a_batch_is_its_parts"),
        (Fragile, "test_close_during_asynchronous_runs"),
        (Racing, "test_warm_up_loads_once_from_any_thread"),
        (Racing, "test_every_init_argument_is_serialized"),
        (Racing, "test_other_settings_survive_yaml"),
        (Racing, "test_yaml_type_is_frozen"),
    ],
)
def test_a_bad_component_is_noticed(bad, test, monkeypatch):
    monkeypatch.setattr("gr_components.testing._WAIT_S", 0.2)
    suite = TestGood()
    arguments = {"query": "who"} if bad is Retrieving else _arguments()
    given = {
        "component": bad(),
        "run_arguments": arguments,
        "more_run_arguments": [{"query": "who wrote it"}],
        "other_init_arguments": {"top_k": 1},
        "monkeypatch": monkeypatch,
    }
    method = getattr(suite, test)
    with pytest.raises(RuntimeError if bad is Fragile else AssertionError):
        method(**{name: given[name] for name in inspect.signature(method).parameters})


def test_the_suite_runs_every_check_on_a_good_component_without_plugins():
    assert not any(asyncio.iscoroutinefunction(method) for method in vars(ComponentContract).values())
