"""The shipped models through the real commands: index, search, ask, evaluate, as the README says, on a slice."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gr_components.cli import main
from gr_components.data import write_corpus, write_qrels, write_questions
from gr_pipelines.demo import data
from gr_pipelines.demo.console import converse
from gr_pipelines.query import QueryPipeline
from gr_training.card import RESTRICTED, DataUse, licence_of

QUESTION = "What day was the Super Bowl played on?"
QUESTIONS = 6


def gr(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exit_code != 0:
        raise AssertionError(result.stderr) from result.exception
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    passages = data.corpus(with_queries=True)[:80]
    write_corpus(folder / "docs.jsonl", passages)
    ids = {passage.id for passage in passages}
    judged = {q: docs for q, docs in data.qrels("test").items() if ids & set(docs)}
    questions = [question for question in data.questions("test") if question.id in judged][:QUESTIONS]
    write_questions(folder / "questions.jsonl", questions)
    write_qrels(folder / "qrels.tsv", {question.id: judged[question.id] for question in questions})
    gr("index", folder / "docs.jsonl", "--store", folder / "store", "--quiet", "--lexical-queries")
    return folder


def documents(folder: Path, pipeline: str, *options: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        gr("search", pipeline, "--store", folder / "store", QUESTION, "--json", *options)
    )["documents"]
    return found


def test_generative_hits_carry_their_identifiers(folder: Path) -> None:
    found = documents(folder, "generative", "--top-k", 5)
    assert len(found) == 5
    assert all(document["title"] == "Super Bowl 50" for document in found)
    keys = found[0]["identifiers"]
    assert {"text", "view", "log_probability", "count", "contribution"} <= set(keys[0])
    assert {key["view"] for document in found for key in document["identifiers"]} >= {"body", "title"}
    contributions = [key["contribution"] for key in keys]
    assert contributions == sorted(contributions, reverse=True)


def test_hybrid_finds_the_passage(folder: Path) -> None:
    assert any("Santa Clara" in document["content"] for document in documents(folder, "hybrid", "--top-k", 5))
    by_rank = documents(folder, "hybrid", "--set", "fusion=reciprocal_rank_fusion", "--top-k", 5)
    assert any("Santa Clara" in document["content"] for document in by_rank)


def test_ask_answers_with_passages(folder: Path) -> None:
    (answer,) = json.loads(gr("ask", "qa", "--store", folder / "store", QUESTION, "--json"))["answers"]
    assert answer["query"] == QUESTION
    assert answer["data"] == "February 7, 2016"
    assert len(answer["documents"]) == 5
    assert all("embedding" not in document for document in answer["documents"])
    scores = answer["meta"]["passage_scores"]
    order = [document["id"] for document in answer["documents"]]
    assert order == sorted(order, key=lambda identity: -scores[identity])
    assert any(answer["data"] in document["content"] for document in answer["documents"])
    assert answer["data"] in gr("ask", "qa", "--store", folder / "store", QUESTION)


def test_eval_measures_answers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gr(
        "eval", "qa", "--store", folder / "store", "--queries", folder / "questions.jsonl",
        "--qrels", folder / "qrels.tsv", "--out", out, "--quiet", "--top-k", 20,
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["R@20"] > 0.8
    assert 0 <= metrics["EM"] <= metrics["F1"] <= 1
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == QUESTIONS
    assert all(line["answer"] and line["documents"] for line in lines)


def test_the_demo_answers_typed_questions(folder: Path) -> None:
    store = str(folder / "store")

    @click.command()
    def ask() -> None:
        with QueryPipeline("qa", store=store) as qa, QueryPipeline("generative", store=store) as generative:
            converse(qa, generative)

    result = CliRunner().invoke(ask, input=f"{QUESTION}\n\nnever asked\n")
    assert result.exception is None
    answer, identifiers = result.stdout.split("Identifiers that the generator wrote")
    assert "February 7, 2016" in answer
    shares = [int(share) for share in re.findall(r"^ +(\d+)%  ", answer, re.MULTILINE)]
    assert len(shares) == 5, "the passages with the reader's attention to each"
    assert sum(shares) == pytest.approx(100, abs=3)
    assert identifiers.count("Super Bowl 50") >= 3
    assert identifiers.count("matched: ") == 3
    assert result.stdout.count("Question:") == 2, "an empty line ends"
    ended = CliRunner().invoke(ask, input="")
    assert ended.exception is None, "so does the end of the input"


def test_models_are_small_without_pickle_and_licensed_as_their_data() -> None:
    models = Path(data.FOLDER).parent / "models"
    files = [path for path in models.rglob("*") if path.is_file()]
    assert {path.name for path in models.iterdir() if path.is_dir()} == {"generator", "ranker", "reader"}
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt", ""}
    for folder in models.iterdir():
        if folder.is_dir():
            described = json.loads((folder / "gr_model.json").read_text(encoding="utf-8"))
            used = [DataUse(each["name"], each["licence"], 0) for each in described["data"]]
            assert used
            assert not any(each.name.startswith(("msmarco", "nfcorpus")) for each in used)
            assert described["licence"] == licence_of(used) != RESTRICTED
            assert f"license: {described['licence'].lower()}" in (folder / "README.md").read_text(encoding="utf-8")
            assert described["base_model"]
