import json

from gr_components.evaluation import Evaluation, compare
from gr_pipelines.demo.results import Results, Row


def results():
    good = Evaluation({"nDCG@10": {f"q{i}": 0.9 for i in range(8)}, "EM": {f"q{i}": float(i < 3) for i in range(8)}})
    poor = Evaluation({"nDCG@10": {f"q{i}": 0.1 * (i % 2) for i in range(8)}})
    rows = [
        Row(group="300 questions", system="good", evaluation=good, ms_per_query=12.34),
        Row(group="300 questions", system="poor", evaluation=poor),
        Row(group="unseen", system="poor", evaluation=poor),
    ]
    tests = compare({row.key: row.evaluation for row in rows}, [(rows[0].key, rows[1].key)])
    return Results(rows=rows, comparisons={"does it help?": tests}, settings={"seed": 13})


def test_the_table_groups_rows_and_leaves_out_what_was_not_measured():
    lines = results().table().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    recalls = ["Recall@1", "Recall@5", "Recall@10", "Recall@20"]
    assert cells[0] == ["system", "n", *recalls, "MRR@10", "nDCG@10", "EM", "F1", "ms/query"]
    assert [line[0] for line in cells[2:]] == ["**300 questions**", "good", "poor", "**unseen**", "poor"]
    assert cells[3] == ["good", "8", "", "", "", "", "", "0.900", "37.5", "", "12.3"]
    assert cells[4] == ["poor", "8", "", "", "", "", "", "0.050", "", "", ""]


def test_paired_tests_name_both_sides():
    lines = results().tests().splitlines()
    assert "**does it help?**" in lines[2]
    assert lines[3].startswith("|   good - poor")
    assert "+0.850" in lines[3]
    assert "0.008" in lines[3]


def test_everything_can_be_stored_as_json():
    data = json.loads(json.dumps(results().to_dict()))
    assert data["rows"][0] == {
        "group": "300 questions",
        "system": "good",
        "num_questions": 8,
        "ms_per_query": 12.34,
        "nDCG@10": 0.9,
        "EM": 0.375,
    }
    assert data["tests"]["does it help?"][0]["baseline"] == "300 questions / poor"
