import pytest

from gr_components.errors import ConfigError
from gr_components.evaluation import (
    Evaluation,
    compare,
    comparison_table,
    evaluation_table,
    holm,
    markdown_table,
    paired_randomisation,
)

GOOD = Evaluation({"nDCG@10": {f"q{i}": 0.9 for i in range(12)}})
POOR = Evaluation({"nDCG@10": {f"q{i}": 0.5 + 0.02 * i for i in reversed(range(12))}})


def test_questions_are_paired_by_id_not_by_position():
    (got,) = compare({"good": GOOD, "poor": POOR}, [("poor", "good")])
    values = POOR.per_question["nDCG@10"]
    assert got.p_value == paired_randomisation([values[f"q{i}"] for i in range(12)], [0.9] * 12)
    assert got.difference == pytest.approx(got.value - got.baseline_value)
    assert got.interval[0] < got.difference < got.interval[1] < 0
    assert got.num_questions == 12


def test_all_comparisons_are_one_family():
    systems = {"good": GOOD, "poor": POOR, "same": GOOD}
    got = compare(systems, [("good", "poor"), ("same", "good")])
    assert [c.p_corrected for c in got] == holm([c.p_value for c in got])
    assert got[1].p_value == 1.0


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ConfigError, match="no system 'best'"):
        compare({"good": GOOD}, [("best", "good")])
    with pytest.raises(ConfigError, match="'good' was not measured by 'EM'"):
        compare({"good": GOOD}, [("good", "good")], "EM")
    with pytest.raises(ConfigError, match="different questions"):
        compare({"good": GOOD, "part": GOOD.restricted(["q1"])}, [("good", "part")])


def test_tables_are_aligned_markdown():
    table = markdown_table(["system", "n", "東京"], [["a|b", 3, 0.12345], ["long name", None, 1.0]])
    assert table.splitlines() == [
        "| system    |   n |   東京 |",
        "| --------- | --: | -----: |",
        "| a\\|b      |   3 | 0.1235 |",
        "| long name |     | 1.0000 |",
    ]


def test_reports_hold_the_figures():
    table = evaluation_table({"good": GOOD, "poor": POOR}, ["nDCG@10", "EM"], digits=3)
    assert table.splitlines()[2] == "| good   |   0.900 |     |"
    report = comparison_table(compare({"good": GOOD, "poor": POOR}, [("good", "poor")]))
    assert "< .001" in report
    assert "+0.2900" in report
