"""Embed what a store's vector index lacks, in batches, without carrying vectors through a pipeline."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.progress import Reporter, Silent, Task
from gr_components.settings import document_text

if TYPE_CHECKING:
    from gr_components.models.text_encoder import TextEncoder

_CHUNK = 1024  # documents between two commits: what a killed process has to do again


def embed_pending(
    store: LocalDocumentStore,
    encoder: "TextEncoder",
    *,
    index: str = "dense",
    prefix: str | None = None,
    meta_fields: Sequence[str] = ("title",),
    separator: str = " ",
    batch_size: int = 32,
    report: Reporter | None = None,
) -> int:
    """
    Embed the documents with text that a vector index lacks; running it again does only what changed.

    :param store: The store.
    :param encoder: The text encoder; its fingerprint is stored with the vectors.
    :param index: Name of the vector index; made if missing.
    :param prefix: Put in front of each text; None for the prompt that the model names for documents, if any.
    :param meta_fields: Metadata fields that are read in front of the content.
    :param separator: Put between these fields and the content.
    :param batch_size: Texts per batch.
    :param report: Where progress goes.
    :returns: How many vectors were written.
    :raises SearchIndexError: If the index holds vectors of another model.
    """
    prefix = encoder.prompt("document") if prefix is None else prefix
    lags = {state.name: state.lag for state in store.indexes()}
    pending = store.pending(index)
    written = 0
    with Task(report or Silent(), f"index {index}", lags.get(index, store.count_documents())) as task:
        while chunk := list(islice(pending, _CHUNK)):
            numbers = [number for number, _ in chunk]
            texts = [document_text(document, meta_fields, separator) for _, document in chunk]
            vectors_BE = encoder.encode(
                texts, prefix=prefix, batch_size=batch_size, report=_Within(task), kind="documents"
            )
            written += store.write_vectors(index, numbers, vectors_BE, model_fingerprint=encoder.fingerprint)
    return written


class _Within:
    """Passes the steps of an inner task on to the outer one: a chunk may take minutes."""

    def __init__(self, task: Task) -> None:
        self._task, self._step = task, 0

    def event(self, name: str, **fields: Any) -> None:
        if fields["step"] > self._step:
            self._task.advance(fields["step"] - self._step)
            self._step = fields["step"]
