"""Tasks on plain text."""

import json

import numpy as np
import pytest

from gr_components.errors import DataError
from gr_training.config import parse
from gr_training.text_tasks import TextConfig, make_cloze, read_passages

TEXT = (
    "In 1943 Leo Kanner described the condition at Johns Hopkins University. It is not rare. "
    "The cause was unknown then."
)


def test_a_cloze_asks_for_what_its_sentence_lost():
    seen = set()
    for seed in range(60):
        cloze = make_cloze(TEXT, np.random.default_rng(seed))
        assert cloze is not None
        seen.add(cloze.answer)
        assert cloze.answer in TEXT
        assert cloze.answer not in cloze.question
        assert cloze.question.endswith("?")
        words = cloze.question.rstrip("?").split()
        assert words[0] in ("When", "What", "Who", "Where", "Which", "In")
    assert seen == {"1943", "Leo Kanner", "Johns Hopkins University"}
    years = [make_cloze(TEXT, np.random.default_rng(seed)) for seed in range(60)]
    assert all(c.question.startswith(("When", "In what year", "What year")) for c in years if c and c.answer == "1943")


def test_text_without_names_gives_none():
    assert make_cloze("nothing is named here and nothing is counted either.", np.random.default_rng(0)) is None


def test_passages_are_windows_of_words(tmp_path):
    path = tmp_path / "text.jsonl"
    words = " ".join(str(n) for n in range(250))
    path.write_text("".join(json.dumps({"title": f"T{i}", "text": words}) + "\n" for i in range(4)))
    config = {"name": "t", "path": str(path), "licence": "MIT"}
    passages = read_passages(parse(TextConfig, config, "x"))
    assert len(passages) == 8
    assert passages[0].text.split() == [str(n) for n in range(100)]
    assert passages[1].text.split()[0] == "100"
    assert len({passage.id for passage in passages}) == 8
    some = read_passages(parse(TextConfig, {**config, "max_passages": 4}, "x"))
    assert [passage.title for passage in some] == ["T0", "T1", "T2", "T3"]
    with pytest.raises(DataError, match="no text of 300 words"):
        read_passages(parse(TextConfig, {**config, "passage_words": 300}, "x"))
