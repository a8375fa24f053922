"""What a person sees of events: few lines without a terminal, every warning once, an end also after an error."""

import io
import json

import pytest

from gr_components import progress
from gr_components.progress import Console, JsonLines, Task, Tee, track


def test_without_a_terminal_lines_are_few(monkeypatch):
    stream = io.StringIO()
    assert list(track(range(500), Console(stream), "index", 500)) == list(range(500))
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("index: 500/500 | ")
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    stream = io.StringIO()
    list(track(range(3), Console(stream), "index", 3))
    first, second, third, fourth, last = stream.getvalue().splitlines()
    assert first.startswith("index: 0/3 | ")
    assert second.startswith("index: 1/3 | eta ")
    assert (third[:10], fourth[:10], last[:10]) == ("index: 2/3", "index: 3/3", "index: 3/3")


def test_a_bar_only_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with Task(Console(stream), "index", 2) as task:
        task.advance()
    assert "index:  50%" in stream.getvalue()
    assert "\r" in stream.getvalue()


def test_a_warning_is_shown_once_and_another_one_too():
    stream = io.StringIO()
    console = Console(stream)
    for sets in ("b", "b", "c"):
        console.event("WARNING: data skipped", sets=sets)
        console.event("data", set="a")
    assert stream.getvalue().splitlines() == [
        "WARNING: data skipped: sets=b", "data: set=a", "data: set=a", "WARNING: data skipped: sets=c", "data: set=a",
    ]  # fmt: skip


def test_an_operation_that_fails_ends_for_all_reporters(tmp_path):
    stream, path = io.StringIO(), tmp_path / "log" / "log.jsonl"

    def fail() -> None:
        with Task(Tee(Console(stream), JsonLines(path)), "index", 2) as task:
            task.advance(loss=0.5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["event"], e["step"], e.get("loss"), e.get("done")) for e in events] == [
        ("index", 0, None, None), ("index", 1, 0.5, None), ("index", 1, None, True),
    ]  # fmt: skip
    assert stream.getvalue().startswith("index: 1/2 | ")
