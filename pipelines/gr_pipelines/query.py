"""Run a pipeline by the names of its inputs and outputs, whatever its components are called."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from haystack import Document
from haystack.dataclasses import GeneratedAnswer

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ConfigError
from gr_pipelines.definition import read
from gr_pipelines.interface import Interface
from gr_pipelines.loading import build


class QueryPipeline:
    """
    A loaded search or question answering pipeline with one method for each.

    ```python
    from gr_pipelines import QueryPipeline

    with QueryPipeline("bm25", store="my-store") as search:
        documents = search.documents("Who wrote Faust?", top_k=5)
    ```

    :param name_or_path: A shipped name or the path of a YAML file.
    :param parameters: Values for the definition's parameters.
    """

    def __init__(self, name_or_path: str | Path, **parameters: Any) -> None:
        definition = read(name_or_path)
        self.name = definition.name
        self.pipeline = build(definition, **parameters)
        self.interface = Interface.of(self.pipeline, definition)

    def run(self, query: str, *, top_k: int | None = None, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Run once and return all named outputs.

        :param query: Query or question.
        :param top_k: Number of documents; None for the pipeline's own setting.
        :param filters: Haystack filters; None for the pipeline's own setting.
        :raises ConfigError: If the pipeline has no input for a value that was given.
        """
        values = {"query": query, "top_k": top_k, "filters": None if filters is None else dict(filters)}
        data: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name not in self.interface.inputs:
                msg = f"Pipeline '{self.name}' has no input '{name}'; add it to its section 'inputs'."
                raise ConfigError(msg)
            for component, socket in self.interface.inputs[name]:
                data.setdefault(component, {})[socket] = value
        wanted = {component for component, _ in self.interface.outputs.values()}
        results = self.pipeline.run(data, include_outputs_from=wanted)
        return {
            name: results[component][socket]
            for name, (component, socket) in self.interface.outputs.items()
            if socket in results.get(component, {})
        }

    def documents(
        self, query: str, *, top_k: int | None = None, filters: Mapping[str, Any] | None = None
    ) -> list[Document]:
        """
        Search.

        :param query: The query.
        :param top_k: Number of documents; None for the pipeline's own setting.
        :param filters: Haystack filters.
        :raises ConfigError: If the pipeline has no output `documents`.
        """
        self.require("documents")
        found: list[Document] = self.run(query, top_k=top_k, filters=filters).get("documents", [])
        return found

    def answers(self, question: str, *, filters: Mapping[str, Any] | None = None) -> list[GeneratedAnswer]:
        """
        Answer a question.

        :param question: The question.
        :param filters: Haystack filters for the passages.
        :raises ConfigError: If the pipeline has no output `answers`.
        """
        self.require("answers")
        found: list[GeneratedAnswer] = self.run(question, filters=filters).get("answers", [])
        return found

    def require(self, output: str) -> None:
        """
        Check that the pipeline has an output.

        :param output: `documents` or `answers`.
        :raises ConfigError: If it has not.
        """
        if output not in self.interface.outputs:
            has = ", ".join(self.interface.outputs) or "none"
            other = "a pipeline with a reader, such as qa" if output == "answers" else "a pipeline with a retriever"
            msg = f"Pipeline '{self.name}' has no output '{output}' (it has: {has}). Use {other}."
            raise ConfigError(msg)

    def missing_stores(self) -> list[str]:
        """Return the folders in which a component looks for a local store and there is none."""
        components = (component for _, component in self.pipeline.walk())
        stores = [getattr(component, "document_store", None) for component in components]
        paths = [store.path for store in stores if isinstance(store, LocalDocumentStore) and not store.exists()]
        return list(dict.fromkeys(paths))

    def warm_up(self) -> None:
        """Load all models."""
        self.pipeline.warm_up()

    def close(self) -> None:
        """Free models and stores."""
        self.pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
