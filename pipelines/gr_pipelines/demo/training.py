"""
Make the demo's models again with the recipes that made the shipped ones.

A training step of these small models uses one core well and two badly, so the reader, which takes longest, is trained
beside the other two where there are cores for it.
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from gr_components.errors import ConfigError, ModelError
from gr_pipelines.demo.engines import Models

LANES = (("generator", "ranker"), ("reader",))


def train(folder: Path, *, resume: bool = False) -> Models:
    """
    Run `gr train` for each model; their progress goes to the terminal, each line with the name of its model.

    :param folder: Where the runs go; a finished one is not run again.
    :param resume: Whether runs that were interrupted go on.
    :returns: The models made.
    :raises ModelError: If a recipe fails; the other models are finished first.
    """
    recipes = {role: recipe(role) for lane in LANES for role in lane}
    cores = os.cpu_count() or 1
    lanes = min(len(LANES), cores)
    environment = {"OMP_NUM_THREADS": str(cores // lanes), **os.environ}

    def run(lane: tuple[str, ...]) -> dict[str, str]:
        return {role: str(_train(role, recipes[role], folder / role, resume, environment)) for role in lane}

    with ThreadPoolExecutor(max_workers=lanes) as pool:
        running = [pool.submit(run, lane) for lane in LANES]
        made = {role: path for done in running for role, path in done.result().items()}
    return Models(**made)


def recipe(role: str) -> Path:
    """
    Return the recipe file of a model.

    :param role: `generator`, `ranker` or `reader`.
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


def _train(role: str, path: Path, out: Path, resume: bool, environment: dict[str, str]) -> Path:
    model = out / "model"
    if model.is_dir():
        return model
    command = [sys.executable, "-m", "gr_components", "train", str(path), "--out", str(out)]
    command += ["--resume"] if resume and out.is_dir() else []
    # Not a terminal for the process: it writes lines, which two of them can share, and no bars.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            click.echo(f"{role}: {line}", nl=False, err=True)
    if process.returncode != 0:
        msg = f"'{path.name}' failed with exit code {process.returncode}; its log is in '{out}'. Go on with: --resume"
        raise ModelError(msg)
    return model
