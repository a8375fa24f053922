import pytest

from gr_components.data import ranked, read_run, write_run
from gr_components.errors import DataError


def test_round_trip_keeps_scores_exactly_and_orders_ties_by_id(tmp_path):
    run = {"q1": [("d9", 0.1 + 0.2), ("b", 1.0), ("a", 1.0)], "q2": [("x", -3.5)]}
    assert write_run(tmp_path / "run.trec.gz", run, tag="bm25") == 4
    expected = {"q1": [("a", 1.0), ("b", 1.0), ("d9", 0.1 + 0.2)], "q2": [("x", -3.5)]}
    assert read_run(tmp_path / "run.trec.gz") == expected


def test_the_written_lines_are_trecs(tmp_path):
    write_run(tmp_path / "run", {"q": [("d", 2.0)]}, tag="t")
    assert (tmp_path / "run").read_text() == "q Q0 d 1 2.0 t\n"


def test_four_columns_are_read(tmp_path):
    (tmp_path / "run").write_text("q\td\t1\t2.5\n")
    assert read_run(tmp_path / "run") == {"q": [("d", 2.5)]}


def test_ranked_does_not_depend_on_the_order_given():
    results = [("c", 1.0), ("a", 1.0), ("b", 2.0)]
    assert ranked(results) == ranked(reversed(results)) == [("b", 2.0), ("a", 1.0), ("c", 1.0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1\nq Q0", r"line 2: expected .question Q0 document rank score tag., got .q Q0."),
        ("q Q0 d 1 x t", r"run, line 1: the score must be a number, got 'x'"),
        ("q Q0 d 1 nan t", r"line 1: the score must be a number, got 'nan'"),
        ("q Q0 d 1 2 t\nq Q0 d 2 1 t", r"line 2: document 'd' was found before for question 'q'"),
        ("q Q0 d", r"line 1: expected 'question Q0 document rank score tag'"),
    ],
)
def test_bad_runs_are_named(tmp_path, line, message):
    (tmp_path / "run").write_text(line)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="document id 'a b'"):
        write_run(tmp_path / "run", {"q": [("a b", 1.0)]})
    with pytest.raises(DataError, match="the score is nan"):
        write_run(tmp_path / "run", {"q": [("a", float("nan"))]})
    assert not list(tmp_path.iterdir())
