import json

import pytest

from gr_components.data import (
    Passage,
    Question,
    read_dpr,
    read_kilt,
    read_msmarco_collection,
    read_msmarco_queries,
)
from gr_components.errors import DataError

DPR = {
    "question": "who?",
    "answers": ["Ann"],
    "positive_ctxs": [{"passage_id": 3, "title": "T", "text": "Ann", "score": 1000}],
    "negative_ctxs": [],
    "hard_negative_ctxs": [{"psg_id": "4", "title": None, "text": "Bob"}],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_dpr_as_list_and_as_lines(tmp_path, indent):
    (tmp_path / "list.json").write_text(json.dumps([DPR, DPR], indent=indent))
    (tmp_path / "lines.jsonl").write_text(json.dumps(DPR) + "\n")
    (example, second), (line,) = read_dpr(tmp_path / "list.json"), read_dpr(tmp_path / "lines.jsonl")
    assert example.positives == line.positives == (Passage("3", "T", "Ann"),)
    assert example.hard_negatives == line.hard_negatives == (Passage("4", "", "Bob"),)
    assert example.negatives == ()
    assert (example.question, second.question.id) == (Question("0", "who?", ("Ann",)), "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive_ctxs": []}, r"line 1: the question 'who\?' has no positive passage"),
        ({"question": None}, r"line 1: 'question' must be a text, got None"),
        ({"answers": "Ann"}, r"line 1: 'answers' must be a list, got 'Ann'"),
        (
            {"hard_negative_ctxs": [{"text": "x"}]},
            r"line 1: every passage in 'hard_negative_ctxs' needs an id and a text",
        ),
    ],
)
def test_bad_dpr_entries_are_named(tmp_path, change, message):
    (tmp_path / "d.jsonl").write_text(json.dumps(DPR | change))
    with pytest.raises(DataError, match=message):
        list(read_dpr(tmp_path / "d.jsonl"))


def test_bad_dpr_lists_are_named(tmp_path):
    (tmp_path / "d.json").write_text(f"[\n{json.dumps(DPR)},\n]")
    with pytest.raises(DataError, match=r"not valid JSON \(.*line [23], column \d+\)"):
        list(read_dpr(tmp_path / "d.json"))
    (tmp_path / "d.json").write_text('["x"]')
    with pytest.raises(DataError, match="entry 0: expected an object, got 'x'"):
        list(read_dpr(tmp_path / "d.json"))


def test_msmarco_passages_documents_and_queries(tmp_path):
    (tmp_path / "c.tsv").write_text("0\ttext one\nD1\thttp://x\tTitle\tBody\n")
    (tmp_path / "q.tsv").write_text("9\twhat is it\n")
    passage, document = read_msmarco_collection(tmp_path / "c.tsv")
    assert (passage, document) == (
        Passage("0", "", "text one"),
        Passage("D1", "Title", "Body", (), {"url": "http://x"}),
    )
    assert list(read_msmarco_queries(tmp_path / "q.tsv")) == [Question("9", "what is it")]


def test_bad_msmarco_rows_are_named(tmp_path):
    (tmp_path / "c.tsv").write_text("0\ta\n0\tb\n")
    with pytest.raises(DataError, match=r"c\.tsv, line 2: the id '0' stands in the file already"):
        list(read_msmarco_collection(tmp_path / "c.tsv"))
    (tmp_path / "q.tsv").write_text("only one column\n")
    with pytest.raises(DataError, match=r"q\.tsv, line 1: expected 2 columns between tabs, got 1"):
        list(read_msmarco_queries(tmp_path / "q.tsv"))


def test_kilt_questions_with_pages(tmp_path):
    output = [
        {"answer": "Ann", "provenance": [{"wikipedia_id": 5}, {"wikipedia_id": "5"}]},
        {"provenance": [{"wikipedia_id": "6"}]},
        {"answer": "Ann"},
    ]
    (tmp_path / "k.jsonl").write_text(json.dumps({"id": 1, "input": "who?", "output": output}))
    assert list(read_kilt(tmp_path / "k.jsonl")) == [(Question("1", "who?", ("Ann",)), ("5", "6"))]
    (tmp_path / "k.jsonl").write_text(json.dumps({"id": 1, "input": "who?", "output": ["Ann"]}))
    with pytest.raises(DataError, match=r"line 1: 'output' must be a list of objects"):
        list(read_kilt(tmp_path / "k.jsonl"))
