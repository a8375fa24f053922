"""
`minder`: multi-view identifiers for generative retrieval (Li et al., 2023, https://arxiv.org/abs/2305.16675).

A question is to be answered with spans of its passage, the passage's title, and other questions about the passage.
Without the query view (`pairs.query: 0`) this is SEAL (https://arxiv.org/abs/2204.10628).
"""

from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative.multi_view import MultiViewConfig, multi_view_steps, train_multi_view
from gr_training.run import Run
from gr_training.stages import Step


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(MultiViewConfig):
    """Settings of the recipe."""

    recipe: Literal["minder"] = "minder"


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
    :raises ConfigError: If label smoothing is combined with a copy head.
    """
    return train_multi_view(config, run)
