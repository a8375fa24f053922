"""What every recipe does around the training loop: identity of the run, folders, `recipe.json`."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_components.data.files import writing
from gr_components.errors import ConfigError
from gr_components.models.folders import replace_folder
from gr_components.progress import Reporter, Silent
from gr_training.config import to_plain

_UNESSENTIAL = ("max_minutes", "log_every", "keep_checkpoints")


@dataclass(frozen=True)
class Run:
    """
    Where and how a recipe runs.

    :param out: Folder of the run: `log.jsonl`, `checkpoints/`, and in the end `model/`.
    :param resume: Whether to continue from the latest checkpoint.
    :param device: `cpu`, or None for the best one there is.
    :param report: Where progress goes.
    """

    out: Path
    resume: bool = False
    device: str | None = None
    report: Reporter = field(default_factory=Silent)

    @property
    def model(self) -> Path:
        """The folder that the trained model is written to."""
        return self.out / "model"


def prepare(
    out: Path, config: Any, *, resume: bool, restart: bool, folders: Sequence[str] = (), only: str | None = None
) -> None:
    """
    Make the folder of a run and write the resolved recipe into it; one that is there stays until the run is accepted.

    :param out: The folder.
    :param config: The recipe's config.
    :param resume: Whether a run that is there is to be continued.
    :param restart: Whether it is to be thrown away.
    :param folders: Names of the recipe's other folders: its stages, and what it makes besides `model`.
    :param only: The one stage that a restart throws away.
    :raises ConfigError: If there is a run and neither was asked for.
    """
    if only is not None and restart:
        shutil.rmtree(out / only, ignore_errors=True)
    elif (out / "recipe.json").exists() and not resume:
        if not restart:
            msg = (
                f"'{out}' holds a run already. Use --resume to continue it, --restart to begin again, or another --out."
            )
            raise ConfigError(msg)
        for name in ("checkpoints", "model", *folders):
            shutil.rmtree(out / name, ignore_errors=True)
        for path in (*out.glob("best-*.safetensors"), out / "log.jsonl", out / "recipe.json"):
            path.unlink(missing_ok=True)
    if not (out / "recipe.json").exists():
        write_recipe(out, config)


def write_recipe(out: Path, config: Any) -> None:
    """
    Write `recipe.json`.

    :param out: Folder of the run.
    :param config: The recipe's config.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_plain(config), indent=2, ensure_ascii=False)
    with writing(out / "recipe.json") as file:
        file.write(text + "\n")


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """
    Write a trained model; its folder appears complete or not at all. Only the first of several processes writes.

    :param folder: Where to; what is there is replaced.
    :param write: Writes everything into the folder that it is given.
    """
    from gr_training.distributed import main_first, rank  # imports torch, which `gr train --help` does without

    with main_first():
        if rank():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write(partial / folder.name)
            replace_folder(partial / folder.name, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def identity(config: Any, files: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """
    Return what a checkpoint must agree with to be continued: the recipe, and the hashes of what it reads.

    :param config: The recipe's config; how often it logs and how long it may take do not count.
    :param files: Hashes by path.
    """
    plain = dict(to_plain(config))
    plain["fit"] = {name: value for name, value in plain["fit"].items() if name not in _UNESSENTIAL}
    return {**plain, "files": {path: digest for each in files for path, digest in each.items()}}
