"""
`ltrgr`: a generative retriever learns to rank passages (Li et al., 2024, https://arxiv.org/abs/2306.15222).

A relevant passage must beat an irrelevant one by a margin: the best of each kind, and a random one of each.
"""

from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative import ranking
from gr_training.generative.ranking import RankingConfig, stages
from gr_training.run import Run

__all__ = ["Config", "stages", "train"]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(RankingConfig):
    """Settings of the recipe; `rank.loss.kind` is `ltrgr`, or `infonce` for the list-wise variant."""

    recipe: Literal["ltrgr"] = "ltrgr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank.loss.kind not in ("ltrgr", "infonce"):
            msg = f"ltrgr has the losses ltrgr and infonce; for {self.rank.loss.kind} use the recipe dgr."
            raise ValueError(msg)


def train(config: Config, run: Run, only: str | None = None) -> Path:
    """
    Train a likelihood model, mine with it, and train it on what was found.

    :param config: The recipe.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all that are not done.
    :returns: The folder of the model, or of the stage.
    """
    return ranking.train(config, run, only)
