"""Candidate lists: fusion, exact search, and reuse of what was found."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gr_components.data import write_run
from gr_components.errors import ConfigError
from gr_components.progress import Silent
from gr_training.config import parse
from gr_training.mining.lists import MiningConfig, fuse, fuse_as_served, mine, nearest, search, standardise
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


@pytest.mark.parametrize("combine", ["max", "sum", "mean"])
def test_fusion_as_in_the_shipped_pipelines(combine):
    first = [(7, 13.0), (8, 11.5), (3, 4.0), (9, 2.0)]
    second = [(9, 0.9), (3, 0.4), (8, 0.39)]
    scores = [(np.array([s for _, s in found]) - np.mean([s for _, s in found])) / (6 * np.std([s for _, s in found]))
              for found in (first, second)]  # fmt: skip
    wanted = {}
    for row in (3, 7, 8, 9):
        copies = [s[i] + 0.5 for found, s in zip((first, second), scores, strict=True) for i, hit in enumerate(found)
                  if hit[0] == row]  # fmt: skip
        wanted[row] = {"max": max(copies), "sum": sum(copies) / 2, "mean": sum(copies) / len(copies)}[combine]
    found = fuse_as_served([first, second], combine)
    assert dict(found) == pytest.approx(wanted)
    assert [row for row, _ in found] == sorted(wanted, key=lambda row: -wanted[row])
    assert fuse_as_served([[], []], combine) == []


def test_searches_are_fused_as_configured(questions, tiny_encoder):
    lists = {
        fusion: search(questions, MiningConfig(dense=str(tiny_encoder), depth=10, fusion=fusion), Silent())
        for fusion in ("standardised", "max", "sum")
    }
    assert all(0 < score < 1 for several in lists["max"] for _, score in several)
    assert lists["max"] != lists["sum"]
    assert min(score for several in lists["standardised"] for _, score in several) < -1


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
    for changed in (MiningConfig(dense=None, depth=11), MiningConfig(dense=None, depth=10, fusion="max")):
        with pytest.raises(pytest.fail.Exception, match="searched again"):
            mine(questions, changed, 4, path)


def test_other_questions_of_the_same_number_are_searched(questions, tmp_path):
    path = tmp_path / "candidates.jsonl.gz"
    config = MiningConfig(dense=None, depth=5)
    first, second = (
        replace(questions, questions=questions.questions[rows], positives=questions.positives[rows])
        for rows in (slice(0, 20), slice(20, 40))
    )
    mine(first, config, 4, path)
    found = mine(second, config, 4, path)
    alone = mine(second, config, 4, tmp_path / "other.jsonl.gz")
    assert all(np.array_equal(a, b) for a, b in zip(found.rows, alone.rows, strict=True))
    # The same ids with other words.
    reworded = replace(first, questions=[replace(q, text=o.text) for q, o in zip(first.questions, second.questions,
                                                                                 strict=True)])  # fmt: skip
    assert [rows.tolist() for rows in mine(reworded, config, 4, path).rows] == [rows.tolist() for rows in alone.rows]


def test_a_changed_encoder_searches_again(questions, tiny_encoder, tmp_path):
    copy = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, copy)
    path, config = tmp_path / "candidates.jsonl.gz", MiningConfig(bm25=False, dense=str(copy), depth=10)
    first = mine(questions, config, 10, path)
    weights = load_file(copy / "model.safetensors")
    torch.manual_seed(1)
    save_file({name: torch.randn_like(tensor) for name, tensor in weights.items()}, copy / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    again = mine(questions, config, 10, path)
    assert any(not np.array_equal(a, b) for a, b in zip(first.rows, again.rows, strict=True))


def test_a_changed_run_is_read_again(questions, tmp_path):
    path, run = tmp_path / "c.jsonl.gz", tmp_path / "a.run"
    config = MiningConfig(bm25=False, dense=None, runs={"validation": (str(run),)})
    for wanted in (["p3", "p1"], ["p5", "p2"]):
        write_run(run, {q.id: [(d, 1.0 / rank) for rank, d in enumerate(wanted, 1)] for q in questions.questions})
        rows = mine(questions, config, 5, path).rows
        assert [questions.passages[row].id for row in rows[0]] == wanted


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
