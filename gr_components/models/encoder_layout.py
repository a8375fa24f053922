"""
What a text encoder's folder says about the model: which files, which pooling, which steps after it, which prompts.

Read without torch from `modules.json` and its neighbours, as sentence-transformers writes them, or, for a plain Hugging
Face encoder, from nothing but `config.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gr_components.errors import ModelError, ModelNotFoundError
from gr_components.models.checks import POOLING_MODES, check_choice

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_STEPS = ("Dense", "LayerNorm", "Normalize")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Step:
    """
    One module after pooling.

    :param kind: `Dense`, `LayerNorm` or `Normalize`.
    :param config: Its `config.json`.
    :param folder: Where its weights are, if it has any.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class EncoderLayout:
    """
    A text encoder's description.

    :param folder: The Hugging Face model and its tokenizer.
    :param pooling: Modes whose results are concatenated.
    :param include_prompt: Whether the tokens of a prompt take part in pooling.
    :param steps: What follows pooling, in order.
    :param prompts: Prompt texts by name.
    :param max_length: Largest number of tokens, if the folder sets one.
    :param lower_case: Whether texts are lower-cased before the tokenizer.
    :param similarity: `cosine`, `dot` or another name that the folder gives, if any.
    """

    folder: Path
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    lower_case: bool = False
    similarity: str | None = None


@dataclass(frozen=True)
class EncoderInfo:
    """
    What a text encoder's user may want to know.

    :param dimension: Width of the vectors.
    :param max_length: Largest number of tokens of a text; longer texts are cut.
    :param fingerprint: Equal for equal models, whatever the backend; stored with vectors.
    :param prompts: Prompts of the model by name.
    :param include_prompt: Whether a prompt's tokens take part in pooling.
    :param type_ids: Whether the model takes segments.
    :param similarity: What the model was trained with (`cosine`, `dot`, ...), if it says so.
    """

    dimension: int
    max_length: int
    fingerprint: str
    prompts: dict[str, str] = field(default_factory=dict)
    include_prompt: bool = True
    type_ids: bool = True
    similarity: str | None = None


def choose_prompt(prompts: Mapping[str, str], role: Literal["query", "document"]) -> str:
    """
    Return the prompt that a model wants in front of queries or documents; often empty.

    For documents it is the first of `document`, `passage` and `corpus` that is not empty (sentence-transformers adds an
    empty `document` to whatever a model names).

    :param prompts: The model's prompts by name.
    :param role: `query` or `document`.
    """
    names = ("query",) if role == "query" else _DOCUMENT_PROMPTS
    return next((prompts[name] for name in names if prompts.get(name)), "")


def read_layout(folder: Path, *, pooling: str | None = None) -> EncoderLayout:
    """
    Read a text encoder's description.

    :param folder: A sentence-transformers folder or a plain Hugging Face encoder.
    :param pooling: Pooling mode in place of the folder's own; `mean` is the default of plain encoders.
    :raises ModelNotFoundError: If files are missing.
    :raises ModelError: If the folder describes something else than a text encoder.
    :raises ConfigError: If `pooling` is unknown.
    """
    if pooling is not None:
        check_choice("pooling", pooling, POOLING_MODES)
    if not (folder / "modules.json").is_file():
        _check_plain(folder)
        return EncoderLayout(folder, pooling=(pooling or "mean",))
    return _read_modules(folder, pooling)


def _read_modules(folder: Path, pooling: str | None) -> EncoderLayout:
    modules = sorted(read_json(folder / "modules.json"), key=lambda module: module["idx"])
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dropout", *_STEPS)]
    if unknown or kinds[:2] != ["Transformer", "Pooling"]:
        msg = (
            f"'{folder}' is a sentence-transformers model of the modules {', '.join(kinds)}. "
            f"Supported are Transformer, then Pooling, then any of {', '.join(_STEPS)} and Dropout."
        )
        raise ModelError(msg)
    base = folder / modules[0]["path"]
    settings = _transformer_settings(base)
    pooled = _pooling_settings(folder / modules[1]["path"])
    steps = tuple(
        _read_step(kind, folder / module["path"])
        for kind, module in zip(kinds[2:], modules[2:], strict=True)
        if kind != "Dropout"  # does nothing outside training
    )
    config_path = folder / "config_sentence_transformers.json"
    config = read_json(config_path) if config_path.is_file() else {}
    return EncoderLayout(
        base,
        pooling=pooled[0] if pooling is None else (pooling,),
        include_prompt=pooled[1],
        steps=steps,
        prompts={name: text for name, text in (config.get("prompts") or {}).items() if text is not None},
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
        similarity=config.get("similarity_fn_name"),
    )


def _check_plain(folder: Path) -> None:
    config = read_json(folder / "config.json")
    heads = [name for name in config.get("architectures") or () if name.endswith("ForSequenceClassification")]
    if heads:
        msg = f"'{folder}' holds a {heads[0]}, which scores pairs and is no text encoder. Use it in CrossEncoderRanker."
        raise ModelError(msg)
    if config.get("is_encoder_decoder") and config.get("model_type") not in ("t5", "mt5"):
        msg = f"'{folder}' holds an encoder-decoder of type {config['model_type']!r}, which is no text encoder."
        raise ModelError(msg)


def _transformer_settings(base: Path) -> dict[str, Any]:
    """Return `sentence_bert_config.json`, or its older names such as `sentence_roberta_config.json`."""
    read_json(base / "config.json")
    for path in sorted(base.glob("sentence_*_config.json")):
        settings = dict(read_json(path))
        text = settings.get("modality_config", {}).get("text", {})
        output = text.get("method_output_name", "last_hidden_state")
        if output not in ("last_hidden_state", 0):
            msg = f"'{path}' takes the output {output!r} of the model; only 'last_hidden_state' is supported."
            raise ModelError(msg)
        return settings
    return {}


def _pooling_settings(folder: Path) -> tuple[tuple[str, ...], bool]:
    config = read_json(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown:
        msg = f"'{folder / 'config.json'}' asks for pooling {unknown[0]!r}; known are {', '.join(POOLING_MODES)}."
        raise ModelError(msg)
    return modes, bool(config.get("include_prompt", True))


def _read_step(kind: str, folder: Path) -> Step:
    path = folder / "config.json"
    config = read_json(path) if kind != "Normalize" else {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            msg = f"'{path}' has {key} {config[key]!r}; only steps on 'sentence_embedding' are supported."
            raise ModelError(msg)
    return Step(kind, config, None if kind == "Normalize" else folder)


def read_json(path: Path) -> Any:
    """
    Read a JSON file of a model folder.

    :param path: The file.
    :raises ModelNotFoundError: If it is missing.
    :raises ModelError: If it is damaged.
    """
    if not path.is_file():
        msg = f"'{path.parent}' has no {path.name}. Is it the folder of a saved model?"
        raise ModelNotFoundError(msg)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"'{path}' is not valid JSON: {error}"
        raise ModelError(msg) from error
