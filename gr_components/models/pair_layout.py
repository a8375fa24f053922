"""What a cross-encoder's folder says about the model, read without torch."""

from dataclasses import dataclass
from pathlib import Path

from gr_components.errors import ModelError
from gr_components.models.encoder_layout import read_json


@dataclass(frozen=True)
class PairInfo:
    """
    What a pair scorer's user may want to know.

    :param max_length: Largest number of tokens of a pair; of longer ones, the longer text is cut.
    :param type_ids: Whether the model takes segments.
    """

    max_length: int
    type_ids: bool = True


def check_layout(folder: Path) -> None:
    """
    Refuse folders that hold something else than a sequence-classification model.

    :param folder: A model folder.
    :raises ModelNotFoundError: If there is no `config.json`.
    :raises ModelError: If it is a text encoder, or a cross-encoder with modules that are not supported.
    """
    config = read_json(folder / "config.json")
    kinds = []
    if (folder / "modules.json").is_file():
        kinds = [module["type"].rpartition(".")[2] for module in read_json(folder / "modules.json")]
    if "Pooling" in kinds:
        msg = (
            f"'{folder}' is a text encoder, which gives vectors and no scores of pairs. Use it in DenseRetriever, "
            "or train a ranker from it with the recipe 'listwise_ce'."
        )
        raise ModelError(msg)
    if kinds not in ([], ["Transformer"]):
        msg = f"'{folder}' is a cross-encoder of the modules {', '.join(kinds)}; only Transformer is supported."
        raise ModelError(msg)
    architectures = config.get("architectures") or []
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        msg = (
            f"'{folder}' holds a {architectures[0]}, which has no trained classification head. "
            "Train one with the recipe 'listwise_ce'."
        )
        raise ModelError(msg)
