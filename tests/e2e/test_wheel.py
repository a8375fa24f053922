"""The wheel, installed without the repository and without extras: what is inside, what works, which extra is named."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = ("pipelines/gr_pipelines/definitions", "pipelines/gr_pipelines/demo", "pipelines/gr_pipelines/models")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv") or shutil.which(ROOT / ".tools" / "bin" / "uv")
    if found is None:
        pytest.skip("uv was not found; `make setup` installs it")
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", out, ROOT], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([uv, "venv", "--quiet", folder], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "bin" / "python", wheel], check=True)
    return folder


def gr(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PATH": os.defpath, "PYTHONPATH": ""}
    command = [environment / "bin" / "gr", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=environment, env=settings, timeout=120, check=False
    )


def test_everything_shipped_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", *TRACKED], cwd=ROOT, capture_output=True, text=True, check=True)
    shipped = {path.removeprefix("pipelines/") for path in listed.stdout.splitlines()}
    assert {"gr_pipelines/definitions/bm25.yaml", "gr_pipelines/demo/corpus.jsonl.gz"} <= shipped
    assert shipped <= inside
    recipes = subprocess.run(
        ["git", "ls-files", "training/configs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert recipes.stdout
    assert {
        path.removeprefix("training/").replace("configs", "gr_training/configs", 1) for path in recipes.stdout.split()
    } <= inside
    assert {
        f"{package}/py.typed" for package in ("gr_components", "gr_training", "gr_pipelines", "gr_export")
    } <= inside
    assert not any(name.startswith(("tests/", "training/", "pipelines/", "export/")) for name in inside)


def test_the_command_works_without_extras(environment: Path) -> None:
    listed = gr(environment, "--help")
    assert listed.returncode == 0, listed.stderr
    assert "not available" not in listed.stdout
    doctor = gr(environment, "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "Run: pip install 'gr-components[torch]'" in doctor.stdout
    assert "not installed: models run only as ONNX" in doctor.stdout


def test_all_modules_of_components_import_without_extras(environment: Path) -> None:
    code = (
        "import gr_components.retrievers.generative, gr_components.retrievers.dense, gr_components.retrievers.bm25,"
        " gr_components.rankers.cross_encoder, gr_components.readers.fid, gr_components.document_stores.local,"
        " gr_pipelines.cli, gr_training.cli, gr_export.cli"
    )
    done = subprocess.run([environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_one_message_with_its_command(environment: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text('{"id": "1", "title": "Faust", "text": "A play by Goethe."}\n', encoding="utf-8")
    done = gr(environment, "index", str(corpus), "--store", str(tmp_path / "store"), "--indexes", "lexical")
    assert done.returncode == 2, done.stdout
    assert done.stderr.strip().endswith("Run: pip install 'gr-components[lexical]'")
    assert "Traceback" not in done.stderr
