"""`gr train`: run a recipe file."""

import json
from pathlib import Path

import click

from gr_components.extras import check_installed
from gr_components.progress import Console, Silent
from gr_training.config import load_raw, parse, to_plain
from gr_training.recipes import recipe_module
from gr_training.run import Run, prepare, write_recipe
from gr_training.runtime import tune_malloc
from gr_training.stages import check_stage, plan, still_needed


@click.command("train")
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run. Default: runs/NAME.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting: fit.steps=100.")
@click.option("--resume", is_flag=True, help="Continue a run that was interrupted.")
@click.option("--restart", is_flag=True, help="Throw away what the folder holds, or the one stage, and begin again.")
@click.option("--device", default=None, help="cpu, or by default the best one there is.")
@click.option("--stage", default=None, metavar="NAME", help="Run one stage, or continue it.")
@click.option("--dry-run", is_flag=True, help="Check the recipe, show it with all defaults and its stages, and stop.")
def command(
    recipe: Path, out: Path | None, overrides: tuple[str, ...], resume: bool, restart: bool, device: str | None,
    stage: str | None, dry_run: bool,
) -> None:  # fmt: skip
    """Train a model as RECIPE says, and write it to OUT/model."""
    if resume and restart:
        msg = "--resume and --restart exclude each other."
        raise click.UsageError(msg)
    check_installed(("torch", "transformers", "safetensors", "accelerate"), "train")
    if not dry_run:
        tune_malloc()
    # Imports torch, which must not happen before the process has its final environment.
    from gr_training.distributed import rank, start, wait_for_main
    from gr_training.inputs import check_inputs_exist

    data = load_raw(recipe, overrides)
    module = recipe_module(data.get("recipe"), str(recipe))
    config = parse(module.Config, data, str(recipe))
    stages = module.stages(config) if hasattr(module, "stages") else []
    folders = [each.name for each in stages]
    check_stage(stage, folders)
    if dry_run:
        click.echo(json.dumps(to_plain(config), indent=2, ensure_ascii=False))
        click.echo("\n" + plan(stages or module.steps(config)), err=True)
    out = Path("runs") / recipe.stem if out is None else out
    check_inputs_exist(config, None if restart or not stages else still_needed(stages, out, stage))
    if dry_run:
        return
    start(device)
    resume = resume or (stage is not None and not restart)  # its own earlier attempt, and the stages before it
    if rank() == 0:
        folders += getattr(module, "RESULTS", [])
        prepare(out, config, resume=resume, restart=restart, folders=folders, only=stage)
    wait_for_main()  # until what a restart throws away is gone
    run = Run(out=out, resume=resume, device=device, report=Console() if rank() == 0 else Silent())
    folder = module.train(config, run, stage) if stage is not None else module.train(config, run)
    if rank() == 0:
        write_recipe(out, config)
    click.echo(str(folder))
