import json

import pytest

from gr_components.data import (
    Passage,
    Question,
    read_corpus,
    read_ids,
    read_qrels,
    read_questions,
    searchable_text,
    write_corpus,
    write_ids,
    write_qrels,
    write_questions,
)
from gr_components.errors import DataError

PASSAGES = [
    Passage("p1", "Title", "Text.", ("what is it?",), {"year": 1999, "tags": ["x"]}),
    Passage("p2", "", "Only text"),
]
QUESTIONS = [
    Question("q1", "Who?", ("Ann", "Bob"), ("Ann", "Ann", "Bob"), {"article": "X"}),
    Question("q2", "Unanswered?"),
]


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_round_trips(tmp_path):
    write_corpus(tmp_path / "c.jsonl.gz", PASSAGES)
    write_questions(tmp_path / "q.jsonl.xz", QUESTIONS)
    write_qrels(tmp_path / "r.tsv.gz", {"q1": {"p1": 2, "p2": 0}})
    write_ids(tmp_path / "ids.txt", ["q2", "q1"])
    assert list(read_corpus(tmp_path / "c.jsonl.gz")) == PASSAGES
    assert list(read_questions(tmp_path / "q.jsonl.xz")) == QUESTIONS
    assert read_qrels(tmp_path / "r.tsv.gz") == {"q1": {"p1": 2, "p2": 0}}
    assert read_ids(tmp_path / "ids.txt") == ["q2", "q1"]


def test_beir_lines_and_numbers_as_ids_are_read(tmp_path):
    path = write(tmp_path / "c.jsonl", {"_id": "x", "title": None, "text": "a"}, {"id": 7, "text": "", "url": "u"})
    assert list(read_corpus(path)) == [Passage("x", "", "a"), Passage("7", "", "", (), {"url": "u"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "t"}, r"c\.jsonl, line 2: 'id' must be a text that is not empty, got None"),
        ({"id": " ", "text": "t"}, r"line 2: 'id' must be a text that is not empty, got ' '"),
        ({"id": True, "text": "t"}, r"line 2: 'id' must be a text that is not empty, got True"),
        ({"id": "a", "text": "t"}, r"line 2: the id 'a' stands in line 1 already"),
        ({"id": "b"}, r"line 2: 'text' must be a text, got None"),
        ({"id": "b", "text": ["t"]}, r"line 2: 'text' must be a text, got \['t'\]"),
        ({"id": "b", "text": "t", "title": 3}, r"line 2: 'title' must be a text, got 3"),
        ({"id": "b", "text": "t", "queries": "one?"}, r"line 2: 'queries' must be a list of texts, got 'one\?'"),
        ({"id": "b", "text": "t", "queries": [1]}, r"line 2: 'queries' must be a list of texts, got \[1\]"),
    ],
)
def test_bad_passages_are_named(tmp_path, line, message):
    path = write(tmp_path / "c.jsonl", {"id": "a", "text": "t"}, line)
    with pytest.raises(DataError, match=message):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "q1"}, r"q\.jsonl, line 1: 'text' must be a text"),
        ({"id": "q1", "text": "t", "answers": "a"}, r"line 1: 'answers' must be a list of texts, got 'a'"),
    ],
)
def test_bad_questions_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        list(read_questions(write(tmp_path / "q.jsonl", line)))


def test_qrels_of_trec_and_beir_are_read(tmp_path):
    assert read_qrels(write(tmp_path / "t", "q 0 d 3\n")) == {"q": {"d": 3}}
    assert read_qrels(write(tmp_path / "b", "query-id\tcorpus-id\tscore\nq\td\t1\n")) == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q\td\n", r"r\.tsv, line 2: expected 'question TAB document TAB grade', got 'q d'"),
        ("q\td\thigh\n", r"line 2: the grade must be a whole number, got 'high'"),
        ("q\ta\t0\n", r"line 2: document 'a' was judged before for question 'q'"),
    ],
)
def test_bad_judgements_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_qrels(write(tmp_path / "r.tsv", "q\ta\t1\n", line))


def test_a_repeated_id_in_a_split_is_named(tmp_path):
    with pytest.raises(DataError, match=r"s\.txt, line 3: the id 'a' stands in line 1 already"):
        read_ids(write(tmp_path / "s.txt", "a\nb\na\n"))


def test_searchable_text_has_no_space_for_a_missing_title():
    assert searchable_text("T", "x") == "T x"
    assert searchable_text("", "x") == "x"
