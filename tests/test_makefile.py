"""What `make` says on a machine where something is missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "-C", str(folder), "setup", "UV=.tools/bin/uv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_python_that_cannot_make_environments_is_named_with_the_remedy(tmp_path: Path) -> None:
    """As Debian's python3 without python3-venv."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ensurepip.py").write_text("raise ImportError", encoding="utf-8")
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/hidden exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    done = make(tmp_path, f"PYTHON={python}")
    assert done.returncode != 0
    assert f"{python} cannot make virtual environments" in done.stdout
    assert "sudo apt install python3-venv" in done.stdout
    assert not (tmp_path / ".tools").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_no_python_at_all(tmp_path: Path) -> None:
    done = make(tmp_path, "PYTHON=")
    assert done.returncode != 0
    assert "No Python 3.11 or newer was found" in done.stdout
