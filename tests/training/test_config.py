"""Recipe files: every problem at once, suggestions, overrides, variables; and that all shipped recipes parse."""

import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from gr_components.errors import ConfigError
from gr_training.config import STRICT_KEYS, checked_dataclass, load_raw, parse, to_plain
from gr_training.fitting import FitConfig, GroupConfig
from gr_training.recipes import KINDS, recipe_module

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Inner:
    rate: Annotated[float, Field(gt=0)] = 0.1
    names: tuple[str, ...] = ()


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Outer:
    steps: int
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_values_that_yaml_reads_as_text_become_numbers(tmp_path):
    data = load_raw(write(tmp_path, "steps: 10\ninner: {rate: 1e-4}\n"))
    assert isinstance(data["inner"]["rate"], str), "otherwise this test shows nothing"
    assert parse(Outer, data, "x").inner == Inner(rate=1e-4)


def test_all_problems_are_reported_at_once_with_path_and_value():
    data = {"steps": "ten", "inner": {"rate": -1, "namse": []}, "several": [{"rate": 1}, {"rat": 2}]}
    with pytest.raises(ConfigError) as caught:
        parse(Outer, data, "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml has 4 problem(s):")
    assert "steps: Input should be a valid integer" in text
    assert "'ten'" in text
    assert "inner.rate: Input should be greater than 0 (got -1)" in text
    assert "inner.namse: unknown key. Did you mean 'names'? Valid keys: names, rate." in text
    assert "several.1.rat: unknown key. Did you mean 'rate'?" in text


def test_a_section_s_own_check_does_not_print_the_section():
    @checked_dataclass(frozen=True, kw_only=True)
    class Checked:
        inner: Inner

        def __post_init__(self) -> None:
            msg = "inner cannot be."
            raise ValueError(msg)

    for inner in ({"rate": 1}, Inner(rate=1)):
        with pytest.raises(ConfigError) as caught:
            parse(Checked, {"inner": inner}, "my.yaml")
        assert str(caught.value) == "my.yaml has 1 problem(s):\n  recipe: inner cannot be."
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"steps": ["ten"] * 1000}, "my.yaml")
    assert len(str(caught.value)) < 300


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match="steps: this setting is required"):
        parse(Outer, {}, "x")


def test_the_checks_of_a_class_also_hold_in_python():
    with pytest.raises(ValueError, match="greater than 0"):
        Inner(rate=0)
    with pytest.raises(ValueError, match="not a regular expression"):
        GroupConfig(pattern="(", factor=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        FitConfig(steps=1).steps = 2  # type: ignore[misc]


def test_overrides(tmp_path):
    path = write(tmp_path, "steps: 1\nseveral: [{rate: 1}, {rate: 2}]\n")
    data = load_raw(path, ["steps=7", "inner.rate=3", "several.1.rate=1e-3", "inner.names=[a, b]"])
    assert parse(Outer, data, "x") == Outer(
        steps=7, inner=Inner(rate=3, names=("a", "b")), several=(Inner(rate=1), Inner(rate=1e-3))
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "expects key=value"),
        ("steps.a=1", "'steps' is 1, which has no settings inside"),
        ("several.5.rate=1", "must be a position from 0 to 1"),
    ],
)
def test_malformed_overrides(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_raw(write(tmp_path, "steps: 1\nseveral: [{rate: 1}, {rate: 2}]\n"), [override])


def test_variables(tmp_path):
    path = write(tmp_path, "variables: {root: /a}\nsteps: 1\ninner: {names: ['${root}/b', c]}\n")
    assert load_raw(path)["inner"]["names"] == ["/a/b", "c"]
    assert load_raw(path, ["variables.root=/z"])["inner"]["names"][0] == "/z/b"
    with pytest.raises(ConfigError, match=r"uses \$\{other\}.*\['root'\]"):
        load_raw(path, ["inner.names=['${other}']"])


def test_a_file_that_is_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="There is no recipe"):
        load_raw(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_raw(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_raw(write(tmp_path, "- 1"))
    with pytest.raises(ConfigError, match="Did you mean 'minder'"):
        recipe_module("mindr", "x.yaml")


def test_there_are_recipes_of_every_kind():
    found = {load_raw(path)["recipe"] for path in CONFIGS.rglob("*.yaml")}
    assert found == set(KINDS)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_survives_a_round_trip(path):
    data = load_raw(path)
    config_class = recipe_module(data["recipe"], str(path)).Config
    config = parse(config_class, data, str(path))
    assert parse(config_class, to_plain(config), "again") == config
    if data["recipe"] != "seq2seq_pretrain" and path.stem.startswith("demo"):
        assert len(config.held_out[0].ids) == 3, "the demo's recipes must keep test questions out"
