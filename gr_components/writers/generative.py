"""GenerativeIndexer: adds to a store's generative index the documents that it lacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from haystack import component
from haystack.utils import Secret

from gr_components.decoding.grammar import Grammar, TokenizedDocument, layout_documents, marker_grammar
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.lifecycle import Lifecycle
from gr_components.models.description import read_description
from gr_components.models.resolve import resolve_model
from gr_components.progress import Reporter, Silent, reporter
from gr_components.settings import Serializable, check_store, token_value
from gr_components.tokenization import TextTokenizer


@dataclass(frozen=True)
class IdentifierLayout:
    """
    How a generator's identifiers are laid out in an index: all that indexing needs of the model.

    :param grammar: The model's grammar.
    :param tokenizer: The model's tokenizer.
    """

    grammar: Grammar
    tokenizer: TextTokenizer

    @classmethod
    def of(cls, folder: Path) -> "IdentifierLayout":
        """
        Read the layout of a model, without its weights and without torch.

        :param folder: A model folder. One without a grammar in `gr_model.json` must write identifiers as SEAL's BART.
        """
        tokenizer = TextTokenizer.from_folder(folder)
        described = (read_description(folder) or {}).get("grammar")
        return cls(marker_grammar(tokenizer) if described is None else Grammar.from_dict(described), tokenizer)

    def tokenize(
        self, numbers: Sequence[int], titles: Sequence[str], texts: Sequence[str], queries: Sequence[Sequence[str]]
    ) -> list[TokenizedDocument]:
        """
        Turn documents into what the index stores.

        :param numbers: D document numbers.
        :param titles: D titles.
        :param texts: D texts.
        :param queries: D lists of pseudo-queries.
        """
        return layout_documents(numbers, titles, texts, queries, self.grammar, self.tokenizer)


def index_pending(
    store: LocalDocumentStore, layout: IdentifierLayout, *, index: str = "generative", report: Reporter | None = None
) -> int:
    """
    Add the documents that a generative index lacks; running it again does only what changed.

    :param store: The store.
    :param layout: Of the model that will search.
    :param index: Name of the index; made if missing.
    :param report: Where progress goes.
    :returns: How many documents were added.
    :raises TokenizerMismatchError: If the index was made with another tokenizer.
    :raises ConfigError: If it was made with another grammar.
    """
    return store.build_suffix(
        index,
        layout.tokenize,
        fields=layout.grammar.fields,
        boundary=layout.grammar.boundary,
        tokenizer_fingerprint=layout.tokenizer.fingerprint,
        vocabulary_size=layout.tokenizer.vocabulary_size,
        config={"grammar": layout.grammar.to_dict()},
        report=report or Silent(),
    )


@component
class GenerativeIndexer(Serializable, Lifecycle[IdentifierLayout]):
    """
    Adds to a store's generative index the documents that it lacks. Running it again does only what changed.

    In an indexing pipeline it follows the `DocumentWriter`: connect `documents_written`. It needs the generator's
    tokenizer and grammar, not its weights.

    ```python
    from haystack import Document
    from gr_components.document_stores.local import LocalDocumentStore
    from gr_components.writers.generative import GenerativeIndexer

    store = LocalDocumentStore("my_store")
    store.write_documents([Document(id="1", content="Ada Lovelace wrote the first program.")])
    GenerativeIndexer(document_store=store, model="package:gr_pipelines/models/generator").run()
    ```
    """

    def __init__(
        self,
        *,
        document_store: LocalDocumentStore,
        model: str,
        index: str = "generative",
        progress_bar: bool = False,
        revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
    ) -> None:
        """
        Store the settings; tokenizer and grammar are read by `warm_up` or the first `run`.

        :param document_store: The store.
        :param model: The generator: a local folder, `package:NAME/FOLDER` or a Hugging Face name.
        :param index: Name of the generative index; made if missing.
        :param progress_bar: Whether progress is shown on standard error.
        :param revision: Branch, tag or commit on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :raises ConfigError: If `document_store` is no LocalDocumentStore.
        """
        self.document_store = check_store(document_store)
        self.model = str(model)
        self.index = index
        self.progress_bar = progress_bar
        self.revision = revision
        self.token = token
        self.local_files_only = local_files_only
        self._start_lifecycle()

    @component.output_types(documents_indexed=int)
    def run(self, documents_written: int | None = None) -> dict[str, int]:
        """
        Add what the index lacks.

        :param documents_written: Not used; connect a `DocumentWriter` here to run after it.
        :returns: `documents_indexed`: how many.
        :raises TokenizerMismatchError: If the index was made with another tokenizer.
        """
        with self._serial:
            layout, report = self._engine(), reporter(self.progress_bar)
            return {"documents_indexed": index_pending(self.document_store, layout, index=self.index, report=report)}

    @component.output_types(documents_indexed=int)
    async def run_async(self, documents_written: int | None = None) -> dict[str, int]:
        """
        Add what the index lacks without blocking the event loop; otherwise as `run`.

        :param documents_written: Not used.
        :returns: `documents_indexed`: how many.
        """
        return await self._in_thread(self.run, documents_written)

    def _load(self) -> IdentifierLayout:
        folder = resolve_model(
            self.model, revision=self.revision, token=token_value(self.token), local_files_only=self.local_files_only
        )
        return IdentifierLayout.of(folder)

    def _release(self, engine: IdentifierLayout) -> None:
        self.document_store.close()
