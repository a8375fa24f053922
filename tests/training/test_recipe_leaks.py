"""
No validation, test or unseen question of the demo is in anything that the shipped recipes really read.

The demo's own set is always checked. The other sets are where `data_root` of the recipes points; those that are not
there make no tests, and a line says which.
"""

import sys
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


def is_here(what: str, path: str) -> bool:
    try:
        local_file(path)
    except DataError:
        print(f"Not checked for held-out questions, since it is not here: {what}", file=sys.stderr)
        return False
    return True


def sets_of_recipes() -> list[tuple[str, str]]:
    sources = [(name, source) for name in recipes() for source in getattr(config_of(name), "data", ())]
    assert len(sources) >= 8
    here = [(n, s.name) for n, s in sources if not s.optional or is_here(f"{s.name} of {n}", s.corpus)]
    assert len(here) >= 3
    return here


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_of_the_demo_holds_out_all_three_splits(name):
    assert set(held_out_texts(config_of(name).held_out)) == set(FORBIDDEN)


@pytest.mark.parametrize(("name", "set_name"), sets_of_recipes())
def test_no_held_out_question_is_read(name, set_name):
    config = config_of(name)
    (source,) = [each for each in config.data if each.name == set_name]
    (loaded,) = load_sources([source], config.held_out)
    assert len(loaded.questions) > 1000
    texts = [question.text for question in loaded.questions]
    texts += [query for passage in loaded.passages for query in passage.queries]
    texts += [searchable_text(passage.title, passage.text) for passage in loaded.passages]
    assert leaks(FORBIDDEN, texts) == []


if is_here("the text of pretraining", config_of("demo-pretrain").text[0].path):

    @pytest.mark.slow  # half a minute: 40,000 passages
    def test_no_held_out_question_is_in_the_text_of_pretraining():
        config = config_of("demo-pretrain")
        passages = [p for text in config.text for p in seq2seq_pretrain.permitted(text, FORBIDDEN, Silent())]
        assert len(passages) > 30_000
        texts = [searchable_text(passage.title, passage.text) for passage in passages]
        assert leaks(FORBIDDEN, texts) == []
        for path in config.vocabulary:
            file = local_file(path)
            read = read_corpus(file) if "corpus" in file.name else read_questions(file)
            assert leaks(FORBIDDEN, [each.text for each in read]) == []
