"""
Text encoders: texts in, vectors out, with torch or with onnxruntime.

Reads sentence-transformers folders (Transformer, Pooling, Dense, LayerNorm, Normalize, prompts) and plain Hugging Face
encoders, and gives the vectors that `SentenceTransformer.encode` gives. Nothing here imports torch before a model with
`backend="torch"` is loaded.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError
from gr_components.extras import need
from gr_components.models.batching import check_finite, run_sorted
from gr_components.models.checks import Backend, check_backend, check_count
from gr_components.models.cut_texts import CutTexts
from gr_components.models.description import read_description
from gr_components.models.encoder_layout import EncoderInfo, choose_prompt, read_layout
from gr_components.models.fingerprints import encoder_fingerprint
from gr_components.models.onnx_session import OnnxSession, read_export
from gr_components.models.resolve import resolve_model
from gr_components.progress import Reporter, Silent, Task
from gr_components.tokenization import Templated, TextTokenizer, pad

_WINDOW = 8192  # texts that are tokenized at once: bounds memory, and is enough to sort by length


class Runner(Protocol):
    """Runs padded integer arrays, named `ids_BL`, `mask_BL`, `type_ids_BL`, `pooled_BL`, through a model."""

    def __call__(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """
        Run one batch.

        :param arrays: Inputs (B, L).
        :returns: The model's output as float32.
        """


class TextEncoder:
    """
    A loaded text encoder. Not safe under concurrent calls: hold a lock around `encode`.

    :param run: Runs padded batches.
    :param tokenizer: The model's tokenizer.
    :param info: What is known about the model.
    """

    def __init__(self, run: Runner, tokenizer: TextTokenizer, info: EncoderInfo) -> None:
        self._run: Runner | None = run
        self.tokenizer = tokenizer
        self.info = info
        self._cut = CutTexts()

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.info.dimension

    @property
    def fingerprint(self) -> str:
        """Equal for equal models, whatever the backend; stored with vectors."""
        return self.info.fingerprint

    def prompt(self, role: Literal["query", "document"]) -> str:
        """
        Return the prompt that the model wants in front of queries or documents; often empty.

        :param role: `query` or `document`.
        """
        return choose_prompt(self.info.prompts, role)

    def encode(
        self,
        texts: Sequence[str],
        *,
        prefix: str = "",
        batch_size: int = 32,
        report: Reporter | None = None,
        kind: str = "texts",
    ) -> npt.NDArray[np.float32]:
        """
        Encode texts. Longer ones than the model takes are cut, which the first time is a warning.

        :param texts: B texts; empty ones are allowed.
        :param prefix: Put in front of each text, such as `"query: "`.
        :param batch_size: Texts per batch; halved when memory runs out.
        :param report: Where progress goes.
        :param kind: What the texts are, for that warning.
        :returns: Vectors (B, E).
        :raises NumericsError: If the model gives NaN or infinity.
        """
        check_count("batch_size", batch_size, least=1)
        prompt_tokens = self._prompt_tokens(prefix)
        parts = [np.zeros((0, self.dimension), dtype=np.float32)]
        cut: list[bool] = []
        with Task(report or Silent(), "encode", len(texts)) as task:
            for start in range(0, len(texts), _WINDOW):
                window = texts[start : start + _WINDOW]
                prefixed = [prefix + text for text in window]
                encoded = self.tokenizer.encode_templated(prefixed, max_length=self.info.max_length)
                run = partial(self._rows, encoded, prompt_tokens)
                vectors_BE = run_sorted([len(e.ids) for e in encoded], batch_size, run, task)
                check_finite(vectors_BE, "texts", window)
                parts.append(vectors_BE)
                cut += [e.cut[0] > 0 for e in encoded]
        self._cut.report(kind, texts, cut, self.info.max_length)
        return np.concatenate(parts)

    def close(self) -> None:
        """Free the model."""
        self._run = None

    def _rows(self, encoded: list[Templated], prompt_tokens: int, rows: list[int]) -> npt.NDArray[np.float32]:
        if self._run is None:
            msg = "This text encoder was closed; load it again."
            raise ConfigError(msg)
        arrays = padded([encoded[row] for row in rows], self.tokenizer.pad_id, type_ids=self.info.type_ids)
        if not self.info.include_prompt:
            arrays["pooled_BL"] = arrays["mask_BL"].copy()
            arrays["pooled_BL"][:, :prompt_tokens] = 0
        return self._run(arrays)

    def _prompt_tokens(self, prefix: str) -> int:
        """Return how many tokens a prompt takes, a closing special token not counted."""
        if self.info.include_prompt or not prefix:
            return 0
        ids = self.tokenizer.encode_templated([prefix], max_length=self.info.max_length)[0].ids
        return len(ids) - (ids[-1] in self.tokenizer.special.values())


def load_text_encoder(
    model: str,
    *,
    backend: Backend = "torch",
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
) -> TextEncoder:
    """
    Load a text encoder.

    :param model: Local folder, `package:NAME/FOLDER` or Hugging Face name.
    :param backend: `torch`, or `onnx` for a folder made by `gr export`.
    :param device: Device name; None for the best one there is.
    :param dtype: `float32`, `float16` or `bfloat16`; vectors are float32 in any case.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for the hub.
    :param local_files_only: Use only what is cached already.
    :param model_kwargs: More arguments of `from_pretrained`; with `onnx`, attributes of `SessionOptions`.
    :param pooling: Pooling mode in place of the folder's own; `mean` is the default of plain encoders.
    :param max_length: Largest number of tokens in place of the folder's own.
    :raises ModelNotFoundError: If files are missing.
    :raises ModelError: If the folder holds something else than a text encoder, or damaged files.
    :raises DeviceError: If the device is absent.
    """
    check_backend(backend, dtype)
    folder = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    if backend == "onnx":
        need("onnxruntime", "onnx")
        return _load_onnx(folder, device, model_kwargs, pooling, max_length)
    need("torch", "torch")
    need("transformers", "torch")
    from gr_components.models.devices import torch_device, torch_dtype
    from gr_components.models.text_encoder_torch import TextEncoderModule
    from gr_components.models.torch_runner import TorchRunner

    where = torch_device(device)
    module = TextEncoderModule.from_folder(
        folder, dtype=torch_dtype(dtype), pooling=pooling, max_length=max_length, model_kwargs=model_kwargs
    )
    return TextEncoder(TorchRunner(module, where), module.tokenizer, module.info)


def text_encoder_fingerprint(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    pooling: str | None = None,
) -> str:
    """
    Return the fingerprint of a text encoder without loading it; an exported copy has that of its source.

    :param model: Local folder, `package:NAME/FOLDER` or Hugging Face name.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for the hub.
    :param local_files_only: Use only what is cached already.
    :param pooling: Pooling mode in place of the folder's own.
    """
    folder = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    if "onnx" in (read_description(folder) or {}):
        return str(read_export(folder, "dense")["info"]["fingerprint"])
    return encoder_fingerprint(read_layout(folder, pooling=pooling))


def padded(encoded: Sequence[Templated], pad_id: int, *, type_ids: bool) -> dict[str, npt.NDArray[np.int64]]:
    """
    Pad tokenized texts on the right.

    :param encoded: B texts or pairs. One without any token becomes a single padding token that is attended to.
    :param pad_id: The padding token.
    :param type_ids: Whether segments are wanted.
    :returns: `ids_BL`, `mask_BL` and, if wanted, `type_ids_BL`.
    """
    ids_BL, mask_BL = pad([e.ids or [pad_id] for e in encoded], pad_id)
    arrays = {"ids_BL": ids_BL, "mask_BL": mask_BL.astype(np.int64)}
    if type_ids:
        arrays["type_ids_BL"] = pad([e.type_ids or [0] for e in encoded], 0, ids_BL.shape[1])[0]
    return arrays


def _load_onnx(
    folder: Path, device: str | None, options: Mapping[str, Any] | None, pooling: str | None, max_length: int | None
) -> TextEncoder:
    about = read_export(folder, "dense")
    if pooling is not None:
        msg = f"pooling is part of an exported model and cannot be set to {pooling!r}; set it when exporting."
        raise ConfigError(msg)
    info = EncoderInfo(**about["info"])
    if max_length is not None:
        info = EncoderInfo(**{**about["info"], "max_length": min(max_length, info.max_length)})
    tokenizer = TextTokenizer.from_folder(folder)
    return TextEncoder(OnnxSession(about["path"], device=device, options=options), tokenizer, info)
