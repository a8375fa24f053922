"""Load a Hugging Face model and its tokenizer from a folder, refusing what would only seem to work."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, normalizers
from torch import nn

from gr_components.errors import ConfigError, ModelError, ModelNotFoundError
from gr_components.models import row_weights
from gr_components.models.quiet import without_progress_bars
from gr_components.tokenization import TextTokenizer

_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
_RESERVED_KWARGS = ("trust_remote_code", "use_kernels", "dtype", "torch_dtype", "use_safetensors", "device_map")


@dataclass(frozen=True)
class LoadedTokenizer:
    """
    A tokenizer as transformers loads it, and ours over the same definition.

    :param theirs: The transformers tokenizer; needed for saving.
    :param ours: The tokenizer that encodes.
    :param max_length: Largest number of tokens that the tokenizer and the model take.
    :param type_ids: Whether the model gets `token_type_ids`.
    """

    theirs: Any
    ours: TextTokenizer
    max_length: int
    type_ids: bool


def load_pretrained(
    auto_class: Any,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    model_kwargs: Mapping[str, Any] | None = None,
    may_lack: tuple[str, ...] = (),
) -> nn.Module:
    """
    Load a model's weights, from safetensors or from int8 rows.

    :param auto_class: A transformers class with `from_pretrained`.
    :param folder: A folder with `config.json` and weights.
    :param dtype: Number type of the weights in memory.
    :param model_kwargs: More arguments of `from_pretrained`, such as `attn_implementation`.
    :param may_lack: Beginnings of parameter names that the folder need not have.
    :raises ModelNotFoundError: If a file is missing.
    :raises ModelError: If files are damaged, or lack weights that the model needs.
    :raises ConfigError: If `model_kwargs` has an argument that is not allowed.
    """
    kwargs = checked_kwargs(model_kwargs)
    _check_files(folder)
    try:
        with without_progress_bars(), _without_load_report():
            if (folder / row_weights.FILE_NAME).is_file():
                return _from_rows(auto_class, folder, dtype, kwargs)
            model, info = auto_class.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True, **kwargs
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        msg = f"'{folder}' could not be loaded as {auto_class.__name__}: {error}"
        raise ModelError(msg) from error
    check_complete(info["missing_keys"], folder, may_lack)
    return model


def check_complete(missing: Any, folder: Path, may_lack: tuple[str, ...]) -> None:
    """
    Refuse a model with untrained parts: transformers fills missing weights with random numbers.

    :param missing: Names of parameters that the folder lacks.
    :param folder: The folder, for the message.
    :param may_lack: Beginnings of names that may be missing.
    :raises ModelError: If others are missing.
    """
    absent = sorted(name for name in missing if not any(part in name for part in may_lack))
    if absent:
        msg = (
            f"'{folder}' lacks {len(absent)} of the model's weights ({', '.join(absent[:3])}): "
            "it is of another architecture, or its head was never trained."
        )
        raise ModelError(msg)


def load_tokenizer(
    folder: Path, model: Any, *, lower_case: bool = False, max_length: int | None = None
) -> LoadedTokenizer:
    """
    Load a folder's tokenizer as transformers understands it, whatever files it is stored in.

    :param folder: A model folder.
    :param model: The model; its configuration limits the length.
    :param lower_case: Whether to lower-case texts before anything else.
    :param max_length: A limit that replaces the tokenizer's own.
    :raises ModelNotFoundError: If there is no usable tokenizer.
    :raises ConfigError: If `max_length` is more than the model has positions for.
    """
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        definition = theirs.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError, ImportError, KeyError) as error:
        msg = f"'{folder}' has no tokenizer that can be used (tokenizer.json is missing or damaged): {error}"
        raise ModelNotFoundError(msg) from error
    tokenizer = Tokenizer.from_str(definition)
    if lower_case and not _lower_cases(json.loads(definition)["normalizer"]):
        before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    special = {role: index for role in _ROLES if (index := getattr(theirs, f"{role}_token_id", None)) is not None}
    takes = "token_type_ids" in theirs.model_input_names and getattr(model.config, "type_vocab_size", 0) > 0
    return LoadedTokenizer(theirs, TextTokenizer(tokenizer, special), _max_length(theirs, model, max_length), takes)


def _lower_cases(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    parts = normalizer.get("normalizers", [])
    return normalizer["type"] == "Lowercase" or normalizer.get("lowercase") is True or any(map(_lower_cases, parts))


def _max_length(tokenizer: Any, model: Any, wanted: int | None) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = None if positions in (None, -1) else int(positions) - _first_position(model)
    if wanted is not None:
        if limit is not None and wanted > limit:
            msg = f"max_length must be at most {limit} for this model, got {wanted}."
            raise ConfigError(msg)
        return wanted
    return min(int(tokenizer.model_max_length), 8192 if limit is None else limit)


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its relatives number positions from `padding_idx` + 1, so that they have fewer than they store."""
    for module in model.modules():
        if isinstance(getattr(module, "padding_idx", None), int):
            table = getattr(module, "position_embeddings", None)
            if isinstance(table, nn.Embedding) and table.padding_idx is not None:
                return int(table.padding_idx) + 1
    return 0


def checked_kwargs(model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Return a user's `model_kwargs`, refusing what would run code of the model or read pickled weights.

    :param model_kwargs: More arguments of `from_pretrained`.
    :raises ConfigError: If one is not allowed.
    """
    kwargs = dict(model_kwargs or {})
    refused = [name for name in _RESERVED_KWARGS if name in kwargs]
    if "/" in str(kwargs.get("attn_implementation", "")):  # a repository whose kernels transformers would run
        refused.append(f"attn_implementation={kwargs['attn_implementation']!r}")
    if refused:
        msg = (
            f"model_kwargs may not hold {', '.join(refused)}. Use the arguments `dtype` and `device`; "
            "code that comes with a model is never run, and weights are read from safetensors only."
        )
        raise ConfigError(msg)
    return kwargs


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        msg = f"'{folder}' has no config.json; it is not a model folder."
        raise ModelNotFoundError(msg)
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.onnx")):
            msg = f"'{folder}' holds a model exported to ONNX. Set backend='onnx' to use it."
            raise ModelError(msg)
        msg = (
            f"'{folder}' has no weights in safetensors (other formats are not read, because they can run code). "
            "Load the model once with transformers and save it with `save_pretrained`."
        )
        raise ModelNotFoundError(msg)


def _from_rows(auto_class: Any, folder: Path, dtype: torch.dtype, kwargs: dict[str, Any]) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model = auto_class.from_config(config, dtype=torch.float32, **kwargs)
    state = row_weights.read_rows(folder)
    missing, unexpected = model.load_state_dict(state, strict=False)
    by_name = model.state_dict(keep_vars=True)
    loaded = {by_name[name].data_ptr() for name in state if name in by_name}
    absent = [name for name in missing if by_name[name].data_ptr() not in loaded]  # shared tensors are stored once
    if absent or unexpected:
        msg = f"The weights in '{folder}' do not fit: missing {absent[:5]}, unexpected {list(unexpected)[:5]}."
        raise ModelError(msg)
    return model.to(dtype).eval()


class _without_load_report:
    """Keep transformers from printing its table of missing weights; `check_complete` raises instead."""

    def __enter__(self) -> None:
        self._before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()

    def __exit__(self, *exit_info: object) -> None:
        transformers.logging.set_verbosity(self._before)
