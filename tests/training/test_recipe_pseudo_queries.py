"""The recipe `pseudo_queries`: corpora that can be indexed, from a generator, from training questions, from both."""

import json

import pytest
import yaml
from click.testing import CliRunner

from gr_components.data import normalise, read_corpus, read_ids, read_questions, select
from gr_components.errors import ConfigError
from gr_training.cli import command
from gr_training.config import parse
from gr_training.generative.pseudo_queries import attach_questions
from gr_training.recipes.pseudo_queries import Config
from gr_training.sources import SourceConfig, load_sources

FIT = {"steps": 4, "learning_rate": 1e-3, "precision": "float32", "validate_every": 4, "checkpoint_every": 2}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


def run(folder, recipe, *arguments):
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"recipe": "pseudo_queries", **recipe}))
    out = ["--out", str(folder / "run"), "--device", "cpu"]
    result = CliRunner().invoke(command, [str(folder / "recipe.yaml"), *out, *arguments])
    assert result.exception is None, f"{result.output}\n{result.exception!r}"
    return folder / "run" / "pseudo-queries" / "toy" / "corpus.jsonl.gz"


@pytest.fixture
def training_questions(collection):
    return {q.text for q in select(read_questions(collection / "questions.jsonl"), read_ids(collection / "train.txt"))}


def test_training_questions_alone(tmp_path, sources, training_questions):
    del sources["validation"]  # nothing is trained
    passages = list(read_corpus(run(tmp_path, {**sources, "pseudo_queries": {"training_questions": True}})))
    written = {query for passage in passages for query in passage.queries}
    assert written >= training_questions
    assert not (tmp_path / "run" / "question-generator").exists()


def test_generated_and_attached_stage_by_stage(tmp_path, sources, tiny_encoder, collection, training_questions):
    generator = {
        "start": {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}},
        "passage_tokens": 40, "passages_per_step": 4, "fit": FIT,
    }  # fmt: skip
    asked = {"generator": generator, "sampling": {"per_document": 2}, "training_questions": True}
    recipe = {**sources, "pseudo_queries": asked}
    run(tmp_path, recipe, "--stage", "question-generator")
    path = run(tmp_path, recipe, "--stage", "pseudo-queries")
    passages = list(read_corpus(path))
    drawn = list(read_corpus(path.with_name("generated.jsonl.gz")))
    written = {query for passage in passages for query in passage.queries}
    assert written >= training_questions
    assert written > {query for passage in drawn for query in passage.queries}
    held_out = {q.text for q in read_questions(collection / "questions.jsonl")} - training_questions
    assert not {normalise(text) for text in held_out} & {normalise(query) for query in written}
    model = json.loads((tmp_path / "run" / "question-generator" / "model" / "gr_model.json").read_text())
    assert model["task"] == "question_generator"
    made = path.read_bytes()
    assert run(tmp_path, recipe, "--resume").read_bytes() == made


def test_a_full_disk_leaves_nothing_half(tmp_path, sources, file_size_limit):
    (loaded,) = load_sources([parse(SourceConfig, sources["data"][0], "recipe.yaml")])
    with file_size_limit(100), pytest.raises(OSError, match="File too large"):
        attach_questions(loaded, tmp_path / "corpus.jsonl.gz")
    assert not list(tmp_path.glob("*corpus*"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "otherwise there are no pseudo-queries"),
        ({"model": "m", "generator": {"start": {"model": "m"}, "fit": FIT}}, "not both"),
        ({"generator": {"start": {"model": "m"}, "fit": FIT}}, "validation is needed"),
    ],
)
def test_settings_that_contradict_each_other(sources, asked, message):
    del sources["validation"]
    with pytest.raises(ConfigError, match=message):
        parse(Config, {"recipe": "pseudo_queries", **sources, "pseudo_queries": asked}, "recipe.yaml")
