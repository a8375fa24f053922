"""`gr demo --train`: which recipes, what is done already, and what a failure leaves."""

from pathlib import Path

import pytest

from gr_components.errors import ConfigError, ModelError
from gr_pipelines.demo import training

ROLES = ("generator", "ranker", "reader")


def test_every_model_has_a_shipped_recipe() -> None:
    assert sorted(role for lane in training.LANES for role in lane) == sorted(ROLES)
    for role in ROLES:
        assert f"demo-{role}.yaml" in training.recipe(role).name
    with pytest.raises(ConfigError, match=r"demo-writer\.yaml is not installed"):
        training.recipe("writer")


def test_a_failure_is_named_and_what_is_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "demo-reader.yaml"
    broken.write_text("recipe: fid\nsteps: many\n", encoding="utf-8")
    monkeypatch.setattr(training, "recipe", lambda role: broken)
    for role in ("generator", "ranker"):
        (tmp_path / role / "model").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"'demo-reader\.yaml' failed with exit code 2.*Go on with: --resume"):
        training.train(tmp_path)
    shown = capfd.readouterr().err.splitlines()
    assert shown
    assert all(line.startswith("reader: ") for line in shown), "every line says whose it is"
    assert any("steps" in line for line in shown)
    (tmp_path / "reader" / "model").mkdir(parents=True)
    made = training.train(tmp_path)
    assert (made.generator, made.ranker, made.reader) == tuple(str(tmp_path / role / "model") for role in ROLES)
    assert not capfd.readouterr().err, "nothing was run again"
