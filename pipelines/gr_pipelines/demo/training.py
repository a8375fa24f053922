"""Make the demo's models again with the recipes that made the shipped ones."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from gr_components.errors import ConfigError, ModelError
from gr_pipelines.demo.engines import Models

ROLES = ("generator", "ranker", "reader")


def train(folder: Path, *, resume: bool = False) -> Models:
    """
    Run `gr train` for each model, one after the other; their progress goes to the terminal.

    :param folder: Where the runs go; a finished one is not run again.
    :param resume: Whether runs that were interrupted go on.
    :returns: The models made.
    :raises ModelError: If a recipe fails.
    """
    made = {role: _train(recipe(role), folder / role, resume=resume) for role in ROLES}
    return Models(**{role: str(path) for role, path in made.items()})


def recipe(role: str) -> Path:
    """
    Return the recipe file of a model.

    :param role: One of `ROLES`.
    :raises ConfigError: If the recipes are not installed.
    """
    spec = importlib.util.find_spec("gr_training")  # found, never imported: the packages do not know each other
    for location in (spec.submodule_search_locations if spec else None) or ():
        for configs in (Path(location) / "configs", Path(location).parent / "configs"):  # wheel, clone
            path = configs / f"demo-{role}.yaml"
            if path.is_file():
                return path
    msg = f"The recipe demo-{role}.yaml is not installed; it is in training/configs of the repository."
    raise ConfigError(msg)


def _train(path: Path, out: Path, *, resume: bool) -> Path:
    model = out / "model"
    if model.is_dir():
        return model
    command = [sys.executable, "-m", "gr_components", "train", str(path), "--out", str(out)]
    done = subprocess.run([*command, *(["--resume"] if resume and out.is_dir() else [])], check=False)
    if done.returncode != 0:
        msg = f"'{path.name}' failed with exit code {done.returncode}; its log is in '{out}'. Go on with: --resume"
        raise ModelError(msg)
    return model
