import importlib
import json

import pytest

from gr_components.data import Candidate, Key, check_inputs, read_candidates, write_candidates
from gr_components.data.candidates import is_current
from gr_components.errors import DataError, ProvenanceError

CANDIDATES = [
    Candidate("q", "d1", 1, 12.5, 1, "qrels", (Key("the cup", "body", -1.5, 3),), {"bm25": 7.0}),
    Candidate("q", "d2", 2, 3.0),
    Candidate("q", "d3", 9, 1.0, keys=(Key("cup", "query", -2.0, 1, (7, 19), 0.6, 0.25), Key("a", "body", -3.0, 2))),
]


@pytest.fixture
def written(tmp_path):
    (tmp_path / "input.tsv").write_text("q\td1\t1\n")
    path = tmp_path / "candidates.jsonl.gz"
    write_candidates(path, CANDIDATES, made_by={"stage": "mine"}, inputs=[tmp_path / "input.tsv"])
    return path


def test_round_trip_and_provenance(written):
    assert list(read_candidates(written)) == CANDIDATES
    assert check_inputs(written)["made_by"] == {"stage": "mine"}


def test_a_changed_input_is_refused(written):
    source = written.parent / "input.tsv"
    source.write_text("q\td1\t0\n")
    with pytest.raises(ProvenanceError, match=r"input\.tsv' changed since"):
        check_inputs(written)
    source.unlink()
    with pytest.raises(ProvenanceError, match=r"input\.tsv', which is gone"):
        check_inputs(written)


def test_a_changed_or_undocumented_candidate_file_is_refused(written):
    written.write_bytes(written.read_bytes() + b"\0")
    with pytest.raises(ProvenanceError, match=r"candidates\.jsonl\.gz' changed"):
        check_inputs(written)
    (written.parent / "candidates.jsonl.gz.meta.json").unlink()
    with pytest.raises(ProvenanceError, match="nobody knows what it was made from"):
        check_inputs(written)


def test_only_what_decides_about_a_model_folder_is_hashed(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("a card")
    path = tmp_path / "c.jsonl"
    write_candidates(path, CANDIDATES, made_by={"keys": 3}, inputs=[folder])
    (folder / "README.md").write_text("another card")
    assert is_current(path, {"keys": 3})
    assert not is_current(path, {"keys": 4})
    assert not is_current(tmp_path / "absent.jsonl", {"keys": 3})
    (folder / "model.safetensors").write_bytes(b"trained on")
    assert not is_current(path, {"keys": 3})
    with pytest.raises(ProvenanceError, match="model' changed since"):
        check_inputs(path)


def test_bad_lines_are_named(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"query": "q", "document": "d", "rank": 1}')
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: not a candidate \(.*score"):
        list(read_candidates(path))
    path.write_text('{"query": "q", "document": "d", "rank": 1, "score": 1.0, "label_source": "guess"}')
    with pytest.raises(DataError, match="label_source must be one of qrels, answer_string, pseudo, got 'guess'"):
        list(read_candidates(path))


LINE = {"query": "q", "document": "d", "rank": 1, "score": 1.0}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"query": ["q"]}, r"query must be a text, got \['q'\]"),
        ({"document": 3}, "document must be a text, got 3"),
        ({"rank": "1"}, "rank must be a whole number, got '1'"),
        ({"score": None}, "score must be a number, got None"),
        ({"score": True}, "score must be a number, got True"),
        ({"label": True}, "label must be a whole number or null, got True"),
        ({"label_source": []}, r"label_source must be a text or null, got \[\]"),
        ({"teachers": None}, "teachers must be a mapping of names to numbers, got None"),
        ({"teachers": [1.0]}, "teachers must be a mapping"),
        ({"teachers": {"t": None}}, r"teachers\.t must be a number, got None"),
        ({"keys": None}, "keys must be a list of lists, got None"),
        ({"keys": [{"a": 1}]}, "keys must be a list of lists"),
        ({"keys": ["abcd"]}, "keys must be a list of lists"),
        ({"keys": [["cup", "body", -1.0]]}, "missing 1 required positional argument: 'count'"),
        ({"keys": [[None, "body", -1.0, 3]]}, "the text of an identifier must be a text, got None"),
        ({"keys": [["cup", ["body"], -1.0, 3]]}, r"the view of the identifier 'cup' must be a text, got \['body'\]"),
        ({"keys": [["cup", "body", "-1", 3]]}, "the log-probability of the identifier 'cup' must be a num.*, got '-1'"),
        ({"keys": [["cup", "body", -1.0, None]]}, "the count of the identifier 'cup' must be a whole number, got None"),
        ({"keys": [["cup", "body", -1.0, "2"]]}, "the count of the identifier 'cup' must be a whole number, got '2'"),
        ({"keys": [["cup", "body", -1.0, 2, "abc"]]}, "the tokens of the identifier 'cup' must be a list of whole num"),
        ({"keys": [["cup", "body", -1.0, 2, [[5]]]]}, r"the tokens of .* whole numbers, got \[\[5\]\]"),
        ({"keys": [["cup", "body", -1.0, 2, [5.0]]]}, "the tokens of .* whole numbers"),
        ({"keys": [["cup", "body", -1.0, 2, None]]}, "the tokens of .* whole numbers, got None"),
        ({"keys": [["cup", "body", -1.0, 2, [5], "c"]]}, "the cover of the identifier 'cup' must be a number or null"),
        ({"keys": [["cup", "body", -1.0, 2, [5], 1.0, "x"]]}, "the prior of the identifier 'cup' must be .*, got 'x'"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_named(tmp_path, values, problem):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (LINE, {**LINE, **values})))
    with pytest.raises(DataError, match=rf"c\.jsonl, line 2: not a candidate \(.*{problem}"):
        list(read_candidates(path))


def test_what_was_made_from_a_package_survives_a_new_environment(tmp_path, monkeypatch):
    name, path = "package:some_models/encoder", tmp_path / "c.jsonl"
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "some_models" / "encoder").mkdir(parents=True)
    (first / "some_models" / "encoder" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(first)
    write_candidates(path, CANDIDATES, made_by={}, inputs=[name])
    first.rename(second)
    importlib.invalidate_caches()
    with pytest.raises(ProvenanceError, match="'package:some_models/encoder', which is gone"):
        check_inputs(path)
    monkeypatch.syspath_prepend(second)
    check_inputs(path)
    (second / "some_models" / "encoder" / "config.json").write_text('{"layers": 2}')
    with pytest.raises(ProvenanceError, match="'package:some_models/encoder' changed"):
        check_inputs(path)
