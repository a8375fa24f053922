"""DocumentEmbedder: gives documents their vectors, for indexing pipelines."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from haystack import Document, component, logging
from haystack.utils import ComponentDevice, Secret

from gr_components.data.haystack import EMBEDDING_MODEL
from gr_components.errors import DataError
from gr_components.lifecycle import Lifecycle
from gr_components.models.resolve import MINILM
from gr_components.progress import reporter
from gr_components.settings import Serializable, check_model_settings, document_text, load_arguments

if TYPE_CHECKING:
    from gr_components.models.text_encoder import TextEncoder

logger = logging.getLogger(__name__)


@component
class DocumentEmbedder(Serializable, Lifecycle["TextEncoder"]):
    """
    Computes the vectors of documents from their title and content.

    `meta["embedding_model"]` of each document gets the fingerprint of the model; a `LocalDocumentStore` keeps it with
    the vectors and refuses to mix models, and `DenseRetriever` refuses to search with another one.

    Large corpora need not go through a pipeline with their vectors: `DenseIndexer` embeds what a store lacks.

    ```python
    from haystack import Document
    from gr_components.embedders.document import DocumentEmbedder

    embedder = DocumentEmbedder()
    documents = [Document(content="Ada Lovelace wrote the first program.", meta={"title": "Ada Lovelace"})]
    print(len(embedder.run(documents=documents)["documents"][0].embedding))
    ```
    """

    def __init__(
        self,
        model: str = MINILM,
        *,
        prefix: str | None = None,
        suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = " ",
        normalize_embeddings: bool = False,
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

        :param model: A sentence-transformers folder or a plain encoder: local folder, `package:NAME/FOLDER` or Hugging
            Face name.
        :param prefix: Put in front of each text; None for the prompt that the model names for documents, if any.
        :param suffix: Put behind each text.
        :param meta_fields_to_embed: Metadata fields that are read in front of the content; None for `["title"]`.
        :param embedding_separator: Put between these fields and the content.
        :param normalize_embeddings: Whether vectors are given length one.
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
        self.model = str(model)
        self.prefix = prefix
        self.suffix = suffix
        self.meta_fields_to_embed = ["title"] if meta_fields_to_embed is None else list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.normalize_embeddings = normalize_embeddings
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

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """
        Embed documents.

        :param documents: Documents; one without any text is returned without a vector.
        :returns: `documents`, copies in the same order with `embedding` set.
        :raises DataError: If something else than documents is given.
        :raises NumericsError: If the model gives NaN or infinity.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            msg = f"DocumentEmbedder needs a list of documents, got {_described(documents)}."
            raise DataError(msg)
        texts = [document_text(d, self.meta_fields_to_embed, self.embedding_separator) for d in documents]
        rows = [row for row, text in enumerate(texts) if text]
        if len(rows) < len(documents):
            number = len(documents) - len(rows)
            logger.warning("{number} document(s) have no text and get no embedding.", number=number)
        embedded = list(documents)
        if not rows:
            return {"documents": embedded}
        with self._serial:
            encoder = self._engine()
            prefix = encoder.prompt("document") if self.prefix is None else self.prefix
            vectors_BE = encoder.encode(
                [texts[row] + self.suffix for row in rows],
                prefix=prefix,
                batch_size=self.batch_size,
                report=reporter(self.progress_bar),
                kind="documents",
            )
            fingerprint = encoder.fingerprint
        if self.normalize_embeddings:
            vectors_BE = vectors_BE / np.linalg.norm(vectors_BE, axis=1, keepdims=True).clip(min=1e-12)
        for row, vector_E in zip(rows, vectors_BE, strict=True):
            meta = {**documents[row].meta, EMBEDDING_MODEL: fingerprint}
            embedded[row] = replace(documents[row], embedding=vector_E.tolist(), meta=meta)
        return {"documents": embedded}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """
        Embed documents without blocking the event loop; otherwise as `run`.

        :param documents: Documents.
        :returns: `documents` with `embedding` set.
        """
        return await self._in_thread(self.run, documents)

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


def _described(value: Any) -> str:
    if not isinstance(value, list):
        return type(value).__name__
    return f"a list with {next(type(item).__name__ for item in value if not isinstance(item, Document))}"
