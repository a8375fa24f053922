"""
No validation, test or unseen question of the demo is in anything that the shipped recipes really read.

The demo's own set is always checked. The other sets are where `data_root` of the recipes points; those that
are not there are skipped, and the reason says which (`pytest -rs` shows it).
"""

from pathlib import Path
from typing import Any

import pytest

import gr_training
from gr_components.data import leaks, read_corpus, read_questions, searchable_text
from gr_components.errors import DataError
from gr_components.progress import Silent
from gr_pipelines.demo import data as demo
from gr_training.config import load_raw, parse
from gr_training.recipes import recipe_module, seq2seq_pretrain
from gr_training.sources import held_out_texts, load_sources, local_file

CONFIGS = Path(gr_training.__file__).parents[1] / "configs"
FORBIDDEN = [question.text for split in ("validation", "test", "unseen") for question in demo.questions(split)]


def config_of(name: str) -> Any:
    raw = load_raw(CONFIGS / f"{name}.yaml")
    return parse(recipe_module(raw["recipe"], name).Config, raw, name)


def recipes() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("demo-*.yaml"))


def sets_of_recipes() -> list[tuple[str, str]]:
    named = [(name, source.name) for name in recipes() for source in getattr(config_of(name), "data", ())]
    assert len(named) >= 8
    return named


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_of_the_demo_holds_out_all_three_splits(name):
    assert set(held_out_texts(config_of(name).held_out)) == set(FORBIDDEN)


@pytest.mark.parametrize(("name", "set_name"), sets_of_recipes())
def test_no_held_out_question_is_read(name, set_name):
    config = config_of(name)
    (source,) = [each for each in config.data if each.name == set_name]
    try:
        local_file(source.corpus)
    except DataError as error:
        assert source.optional, f"{set_name} is missing, and {name} cannot do without it"
        pytest.skip(f"{set_name} is not here, so it is not checked: {error}")
    (loaded,) = load_sources([source], config.held_out)
    assert len(loaded.questions) > 1000
    texts = [question.text for question in loaded.questions]
    texts += [query for passage in loaded.passages for query in passage.queries]
    texts += [searchable_text(passage.title, passage.text) for passage in loaded.passages]
    assert leaks(FORBIDDEN, texts) == []


@pytest.mark.slow  # half a minute: 40,000 passages
def test_no_held_out_question_is_in_the_text_of_pretraining():
    config = config_of("demo-pretrain")
    try:
        local_file(config.text[0].path)
    except DataError as error:
        pytest.skip(f"the text of pretraining is not here, so it is not checked: {error}")
    passages = [p for text in config.text for p in seq2seq_pretrain.permitted(text, FORBIDDEN, Silent())]
    assert len(passages) > 30_000
    texts = [searchable_text(passage.title, passage.text) for passage in passages]
    assert leaks(FORBIDDEN, texts) == []
    for path in config.vocabulary:
        file = local_file(path)
        read = read_corpus(file) if "corpus" in file.name else read_questions(file)
        assert leaks(FORBIDDEN, [each.text for each in read]) == []
