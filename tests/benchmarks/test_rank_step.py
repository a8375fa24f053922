"""
A DGR step over a list of 6 passages with 40 keys each: gradient caching changes its memory and not its loss.

The figures of docs/results/rank-step.md are printed by `python tests/benchmarks/rank_step.py`, run by run in a process
of its own; this repeats the smallest of them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("rank_step.py")


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow  # a minute
@pytest.mark.timeout(600)
def test_caching_saves_memory():
    plain, cached = (measured("step", "demo", chunk, "1") for chunk in ("0", "64"))
    assert plain["tokens"] == cached["tokens"] > 1500
    assert cached["loss"] == pytest.approx(plain["loss"], rel=0.2), "dropout makes them differ a little"
    assert cached["allocated_mib"] < 0.7 * plain["allocated_mib"]
