"""
One module for each kind of recipe: a `Config` class and `train(config, run) -> model folder`.

Modules are imported when their kind is used, because they import torch.
"""

import difflib
import importlib
from types import ModuleType

from gr_components.errors import ConfigError

KINDS = {
    "dgr": "gr_training.recipes.dgr",
    "dpr": "gr_training.recipes.dpr",
    "fid": "gr_training.recipes.fid",
    "ltrgr": "gr_training.recipes.ltrgr",
    "joint_generative": "gr_training.recipes.joint_generative",
    "listwise_ce": "gr_training.recipes.listwise_ce",
    "minder": "gr_training.recipes.minder",
    "pseudo_queries": "gr_training.recipes.pseudo_queries",
    "question_generator": "gr_training.recipes.question_generator",
    "seal": "gr_training.recipes.seal",
    "seq2seq_pretrain": "gr_training.recipes.seq2seq_pretrain",
}


def recipe_module(kind: object, where: str) -> ModuleType:
    """
    Import the module of a kind of recipe.

    :param kind: The value of the key `recipe`.
    :param where: Named in errors: the file.
    :raises ConfigError: If there is no such kind.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        msg = f"{where}: 'recipe' must be one of {', '.join(KINDS)}, got {kind!r}.{hint}"
        raise ConfigError(msg)
    return importlib.import_module(KINDS[kind])
