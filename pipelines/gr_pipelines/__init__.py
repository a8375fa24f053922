"""
Ready-made search and question answering pipelines: definitions in YAML, loading, indexing, the demo.

`load(name, store=...)` gives a Haystack pipeline; `QueryPipeline(name, store=...)` runs one by the names of its inputs
and outputs; `validate(path)` says what is wrong with a file of your own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr_pipelines.definition import names
    from gr_pipelines.loading import load, validate
    from gr_pipelines.query import QueryPipeline

__all__ = ["QueryPipeline", "load", "names", "validate"]

_WHERE = {"QueryPipeline": "query", "load": "loading", "names": "definition", "validate": "loading"}


def __getattr__(name: str) -> Any:
    # Haystack takes a second to import; commands that do not need it should not wait for it.
    if name not in _WHERE:
        msg = f"module 'gr_pipelines' has no attribute '{name}'"
        raise AttributeError(msg)
    import importlib

    return getattr(importlib.import_module(f"gr_pipelines.{_WHERE[name]}"), name)
