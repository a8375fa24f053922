"""
`seal`: spans of the passage and its title as identifiers (Bevilacqua et al., 2022, https://arxiv.org/abs/2204.10628).

The recipe `minder` without its query view.
"""

from dataclasses import field
from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative.multi_view import MultiViewConfig, multi_view_steps, train_multi_view
from gr_training.generative.pairs import PairsConfig
from gr_training.run import Run
from gr_training.stages import Step


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(MultiViewConfig):
    """Settings of the recipe: those of `minder`, with `pairs.query` 0."""

    recipe: Literal["seal"] = "seal"
    pairs: PairsConfig = field(default_factory=lambda: PairsConfig(query=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs.query:
            msg = f"pairs.query is {self.pairs.query}: SEAL has no query view. Set it to 0, or use the recipe minder."
            raise ValueError(msg)


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    return multi_view_steps(config)


def train(config: Config, run: Run) -> Path:
    """
    Train a generative retriever.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    """
    return train_multi_view(config, run)
