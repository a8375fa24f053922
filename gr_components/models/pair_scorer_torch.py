"""
The pair scorer as a torch module: a sequence-classification model whose logits become one relevance score.

Shapes: P pairs, L tokens, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from gr_components.errors import ConfigError, ModelError
from gr_components.models.encoder_layout import read_json
from gr_components.models.pair_layout import PairInfo, check_layout
from gr_components.models.pretrained import LoadedTokenizer, load_pretrained, load_tokenizer
from gr_components.models.text_encoder_torch import save_transformer
from gr_components.tokenization import TextTokenizer, pad

_UNUSED = ("position_ids",)
_HEADS = ("classifier", "classification_head", "pooler", "pre_classifier", "score", "sequence_summary", "summary")


class PairScorerModule(nn.Module):
    """
    A sequence-classification model and the rule that makes one score of its logits.

    One class: its logit, as `CrossEncoder` does. Two classes: logit of the second minus logit of the first. More: the
    log-odds of the class `label` against all others. In each case the sigmoid of the score is the probability.

    :param model: The Hugging Face model.
    :param label: Number of the class that means "relevant".
    :param tokenizer: Its tokenizer.
    """

    def __init__(self, model: nn.Module, label: int, tokenizer: LoadedTokenizer) -> None:
        super().__init__()
        self.model = model
        self.label = label
        self._tokenizer = tokenizer

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        label: int | str | None = None,
        max_length: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> "PairScorerModule":
        """
        Load a trained cross-encoder: a sentence-transformers folder or a plain Hugging Face one.

        :param folder: The folder.
        :param dtype: Number type of the weights.
        :param label: Number or name of the class that means "relevant"; needed with three classes or more.
        :param max_length: Largest number of tokens of a pair in place of the folder's own.
        :param model_kwargs: More arguments of `from_pretrained`.
        :raises ModelNotFoundError: If files are missing.
        :raises ModelError: If the folder holds something else than a cross-encoder, or damaged files.
        :raises ConfigError: If `label` names no class.
        """
        folder = Path(folder)
        check_layout(folder)
        model: Any = load_pretrained(
            AutoModelForSequenceClassification, folder, dtype=dtype, model_kwargs=model_kwargs, may_lack=_UNUSED
        )
        return cls(model, _label(model.config, label, folder), _tokenizer(folder, model, max_length)).eval()

    @classmethod
    def from_encoder(
        cls, folder: str | Path, *, max_length: int | None = None, config: Mapping[str, Any] | None = None
    ) -> "PairScorerModule":
        """
        Build a cross-encoder to be trained: an encoder's weights under a new head with one class.

        The head's weights come from torch's random generator: set a seed before.

        :param folder: A Hugging Face encoder or a sentence-transformers folder.
        :param max_length: Largest number of tokens of a pair.
        :param config: Settings of the model's `config.json` to change, such as `num_hidden_layers` or dropouts.
        :raises ModelNotFoundError: If files are missing.
        :raises ModelError: If the encoder has no sequence-classification form.
        """
        folder = Path(folder)
        read_json(folder / "config.json")
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=1, **dict(config or {}))
        model: Any = load_pretrained(
            AutoModelForSequenceClassification, folder, model_kwargs={"config": settings}, may_lack=(*_UNUSED, *_HEADS)
        )
        return cls(model, 0, _tokenizer(folder, model, max_length)).eval()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer; `max_length` applies."""
        return self._tokenizer.ours

    @property
    def info(self) -> PairInfo:
        """What serving needs to know, also of an exported copy."""
        return PairInfo(max_length=self._tokenizer.max_length, type_ids=self._tokenizer.type_ids)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, type_ids_BL: Tensor | None = None) -> Tensor:
        """
        Score padded pairs.

        :param ids_BL: Token ids of P pairs, (P, L).
        :param mask_BL: 1 on real tokens, 0 on padding (on the right).
        :param type_ids_BL: Segments; all zero when absent.
        :returns: Scores (P,), unscaled.
        """
        given = {} if type_ids_BL is None else {"token_type_ids": type_ids_BL}
        logits_PC = self.model(input_ids=ids_BL, attention_mask=mask_BL, **given).logits
        if logits_PC.shape[1] == 1:
            return logits_PC[:, 0]
        others = [index for index in range(logits_PC.shape[1]) if index != self.label]
        return logits_PC[:, self.label] - torch.logsumexp(logits_PC[:, others].float(), dim=1).to(logits_PC.dtype)

    def inputs(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """
        Tokenize a batch of pairs for `forward`, on the module's device.

        :param pairs: P pairs of query and passage.
        :returns: Arguments of `forward`, (P, L).
        """
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
        encoded = self.tokenizer.encode_templated(firsts, seconds, max_length=self.info.max_length)
        ids_BL, mask_BL = pad([e.ids for e in encoded], self.tokenizer.pad_id)
        arrays = {"ids_BL": ids_BL, "mask_BL": mask_BL.astype("int64")}
        if self.info.type_ids:
            arrays["type_ids_BL"] = pad([e.type_ids for e in encoded], 0, ids_BL.shape[1])[0]
        device = next(self.parameters()).device
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}

    def save(self, folder: str | Path, *, weights: str = "full") -> None:
        """
        Save as a folder that sentence-transformers' `CrossEncoder` and `load_pair_scorer` read.

        :param folder: Where to; created if needed.
        :param weights: `full` keeps the module's number type; `int8` (one scale per matrix row) takes a quarter of the
            space and is read by this project only.
        """
        save_transformer(self.model, self._tokenizer, Path(folder), weights)


def _tokenizer(folder: Path, model: Any, max_length: int | None) -> LoadedTokenizer:
    tokenizer = load_tokenizer(folder, model, max_length=max_length)
    if model.config.pad_token_id is None:
        # Decoder-only classifiers look for padding to find the last token of each row.
        model.config.pad_token_id = tokenizer.ours.pad_id
    return tokenizer


def _label(config: Any, label: int | str | None, folder: Path) -> int:
    names = {int(index): str(name) for index, name in config.id2label.items()}
    listed = ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))
    if label is None:
        if len(names) > 2:
            msg = f"'{folder}' has {len(names)} classes: {listed}. Set `label` to the one that means 'relevant'."
            raise ModelError(msg)
        return len(names) - 1
    matches = [index for index, name in names.items() if label in (index, name)]
    if not matches:
        msg = f"label {label!r} is no class of '{folder}', which has {listed}."
        raise ConfigError(msg)
    return matches[0]
