"""`gr demo` from nothing to its table and a typed question, with the shipped models and a few questions."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gr_components.cli import main
from gr_pipelines.demo import data, engines

QUESTION = "What day was the Super Bowl played on?"


@pytest.mark.slow  # two minutes
@pytest.mark.timeout(900)
def test_from_nothing_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SAMPLE_SIZE", 5)
    options = ["--folder", str(tmp_path / "demo"), "--out", str(tmp_path / "page.md"), "--interactive", "--quiet"]
    result = CliRunner().invoke(main, ["demo", *options], input=f"{QUESTION}\n\n")
    assert result.exit_code == 0, result.output
    table, _, rest = result.stdout.partition("Paired randomisation tests over the same questions:")
    for heading in ("Recall@1", "Recall@5", "Recall@20", "MRR@10", "nDCG@10", "EM", "F1", "ms/query"):
        assert f" {heading} " in table
    for system in (*engines.SYSTEMS, engines.CONSTANT, engines.UNTRAINED, engines.WORDS):
        assert f"   {system} " in table
    assert "5 test questions" in table
    assert "5 questions on unseen passages" in table
    assert "what the hybrid adds" in rest
    assert "February 7, 2016" in rest
    assert "Identifiers that the generator wrote" in rest
    assert table.strip() in (tmp_path / "page.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert written["settings"]["sample"] == 5
    assert {row["num_questions"] for row in written["rows"]} == {5}
