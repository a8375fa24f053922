"""
A DGR step over a list of 6 passages with 40 keys each, plain and with gradient caching.

Figures for docs/results/rank-step.md are printed by `python tests/benchmarks/rank_step.py`, run by run in a process of
its own. The demo's generator takes about a minute here, bart-base three.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("rank_step.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("name", "questions", "least"), [("demo", 6, 150), ("bart-base", 1, 8)])
def test_caching_costs_one_more_forward_pass_and_saves_memory(name, questions, least):
    plain, cached = (measured("step", name, chunk, str(questions)) for chunk in ("0", "64"))
    assert plain["tokens"] == cached["tokens"] > 1500 * questions
    assert cached["loss"] == pytest.approx(plain["loss"], rel=0.2), "dropout makes them differ a little"
    assert plain["tokens_per_s"] > least
    assert cached["seconds"] < 2 * plain["seconds"]
    assert cached["allocated_mib"] < 0.7 * plain["allocated_mib"]


def test_what_autograd_keeps_for_each_key_token():
    found = measured("kept", "bart-base")
    assert found["parameters"] == 139_420_416
    assert 0.3e6 < found["bytes_per_token"] < 0.6e6
