"""The command `gr`: errors become one message and an exit code; unknown commands get a suggestion."""

import errno
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from haystack import Document, Pipeline, component
from haystack.errors import FilterError

from gr_components import __version__
from gr_components.cli import Commands, main
from gr_components.doctor import extras
from gr_components.document_stores.local import LocalDocumentStore
from gr_components.errors import DataError, MissingExtraError


@component
class Raises:
    """A component that fails as real ones do."""

    @component.output_types(text=str)
    def run(self, query: str) -> dict[str, str]:
        msg = f"corpus.jsonl, line 3: no text for {query!r}."
        raise DataError(msg)


def through_pipeline() -> None:
    pipeline = Pipeline()
    pipeline.add_component("reader", Raises())
    pipeline.run({"reader": {"query": "q"}})


def invoke(error: BaseException | None, *options: str) -> Result:
    @click.command("fail")
    def fail() -> None:
        if error is None:
            through_pipeline()
        else:
            raise error

    group = Commands("gr", params=[click.Option(["--debug"], is_flag=True)], callback=lambda debug: None)
    group.add_command(fail)
    return CliRunner().invoke(group, [*options, "fail"])


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (DataError("corpus.jsonl, line 3: no text."), "Error: corpus.jsonl, line 3: no text.\n"),
        (
            MissingExtraError("Run: pip install 'gr-components[faiss]'"),
            "Error: Run: pip install 'gr-components[faiss]'\n",
        ),
        (FilterError("'field' key missing"), "Error: 'field' key missing\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Error: [Errno 13] Permission denied: 'x'\n"),
    ],
)
def test_expected_errors_are_one_message(error: Exception, shown: str) -> None:
    result = invoke(error)
    assert (result.exit_code, result.stderr, result.stdout) == (2, shown, "")


def test_a_full_disk_says_what_is_safe() -> None:
    result = invoke(OSError(errno.ENOSPC, "No space left on device"))
    assert result.exit_code == 2
    assert "disk is full" in result.stderr
    assert "run the command again" in result.stderr


def test_an_error_inside_a_pipeline_names_the_component() -> None:
    result = invoke(None)
    assert result.exit_code == 2
    assert result.stderr == "Error: corpus.jsonl, line 3: no text for 'q'. (component 'reader' of the pipeline)\n"


def test_debug_keeps_the_traceback() -> None:
    assert isinstance(invoke(DataError("x"), "--debug").exception, DataError)


def test_defects_are_not_hidden() -> None:
    assert isinstance(invoke(ZeroDivisionError("x")).exception, ZeroDivisionError)


def test_interruption() -> None:
    result = invoke(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_help_lists_every_command_and_all_can_be_imported() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in ("ask", "demo", "doctor", "eval", "export", "index", "migrate", "pipelines", "search", "train"):
        assert f"  {name} " in result.stdout
    assert "not available" not in result.stdout


def test_an_unknown_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(main, ["serach"])
    assert result.exit_code == 2
    assert "No such command 'serach'. Did you mean 'search'?" in result.stderr


def test_the_installed_script_works() -> None:
    script = Path(sys.executable).parent / "gr"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"gr, version {__version__}"


def test_doctor_reports_extras_and_a_missing_store(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--store", str(tmp_path / "none")])
    assert result.exit_code == 1
    for section in ("Versions", "Device", "Extras", "Default models", "Caches", "Store"):
        assert f"\n{section}\n" in result.stdout
    assert "torch" in result.stdout
    assert f"There is no folder '{tmp_path / 'none'}'" in result.stdout


def test_doctor_lists_everything_and_the_health_of_a_store(tmp_path: Path) -> None:
    store = LocalDocumentStore(tmp_path / "store")
    store.write_documents([Document(id=str(n), content=f"text {n}") for n in range(3)])
    store.lexical_search(["text"], top_k=1)
    store.write_vectors("dense", [1, 2], np.eye(2))
    store.close()
    result = CliRunner().invoke(main, ["doctor", "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.stdout
    found = dict(line[3:].split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("   "))
    for name in ("gr-components", "haystack-ai", "Python", "system", "default", *(set(extras()) - {"all"})):
        assert name in found, f"{name} is not reported"
    assert found["gr-components"] == __version__
    for line in ("dense encoder", "generator", "reader", "ranker", "model downloads", "compiled kernels"):
        assert f"   {line} " in result.stdout
    assert found["documents"] == "3"
    assert "index 'lexical'        lexical, up to date" in result.stdout
    assert "index 'dense'          vector, 1 documents behind: run gr index" in result.stdout
    assert result.stdout.endswith("No problems found.\n")


def test_doctor_names_the_command_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    real = importlib.metadata.version

    def without_faiss(name: str) -> str:
        if name == "faiss-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without_faiss)
    assert "missing faiss-cpu. Run: pip install 'gr-components[faiss]'" in CliRunner().invoke(main, ["doctor"]).stdout


def test_doctor_names_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "cannot be written. Set NUMBA_CACHE_DIR" in result.stdout
