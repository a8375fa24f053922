"""
Progress as events: library code emits them, one renderer shows them.

An operation of known or unknown length is a `Task`; code that does the work calls `task.advance()`. Where the events
go is decided by the caller through a `Reporter`; the default is silence. Only a `Console` writes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_INTERVAL_S = 10.0


class Reporter(Protocol):
    """Receives events. `name` is what happens ("train", "index"), `fields` are plain values."""

    def event(self, name: str, **fields: Any) -> None:
        """
        Take one event.

        :param name: The operation.
        :param fields: Plain values; `step` and `total` place the event within the operation.
        """


class Silent:
    """Drops every event."""

    def event(self, name: str, **fields: Any) -> None:
        """Do nothing."""


class Tee:
    """Sends each event to several reporters."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def event(self, name: str, **fields: Any) -> None:
        """Pass the event on."""
        for reporter in self._reporters:
            reporter.event(name, **fields)


class JsonLines:
    """Appends each event as one JSON object per line, with the time in seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def event(self, name: str, **fields: Any) -> None:
        """Append one line."""
        line = json.dumps({"event": name, "time": round(time.time(), 3), **fields}, default=str, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Console:
    """
    Shows events to a person: a bar on a terminal, elsewhere at most one line every ten seconds and one at the end.

    Warnings, whose names begin with `WARNING`, are shown once: every stage of a recipe reads its data and has the same.

    :param stream: Where to write; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bars: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._warned: set[str] = set()

    def event(self, name: str, **fields: Any) -> None:
        """Show one event."""
        step, total = fields.pop("step", None), fields.pop("total", None)
        done = bool(fields.pop("done", False))
        if step is None:
            self._once(name, f"{name}: {_format(fields)}" if fields else name)
        elif self._stream.isatty():
            self._bar(name, step, total, done, fields)
        else:
            self._line(name, step, total, done, fields)

    def _once(self, name: str, line: str) -> None:
        if name.startswith("WARNING"):
            if line in self._warned:
                return
            self._warned.add(line)
        self._write(line)

    def _bar(self, name: str, step: int, total: int | None, done: bool, fields: dict[str, Any]) -> None:
        bar = self._bars.get(name)
        if bar is None:
            bar = self._bars[name] = tqdm(total=total, desc=name, file=self._stream, dynamic_ncols=True, initial=0)
        bar.n = step
        if fields:
            bar.set_postfix_str(_format(fields), refresh=False)
        bar.refresh()
        if done:
            bar.close()
            del self._bars[name]

    def _line(self, name: str, step: int, total: int | None, done: bool, fields: dict[str, Any]) -> None:
        now = time.monotonic()
        started = self._started.setdefault(name, now)
        if not done and now - self._written.get(name, started) < _LINE_INTERVAL_S:
            return
        self._written[name] = now
        place = f"{step}/{total}" if total else f"{step}"
        elapsed = now - started
        if done:
            tail = f"{elapsed:.1f} s"
            del self._started[name]
            self._written.pop(name, None)
        elif total and step:
            tail = f"eta {_duration(elapsed * (total - step) / step)}"
        else:
            tail = f"{elapsed:.0f} s"
        extra = f" {_format(fields)}" if fields else ""
        self._write(f"{name}: {place}{extra} | {tail}")

    def _write(self, line: str) -> None:
        if self._stream.isatty():
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


class Task:
    """
    One operation in progress; use it as a context manager so that its end is reported also after an error.

    :param report: Where events go.
    :param name: What is being done.
    :param total: Number of units, if known.
    """

    def __init__(self, report: Reporter, name: str, total: int | None = None) -> None:
        self._report, self._name, self._total = report, name, total
        self.step = 0

    def advance(self, units: int = 1, **fields: Any) -> None:
        """
        Report that units were completed.

        :param units: How many.
        :param fields: Anything else worth showing, such as a loss.
        """
        self.step += units
        self._report.event(self._name, step=self.step, total=self._total, **fields)

    def __enter__(self) -> Self:
        self._report.event(self._name, step=self.step, total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._report.event(self._name, step=self.step, total=self._total, done=True)


def track(
    items: Iterable[T], report: Reporter, name: str, total: int | None = None, units: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """
    Yield the items and report each one after it was consumed.

    :param items: What to go through.
    :param report: Where events go.
    :param name: What is being done.
    :param total: Number of units, if known.
    :param units: How many units an item counts for.
    """
    with Task(report, name, total) as task:
        for item in items:
            yield item
            task.advance(units(item))


def reporter(progress_bar: bool) -> Reporter:
    """
    Return the renderer for a component's `progress_bar` setting.

    :param progress_bar: Whether the user wants to see progress.
    """
    return Console() if progress_bar else Silent()


def _format(fields: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items()
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
