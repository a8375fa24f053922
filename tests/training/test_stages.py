"""Stages run in order, once, and never on results that were made from something else."""

import json
from pathlib import Path

import pytest

from gr_components.errors import ConfigError, ProvenanceError
from gr_training.run import Run
from gr_training.stages import Stage, Step, plan, run_stages


class Kitchen:
    """Three stages that write what they read; `done` has the names of those that ran."""

    def __init__(self, flour: str = "wheat") -> None:
        self.done: list[str] = []
        self.flour = flour
        self.broken = ""

    def stages(self) -> list[Stage]:
        return [
            Stage("knead", self._work("knead"), {"flour": self.flour}, (), "1 dough", lambda: 20.0),
            Stage("bake", self._work("bake"), {"heat": 220}, ("knead",), "1 loaf"),
            Stage("eat", self._work("eat"), {}, ("knead", "bake"), "1 slice", lambda: 5.0),
        ]

    def _work(self, name):
        def work(run: Run) -> None:
            if name == self.broken:
                raise RuntimeError(name)
            run.out.mkdir(exist_ok=True)
            (run.out / "result").write_text(name)
            self.done.append(name)

        return work


def test_all_once(tmp_path: Path):
    kitchen = Kitchen()
    for _ in range(2):
        run_stages(kitchen.stages(), Run(out=tmp_path))
    assert kitchen.done == ["knead", "bake", "eat"]
    assert json.loads((tmp_path / "bake" / "stage.json").read_text())["identity"]["heat"] == 220


def test_goes_on_after_a_failure(tmp_path: Path):
    kitchen = Kitchen()
    kitchen.broken = "bake"
    with pytest.raises(RuntimeError, match="bake"):
        run_stages(kitchen.stages(), Run(out=tmp_path))
    kitchen.broken = ""
    run_stages(kitchen.stages(), Run(out=tmp_path, resume=True))
    assert kitchen.done == ["knead", "bake", "eat"]


def test_one_stage_needs_those_before(tmp_path: Path):
    kitchen = Kitchen()
    with pytest.raises(ConfigError, match=r"'bake' reads what 'knead' writes, which is not done. Run: --stage knead"):
        run_stages(kitchen.stages(), Run(out=tmp_path), "bake")
    run_stages(kitchen.stages(), Run(out=tmp_path), "knead")
    run_stages(kitchen.stages(), Run(out=tmp_path), "bake")
    assert kitchen.done == ["knead", "bake"]
    with pytest.raises(ConfigError, match=r"--stage fry: this recipe has the stages knead, bake, eat"):
        run_stages(kitchen.stages(), Run(out=tmp_path), "fry")


def test_a_result_of_other_settings_is_refused(tmp_path: Path):
    run_stages(Kitchen().stages(), Run(out=tmp_path))
    with pytest.raises(ProvenanceError, match=r"'knead'.*made from something else: flour changed"):
        run_stages(Kitchen(flour="rye").stages(), Run(out=tmp_path))


def test_a_stage_made_again_outdates_those_after_it(tmp_path: Path):
    kitchen = Kitchen()
    run_stages(kitchen.stages(), Run(out=tmp_path))
    mark = tmp_path / "knead" / "stage.json"
    mark.write_text(mark.read_text().replace("wheat", "rye"))
    with pytest.raises(ProvenanceError, match=r"'bake'.*after changed"):
        run_stages(Kitchen(flour="rye").stages(), Run(out=tmp_path))


def test_a_changed_model_is_noticed(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    stages = [Stage("ask", Kitchen()._work("ask"), models=(str(model), "facebook/bart-base"))]
    for _ in range(2):
        run_stages(stages, Run(out=tmp_path))
    (model / "README.md").write_text("about it")
    run_stages(stages, Run(out=tmp_path))
    (model / "model.safetensors").write_bytes(b"two")
    with pytest.raises(ProvenanceError, match=rf"'ask'.*made from something else: '{model}' changed"):
        run_stages(stages, Run(out=tmp_path))


def test_plan():
    lines = plan(Kitchen().stages()).splitlines()
    assert lines[0].split() == ["knead", "20", "min", "1", "dough"]
    assert lines[1].split() == ["bake", "?", "1", "loaf"]
    assert lines[3] == "total  at least 25 min  a rough estimate for this machine"


def test_a_plan_without_any_time_has_no_total():
    unknown = Step("train", "3 steps")
    assert plan([unknown]).splitlines() == [
        "train         ?  3 steps",
        "total         ?  nothing here can be estimated",
    ]
    known = Step("train", "3 steps", lambda: 0.2)
    assert plan([known]).splitlines()[-1] == "total   < 1 min  a rough estimate for this machine"
