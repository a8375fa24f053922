"""`gr train` looks for what a recipe names before anything runs, and plans every recipe."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from gr_components.cli import main
from gr_components.data import Passage, Question, write_corpus, write_qrels, write_questions
from gr_components.errors import ConfigError
from gr_training.config import load_raw, parse
from gr_training.inputs import check_inputs_exist
from gr_training.recipes import recipe_module

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def gr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    result = gr(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture(autouse=True)
def this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_corpus(folder / "corpus.jsonl.gz", [Passage("1", "T", "text")])
    for split in ("train", "dev"):
        write_questions(folder / f"queries.{split}.jsonl.gz", [Question("q", split)])
        write_qrels(folder / f"qrels.{split}.tsv.gz", {"q": {"1": 1}})
    for name in ("wikipedia", "wikipedia.valid"):
        write_corpus(folder / f"{name}.jsonl.xz", [Passage("1", "T", "text")])
    return folder


def base(name: str, folder: Path, **settings: Any) -> Any:
    raw = load_raw(CONFIGS / "base" / f"{name}.yaml", [f"variables.data={folder}"])
    return parse(recipe_module(raw["recipe"], name).Config, {**raw, **settings}, name)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_has_a_plan(path: Path) -> None:
    raw = load_raw(path)
    module = recipe_module(raw["recipe"], str(path))
    config = parse(module.Config, raw, str(path))
    lines = module.stages(config) if hasattr(module, "stages") else module.steps(config)
    assert lines
    assert all(line.name and line.size for line in lines)


def test_a_dry_run_plans_a_recipe_without_stages(data: Path, minilm: Path) -> None:
    """The same time as the stage `train` of a chain with these settings."""
    start = ["--set", f"variables.data={data}", "--dry-run"]
    own = ["--set", f"start.model={minilm}", "--set", "start.build.decoder_layers=2"]
    minder = gr("train", CONFIGS / "base" / "minder.yaml", *start, *own)
    chained = [*own[:1], own[1].replace("start", "likelihood.start", 1), "--set", f"likelihood.{own[3]}"]
    chain = gr("train", CONFIGS / "base" / "dgr.yaml", *start, *chained)
    (line, total), lines = minder.stderr.splitlines()[-2:], chain.stderr.splitlines()
    assert "200,000 steps of 64 sources" in line
    assert line.split()[:1] == ["train"]
    assert total.split()[:3] == ["total", *line.split()[1:3]]
    planned = next(each for each in lines if each.startswith("train "))
    ours, theirs = (float(each.split()[1].replace(",", "")) for each in (line, planned))
    assert ours == pytest.approx(theirs, rel=1.0)  # the speed of this machine is measured once for each


@pytest.mark.parametrize("name", ["seal", "question_generator", "dpr", "fid", "listwise_ce", "seq2seq_pretrain"])
def test_what_cannot_be_estimated_is_no_zero(name: str, data: Path) -> None:
    """The base recipes start from models of the hub, which are not on this machine."""
    result = gr("train", CONFIGS / "base" / f"{name}.yaml", "--set", f"variables.data={data}", "--dry-run")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stderr.splitlines() if line]
    assert {line[1] for line in lines} == {"?"}
    assert lines[-1][0] == "total"


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, data: Path) -> None:
    (data / "corpus.jsonl.gz").unlink()
    recipe = CONFIGS / "base" / "dgr.yaml"
    out = ["--out", tmp_path / "run", "--set", f"variables.data={data}"]
    wrong = [
        f"likelihood.start.model={tmp_path / 'no-start'}",
        "teach.0={name: simlm, kind: run, run: package:gr_training/none.trec}",
    ]
    settings = [part for each in wrong for part in ("--set", each)]
    for more in ([], ["--dry-run"]):
        message = refused("train", recipe, *out, *settings, *more)
        assert f"data.0.corpus: There is no file '{data}/corpus.jsonl.gz'" in message
        assert f"validation.corpus: There is no file '{data}/corpus.jsonl.gz'" in message
        assert f"likelihood.start.model: There is no model folder '{tmp_path}/no-start'" in message
        assert "teach.0.run: There is no file 'package:gr_training/none.trec'" in message
        assert "--set likelihood.start.model=..." in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "missing"),
    [
        ("dgr", {"teach": [{"name": "simlm", "kind": "cross_encoder", "model": "./none"}]}, "teach.0.model"),
        ("dgr", {"likelihood": None, "model": "package:gr_pipelines/models/none"}, "model"),
        ("dgr", {"pseudo_queries": {"model": "/none"}}, "pseudo_queries.model"),
        ("minder", {"pairs_from": "none.jsonl.gz"}, "pairs_from"),
        ("minder", {"held_out": [{"questions": "none.jsonl"}]}, "held_out.0.questions"),
        ("dpr", {"model": "./none"}, "model"),
        ("dpr", {"mining": {"dense": "./none"}}, "mining.dense"),
        ("dpr", {"mining": {"runs": {"nq": ["none.trec"]}}}, "mining.runs.nq.0"),
        ("fid", {"start": {"model": "./none"}}, "start.model"),
        ("seq2seq_pretrain", {"vocabulary": ["none.jsonl"]}, "vocabulary.0"),
    ],
)
def test_each_kind_of_setting(recipe: str, settings: dict[str, Any], missing: str, data: Path) -> None:
    check_inputs_exist(base(recipe, data))
    with pytest.raises(ConfigError, match=rf"not there:\n  {missing}: "):
        check_inputs_exist(base(recipe, data, **settings))


def test_a_ranker_that_is_not_there(data: Path) -> None:
    joint = base("joint_generative", data)
    check_inputs_exist(joint)
    raw = load_raw(CONFIGS / "base" / "joint_generative.yaml", [f"variables.data={data}", "joint.ranker.model=./none"])
    with pytest.raises(ConfigError, match=r"joint\.ranker\.model: There is no model folder '\./none'"):
        check_inputs_exist(parse(type(joint), raw, "x"))


def test_optional_sets_and_runs_of_other_sets_may_be_missing(data: Path) -> None:
    (given,) = load_raw(CONFIGS / "base" / "dpr.yaml", [f"variables.data={data}"])["data"]
    other = {**given, "name": "other", "corpus": "none.jsonl", "optional": True}
    runs = {"other": ["none.trec"], "unheard": ["none.trec"]}
    check_inputs_exist(base("dpr", data, data=[given, other], mining={"runs": runs}))
    with pytest.raises(ConfigError, match=r"data\.1\.corpus"):
        check_inputs_exist(base("dpr", data, data=[given, {**other, "optional": False}]))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_an_unknown_stage_is_refused(more: list[str], data: Path, tmp_path: Path) -> None:
    asked = ["--out", tmp_path / "run", "--set", f"variables.data={data}", "--stage", "bake", *more]
    message = refused("train", CONFIGS / "base" / "dgr.yaml", *asked)
    assert "--stage bake: this recipe has the stages train, mine-1, teach-1, rank-1, calibrate." in message
    assert "--stage bake: this recipe has no stages." in refused("train", CONFIGS / "base" / "minder.yaml", *asked)
    assert not (tmp_path / "run").exists()


def test_one_stage_needs_its_own_inputs_alone(data: Path, tmp_path: Path) -> None:
    recipe, path = load_raw(CONFIGS / "base" / "dgr.yaml", [f"variables.data={data}"]), tmp_path / "recipe.yaml"
    recipe["teach"] = [{"name": "simlm", "kind": "cross_encoder", "model": "./none"}]
    path.write_text(yaml.safe_dump(recipe))
    asked = ["--out", tmp_path / "run", "--dry-run"]
    assert "teach.0.model" in refused("train", path, *asked)
    assert gr("train", path, *asked, "--stage", "mine-1").exit_code == 0
    assert "teach.0.model" in refused("train", path, *asked, "--stage", "teach-1")


def test_finished_stages_need_nothing(data: Path, tmp_path: Path) -> None:
    recipe, path = load_raw(CONFIGS / "base" / "dgr.yaml", [f"variables.data={data}"]), tmp_path / "recipe.yaml"
    recipe["likelihood"]["start"]["model"] = "./gone"
    recipe["pseudo_queries"] = {"training_questions": True}
    path.write_text(yaml.safe_dump(recipe))
    (data / "corpus.jsonl.gz").unlink()
    asked = ["train", path, "--out", tmp_path / "run", "--dry-run"]
    message = refused(*asked)
    assert "likelihood.start.model" in message
    assert "data.0.corpus" in message
    for stage in ("pseudo-queries", "train"):
        (tmp_path / "run" / stage).mkdir(parents=True)
        (tmp_path / "run" / stage / "stage.json").write_text("{}")
    assert gr(*asked).exit_code == 0, "later stages read the corpus with pseudo-queries"
    (data / "queries.train.jsonl.gz").unlink()
    message = refused(*asked)
    assert "data.0.questions" in message
    assert "corpus" not in message
    assert "start.model" not in message
    assert "likelihood.start.model" in refused(*asked, "--restart"), "then nothing is done"
