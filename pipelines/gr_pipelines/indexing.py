"""Write documents to a local store and bring its indexes up to date, doing only what changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import ConfigError, SearchIndexError, StoreError, TokenizerMismatchError
from gr_components.models.resolve import MINILM, resolve_model
from gr_components.progress import Reporter, Task
from gr_components.writers.generative import IdentifierLayout, index_pending
from gr_pipelines.definition import did_you_mean
from gr_pipelines.sources import open_sources, total, unique

if TYPE_CHECKING:
    from gr_components.indexes.registry import IndexState

INDEXES = ("lexical", "dense", "generative")
DENSE_MODEL = MINILM
GENERATIVE_MODEL = "package:gr_pipelines/models/generator"
_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """
    What `gr index` keeps up to date, and with which models.

    :param indexes: Some of `lexical`, `dense`, `generative`. The lexical index keeps itself.
    :param dense_model: Encoder of the dense index.
    :param generative_model: Generator whose identifiers the generative index holds.
    :param device: Where the encoder runs; None for the best there is.
    :param batch_size: Texts encoded at once.
    :param max_words: Text files are cut into passages of at most this many words.
    :param dense_index: Name of the dense index.
    :param generative_index: Name of the generative index.
    :param rebuild: Names of indexes that are thrown away first.
    :param language: Snowball language of a new store's lexical index; None for English.
    :param lexical_queries: Whether a new store's lexical index reads pseudo-queries too; None for no.
    """

    indexes: tuple[str, ...] = INDEXES
    dense_model: str = DENSE_MODEL
    generative_model: str = GENERATIVE_MODEL
    dense_index: str = "dense"
    generative_index: str = "generative"
    rebuild: tuple[str, ...] = ()
    language: str | None = None
    lexical_queries: bool | None = None
    device: str | None = None
    batch_size: int = 32
    max_words: int = 100

    def __post_init__(self) -> None:
        for name in self.indexes:
            if name not in INDEXES:
                msg = f"Unknown index '{name}'.{did_you_mean(name, INDEXES)} Choose from {', '.join(INDEXES)}."
                raise ConfigError(msg)


@dataclass
class Summary:
    """
    What `index_documents` did.

    :param read: Documents read.
    :param new: How many more the store has now.
    :param stored: Documents in the store.
    :param states: The indexes afterwards.
    """

    read: int = 0
    new: int = 0
    stored: int = 0
    states: "list[IndexState]" = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield lines for people."""
        yield f"{self.read} documents read, {self.new} new, {self.stored} in the store."
        for state in self.states:
            status = f"{state.lag} documents behind" if state.lag else "up to date"
            yield f"index '{state.name}' ({state.kind}): {status}"


def index_documents(paths: Sequence[Path], store: Path, options: IndexOptions, report: Reporter) -> Summary:
    """
    Write documents and bring the indexes up to date.

    Documents are read, written and encoded in batches, so memory does not grow with the corpus. Every batch is
    committed on its own: after an interruption, running it again goes on.

    :param paths: Corpus files and folders of text files; none to update only the indexes.
    :param store: Folder of the store; made if needed.
    :param options: Which indexes and models.
    :param report: Where progress goes.
    :raises DataError: On malformed input; what was read before it is kept.
    """
    sources = open_sources(paths, options.max_words)
    document_store = LocalDocumentStore(str(store), language=options.language, lexical_queries=options.lexical_queries)
    if not sources and not document_store.exists():
        msg = f"There is no store in '{store}', and no documents to make one were given: gr index DOCS --store {store}"
        raise StoreError(msg)
    summary = Summary()
    try:
        before = document_store.count_documents()
        with Task(report, "write documents", total(sources)) as task:
            documents = unique(sources)
            while batch := list(islice(documents, _BATCH)):
                _write(document_store, batch)
                summary.read += len(batch)
                task.advance(len(batch))
        update_indexes(document_store, options, report)
        summary.stored = document_store.count_documents()
        summary.new = summary.stored - before
        summary.states = document_store.indexes()
    finally:
        document_store.close()
    return summary


def _write(store: LocalDocumentStore, documents: list[Document]) -> None:
    # Overwriting a document with the same text and metadata changes nothing in the store.
    store.write_documents(documents, policy=DuplicatePolicy.OVERWRITE)


def update_indexes(store: LocalDocumentStore, options: IndexOptions, report: Reporter) -> None:
    """
    Bring indexes up to date; models are loaded only if there is something to do.

    :param store: The store.
    :param options: Which indexes and models.
    :param report: Where progress goes.
    :raises SearchIndexError: If an index was made with another model; nothing of it is changed.
    """
    for name in options.rebuild:
        store.delete_index(name)
    store.refresh()
    updates = {
        "dense": (_update_dense, options.dense_index),
        "generative": (_update_generative, options.generative_index),
    }
    for kind in options.indexes:
        if kind not in updates:
            continue
        update, name = updates[kind]
        try:
            update(store, options, report)
        except (SearchIndexError, TokenizerMismatchError) as error:
            msg = f"{error} From the command line: gr index --rebuild {name}"
            raise type(error)(msg) from error


def _update_dense(store: LocalDocumentStore, options: IndexOptions, report: Reporter) -> None:
    from gr_components.embedders.pending import embed_pending
    from gr_components.models.encoder_layout import read_layout
    from gr_components.models.fingerprints import encoder_fingerprint
    from gr_components.models.text_encoder import load_text_encoder

    folder = resolve_model(options.dense_model)
    state = next((state for state in store.indexes() if state.name == options.dense_index), None)
    if state is not None and state.model_fingerprint is not None:
        fingerprint = encoder_fingerprint(read_layout(folder))  # from files: the model need not be loaded to compare
        if state.model_fingerprint != fingerprint:
            msg = f"The index '{state.name}' was made with another model than '{options.dense_model}'."
            raise SearchIndexError(msg)
        if state.lag == 0:
            return
    encoder = load_text_encoder(str(folder), device=options.device)
    try:
        embed_pending(
            store, encoder, index=options.dense_index, batch_size=options.batch_size, report=report
        )  # fmt: skip
    finally:
        encoder.close()


def _update_generative(store: LocalDocumentStore, options: IndexOptions, report: Reporter) -> None:
    layout = IdentifierLayout.of(resolve_model(options.generative_model))
    try:
        index_pending(store, layout, index=options.generative_index, report=report)
    except ConfigError as error:  # another grammar
        msg = f"{error} From the command line: gr index --rebuild {options.generative_index}"
        raise ConfigError(msg) from error
