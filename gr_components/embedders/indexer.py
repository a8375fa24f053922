"""DenseIndexer: fills the vector index of a local store."""

from typing import TYPE_CHECKING, Any, Literal

from haystack import component
from haystack.utils import ComponentDevice, Secret

from gr_components.document_stores.local import LocalDocumentStore
from gr_components.embedders.pending import embed_pending
from gr_components.lifecycle import Lifecycle
from gr_components.models.resolve import MINILM
from gr_components.progress import reporter
from gr_components.settings import Serializable, check_model_settings, check_store, load_arguments

if TYPE_CHECKING:
    from gr_components.models.text_encoder import TextEncoder


@component
class DenseIndexer(Serializable, Lifecycle["TextEncoder"]):
    """
    Embeds the documents that a store's vector index lacks. Running it again does only what changed.

    In an indexing pipeline it follows the `DocumentWriter`: connect `documents_written`. Vectors go from the model into
    the store without becoming lists in documents on the way, so it suits corpora of any size.
    """

    def __init__(
        self,
        *,
        document_store: LocalDocumentStore,
        model: str = MINILM,
        index: str = "dense",
        prefix: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = " ",
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        progress_bar: bool = False,
        backend: Literal["torch", "onnx"] = "torch",
        device: ComponentDevice | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        token: Secret | None = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False),  # noqa: B008
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Store the settings; the model is loaded by `warm_up` or the first `run`.

        :param document_store: The store.
        :param model: As for `DocumentEmbedder`.
        :param index: Name of the vector index; made if missing.
        :param prefix: Put in front of each text; None for the prompt that the model names for documents, if any.
        :param meta_fields_to_embed: Metadata fields that are read in front of the content; None for `["title"]`.
        :param embedding_separator: Put between these fields and the content.
        :param pooling: Pooling mode in place of the model's own; `mean` is the default of plain encoders.
        :param max_length: Largest number of tokens of a text; None for the model's own limit. Longer texts are cut.
        :param batch_size: Texts per batch, sorted by length; halved when memory runs out.
        :param progress_bar: Whether progress is shown on standard error.
        :param backend: `torch`, or `onnx` for a folder made by `gr export`.
        :param device: Where the model runs; None for the best device there is.
        :param dtype: `float32`, `float16` or `bfloat16`.
        :param revision: Branch, tag or commit on the model hub.
        :param token: Access token for the model hub.
        :param local_files_only: Use only what is cached already.
        :param model_kwargs: Passed to `from_pretrained`; with `onnx`, attributes of `SessionOptions`.
        :raises ConfigError: If a setting is unknown or out of range.
        """
        self.document_store = check_store(document_store)
        self.model = str(model)
        self.index = index
        self.prefix = prefix
        self.meta_fields_to_embed = ["title"] if meta_fields_to_embed is None else list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.pooling = pooling
        self.max_length = max_length
        self.batch_size = batch_size
        self.progress_bar = progress_bar
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.token = token
        self.local_files_only = local_files_only
        self.model_kwargs = model_kwargs
        check_model_settings(
            batch_size=batch_size, dtype=dtype, backend=backend, max_length=max_length, pooling=pooling
        )
        self._start_lifecycle()

    @component.output_types(vectors_written=int)
    def run(self, documents_written: int | None = None) -> dict[str, int]:
        """
        Embed what the index lacks.

        :param documents_written: Not used; connect a `DocumentWriter` here to run after it.
        :returns: `vectors_written`: how many.
        :raises SearchIndexError: If the index holds vectors of another model.
        :raises NumericsError: If the model gives NaN or infinity.
        """
        with self._serial:
            written = embed_pending(
                self.document_store,
                self._engine(),
                index=self.index,
                prefix=self.prefix,
                meta_fields=self.meta_fields_to_embed,
                separator=self.embedding_separator,
                batch_size=self.batch_size,
                report=reporter(self.progress_bar),
            )
        return {"vectors_written": written}

    @component.output_types(vectors_written=int)
    async def run_async(self, documents_written: int | None = None) -> dict[str, int]:
        """
        Embed what the index lacks without blocking the event loop; otherwise as `run`.

        :param documents_written: Not used.
        :returns: `vectors_written`: how many.
        """
        return await self._in_thread(self.run, documents_written)

    def _load(self) -> "TextEncoder":
        from gr_components.models.text_encoder import load_text_encoder

        return load_text_encoder(
            self.model,
            backend=self.backend,
            pooling=self.pooling,
            max_length=self.max_length,
            **load_arguments(self),
        )

    def _release(self, engine: "TextEncoder") -> None:
        engine.close()
        self.document_store.close()
