"""
Recipes of several stages: each one reads what the stages before it wrote, and is skipped when its result is there.

A stage has a folder of its own inside the run's folder. `stage.json` appears in it when the stage is done and says what
it was made from: its settings, the hashes of its data and models, and the same of the stages before. One that says
something else than the recipe is refused, never silently used.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gr_components.data.candidates import file_hash, path_hash
from gr_components.data.files import writing
from gr_components.errors import ConfigError, DataError, ProvenanceError
from gr_components.models.resolve import is_local, resolve_model
from gr_training.run import Run
from gr_training.sources import local_file

_MARK = "stage.json"


@dataclass(frozen=True)
class Stage:
    """
    A step of a recipe.

    :param name: Unique in the recipe, such as `mine-2`; also the name of its folder.
    :param work: Does it; gets a run whose folder is the stage's own. What it leaves unfinished it continues when the
        run says `resume`.
    :param identity: What the result depends on, apart from files and the stages before: settings, as plain values.
    :param after: Names of the stages whose results it reads.
    :param size: What it goes through, for the plan: `1,500 questions`.
    :param minutes: Gives a rough estimate for this machine; None where nobody can tell.
    :param files: The files that it reads, as the recipe names them; those that are not there are optional.
    :param models: The models that it starts from or asks, as the recipe names them. Folders are watched for changes;
        names on a model hub are not.
    :param replaces: Files that later stages read no more, since they read what this one wrote.
    """

    name: str
    work: Callable[[Run], Any]
    identity: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    size: str = ""
    minutes: Callable[[], float | None] = lambda: None
    files: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """
    A line in the plan of a recipe that has no stages.

    :param name: What is done.
    :param size: As of a stage.
    :param minutes: As of a stage.
    """

    name: str
    size: str
    minutes: Callable[[], float | None] = lambda: None


def run_stages(stages: Sequence[Stage], run: Run, only: str | None = None) -> None:
    """
    Run the stages that are not done, in their order, or one of them.

    :param stages: All stages of the recipe.
    :param run: The recipe's run.
    :param only: Name of the one stage to run; the stages that it reads must be done.
    :raises ConfigError: If there is no stage of that name, or a stage that it reads is not done.
    :raises ProvenanceError: If a finished stage was made from something else.
    """
    by_name = {stage.name: stage for stage in stages}
    check_stage(only, by_name)
    for stage in stages if only is None else [by_name[only]]:
        identity = _identity(stage, by_name, run)
        hashes = _hashes(stage)
        if _is_done(stage, identity, hashes, run):
            run.report.event("stage", stage=stage.name, state="done before")
            continue
        run.report.event("stage", stage=stage.name, state="begins", size=stage.size)
        started = time.monotonic()
        stage.work(replace(run, out=run.out / stage.name))
        _mark(run.out / stage.name / _MARK, identity, hashes, time.monotonic() - started)


def check_stage(only: str | None, names: Collection[str]) -> None:
    """
    Make sure that a recipe has the stage that is asked for.

    :param only: Its name; None for all.
    :param names: Names of the recipe's stages.
    :raises ConfigError: If there is none of that name.
    """
    if only is not None and only not in names:
        has = f"the stages {', '.join(names)}" if names else "no stages"
        msg = f"--stage {only}: this recipe has {has}."
        raise ConfigError(msg)


def still_needed(stages: Sequence[Stage], out: Path, only: str | None = None) -> set[str] | None:
    """
    Return the names of files and models that are still read; None for all, where nothing is done yet.

    :param stages: All stages of the recipe.
    :param out: The folder of its run.
    :param only: Name of the one stage to run.
    """
    done = {stage.name for stage in stages if (out / stage.name / _MARK).is_file()}
    if only is None and not done:
        return None
    replaced = {name for stage in stages if stage.name in done for name in stage.replaces}
    left = [stage for stage in stages if stage.name not in done and only in (None, stage.name)]
    return {name for stage in left for name in (*stage.files, *stage.models)} - replaced


def plan(stages: Sequence[Stage | Step]) -> str:
    """
    Return a table of stages with sizes and times.

    :param stages: All stages of a recipe, or its steps.
    """
    minutes = [stage.minutes() for stage in stages]
    times = ["?" if each is None else _shown(each) for each in minutes]
    known = [each for each in minutes if each is not None]
    total = ("at least " if len(known) < len(minutes) else "") + _shown(sum(known)) if known else "?"
    remark = "a rough estimate for this machine" if known else "nothing here can be estimated"
    names, sizes = [*(s.name for s in stages), "total"], [*(s.size for s in stages), remark]
    rows = list(zip(names, [*times, total], sizes, strict=True))
    wide, high = max(len(name) for name in names), max(8, *(len(time) for _, time, _ in rows))
    return "\n".join(f"{name:<{wide}}  {time:>{high}}  {size}".rstrip() for name, time, size in rows)


def _shown(minutes: float) -> str:
    return "< 1 min" if 0 < minutes < 0.5 else f"{minutes:,.0f} min"


def _identity(stage: Stage, by_name: Mapping[str, Stage], run: Run) -> dict[str, Any]:
    before = {}
    for name in stage.after:
        mark = run.out / by_name[name].name / _MARK
        if not mark.is_file():
            msg = f"The stage '{stage.name}' reads what '{name}' writes, which is not done. Run: --stage {name}"
            raise ConfigError(msg)
        before[name] = hashlib.sha256(mark.read_bytes()).hexdigest()
    return json.loads(json.dumps({**stage.identity, "after": before}))


def _hashes(stage: Stage) -> dict[str, str]:
    found = {}
    for name in dict.fromkeys(stage.files):
        with contextlib.suppress(DataError):  # one that is not there
            found[name] = file_hash(local_file(name))
    for name in dict.fromkeys(stage.models):
        if is_local(name):
            found[name] = path_hash(resolve_model(name))
    return found


def _is_done(stage: Stage, identity: Mapping[str, Any], hashes: Mapping[str, str], run: Run) -> bool:
    mark = run.out / stage.name / _MARK
    if not mark.is_file():
        return False
    marked = json.loads(mark.read_text(encoding="utf-8"))
    found, read = marked["identity"], marked.get("files", hashes)
    changed = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    changed += sorted(f"'{name}'" for name, digest in hashes.items() if read.get(name) != digest)
    if not changed:
        return True
    msg = (
        f"The stage '{stage.name}' in '{mark.parent}' was made from something else: {', '.join(changed)} changed "
        f"since. Remove that folder to make it again, or use --restart or another --out."
    )
    raise ProvenanceError(msg)


def _mark(path: Path, identity: Mapping[str, Any], hashes: Mapping[str, str], seconds: float) -> None:
    from gr_training.distributed import main_first, rank  # imports torch, which planning does without

    with main_first():
        if rank() == 0:
            with writing(path) as file:
                made = {"identity": identity, "files": dict(hashes), "seconds": round(seconds, 1)}
                file.write(json.dumps(made, indent=2) + "\n")
