"""
One suite that every component has to pass; third parties may inherit it for components of their own.

```python
class TestMyRetriever(ComponentContract):
    expected_type = "my_package.retrievers.MyRetriever"

    @pytest.fixture
    def component(self, store):
        return MyRetriever(document_store=store)

    @pytest.fixture
    def run_arguments(self):
        return {"query": "who wrote it?"}
```

Needs pytest. Nothing here needs pytest-asyncio: asynchronous tests run their own event loop.
"""

import asyncio
import copy
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from haystack import Pipeline
from haystack.core.serialization import component_to_dict

_WAIT_S = 20.0
_THREADS = 4
_NAME = "component"


class ComponentContract:
    """
    What Haystack, services and users rely on in a component.

    A subclass sets `expected_type` and provides the fixtures `component` and `run_arguments`; it may override the other
    fixtures and the two hooks `comparable` and `assert_empty`.
    """

    #: The `type` under which users' YAML files store the component. Never changes once released.
    expected_type: ClassVar[str]

    @pytest.fixture
    def component(self) -> Any:
        """Return a fresh component that has not been warmed up."""
        msg = "A subclass of ComponentContract provides the fixture `component`."
        raise NotImplementedError(msg)

    @pytest.fixture
    def run_arguments(self) -> dict[str, Any]:
        """Return arguments of `run` that give a result that is not empty."""
        msg = "A subclass of ComponentContract provides the fixture `run_arguments`."
        raise NotImplementedError(msg)

    @pytest.fixture
    def more_run_arguments(self, run_arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Return arguments of several calls that are made at the same time; better if they differ."""
        return [run_arguments] * _THREADS

    @pytest.fixture
    def pipeline_run_arguments(self, run_arguments: dict[str, Any]) -> dict[str, Any]:
        """
        Return what a pipeline is given so that it calls `run` with a result that is not empty.

        Override it for variadic inputs, where a pipeline takes one of the values that `run` takes a list of.
        """
        return run_arguments

    @pytest.fixture
    def empty_run_arguments(self, run_arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments with nothing to do: lists are emptied or, if there is none, texts are."""
        kind = list if any(isinstance(value, list) for value in run_arguments.values()) else str
        return {key: kind() if isinstance(value, kind) else value for key, value in run_arguments.items()}

    @pytest.fixture
    def other_init_arguments(self) -> dict[str, Any]:
        """Return init arguments, with values other than the component's, that must survive YAML."""
        return {}

    def comparable(self, output: dict[str, Any]) -> Any:
        """
        Return the part of an output that has to be equal between runs, as plain values.

        Override it when a component measures something, such as time.

        :param output: What `run` returned.
        """
        return plain(output)

    def assert_empty(self, output: dict[str, Any]) -> None:
        """
        Check the output for empty input: every value is empty or zero.

        :param output: What `run` returned.
        """
        assert output, "run returned no output at all"
        assert not any(output.values()), f"empty input gave {output}"

    # --- configuration -------------------------------------------------------------------------------------------

    def test_yaml_type_is_frozen(self, component: Any) -> None:
        """The `type` in YAML is `expected_type`."""
        assert to_dict(component)["type"] == self.expected_type

    def test_init_stores_every_argument_under_its_name(self, component: Any) -> None:
        """Every init argument can be read back as an attribute."""
        missing = [name for name in _init_names(component) if not hasattr(component, name)]
        assert not missing, f"{type(component).__name__} does not store {missing}"

    def test_init_loads_nothing(self, component: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither `warm_up` nor `_load` is called while constructing."""
        loads: list[str] = []
        for method in ("warm_up", "_load"):
            if hasattr(component, method):
                monkeypatch.setattr(type(component), method, lambda self, m=method: loads.append(m))
        _rebuilt(component)
        assert not loads, f"__init__ called {loads}"

    def test_every_init_argument_is_serialized(self, component: Any) -> None:
        """`to_dict` holds exactly the arguments of `__init__`."""
        assert set(to_dict(component)["init_parameters"]) == set(_init_names(component))

    def test_to_dict_does_not_change_the_component(self, component: Any) -> None:
        """`to_dict` leaves the settings as they are."""
        before = {name: plain(getattr(component, name)) for name in _init_names(component)}
        to_dict(component)
        assert {name: plain(getattr(component, name)) for name in _init_names(component)} == before

    def test_survives_yaml(self, component: Any) -> None:
        """A pipeline written as YAML and read back holds the same component."""
        wanted = to_dict(component)
        again: Any = reload(_pipeline(component)).get_component(_NAME)
        assert type(again) is type(component)
        assert to_dict(again) == wanted

    def test_other_settings_survive_yaml(self, component: Any, other_init_arguments: dict[str, Any]) -> None:
        """So do the values of `other_init_arguments`."""
        other: Any = _rebuilt(component, **other_init_arguments)
        wanted = to_dict(other)
        for name, value in other_init_arguments.items():
            if isinstance(value, str | int | float | list | dict):
                assert wanted["init_parameters"].get(name) == value, f"'{name}' is not serialized as it was set"
        again: Any = reload(_pipeline(other)).get_component(_NAME)
        assert to_dict(again) == wanted

    def test_overrides_default_to_none(self, component: Any) -> None:
        """Arguments of `run` that override settings default to None."""
        wrong = [p.name for p in _overrides(component) if p.default is not None]
        assert not wrong, f"run({', '.join(wrong)}) must default to None, which means 'as configured'"

    # --- running -------------------------------------------------------------------------------------------------

    def test_runs_without_warm_up(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """`run` warms up by itself."""
        output = component.run(**run_arguments)
        assert any(output.values()), f"run_arguments must give a result, got {output}"

    def test_none_means_as_configured(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """Passing None for each override changes nothing."""
        nones = {p.name: None for p in _overrides(component) if p.name not in run_arguments}
        assert self.comparable(component.run(**run_arguments, **nones)) == _approx(
            self.comparable(component.run(**run_arguments))
        )

    def test_async_equals_sync(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """`run_async` gives what `run` gives."""
        sync = self.comparable(component.run(**run_arguments))
        assert self.comparable(asyncio.run(component.run_async(**run_arguments))) == _approx(sync)

    def test_zero_and_false_are_values(
        self, component: Any, run_arguments: dict[str, Any], other_init_arguments: dict[str, Any]
    ) -> None:
        """
        0 and False given to `run` act as they do when they are configured, whatever is configured.

        Where a setting may not be 0 (a number of documents), 0 at run time gives nothing or is refused as well.
        """
        for override in _overrides(component):
            configured = _not_zero(override.name, component, other_init_arguments)
            if configured is None:
                continue
            zero = type(configured)(0)
            truthy = _rebuilt(component, **{override.name: configured})
            arguments = {**run_arguments, override.name: zero}
            try:
                falsy = _rebuilt(component, **{override.name: zero})
            except ValueError as error:
                try:
                    self.assert_empty(truthy.run(**arguments))
                except type(error):
                    continue
            else:
                wanted = self.comparable(falsy.run(**{**run_arguments, override.name: None}))
                assert self.comparable(truthy.run(**arguments)) == _approx(wanted), f"run({override.name}={zero!r})"
                falsy.close()
            truthy.close()

    def test_a_batch_is_its_parts(
        self, component: Any, run_arguments: dict[str, Any], more_run_arguments: list[dict[str, Any]]
    ) -> None:
        """Results do not depend on `batch_size`; `retrieve`, if there is one, gives for each query what `run` gives."""
        wanted = self.comparable(component.run(**run_arguments))
        parts = [component]
        if "batch_size" in _init_names(component):
            parts += [_rebuilt(component, batch_size=size) for size in (1, 3)]
        for part in parts[1:]:
            assert self.comparable(part.run(**run_arguments)) == _approx(wanted), f"batch_size={part.batch_size}"
        if hasattr(component, "retrieve"):
            queries = [arguments["query"] for arguments in [*more_run_arguments, run_arguments]]
            alone = [self.comparable(component.run(query=query)) for query in queries]
            for part in parts:
                together = [self.comparable({"documents": found}) for found in part.retrieve(queries)]
                assert together == [_approx(output) for output in alone]
        for part in parts[1:]:
            part.close()

    def test_inputs_are_not_mutated(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """The caller's documents and lists stay as they were."""
        before = copy.deepcopy(plain(run_arguments))
        component.run(**run_arguments)
        assert plain(run_arguments) == before
        asyncio.run(component.run_async(**run_arguments))
        assert plain(run_arguments) == before

    def test_empty_input_gives_empty_output(self, component: Any, empty_run_arguments: dict[str, Any]) -> None:
        """Nothing in, nothing out, and no exception."""
        self.assert_empty(component.run(**empty_run_arguments))
        self.assert_empty(asyncio.run(component.run_async(**empty_run_arguments)))

    def test_runs_in_a_pipeline(
        self, component: Any, run_arguments: dict[str, Any], pipeline_run_arguments: dict[str, Any]
    ) -> None:
        """`Pipeline.run` and `Pipeline.run_async` give what `run` gives."""
        pipeline = _pipeline(component)
        sync = pipeline.run({_NAME: pipeline_run_arguments})
        assert set(sync) == {_NAME}
        if pipeline_run_arguments == run_arguments:
            assert self.comparable(sync[_NAME]) == _approx(self.comparable(component.run(**run_arguments)))
        assert any(sync[_NAME].values()), f"pipeline_run_arguments must give a result, got {sync}"
        assert self.comparable(asyncio.run(pipeline.run_async({_NAME: pipeline_run_arguments}))[_NAME]) == _approx(
            self.comparable(sync[_NAME])
        )
        pipeline.close()

    def test_a_second_pipeline_works_beside_the_first(
        self, component: Any, pipeline_run_arguments: dict[str, Any]
    ) -> None:
        """A copy in a second pipeline shares nothing that breaks either."""
        first = _pipeline(component)
        data = {_NAME: pipeline_run_arguments}
        wanted = self.comparable(first.run(data)[_NAME])
        second = reload(first)
        assert self.comparable(second.run(data)[_NAME]) == _approx(wanted)
        second.close()
        assert self.comparable(first.run(data)[_NAME]) == _approx(wanted)

    # --- lifecycle and threads -----------------------------------------------------------------------------------

    def test_warm_up_loads_once_from_any_thread(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """Several threads that warm up together load once."""
        loads = _count_loads(component)
        with ThreadPoolExecutor(_THREADS) as pool:
            for future in [pool.submit(component.warm_up) for _ in range(_THREADS)]:
                future.result()
        component.warm_up()
        asyncio.run(component.warm_up_async())
        component.run(**run_arguments)
        assert len(loads) == 1, f"loaded {len(loads)} times"

    def test_runs_again_after_close(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """`close` may come at any time, and the next `run` loads again."""
        component.close()  # before any use: nothing to do, no error
        wanted = self.comparable(component.run(**run_arguments))
        component.close()
        component.close()
        assert self.comparable(component.run(**run_arguments)) == _approx(wanted)
        asyncio.run(component.close_async())
        assert self.comparable(asyncio.run(component.run_async(**run_arguments))) == _approx(wanted)

    def test_close_during_asynchronous_runs(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """`close` from another thread neither breaks a run that has begun nor one that begins at the same time."""
        wanted = self.comparable(component.run(**run_arguments))
        original, closers = component.warm_up, list[threading.Thread]()

        def closing() -> None:  # on the worker, between the submission of a run and its first step
            closers.append(threading.Thread(target=component.close))
            closers[-1].start()
            time.sleep(0.02)
            original()

        component.warm_up = closing
        assert self.comparable(asyncio.run(component.run_async(**run_arguments))) == _approx(wanted)
        del component.warm_up
        for thread in closers:
            thread.join(_WAIT_S)
        assert not any(thread.is_alive() for thread in closers), "close did not return"

        done = threading.Event()

        def keep_closing() -> None:
            while not done.wait(0.01):
                component.close()

        async def several() -> list[dict[str, Any]]:
            return [await component.run_async(**run_arguments) for _ in range(_THREADS)]

        closer = threading.Thread(target=keep_closing)
        closer.start()
        try:
            outputs = asyncio.run(several())
        finally:
            done.set()
            closer.join(_WAIT_S)
        assert [self.comparable(output) for output in outputs] == [_approx(wanted)] * _THREADS

    def test_concurrent_runs_equal_serial_runs(self, component: Any, more_run_arguments: list[dict[str, Any]]) -> None:
        """Threads and tasks that run together get their own results."""
        serial = [self.comparable(component.run(**arguments)) for arguments in more_run_arguments]
        with ThreadPoolExecutor(_THREADS) as pool:
            threads = list(pool.map(lambda arguments: component.run(**arguments), more_run_arguments))

        async def together() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*[component.run_async(**a) for a in more_run_arguments]))

        for concurrent in (threads, asyncio.run(together())):
            assert [self.comparable(output) for output in concurrent] == [_approx(output) for output in serial]

    def test_run_async_leaves_the_event_loop_free(self, component: Any, run_arguments: dict[str, Any]) -> None:
        """The worker waits for a signal that only a running event loop can give."""
        gate, threads, opened = threading.Event(), set[int](), list[bool]()
        original = component.warm_up

        def gated() -> None:
            threads.add(threading.get_ident())
            opened.append(gate.wait(_WAIT_S))
            original()

        component.warm_up = gated

        async def main() -> dict[str, Any]:
            task = asyncio.ensure_future(component.run_async(**run_arguments))
            await asyncio.sleep(0.05)
            gate.set()
            return await task

        asyncio.run(main())
        del component.warm_up
        assert opened, "run_async must warm the component up"
        assert all(opened), "run_async blocked the event loop"
        assert threading.get_ident() not in threads, "run_async did its work on the event loop's thread"


def to_dict(component: Any) -> dict[str, Any]:
    """
    Return a component's serialized form, by its own `to_dict` or by Haystack's default.

    :param component: Any component.
    """
    return component_to_dict(component, _NAME)


def reload(pipeline: Pipeline) -> Pipeline:
    """
    Write a pipeline as YAML and read it back, trusting the packages of its components.

    :param pipeline: Any pipeline.
    """
    classes = {type(pipeline.get_component(name)) for name in pipeline.graph.nodes}
    tops = sorted({cls.__module__.partition(".")[0] for cls in classes} | {"gr_components"})
    return Pipeline.loads(pipeline.dumps(), allowed_modules=tops)


def plain(value: Any) -> Any:
    """
    Return nested plain values of an input or output, for comparing.

    :param value: Haystack objects, containers and basic types.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return value


def _approx(value: Any) -> Any:
    """Compare floats anywhere inside with a tolerance: threads may add in another order."""
    if isinstance(value, dict):
        return {key: _approx(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_approx(item) for item in value]
    return pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value


def _pipeline(component: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component(_NAME, component)
    return pipeline


def _init_names(component: Any) -> list[str]:
    return [name for name in inspect.signature(type(component).__init__).parameters if name != "self"]


def _rebuilt(component: Any, **other: Any) -> Any:
    arguments = {name: getattr(component, name) for name in _init_names(component)}
    return type(component)(**{**arguments, **other})


def _not_zero(name: str, component: Any, other_init_arguments: dict[str, Any]) -> bool | int | float | None:
    """Return a value of a setting that 0 or False would change: the configured one, another one, or True."""
    for value in (getattr(component, name), other_init_arguments.get(name)):
        if isinstance(value, int | float) and value:
            return value
    return True if getattr(component, name) is False else None


def _overrides(component: Any) -> list[inspect.Parameter]:
    names = set(_init_names(component))
    return [p for p in inspect.signature(component.run).parameters.values() if p.name in names]


def _count_loads(component: Any) -> list[float]:
    """Make loading slower and note each time it happens (`_load` of `gr_components.lifecycle.Lifecycle`)."""
    loads: list[float] = []
    original = component._load

    def slow() -> Any:
        loads.append(time.monotonic())
        time.sleep(0.05)
        return original()

    component._load = slow
    return loads
