"""
`dgr`: a generative retriever learns the order that a teacher gives (Li et al., 2024, https://arxiv.org/abs/2402.10769).

Distilled RankNet: the further apart the teacher puts two passages, the larger the margin between their scores must be.
"""

from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative import ranking
from gr_training.generative.ranking import RankingConfig, stages
from gr_training.generative.ranking_loss import TAUGHT
from gr_training.run import Run

__all__ = ["Config", "stages", "train"]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(RankingConfig):
    """Settings of the recipe; `rank.loss.kind` is `dgr`, or another loss that learns from teachers."""

    recipe: Literal["dgr"] = "dgr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank.loss.kind not in TAUGHT:
            msg = f"dgr learns from teachers; {self.rank.loss.kind} does not. Use the recipe ltrgr."
            raise ValueError(msg)


def train(config: Config, run: Run, only: str | None = None) -> Path:
    """
    Train a likelihood model, mine with it, let teachers score what was found, and train it on that.

    :param config: The recipe.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all that are not done.
    :returns: The folder of the model, or of the stage.
    """
    return ranking.train(config, run, only)
