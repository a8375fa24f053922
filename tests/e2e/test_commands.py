"""Index, search, ask, evaluate through the real commands, on a slice of the shipped corpus."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from gr_components.cli import main
from gr_components.data import Passage, read_run, write_corpus, write_qrels, write_questions
from gr_components.document_stores.local import LocalDocumentStore
from gr_pipelines.demo import data

PASSAGES = 60
QUICK = ("--indexes", "lexical,dense", "--quiet")
QUESTION = "What stadium hosted Super Bowl 50?"


def passages() -> list[Passage]:
    return data.corpus(with_queries=True)[:PASSAGES]


@pytest.fixture(scope="module")
def folder(gr, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, test questions of its passages, their judgements, and a store with the lexical and the dense index."""
    folder = tmp_path_factory.mktemp("e2e")
    write_corpus(folder / "docs.jsonl.gz", passages())
    ids = {passage.id for passage in passages()}
    judged = {q: docs for q, docs in data.qrels("test").items() if ids & set(docs)}
    questions = [question for question in data.questions("test") if question.id in judged][:8]
    assert len(questions) == 8
    write_questions(folder / "questions.jsonl", questions)
    write_qrels(folder / "qrels.tsv", {question.id: judged[question.id] for question in questions})
    gr("index", folder / "docs.jsonl.gz", "--store", folder / "store", "--indexes", "lexical,dense", "--quiet")
    return folder


def state(store: Path) -> dict[str, tuple[int, int]]:
    opened = LocalDocumentStore(str(store))
    try:
        return {index.name: (index.generation, index.up_to_sequence) for index in opened.indexes()}
    finally:
        opened.close()


@pytest.fixture
def search(gr: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """Runs `gr search PIPELINE --store STORE QUERY --json`; returns the documents."""

    def run(pipeline: str, store: Path, query: str, *options: object) -> list[dict[str, Any]]:
        lines = gr("search", pipeline, "--store", store, query, "--json", *options).stdout.splitlines()
        assert len(lines) == 1
        found = json.loads(lines[0])
        assert list(found) == ["documents"]
        documents: list[dict[str, Any]] = found["documents"]
        return documents

    return run


@pytest.mark.parametrize("pipeline", ["bm25", "dense"])
def test_search(search, folder: Path, pipeline: str) -> None:
    documents = search(pipeline, folder / "store", QUESTION, "--top-k", 3)
    assert len(documents) == 3
    assert all(document["title"] == "Super Bowl 50" for document in documents)
    assert {"id", "content", "score"} <= set(documents[0])
    assert not {"embedding", "sparse_embedding"} & set(documents[0])
    scores = [document["score"] for document in documents]
    assert scores == sorted(scores, reverse=True)


def test_search_for_people(gr, folder: Path) -> None:
    lines = gr("search", "bm25", "--store", folder / "store", QUESTION).stdout.splitlines()
    assert lines[0].split()[0] == "1"
    assert "Super Bowl 50" in lines[0]


def test_filters(search, folder: Path) -> None:
    wanted = passages()[5].id
    keep = json.dumps({"field": "id", "operator": "==", "value": wanted})
    for pipeline in ("bm25", "dense"):
        assert [d["id"] for d in search(pipeline, folder / "store", passages()[5].text, "--filters", keep)] == [wanted]


def test_top_k_zero_and_an_empty_query_find_nothing(search, folder: Path) -> None:
    assert search("bm25", folder / "store", QUESTION, "--top-k", 0) == []
    assert search("bm25", folder / "store", "") == []
    assert search("dense", folder / "store", "  ") == []


def test_query_text_is_never_query_syntax(search, folder: Path) -> None:
    for query in ('title:"Super" AND (', "[a TO b] *:* --", "'; DROP TABLE documents; --", "super~2^3 \\"):
        search("bm25", folder / "store", query)


def test_eval_writes_run_and_metrics(gr, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gr(
        "eval", "bm25", "--store", folder / "store", "--queries", folder / "questions.jsonl",
        "--qrels", folder / "qrels.tsv", "--out", out, "--quiet", "--top-k", 20,
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["nDCG@10"] > 0.4  # the slice holds many paragraphs of one article
    assert {"RR@10", "R@1", "R@20", "ms_per_query", "num_queries"} <= set(metrics)
    assert metrics["num_queries"] == 8
    assert metrics["ms_per_query"] > 0
    run = read_run(out / "run.trec")
    assert len(run) == 8
    assert max(len(found) for found in run.values()) == 20
    assert not (out / "answers.jsonl").exists()


def test_eval_without_judgements_writes_only_the_run(gr, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gr("eval", "bm25", "--store", folder / "store", "--queries", folder / "questions.jsonl", "--out", out, "--quiet")
    assert [path.name for path in out.iterdir()] == ["run.trec"]


def test_eval_refuses_an_unknown_measure_before_it_searches(refused, folder: Path, tmp_path: Path) -> None:
    asked = ("--queries", folder / "questions.jsonl", "--qrels", folder / "qrels.tsv", "--out", tmp_path / "out")
    message = refused("eval", "bm25", "--store", folder / "store", *asked, "--measure", "nDGC@10", "--quiet")
    assert "'nDGC@10' is no measure of ir-measures" in message
    assert not (tmp_path / "out").exists()


def test_indexing_again_changes_nothing(gr, folder: Path) -> None:
    before = state(folder / "store")
    result = gr("index", folder / "docs.jsonl.gz", "--store", folder / "store", "--indexes", "lexical,dense", "--quiet")
    assert state(folder / "store") == before
    assert f"{PASSAGES} documents read, 0 new" in result.stdout


def test_indexing_a_changed_corpus_encodes_only_what_changed(
    search, gr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gr_components.models.text_encoder import TextEncoder

    encoded: list[str] = []
    real = TextEncoder.encode

    def counting(self: TextEncoder, texts: list[str], **options: Any) -> Any:
        encoded.extend(texts)
        return real(self, texts, **options)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    some = passages()[:6]
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    write_corpus(corpus, some)
    index = ("index", corpus, "--store", store, "--indexes", "lexical,dense", "--quiet")
    gr(*index)
    assert len(encoded) == 6
    changed = Passage(some[2].id, some[2].title, "A zeppelin over Iceland.", (), some[2].meta)
    write_corpus(corpus, [*some[:2], changed, *some[3:], Passage("new", "New", "Volcanoes of Java.")])
    encoded.clear()
    result = gr(*index)
    assert sorted(encoded) == sorted([f"{some[2].title} A zeppelin over Iceland.", "New Volcanoes of Java."])
    assert "7 documents read, 1 new" in result.stdout
    assert search("bm25", store, "zeppelin")[0]["id"] == some[2].id
    assert search("dense", store, "volcanoes on an island")[0]["id"] == "new"


def test_a_folder_of_text_files(search, gr, tmp_path: Path) -> None:
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "old_letters.md").write_text("About glaciers.\n" * 3, encoding="utf-8")
    (tmp_path / "notes" / "b.txt").write_text("volcano " * 250, encoding="utf-8")
    gr("index", tmp_path / "notes", "--store", tmp_path / "store", "--indexes", "lexical", "--quiet")
    (letters,) = search("bm25", tmp_path / "store", "glaciers")
    assert (letters["id"], letters["title"]) == ("deep/old_letters.md", "old letters")
    assert {d["id"] for d in search("bm25", tmp_path / "store", "volcano")} == {"b.txt#1", "b.txt#2", "b.txt#3"}


def test_refusals_are_one_message(refused, folder: Path, tmp_path: Path) -> None:
    store = folder / "store"
    assert "There is no store" in refused("search", "bm25", "--store", tmp_path / "none", "x")
    assert "There is no pipeline 'bm26'. Did you mean 'bm25'?" in refused("search", "bm26", "--store", store, "x")
    assert "has no output 'answers'" in refused("ask", "bm25", "--store", store, "x")
    assert "--filters is not valid JSON" in refused("search", "bm25", "--store", store, "x", "--filters", "{")
    assert "retriever" in refused("search", "bm25", "--store", store, "x", "--filters", '{"field": "meta.a"}')
    assert "unknown parameter 'topk'" in refused("search", "bm25", "--store", store, "x", "--set", "topk=3")
    assert "must be of type int" in refused("search", "bm25", "--store", store, "x", "--set", "top_k=ten")
    assert "no file or folder" in refused("index", tmp_path / "none.jsonl", "--store", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_malformed_lines_name_file_and_line_and_what_was_read_before_is_kept(
    search, gr, refused, tmp_path: Path
) -> None:
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    lines = [json.dumps({"id": str(n), "text": f"volcano number {n}"}) for n in range(1, 701)]
    corpus.write_text("\n".join([*lines[:600], '{"id": "601", "text":', *lines[601:]]), encoding="utf-8")
    index = ("index", corpus, "--store", store, "--indexes", "lexical", "--quiet")
    assert "docs.jsonl, line 601: not valid JSON" in refused(*index)
    assert search("bm25", store, "number 500")[0]["id"] == "500"  # documents are written while the file is being read
    corpus.write_text("\n".join(lines), encoding="utf-8")
    assert "700 documents read, 200 new, 700 in the store" in gr(*index).stdout
    assert search("bm25", store, "number 601")[0]["id"] == "601"


def test_an_unknown_filter_field_is_named(gr, folder: Path) -> None:
    filters = json.dumps({"operator": "AND", "conditions": [{"field": "meta.titel", "operator": "==", "value": "x"}]})
    result = gr("search", "bm25", "--store", folder / "store", QUESTION, "--filters", filters, "--json")
    assert json.loads(result.stdout) == {"documents": []}
    assert "No document has the field 'titel'. Did you mean 'title'?" in result.stderr


def test_documents_without_text_are_kept_and_never_found(search, gr, tmp_path: Path) -> None:
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    corpus.write_text('{"id": "1", "title": "", "text": ""}\n{"id": "2", "text": "volcano"}\n', encoding="utf-8")
    assert "2 documents read, 2 new, 2 in the store" in gr("index", corpus, "--store", store, *QUICK).stdout
    assert [d["id"] for d in search("bm25", store, "volcano")] == ["2"]
    assert [d["id"] for d in search("dense", store, "volcano")] == ["2"]
    assert "behind" not in gr("index", "--store", store, *QUICK).stdout


def test_another_model_is_refused_until_the_index_is_rebuilt(search, gr, refused, tmp_path: Path, minilm: Path) -> None:
    from gr_components.models.text_encoder_torch import TextEncoderModule

    other = tmp_path / "other"
    smaller = TextEncoderModule.from_folder(minilm)
    with torch.no_grad():
        next(iter(smaller.parameters())).mul_(0.5)
    smaller.save(other)
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    write_corpus(corpus, passages()[:3])
    gr("index", corpus, "--store", store, *QUICK)
    again = ("index", corpus, "--store", store, *QUICK, "--dense-model", other)
    assert "gr index --rebuild dense" in refused(*again)
    assert len(search("dense", store, QUESTION)) == 3
    gr(*again, "--rebuild", "dense")
    assert "holds vectors of the model" in refused("search", "dense", "--store", store, QUESTION)
    assert len(search("dense", store, QUESTION, "--set", f"dense_model={other}")) == 3


def test_an_id_in_two_files_is_refused(refused, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"id": "1", "text": "x"}\n', encoding="utf-8")
    message = refused("index", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--store", tmp_path / "s", "--quiet")
    assert "The id '1' is in" in message
    assert "a.jsonl" in message
    assert "b.jsonl" in message


def test_pipelines_show_and_check(search, gr, tmp_path: Path, folder: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(gr("pipelines", "show", "bm25").stdout, encoding="utf-8")
    gr("pipelines", "check", mine)
    assert search(str(mine), folder / "store", QUESTION, "--set", "top_k=2", "--top-k", 1)
    filled = gr("pipelines", "show", "bm25", "--store", folder / "store", "--filled").stdout
    assert "${" not in filled
    mine.write_text(filled, encoding="utf-8")
    result = gr("search", mine, QUESTION, "--json")
    assert json.loads(result.stdout)["documents"]


def test_a_folder_without_a_store_is_an_error_and_stays_as_it_is(gr, refused, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("volcano", encoding="utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(gr("pipelines", "show", "bm25", "--store", other, "--filled").stdout, encoding="utf-8")
    evaluation = ("--queries", folder / "questions.jsonl", "--out", tmp_path / "out", "--quiet")
    for place in (other, tmp_path / "none"):
        for arguments in (
            ("search", "bm25", "--store", place, "volcano"),
            ("search", "dense", "--store", place, "volcano", "--json"),
            ("search", "bm25", "--set", f"store={place}", "volcano"),
            ("eval", "bm25", "--store", place, *evaluation),
            ("index", "--store", place, "--indexes", "lexical"),
        ):
            message = refused(*arguments)
            assert f"There is no store in '{place}'" in message
            assert f"gr index DOCS --store {place}" in message
    assert "There is no store in" in refused("search", mine, "volcano")
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "other"]


def test_verify_writes_nothing_and_is_no_file_name(
    gr, refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "lexical" in gr("index", "--store", folder / "store", "--verify").stdout
    assert "leave DOCS out" in refused("index", folder / "docs.jsonl.gz", "--store", folder / "store", "--verify")
    assert "no file or folder 'verify'" in refused("index", "verify", "--store", folder / "store")
    Path("verify").mkdir()
    Path("verify/a.txt").write_text("volcano", encoding="utf-8")
    assert "1 documents read, 1 new" in gr("index", "verify", "--store", "s", "--indexes", "lexical", "--quiet").stdout


def test_interrupted_indexing_goes_on_where_it_was(gr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gr_components.embedders import pending
    from gr_components.models.text_encoder import TextEncoder

    monkeypatch.setattr(pending, "_CHUNK", 4)
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    write_corpus(corpus, passages()[:10])
    encoded: list[str] = []
    real = TextEncoder.encode

    def interrupted(self: TextEncoder, texts: list[str], **options: Any) -> Any:
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return real(self, texts, **options)

    def counting(self: TextEncoder, texts: list[str], **options: Any) -> Any:
        encoded.extend(texts)
        return real(self, texts, **options)

    index = ("index", str(corpus), "--store", str(store), *QUICK)
    monkeypatch.setattr(TextEncoder, "encode", interrupted)
    result = CliRunner().invoke(main, index)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    monkeypatch.setattr(TextEncoder, "encode", counting)
    assert "10 documents read, 0 new" in gr(*index).stdout
    assert len(encoded) == len(set(encoded)) == 10
    assert "behind" not in gr(*index).stdout


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"id": "3"}', "text"),
        (b'{"text": "no id"}', "id"),
        (b'["3"]', "object"),
        (b'{"id": "1", "text": "again"}', "'1'"),
        (b'{"id": "3", "text": 5}', "text"),
        (b'{"id": "3", "text": "\xff"}', "UTF-8"),
        (b'{"id": "3", "text": "a", "queries": "no list"}', "queries"),
    ],
)
def test_a_bad_line_is_named(refused, tmp_path: Path, line: bytes, problem: str) -> None:
    corpus, store = tmp_path / "docs.jsonl", tmp_path / "store"
    corpus.write_bytes(b'{"id": "1", "text": "volcano"}\n{"id": "2", "text": "b"}\n' + line + b"\n")
    message = refused("index", corpus, "--store", store, "--indexes", "lexical", "--quiet")
    assert "docs.jsonl, line 3" in message
    assert problem in message
