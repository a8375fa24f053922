"""BM25 and MiniLM through `gr index` and `gr eval` give the figures of other libraries: SQuAD, about five minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("baselines.py")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_squad(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| squad |") == 2
