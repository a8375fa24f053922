"""
Pair scorers (cross-encoders): pairs of query and passage in, relevance scores out, with torch or with onnxruntime.

Reads any sequence-classification model; the sigmoid of a score is what `CrossEncoder.predict` gives by default. Nothing
here imports torch before a model with `backend="torch"` is loaded.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError
from gr_components.extras import need
from gr_components.models.batching import check_finite, run_sorted
from gr_components.models.checks import Backend, check_backend, check_count
from gr_components.models.cut_texts import CutTexts
from gr_components.models.onnx_session import OnnxSession, read_export
from gr_components.models.pair_layout import PairInfo
from gr_components.models.resolve import resolve_model
from gr_components.models.text_encoder import Runner, padded
from gr_components.progress import Reporter, Silent, Task
from gr_components.tokenization import Templated, TextTokenizer

_WINDOW = 8192  # pairs that are tokenized at once: bounds memory, and is enough to sort by length


class PairScorer:
    """
    A loaded pair scorer. Not safe under concurrent calls: hold a lock around `score`.

    :param run: Runs padded batches.
    :param tokenizer: The model's tokenizer.
    :param info: What is known about the model.
    """

    def __init__(self, run: Runner, tokenizer: TextTokenizer, info: PairInfo) -> None:
        self._run: Runner | None = run
        self.tokenizer = tokenizer
        self.info = info
        self._cut = CutTexts()

    def score(
        self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32, report: Reporter | None = None
    ) -> npt.NDArray[np.float32]:
        """
        Score pairs.

        Of a pair that is longer than the model takes, the longer text is cut, which the first time is a warning.

        :param pairs: P pairs of query and passage; empty texts are allowed.
        :param batch_size: Pairs per batch; halved when memory runs out.
        :param report: Where progress goes.
        :returns: Scores (P,), unscaled: higher is more relevant, the sigmoid is a probability.
        :raises NumericsError: If the model gives NaN or infinity.
        """
        check_count("batch_size", batch_size, least=1)
        parts = [np.zeros(0, dtype=np.float32)]
        cut: list[tuple[int, int]] = []  # tokens that queries and passages lost
        with Task(report or Silent(), "score", len(pairs)) as task:
            for start in range(0, len(pairs), _WINDOW):
                window = pairs[start : start + _WINDOW]
                firsts, seconds = [first for first, _ in window], [second for _, second in window]
                encoded = self.tokenizer.encode_templated(firsts, seconds, max_length=self.info.max_length)
                cut += [e.cut for e in encoded]
                scores_P = run_sorted([len(e.ids) for e in encoded], batch_size, partial(self._rows, encoded), task)
                check_finite(scores_P, "pairs", seconds)
                parts.append(scores_P)
        for side, kind in enumerate(("queries with their passage", "passages with their query")):
            lost = [tokens[side] > 0 for tokens in cut]
            self._cut.report(kind, [pair[side] for pair in pairs], lost, self.info.max_length)
        return np.concatenate(parts)

    def close(self) -> None:
        """Free the model."""
        self._run = None

    def _rows(self, encoded: list[Templated], rows: list[int]) -> npt.NDArray[np.float32]:
        if self._run is None:
            msg = "This pair scorer was closed; load it again."
            raise ConfigError(msg)
        return self._run(padded([encoded[row] for row in rows], self.tokenizer.pad_id, type_ids=self.info.type_ids))


def load_pair_scorer(
    model: str,
    *,
    backend: Backend = "torch",
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    label: int | str | None = None,
    max_length: int | None = None,
) -> PairScorer:
    """
    Load a pair scorer.

    :param model: Local folder, `package:NAME/FOLDER` or Hugging Face name.
    :param backend: `torch`, or `onnx` for a folder made by `gr export`.
    :param device: Device name; None for the best one there is.
    :param dtype: `float32`, `float16` or `bfloat16`; scores are float32 in any case.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for the hub.
    :param local_files_only: Use only what is cached already.
    :param model_kwargs: More arguments of `from_pretrained`; with `onnx`, attributes of `SessionOptions`.
    :param label: Number or name of the class that means "relevant". Models with one class need none, with two classes
        it is the second; with more it must be given.
    :param max_length: Largest number of tokens of a pair in place of the folder's own.
    :raises ModelNotFoundError: If files are missing.
    :raises ModelError: If the folder holds something else than a cross-encoder, or damaged files.
    :raises DeviceError: If the device is absent.
    """
    check_backend(backend, dtype)
    folder = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    if backend == "onnx":
        need("onnxruntime", "onnx")
        return _load_onnx(folder, device, model_kwargs, label, max_length)
    need("torch", "torch")
    need("transformers", "torch")
    from gr_components.models.devices import torch_device, torch_dtype
    from gr_components.models.pair_scorer_torch import PairScorerModule
    from gr_components.models.torch_runner import TorchRunner

    where = torch_device(device)
    module = PairScorerModule.from_folder(
        folder, dtype=torch_dtype(dtype), label=label, max_length=max_length, model_kwargs=model_kwargs
    )
    return PairScorer(TorchRunner(module, where), module.tokenizer, module.info)


def _load_onnx(
    folder: Path, device: str | None, options: Mapping[str, Any] | None, label: int | str | None, max_length: int | None
) -> PairScorer:
    about = read_export(folder, "ranker")
    if label is not None:
        msg = f"label is part of an exported model and cannot be set to {label!r}; set it when exporting."
        raise ConfigError(msg)
    info = PairInfo(**about["info"])
    if max_length is not None:
        info = PairInfo(**{**about["info"], "max_length": min(max_length, info.max_length)})
    tokenizer = TextTokenizer.from_folder(folder)
    return PairScorer(OnnxSession(about["path"], device=device, options=options), tokenizer, info)
