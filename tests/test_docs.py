"""
Every snippet of the documentation is true.

`yaml`: pipelines are validated, everything else is parsed. `python` and `bash`: run in order, one folder per page, in
which `my-documents.jsonl` is a small corpus; fences marked `no-run` are only parsed. `json`: parsed.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gr_components.data import write_corpus
from gr_pipelines.definition import parse
from gr_pipelines.demo import data
from gr_pipelines.loading import validate

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```([a-z]+)( no-run)?[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
# What is made by commands (`runs/`, a user's `docs.jsonl`) does not begin with one of these.
OWN_PATH = re.compile(
    r"(?<![\w./~$-])((?:training|pipelines|export|tests|docs|gr_components|\.ci)/[\w*./-]*[\w*])(?![\w/]*[{<(])"
)
WRITTEN = re.compile(r"<!--.*?-->|--out \S+", re.DOTALL)  # remarks for the maintainers, and what commands make
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@dataclass(frozen=True)
class Snippet:
    page: Path
    line: int
    language: str
    runs: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(*languages: str) -> list[Snippet]:
    return [snippet for page in PAGES for snippet in page_snippets(page) if snippet.language in languages]


def page_snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Snippet(page, text[: match.start()].count("\n") + 1, match[1], not match[2], match[3])


def by_id(values: list[Snippet]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("snippet", values, ids=str)


@by_id(snippets("python"))
def test_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, str(snippet), "exec")


@by_id(snippets("bash"))
def test_bash_parses(snippet: Snippet) -> None:
    done = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@by_id(snippets("json"))
def test_json_parses(snippet: Snippet) -> None:
    for line in snippet.text.splitlines():
        json.loads(line)


@by_id(snippets("yaml"))
def test_yaml_is_valid(snippet: Snippet, tmp_path: Path) -> None:
    loaded = yaml.safe_load(snippet.text)
    assert loaded
    if "components" in loaded:
        path = tmp_path / "pipeline.yaml"
        path.write_text(snippet.text, encoding="utf-8")
        validate(path)
        parse(snippet.text, str(snippet))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    """Also in fences that are not run: paths that begin with a folder of this repository; `*` stands for any name."""
    text = WRITTEN.sub("", page.read_text(encoding="utf-8"))
    missing = [name for name in OWN_PATH.findall(text) if not any(ROOT.glob(name))]
    assert not missing


def test_tests_that_pages_name_exist() -> None:
    named = [match for page in PAGES for match in TEST.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 30
    for path, function in named:
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{function}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(s.runs and s.language in ("bash", "python") for s in page_snippets(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "my-documents.jsonl", list(data.corpus())[:40])
    programs = Path(sys.executable).parent
    for snippet in page_snippets(page):
        if not snippet.runs or snippet.language not in ("bash", "python"):
            continue
        if snippet.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", f"PATH={shlex.quote(str(programs))}:$PATH\n{snippet.text}"]
        else:
            command = [sys.executable, "-W", "ignore", "-c", snippet.text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{snippet}\n{done.stdout}\n{done.stderr}"
