"""
`joint_generative`: a generative retriever and its teacher, a cross-encoder, are trained together on the same lists.

In `dgr` the teacher scores the lists once and stays as it is. Here it goes on learning to tell apart what the retriever
finds, the retriever follows it while it does, and either way can be detached (`joint_stage.py`).
"""

from pathlib import Path
from typing import Literal

from gr_training import estimate
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.generative.joint_stage import RANKER, JointConfig, train_jointly
from gr_training.generative.ranking import ChainConfig, Ending, chain_stages, train_chain
from gr_training.run import Run
from gr_training.stages import Stage

RESULTS = [RANKER]  # what it makes besides `model`


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Config(ChainConfig):
    """
    Settings of the recipe.

    :param joint: Training both models on the lists.
    """

    recipe: Literal["joint_generative"] = "joint_generative"
    joint: JointConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ending("joint", self.joint)


def train(config: Config, run: Run, only: str | None = None) -> Path:
    """
    Train a likelihood model, mine with it, and train it and a cross-encoder on what was found.

    :param config: The recipe.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all that are not done.
    :returns: The folder of the generative retriever, beside which `ranker` is the cross-encoder; or that of the stage.
    """
    return train_chain(config, _ending(config), run, only)


def stages(config: Config) -> list[Stage]:
    """
    Return the stages of a recipe, for the plan.

    :param config: The recipe.
    """
    return chain_stages(config, _ending(config))


def _ending(config: Config) -> Ending:
    def minutes() -> float | None:
        joint, build = config.joint, config.joint.ranker.build
        shape = estimate.shape_of(joint.ranker.model, encoder_layers=build.layers if build else None)
        pairs = joint.questions_per_step * joint.fit.accumulate * joint.lists.length
        return estimate.pair_minutes(shape, joint.fit.steps, pairs)

    return Ending(
        "joint", config.joint,
        lambda inputs, run, before: train_jointly(config.joint, inputs, run, before / RANKER if before else None),
        more=(RANKER,), models=(config.joint.ranker.model,), minutes=minutes,
    )  # fmt: skip
