"""What goes into a pipeline and what comes out, by name."""

from dataclasses import dataclass
from typing import Any

from haystack import Pipeline

from gr_components.errors import ConfigError
from gr_pipelines.definition import Definition, did_you_mean

_QUERY_SOCKETS = ("query", "text", "question")
_RESULT_SOCKETS = ("documents", "answers")


@dataclass(frozen=True)
class Interface:
    """
    What goes into a pipeline and what comes out.

    :param inputs: For each name the sockets `(component, socket)` that get the value.
    :param outputs: For each name the socket that has the result.
    """

    inputs: dict[str, tuple[tuple[str, str], ...]]
    outputs: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, pipeline: Pipeline, definition: Definition) -> "Interface":
        """
        Read the sections `inputs` and `outputs`; without them, take the open sockets of the usual names.

        :param pipeline: The pipeline built from the definition.
        :param definition: The definition.
        :raises ConfigError: If a section names a component or socket that does not exist.
        """
        declared = definition.body.get("inputs") or {}
        results = definition.body.get("outputs") or {}
        available = pipeline.inputs(include_components_with_connected_inputs=True)
        produced = pipeline.outputs(include_components_with_connected_outputs=True)
        inputs = {
            name: tuple(
                _socket(definition.name, path, available) for path in ([paths] if isinstance(paths, str) else paths)
            )
            for name, paths in declared.items()
        }
        outputs = {name: _socket(definition.name, path, produced) for name, path in results.items()}
        return cls(inputs or _open_inputs(pipeline), outputs or _open_outputs(pipeline))


def _socket(pipeline: str, path: Any, sockets: dict[str, dict[str, Any]]) -> tuple[str, str]:
    component, _, socket = str(path).partition(".")
    if component not in sockets:
        msg = f"Pipeline '{pipeline}': '{path}' names no component.{did_you_mean(component, sockets)}"
        raise ConfigError(msg)
    if socket not in sockets[component]:
        known = sockets[component]
        msg = f"Pipeline '{pipeline}': component '{component}' has no socket '{socket}'.{did_you_mean(socket, known)}"
        raise ConfigError(msg)
    return component, socket


def _open_inputs(pipeline: Pipeline) -> dict[str, tuple[tuple[str, str], ...]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for component, sockets in pipeline.inputs().items():
        for socket in sockets:
            name = "query" if socket in _QUERY_SOCKETS else socket
            if name in ("query", "filters"):
                found.setdefault(name, []).append((component, socket))
    last = [name for name, sockets in pipeline.outputs().items() if "documents" in sockets]
    openings = pipeline.inputs()
    tops = [(name, "top_k") for name in last if "top_k" in openings.get(name, {})]
    if tops:
        found["top_k"] = tops
    return {name: tuple(sockets) for name, sockets in found.items()}


def _open_outputs(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    return {
        socket: (component, socket)
        for component, sockets in pipeline.outputs().items()
        for socket in sockets
        if socket in _RESULT_SOCKETS
    }
