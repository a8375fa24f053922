"""
`question_generator`: from a passage to questions about it (doc2query, https://arxiv.org/abs/1904.08375).

The model writes pseudo-queries for passages that nobody has asked about.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative.question_training import (
    QuestionTrainingConfig,
    generator_minutes,
    train_question_generator,
)
from gr_training.run import Run
from gr_training.stages import Step


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(QuestionTrainingConfig):
    """Settings of the recipe."""

    recipe: Literal["question_generator"] = "question_generator"


def steps(config: Config) -> list[Step]:
    """
    Return what the recipe does, for the plan.

    :param config: The recipe.
    """
    size = f"{config.fit.steps:,} steps of {config.passages_per_step * config.fit.accumulate} passages"
    minutes = partial(
        generator_minutes, config.start, config.passage_tokens, config.passages_per_step,
        config.questions_per_passage, config.fit,
    )  # fmt: skip
    return [Step("train", size, minutes)]


def train(config: Config, run: Run) -> Path:
    """
    Train a question generator.

    :param config: The recipe.
    :param run: Where and how.
    :returns: The folder of the model.
    :raises ConfigError: If `passage_tokens` is more than the model takes.
    """
    return train_question_generator(config, run)
