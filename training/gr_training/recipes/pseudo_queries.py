"""
`pseudo_queries`: corpora with pseudo-queries, to be indexed or to be trained on.

Either a question generator writes them (doc2query, https://arxiv.org/abs/1904.08375; `question_generator`), or they are
the training questions that the data has. The recipes `ltrgr`, `dgr` and `joint_generative` have the same stages in
front of their own.
"""

from pathlib import Path
from typing import Literal

from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative.pseudo_query_stages import PSEUDO_QUERIES, PseudoQueriesConfig, PseudoQueryStages
from gr_training.run import Run
from gr_training.sources import HeldOutConfig, SourceConfig, ValidationConfig
from gr_training.stages import Stage, run_stages


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config:
    """
    Settings of the recipe.

    :param pseudo_queries: Where pseudo-queries come from.
    :param data: Questions and passages; each corpus is written once.
    :param held_out: Questions that no pseudo-query may hold.
    :param validation: Questions that select the generator; null where none is trained.
    """

    recipe: Literal["pseudo_queries"] = "pseudo_queries"
    pseudo_queries: PseudoQueriesConfig
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        if self.pseudo_queries.generator is not None and self.validation is None:
            msg = "validation is needed to train a question generator."
            raise ValueError(msg)


def stages(config: Config) -> list[Stage]:
    """
    Return the stages of a recipe, for the plan.

    :param config: The recipe.
    """
    return PseudoQueryStages(config.pseudo_queries, config.data, config.held_out, config.validation).stages()


def train(config: Config, run: Run, only: str | None = None) -> Path:
    """
    Train a question generator, unless there is one, and write corpora with pseudo-queries.

    :param config: The recipe.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all that are not done.
    :returns: The folder of the corpora, one folder inside for each training set: `NAME/corpus.jsonl.gz`.
    """
    run_stages(stages(config), run, only)
    return run.out / (only or PSEUDO_QUERIES)
