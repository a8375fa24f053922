"""Results as Markdown tables, which also read well on a terminal."""

from collections.abc import Mapping, Sequence
from unicodedata import east_asian_width

from gr_components.evaluation.comparison import Comparison
from gr_components.evaluation.retrieval import Evaluation

Cell = str | float | int | None


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, digits: int = 4) -> str:
    """
    Return an aligned Markdown table: the first column to the left, the others to the right.

    :param header: Column names.
    :param rows: As many cells each; None stays empty.
    :param digits: Decimals of floating-point cells.
    """
    texts = [[str(name) for name in header], *([_text(cell, digits) for cell in row] for row in rows)]
    widths = [max(3, *(_width(line[column]) for line in texts)) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(texts[0], widths), "| " + " | ".join(rule) + " |", *(_line(line, widths) for line in texts[1:])]
    return "\n".join(lines)


def evaluation_table(systems: Mapping[str, Evaluation], measures: Sequence[str], *, digits: int = 4) -> str:
    """
    Return a table of systems by measures.

    :param systems: Evaluations by name.
    :param measures: Columns; a system that lacks one gets an empty cell.
    :param digits: Decimals.
    """
    means = {name: evaluation.means for name, evaluation in systems.items()}
    rows = [[name, *(values.get(measure) for measure in measures)] for name, values in means.items()]
    return markdown_table(["system", *measures], rows, digits=digits)


def comparison_table(comparisons: Sequence[Comparison], *, digits: int = 4) -> str:
    """
    Return a table of comparisons with intervals, p values and what the test could detect.

    :param comparisons: What `compare` returned.
    :param digits: Decimals of means.
    """
    header = ["system", "against", "measure", "n", "difference", "95 % interval", "p", "p (Holm)", "detectable"]
    rows: list[list[Cell]] = [
        [
            c.system,
            c.baseline,
            c.measure,
            c.num_questions,
            f"{c.difference:+.{digits}f}",
            f"{c.interval[0]:+.{digits}f} to {c.interval[1]:+.{digits}f}",
            p_text(c.p_value),
            p_text(c.p_corrected),
            c.detectable,
        ]
        for c in comparisons
    ]
    return markdown_table(header, rows, digits=digits)


def p_text(p_value: float) -> str:
    """
    Return a p value as it is printed: three decimals, or `< .001`.

    :param p_value: In 0..1.
    """
    return "< .001" if p_value < 0.001 else f"{p_value:.3f}"


def _text(cell: Cell, digits: int) -> str:
    if cell is None:
        return ""
    text = f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)
    return text.replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell + " " * (width - _width(cell)) if column == 0 else " " * (width - _width(cell)) + cell
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"
