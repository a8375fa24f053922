"""What the demo measured: rows of the table, paired tests, and the settings that made them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from gr_components.evaluation.comparison import Comparison
from gr_components.evaluation.reports import Cell, markdown_table, p_text
from gr_components.evaluation.retrieval import Evaluation

MEASURES = {
    "R@1": "Recall@1",
    "R@5": "Recall@5",
    "R@10": "Recall@10",
    "R@20": "Recall@20",
    "RR@10": "MRR@10",
    "nDCG@10": "nDCG@10",
    "EM": "EM",
    "F1": "F1",
}
RETRIEVAL_MEASURES = ("R@1", "R@5", "R@10", "R@20", "R@100", "RR@10", "nDCG@10")
_PERCENT = ("EM", "F1")
_INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    One line of the table.

    :param group: Under which heading it stands.
    :param system: What was run.
    :param evaluation: Its measures, question by question.
    :param ms_per_query: Milliseconds of one question on one core; None where that was not timed.
    """

    group: str
    system: str
    evaluation: Evaluation
    ms_per_query: float | None = None

    @property
    def key(self) -> str:
        """Group and system, by which tests refer to the row."""
        return row_key(self.group, self.system)


def row_key(group: str, system: str) -> str:
    """
    Return what names a row.

    :param group: Under which heading it stands.
    :param system: What was run.
    """
    return f"{group} / {system}"


@dataclass
class Results:
    """
    Everything that the demo prints and stores.

    :param rows: In the order of the table.
    :param comparisons: Families of paired tests by their headings.
    :param settings: Models, sizes, seeds, machine, seconds. Plain values.
    """

    rows: list[Row] = field(default_factory=list)
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return the table: one line a system, grouped, EM and F1 in percent."""
        header = ["system", "n", *MEASURES.values(), "ms/query"]
        return markdown_table(header, list(self._lines()), digits=3)

    def tests(self) -> str:
        """Return the paired tests, one line each."""
        header = ["test", "measure", "n", "difference", "95 % interval", "p", "p (Holm)", "detectable"]
        lines: list[list[Cell]] = []
        for heading, family in self.comparisons.items():
            lines.append([f"**{heading}**", *[None] * (len(header) - 1)])
            lines.extend(_test_line(comparison) for comparison in family)
        return markdown_table(header, lines, digits=3)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: means of every row, all tests, the settings."""
        rows = [
            {
                "group": row.group,
                "system": row.system,
                "num_questions": row.evaluation.num_questions,
                "ms_per_query": row.ms_per_query,
                **row.evaluation.means,
            }
            for row in self.rows
        ]
        tests = {heading: [asdict(comparison) for comparison in family] for heading, family in self.comparisons.items()}
        return {"rows": rows, "tests": tests, "settings": self.settings}

    def _lines(self) -> Iterator[list[Cell]]:
        group = None
        for row in self.rows:
            if row.group != group:
                group = row.group
                yield [f"**{group}**", *[None] * (len(MEASURES) + 2)]
            means = row.evaluation.means
            values: list[Cell] = [_value(name, means.get(name)) for name in MEASURES]
            ms = None if row.ms_per_query is None else f"{row.ms_per_query:.1f}"
            yield [_INDENT + row.system, row.evaluation.num_questions, *values, ms]


def _value(name: str, value: float | None) -> Cell:
    if value is not None and name in _PERCENT:
        return f"{100 * value:.1f}"
    return value


def _test_line(comparison: Comparison) -> list[Cell]:
    c = comparison
    system, baseline = (name.rpartition(" / ")[2] for name in (c.system, c.baseline))
    interval = f"{c.interval[0]:+.3f} to {c.interval[1]:+.3f}"
    return [
        f"{_INDENT}{system} - {baseline}",
        MEASURES.get(c.measure, c.measure),
        c.num_questions,
        f"{c.difference:+.3f}",
        interval,
        p_text(c.p_value),
        p_text(c.p_corrected),
        c.detectable,
    ]
