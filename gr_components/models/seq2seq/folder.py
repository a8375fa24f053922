"""
Model folders of encoder-decoders: load Hugging Face models and our own, save with full, half or 8-bit weights.

A saved folder holds `config.json` and `tokenizer.json` as Hugging Face writes them, `gr_model.json`, and

- `model.safetensors` with Hugging Face's parameter names (plus `copy_head.safetensors`): float32 or float16, or
- `model.int8.safetensors`: what is used of them, every matrix as int8 with one float32 scale per row, the rest in
  float16 (`row_weights.py`).
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel

from gr_components.errors import ConfigError, ModelError, ModelNotFoundError, TokenizerMismatchError
from gr_components.models import row_weights
from gr_components.models.description import read_description, write_description
from gr_components.models.devices import torch_device, torch_dtype
from gr_components.models.folders import replace_folder
from gr_components.models.pretrained import checked_kwargs, load_pretrained
from gr_components.models.resolve import resolve_model
from gr_components.models.seq2seq.copying import CopyConfig
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.models.seq2seq.torch_decoder import TorchDecoder
from gr_components.tokenization import TextTokenizer

Weights = Literal["float32", "float16", "int8"]
_FULL, _COPY, _INT8 = "model.safetensors", "copy_head.safetensors", row_weights.FILE_NAME
_COPY_PREFIX = "copy_head."
_POOLER = "encoder.pooler."  # of a BERT encoder; nothing reads it
_DECODER_EMBEDDING = "decoder.bert.embeddings.word_embeddings.weight"
_OUTPUT_LAYER = "decoder.cls.predictions.decoder.weight"


@dataclass
class LoadedSeq2Seq:
    """
    A model ready to use.

    :param model: The torch module, in evaluation mode.
    :param tokenizer: Its tokenizer.
    :param info: The content of `gr_model.json`; empty for a plain Hugging Face model.
    :param folder: Where it was loaded from.
    """

    model: Seq2SeqModel
    tokenizer: TextTokenizer
    info: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def decoder(self) -> TorchDecoder:
        """The decoder interface over the model."""
        return TorchDecoder(self.model)


def load_seq2seq(
    model: str,
    *,
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedSeq2Seq:
    """
    Load an encoder-decoder.

    :param model: Local folder, `package:NAME/FOLDER` or Hugging Face name.
    :param device: Device name; None for the best one there is.
    :param dtype: `float32`, `float16` or `bfloat16`.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for the hub.
    :param local_files_only: Use only what is cached already.
    :param model_kwargs: Passed to `from_pretrained` of plain Hugging Face models.
    :raises ModelNotFoundError: If a file is missing.
    :raises TokenizerMismatchError: If the tokenizer is not the one that the model was trained with.
    :raises ModelError: If the architecture is not supported or the weights do not fit.
    """
    where, number_type = torch_device(device), torch_dtype(dtype)
    folder = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    if not (folder / "config.json").is_file():
        msg = f"'{folder}' has no config.json; it is not a model folder."
        raise ModelNotFoundError(msg)
    tokenizer = load_tokenizer(folder)
    info = read_description(folder) or {}
    if info:
        checked_kwargs(model_kwargs)
        _check_tokenizer(info, tokenizer, folder)
        module = _load_own(folder, info)
    else:
        module = Seq2SeqModel(load_pretrained(AutoModelForSeq2SeqLM, folder, model_kwargs=model_kwargs))
    module = module.to(device=where, dtype=number_type).eval()
    return LoadedSeq2Seq(module, tokenizer, info, folder)


def save_seq2seq(
    model: Seq2SeqModel,
    tokenizer: TextTokenizer,
    info: Mapping[str, Any],
    folder: str | Path,
    *,
    weights: Weights = "float32",
) -> None:
    """
    Save a model so that it appears under its name only when complete; a folder that is there is replaced.

    :param model: The model.
    :param tokenizer: Its tokenizer.
    :param info: Description for `gr_model.json` (task, grammar, data, metrics, ...).
    :param folder: Where to.
    :param weights: `float32`, `float16` or `int8` (one scale per matrix row).
    :raises ConfigError: If `weights` is unknown.
    :raises ModelError: If its embeddings are shared in a way that could not be read back.
    """
    _check_sharing(model.hf)
    if weights not in ("float32", "float16", "int8"):
        msg = f"weights must be float32, float16 or int8, got {weights!r}."
        raise ConfigError(msg)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        model.hf.config.save_pretrained(temporary)
        tokenizer.save(temporary)
        _write_weights(model, temporary, weights)
        copy = None if model.copy is None else asdict(model.copy.config)
        description = {**info, "copy": copy, "weights": weights, "tokenizer_fingerprint": tokenizer.fingerprint}
        write_description(temporary, description)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors gives nobody else the right to read
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_tokenizer(folder: Path) -> TextTokenizer:
    """
    Load a folder's tokenizer, converting one that has no `tokenizer.json`.

    :param folder: A model folder.
    :raises ModelNotFoundError: If there is none.
    """
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.from_folder(folder)
    try:
        fast = AutoTokenizer.from_pretrained(folder, use_fast=True)
        special = {
            role: fast.convert_tokens_to_ids(token)
            for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
            if (token := getattr(fast, f"{role}_token", None)) is not None
        }
        return TextTokenizer(fast.backend_tokenizer, special)
    except Exception as error:
        msg = f"'{folder}' has no tokenizer.json, and no other tokenizer could be read from it: {error}"
        raise ModelNotFoundError(msg) from error


def tie_bert_decoder(hf: Any) -> None:
    """
    Share one embedding matrix between a BERT-to-BERT model's encoder, decoder and output layer.

    :param hf: An `EncoderDecoderModel`; changed in place.
    """
    encoder, decoder, output = _bert_embeddings(hf)
    decoder.weight = output.weight = encoder.weight


def _bert_embeddings(hf: Any) -> tuple[torch.nn.Embedding, torch.nn.Embedding, torch.nn.Linear]:
    """Embeddings of encoder and decoder, and output layer of a BERT-to-BERT model."""
    decoder = hf.decoder.bert.embeddings.word_embeddings
    return hf.encoder.embeddings.word_embeddings, decoder, hf.decoder.cls.predictions.decoder


def _share_as_saved(hf: Any, state: Mapping[str, Tensor]) -> None:
    """Give a BERT-to-BERT model as many embedding matrices as its folder has: one, two or three."""
    encoder, decoder, output = _bert_embeddings(hf)
    for module, name, other in ((decoder, _DECODER_EMBEDDING, encoder), (output, _OUTPUT_LAYER, decoder)):
        module.weight = torch.nn.Parameter(torch.empty_like(other.weight)) if name in state else other.weight


def _check_sharing(hf: Any) -> None:
    """Refuse what a folder cannot tell: it stores each matrix once, and config.json says little about sharing."""
    if hf.config.model_type == "encoder-decoder":
        encoder, decoder, output = (module.weight.data_ptr() for module in _bert_embeddings(hf))
        if output == encoder != decoder:
            msg = "The output layer shares its matrix with the encoder but not with the decoder. Share all or none."
            raise ModelError(msg)
        return
    shared = hf.get_output_embeddings().weight.data_ptr() == hf.get_input_embeddings().weight.data_ptr()
    if shared != hf.config.tie_word_embeddings:
        is_shared = "shares" if shared else "does not share"
        msg = (
            f"The output layer {is_shared} its matrix with the embedding, but the config's tie_word_embeddings is "
            f"{hf.config.tie_word_embeddings}. Correct it before saving, or the model would change when it is loaded."
        )
        raise ModelError(msg)


def _load_own(folder: Path, info: Mapping[str, Any]) -> Seq2SeqModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    state = _read_weights(folder)
    if config.model_type == "encoder-decoder":
        hf: Any = EncoderDecoderModel(config=config)
        _share_as_saved(hf, state)
        if not any(name.startswith(_POOLER) for name in state):
            hf.encoder.pooler = None
    else:
        hf = AutoModelForSeq2SeqLM.from_config(config)
    copy = info.get("copy")
    model = Seq2SeqModel(hf, None if copy is None else CopyConfig(**copy))
    own = {key.removeprefix(_COPY_PREFIX): state.pop(key) for key in list(state) if key.startswith(_COPY_PREFIX)}
    _assign(hf, state, folder)
    if model.copy is not None:
        _assign(model.copy, own, folder)
    return model


def _assign(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        msg = f"The weights in '{folder}' do not fit its config.json: {error}"
        raise ModelError(msg) from error
    by_name = module.state_dict(keep_vars=True)
    loaded = {by_name[name].data_ptr() for name in state if name in by_name}
    # Shared tensors are saved once, under one of their names.
    absent = [name for name in missing if by_name[name].data_ptr() not in loaded]
    if absent or unexpected:
        msg = f"The weights in '{folder}' do not fit: missing {absent[:5]}, unexpected {list(unexpected)[:5]}."
        raise ModelError(msg)


def _unique(module: torch.nn.Module) -> dict[str, Tensor]:
    seen: set[int] = set()
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor.detach().cpu()
    return state


def _write_weights(model: Seq2SeqModel, folder: Path, weights: Weights) -> None:
    state = _unique(model.hf)
    copy = {} if model.copy is None else _unique(model.copy)
    if weights == "int8":
        tensors: dict[str, Tensor] = {}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_POOLER)}
        for name, tensor in {**state, **{_COPY_PREFIX + name: t for name, t in copy.items()}}.items():
            tensors.update(row_weights.quantise(name, tensor))
        save_file(tensors, folder / _INT8, metadata={"format": "pt"})
        return
    dtype = torch.float16 if weights == "float16" else torch.float32
    cast = {name: t.to(dtype).contiguous() if t.is_floating_point() else t for name, t in state.items()}
    save_file(cast, folder / _FULL, metadata={"format": "pt"})
    if copy:
        prefixed = {_COPY_PREFIX + name: t.to(dtype).contiguous() for name, t in copy.items()}
        save_file(prefixed, folder / _COPY, metadata={"format": "pt"})


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = [folder / name for name in (_FULL, _COPY, _INT8) if (folder / name).is_file()]
    if not files or files == [folder / _COPY]:
        msg = f"'{folder}' has neither {_FULL} nor {_INT8}."
        raise ModelNotFoundError(msg)
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            msg = f"'{path}' is damaged or truncated: {error}"
            raise ModelError(msg) from error
    return row_weights.dequantised(state)


def _check_tokenizer(info: Mapping[str, Any], tokenizer: TextTokenizer, folder: Path) -> None:
    wanted = info.get("tokenizer_fingerprint")
    if wanted is not None and wanted != tokenizer.fingerprint:
        msg = (
            f"The tokenizer.json in '{folder}' is not the one that the model was trained with (fingerprint "
            f"{tokenizer.fingerprint[:12]}, expected {str(wanted)[:12]}). Restore the original file."
        )
        raise TokenizerMismatchError(msg)
