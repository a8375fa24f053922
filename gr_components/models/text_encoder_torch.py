"""
The text encoder as a torch module: the same object is trained, served, exported and saved.

Shapes: B texts, L tokens, H width of the Hugging Face model, E width of the vectors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from gr_components.errors import ConfigError
from gr_components.models import row_weights
from gr_components.models.encoder_layout import EncoderInfo, EncoderLayout, read_layout
from gr_components.models.fingerprints import encoder_fingerprint
from gr_components.models.pooling import load_step, pool, save_step
from gr_components.models.pretrained import LoadedTokenizer, load_pretrained, load_tokenizer
from gr_components.models.quiet import without_progress_bars
from gr_components.tokenization import TextTokenizer, pad

_UNUSED = ("pooler", "position_ids", "lm_head", "cls.")
_ST = "sentence_transformers.models."


class TextEncoderModule(nn.Module):
    """
    A Hugging Face encoder, pooling over its tokens, and the steps after pooling.

    :param encoder: The Hugging Face model.
    :param steps: Modules applied to the pooled vectors, in order.
    :param layout: Description of the model.
    :param tokenizer: Its tokenizer.
    """

    def __init__(
        self, encoder: nn.Module, steps: Sequence[nn.Module], layout: EncoderLayout, tokenizer: LoadedTokenizer
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.steps = nn.ModuleList(steps)
        self.layout = layout
        self._tokenizer = tokenizer

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        pooling: str | None = None,
        max_length: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> "TextEncoderModule":
        """
        Load a sentence-transformers folder or a plain Hugging Face encoder.

        :param folder: The folder.
        :param dtype: Number type of the weights.
        :param pooling: Pooling mode in place of the folder's own; `mean` is the default of plain encoders.
        :param max_length: Largest number of tokens in place of the folder's own.
        :param model_kwargs: More arguments of `from_pretrained`.
        :raises ModelNotFoundError: If files are missing.
        :raises ModelError: If the folder holds something else than a text encoder, or damaged files.
        """
        layout = read_layout(Path(folder), pooling=pooling)
        encoder = load_pretrained(
            _auto_class(layout.folder), layout.folder, dtype=dtype, model_kwargs=model_kwargs, may_lack=_UNUSED
        )
        steps = [load_step(step).to(dtype) for step in layout.steps]
        wanted = layout.max_length if max_length is None else max_length
        tokenizer = load_tokenizer(layout.folder, encoder, lower_case=layout.lower_case, max_length=wanted)
        return cls(encoder, steps, layout, tokenizer).eval()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer; `max_length` applies."""
        return self._tokenizer.ours

    @property
    def max_length(self) -> int:
        """Largest number of tokens of a text, those of the template included."""
        return self._tokenizer.max_length

    @property
    def type_ids(self) -> bool:
        """Whether `forward` is to be given `type_ids_BL`."""
        return self._tokenizer.type_ids

    @property
    def dimension(self) -> int:
        """Width E of the vectors."""
        for step in reversed(self.layout.steps):
            if step.kind == "Dense":
                return int(step.config["out_features"])
        return int(self.encoder.config.hidden_size) * len(self.layout.pooling)  # type: ignore[union-attr,arg-type]

    @property
    def info(self) -> EncoderInfo:
        """What serving needs to know, also of an exported copy. Hashes the folder's files."""
        return EncoderInfo(
            dimension=self.dimension,
            max_length=self.max_length,
            fingerprint=encoder_fingerprint(self.layout),
            prompts=self.layout.prompts,
            include_prompt=self.layout.include_prompt,
            type_ids=self.type_ids,
            similarity=self.layout.similarity,
        )

    def forward(
        self, ids_BL: Tensor, mask_BL: Tensor, type_ids_BL: Tensor | None = None, pooled_BL: Tensor | None = None
    ) -> Tensor:
        """
        Encode padded token ids.

        :param ids_BL: Token ids.
        :param mask_BL: 1 on real tokens, 0 on padding (on the right).
        :param type_ids_BL: Segments; all zero when absent.
        :param pooled_BL: 1 on tokens that take part in pooling; `mask_BL` when absent.
        :returns: Vectors (B, E).
        """
        given = {} if type_ids_BL is None else {"token_type_ids": type_ids_BL}
        states_BLH = self.encoder(input_ids=ids_BL, attention_mask=mask_BL, **given).last_hidden_state
        vectors_BE = pool(states_BLH, mask_BL if pooled_BL is None else pooled_BL, self.layout.pooling)
        for step in self.steps:
            vectors_BE = step(vectors_BE)
        return vectors_BE

    def inputs(self, texts: Sequence[str], *, prefix: str = "") -> dict[str, Tensor]:
        """
        Tokenize a batch of texts for `forward`, on the module's device.

        :param texts: B texts.
        :param prefix: Put in front of each text.
        :returns: Arguments of `forward`, (B, L).
        """
        encoded = self.tokenizer.encode_templated([prefix + text for text in texts], max_length=self.max_length)
        ids_BL, mask_BL = pad([e.ids for e in encoded], self.tokenizer.pad_id)
        arrays = {"ids_BL": ids_BL, "mask_BL": mask_BL.astype("int64")}
        if self.type_ids:
            arrays["type_ids_BL"] = pad([e.type_ids for e in encoded], 0, ids_BL.shape[1])[0]
        device = next(self.parameters()).device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def save(self, folder: str | Path, *, weights: str = "full") -> None:
        """
        Save as a folder that `SentenceTransformer` and `load_text_encoder` read.

        :param folder: Where to; created if needed.
        :param weights: `full` keeps the module's number type; `int8` (one scale per matrix row) takes a quarter of the
            space and is read by this project only.
        """
        folder = Path(folder)
        save_transformer(self.encoder, self._tokenizer, folder, weights)
        paths = [("", "Transformer"), ("1_Pooling", "Pooling")]
        paths += [(f"{n + 2}_{step.kind}", step.kind) for n, step in enumerate(self.layout.steps)]
        entries = [{"idx": n, "name": str(n), "path": p, "type": _ST + kind} for n, (p, kind) in enumerate(paths)]
        _write_json(folder / "modules.json", entries)
        _write_json(folder / "1_Pooling" / "config.json", self._pooling_config())
        for (path, _), step, module in zip(paths[2:], self.layout.steps, self.steps, strict=True):
            save_step(folder / path, step, module)
        settings = {"max_seq_length": self.max_length, "do_lower_case": self.layout.lower_case}
        _write_json(folder / "sentence_bert_config.json", settings)
        about = {
            "model_type": "SentenceTransformer",
            "prompts": self.layout.prompts,
            "default_prompt_name": None,
            "similarity_fn_name": self.layout.similarity or "cosine",
        }
        _write_json(folder / "config_sentence_transformers.json", about)

    def _pooling_config(self) -> dict[str, Any]:
        modes = {
            "cls": "cls_token",
            "max": "max_tokens",
            "mean": "mean_tokens",
            "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
            "weightedmean": "weightedmean_tokens",
            "lasttoken": "lasttoken",
        }
        chosen = {f"pooling_mode_{name}": mode in self.layout.pooling for mode, name in modes.items()}
        width = int(self.encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        return {"word_embedding_dimension": width, **chosen, "include_prompt": self.layout.include_prompt}


def save_transformer(model: Any, tokenizer: LoadedTokenizer, folder: Path, weights: str) -> None:
    """
    Save a Hugging Face model with its tokenizer.

    :param model: The model.
    :param tokenizer: Its tokenizer; `max_length` is stored with it.
    :param folder: Where to; created if needed.
    :param weights: `full` or `int8`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if weights not in ("full", "int8"):
        msg = f"weights must be full or int8, got {weights!r}."
        raise ConfigError(msg)
    if weights == "int8":
        model.config.save_pretrained(folder)
        row_weights.save_rows(model, folder)
    else:
        with without_progress_bars():
            model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    tokenizer.theirs.save_pretrained(folder)
    definition = folder / "tokenizer.json"
    if weights == "int8" and definition.is_file():  # indentation is a third of it
        compact = json.dumps(
            json.loads(definition.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")
        )
        definition.write_text(compact, encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    config = {**json.loads(settings.read_text(encoding="utf-8")), "model_max_length": tokenizer.max_length}
    _write_json(settings, config)


def _auto_class(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"t5": transformers.T5EncoderModel, "mt5": transformers.MT5EncoderModel}.get(
        config.get("model_type"), transformers.AutoModel
    )


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
