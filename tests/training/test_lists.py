"""Candidate lists: fusion, exact search, and reuse of what was found."""

import numpy as np
import pytest

from gr_components.data import write_run
from gr_components.errors import ConfigError
from gr_components.progress import Silent
from gr_training.config import parse
from gr_training.mining.lists import MiningConfig, fuse, mine, nearest, search, standardise
from gr_training.sources import ValidationConfig, load_validation


@pytest.fixture
def questions(sources):
    return load_validation(parse(ValidationConfig, sources["validation"], "x"))


def test_fusion_by_hand():
    first, second = [(7, 3.0), (8, 1.0)], [(8, 10.0), (9, 10.0)]
    # Standardised: {7: 1, 8: -1} and, equal scores, {8: 0, 9: 0}; what a search lacks gets its lowest.
    assert fuse([first, second]) == [(7, 1.0), (8, -1.0), (9, -1.0)]
    assert fuse([[], []]) == []
    scaled = [(row, 100 * score + 5) for row, score in first]
    assert [row for row, _ in fuse([scaled, second])] == [7, 8, 9]


def test_standardise():
    assert standardise([1.0, 3.0]).tolist() == [-1.0, 1.0]
    assert standardise([2.0, 2.0]).tolist() == [0.0, 0.0]
    assert standardise([]).tolist() == []


def test_nearest_equals_a_naive_search():
    random = np.random.default_rng(0)
    questions, passages = (random.normal(size=(n, 8)).astype(np.float32) for n in (300, 40))
    found = nearest(questions, passages, depth=5)
    assert len(found) == 300
    for question, several in zip(questions, found, strict=True):
        wanted = sorted(range(40), key=lambda row: -float(question @ passages[row]))[:5]
        assert [row for row, _ in several] == wanted


def test_bm25_finds_the_passages_and_dense_search_is_added(questions, tiny_encoder):
    found = search(questions, MiningConfig(dense=None, depth=10), Silent())
    hits = [several[0][0] in positives for several, positives in zip(found, questions.positives, strict=True)]
    assert sum(hits) > 0.8 * len(hits)
    both = search(questions, MiningConfig(dense=str(tiny_encoder), depth=10), Silent())
    assert all(len(one) <= 10 for one in found)
    assert max(len(several) for several in both) > 10


def test_candidates_are_kept_until_something_changes(questions, tmp_path, monkeypatch):
    path = tmp_path / "candidates.jsonl.gz"
    config = MiningConfig(dense=None, depth=10)
    first = mine(questions, config, 4, path)
    assert max(len(rows) for rows in first.rows) == 4
    monkeypatch.setattr("gr_training.mining.lists.search", lambda *_: pytest.fail("searched again"))
    again = mine(questions, config, 4, path)
    assert all(np.array_equal(a, b) for a, b in zip(first.rows, again.rows, strict=True))
    assert all(np.allclose(a, b) for a, b in zip(first.scores, again.scores, strict=True))
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        mine(questions, MiningConfig(dense=None, depth=11), 4, path)


def test_runs_are_read_and_passages_outside_the_corpus_left_out(questions, tmp_path):
    run = {question.id: [("p3", 2.0), ("elsewhere", 1.5), ("p1", 1.0)] for question in questions.questions}
    write_run(tmp_path / "a.run", run)
    config = MiningConfig(bm25=False, dense=None, runs={"validation": (str(tmp_path / "a.run"),)})
    lists = mine(questions, config, 5, tmp_path / "c.jsonl.gz")
    assert all(rows.tolist() == [3, 1] for rows in lists.rows)
    elsewhere = MiningConfig(bm25=False, dense=None, runs={"other": (str(tmp_path / "a.run"),)})
    with pytest.raises(ConfigError, match="there is no run for 'validation'"):
        mine(questions, elsewhere, 5, tmp_path / "d.jsonl.gz")
    with pytest.raises(ValueError, match="mining needs bm25, dense or runs"):
        MiningConfig(bm25=False, dense=None)
