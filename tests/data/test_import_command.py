"""`gr import`: files as DPR, Microsoft and BEIR publish them become what recipes read."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gr_components.data import Passage, Question, read_corpus, read_dpr, read_dpr_passages, read_qrels, read_questions
from gr_components.data.imports import import_dpr
from gr_components.errors import DataError
from gr_training.config import load_raw, parse
from gr_training.recipes import recipe_module
from gr_training.sources import load_sources, load_validation

BASE = Path(__file__).parents[2] / "training" / "configs" / "base"
PASSAGES = [
    ("1", 'Aaron (or ""Aharon"")\tis a prophet', "Aaron"),
    ("2", "Moses was the brother", '"Heroes" (album)'),
    ("3", "An unrelated text", "Else"),
    ("4", "Nobody names this one", "Nobody"),
]


def context(number: int, key: str = "passage_id") -> dict[str, Any]:
    identity, text, title = PASSAGES[number - 1]
    return {"title": title, "text": text, "score": 1000, "title_score": 1, key: identity}


def entry(question: str, positives: list[int], negatives: list[int], key: str = "passage_id") -> dict[str, Any]:
    return {
        "dataset": "nq_train_psgs_w100",
        "question": question,
        "answers": ["Ann"],
        "positive_ctxs": [context(number, key) for number in positives],
        "negative_ctxs": [],
        "hard_negative_ctxs": [context(number, key) for number in negatives],
    }


TRAIN = [entry("who was aaron", [1, 1], [3]), entry("nobody knows", [], [2]), entry("who was moses", [2, 1], [3])]


def packed(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


def plain(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def wikipedia(path: Path) -> Path:
    """As DPR publishes it: written by Python's csv module."""
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(("id", "text", "title"))
        writer.writerows(PASSAGES)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def corpus(out: Path) -> list[tuple[str, str, str]]:
    return [(passage.id, passage.text, passage.title) for passage in read_corpus(out / "corpus.jsonl.gz")]


def test_dpr_with_all_passages_and_a_second_split(gr, tmp_path):
    out, train = tmp_path / "data", packed(tmp_path / "biencoder-nq-train.json.gz", json.dumps(TRAIN, indent=4))
    dev = plain(tmp_path / "biencoder-nq-dev.json", json.dumps([entry("and moses", [2], [3], "psg_id")]))
    passages = wikipedia(tmp_path / "psgs_w100.tsv.gz")
    said = gr("import", "dpr", train, "--passages", passages, "--out", out, "--split", "train", "--quiet")
    assert "corpus.jsonl.gz: 4 passages, 4 of them new" in said.stdout
    assert "2 questions; 1 without a relevant passage were left out" in said.stdout
    assert corpus(out) == PASSAGES
    before = (out / "corpus.jsonl.gz").read_bytes()
    assert "4 passages, 0 of them new" in gr("import", "dpr", dev, "--out", out, "--split", "dev", "--quiet").stdout
    assert (out / "corpus.jsonl.gz").read_bytes() == before
    assert list(read_questions(out / "queries.train.jsonl.gz")) == [
        Question("biencoder-nq-train-0", "who was aaron", ("Ann",)),
        Question("biencoder-nq-train-2", "who was moses", ("Ann",)),
    ]
    assert read_qrels(out / "qrels.train.tsv.gz") == {
        "biencoder-nq-train-0": {"1": 1},
        "biencoder-nq-train-2": {"2": 1, "1": 1},
    }
    assert read_qrels(out / "qrels.dev.tsv.gz") == {"biencoder-nq-dev-0": {"2": 1}}


def test_dpr_without_passages_takes_those_of_the_examples_and_adds_those_of_the_next_split(gr, tmp_path):
    out = tmp_path / "data"
    other = entry("who was aaron", [1], [3])
    other["hard_negative_ctxs"][0]["text"] = "Another text"
    train = plain(tmp_path / "a.json", json.dumps([*TRAIN[:2], other]))
    more = plain(tmp_path / "b.jsonl", json.dumps(entry("who else", [3], [])) + "\n")
    said = gr("import", "dpr", train, more, "--out", out, "--split", "train", "--quiet").stdout
    assert "3 passages, 3 of them new; 1 occur with two texts, the first was kept" in said
    assert sorted(corpus(out)) == PASSAGES[:3]
    assert [question.id for question in read_questions(out / "queries.train.jsonl.gz")] == ["a-0", "a-2", "b-1"]
    dev = plain(tmp_path / "dev.json", json.dumps([entry("nobody?", [4], [1])]))
    assert "4 passages, 1 of them new" in gr("import", "dpr", dev, "--out", out, "--split", "dev", "--quiet").stdout
    assert corpus(out)[3] == PASSAGES[3]


def test_dpr_refuses_what_does_not_fit_and_writes_nothing(refused, tmp_path):
    out, passages = tmp_path / "data", wikipedia(tmp_path / "psgs.tsv.gz")
    strange = entry("who?", [1], [])
    strange["positive_ctxs"][0]["passage_id"] = "99"
    train = plain(tmp_path / "t.json", json.dumps([TRAIN[0], strange]))
    command = ("import", "dpr", train, "--out", out, "--split", "train", "--quiet")
    message = refused(*command, "--passages", passages)
    assert f"{train}, entry 1: there is no passage '99' in '{passages}'. Give the file they were made for." in message
    twice = packed(tmp_path / "p.tsv.gz", "id\ttext\ttitle\n1\ta\tA\n1\tb\tB\n")
    assert "p.tsv.gz, line 3: the id '1' stands in the file already" in refused(*command, "--passages", twice)
    short = plain(tmp_path / "p.tsv", "id\ttext\ttitle\n1\ta\n")
    assert "p.tsv, line 2: expected 3 columns between tabs, got 2" in refused(*command, "--passages", short)
    plain(train, json.dumps([TRAIN[1]]))
    assert "t.json: no question has a relevant passage" in refused(*command)
    plain(train, json.dumps([{**TRAIN[0], "id": 5}, {**TRAIN[0], "id": "5"}]))
    assert "t.json, entry 1: the question id '5' was there before" in refused(*command)
    assert names(out) == []


def test_nothing_is_replaced(gr, refused, tmp_path):
    out, passages = tmp_path / "data", wikipedia(tmp_path / "psgs.tsv.gz")
    train = plain(tmp_path / "t.json", json.dumps(TRAIN))
    command = ("import", "dpr", train, "--out", out, "--quiet", "--split")
    gr(*command, "train")
    assert "queries.train.jsonl.gz' is there already. Remove it, or use another" in refused(*command, "train")
    assert "corpus.jsonl.gz' is there already. Leave --passages" in refused(*command, "dev", "--passages", passages)


def test_quotes_are_read_as_dpr_writes_them(tmp_path):
    assert list(read_dpr_passages(wikipedia(tmp_path / "p.tsv.gz"))) == [
        Passage(identity, title, text) for identity, text, title in PASSAGES
    ]


@pytest.mark.parametrize("indent", [None, 4])
def test_a_list_is_read_piece_by_piece(tmp_path, monkeypatch, indent):
    """Blocks of every size cut the list at every place; nothing is lost, and errors keep their places."""
    entries = [{**TRAIN[0], "question": f'é "\\{number} \u2028 \U0001f600'} for number in range(4)]
    path = plain(tmp_path / "l.json", json.dumps(entries, indent=indent, ensure_ascii=indent is None))
    wanted = list(read_dpr(path))
    assert [example.question.text for example in wanted] == [each["question"] for each in entries]
    from gr_components.data import foreign

    real = foreign.read_blocks
    for size in (1, 2, 3, 7, 100, 1000):
        monkeypatch.setattr(foreign, "read_blocks", lambda path, size=size: real(path, size))
        assert list(read_dpr(path)) == wanted
    bad = plain(tmp_path / "bad.json", '[\n {"question": "a", "positive_ctxs": []},\n {"question": oops}]')
    for size in (1, 5, 1000):
        monkeypatch.setattr(foreign, "read_blocks", lambda path, size=size: real(path, size))
        with pytest.raises(DataError, match=r"bad\.json: not valid JSON \(Expecting value at line 3, column 15\)"):
            list(foreign.located_dpr(bad))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}", r"Expecting ',' delimiter at line 1, column 4"),
        ("[{} {}]", r"Expecting ',' delimiter at line 1, column 5"),
        ('[{"a": "b', r"Unterminated string starting at at line 1, column 8"),
        ("[] x", r"Extra data at line 1, column 4"),
    ],
)
def test_broken_lists_are_named(tmp_path, text, message):
    from gr_components.data.foreign import _ListEntries

    with pytest.raises(DataError, match=message):
        list(_ListEntries(plain(tmp_path / "l.json", text)))


def test_a_large_file_is_never_in_memory(tmp_path):
    """A list of 16 MB, as one line."""
    import tracemalloc

    long = {**TRAIN[0], "negative_ctxs": [context(3) | {"text": "x" * 200} for _ in range(100)]}
    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps(long) for _ in range(500)) + "]")
    assert path.stat().st_size > 14_000_000
    tracemalloc.start()
    done = import_dpr([path], tmp_path / "data", "train", passages=wikipedia(tmp_path / "p.tsv.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.questions == 500
    assert peak < 8_000_000


def msmarco(folder: Path) -> list[object]:
    plain(folder / "collection.tsv", "0\tThe presence of mind\n1\tSuccess amid minds\n7\tBar\n")
    plain(folder / "queries.train.tsv", "121352\tdefine extreme\n634306\twhat does chattel mean\n9\tunjudged\n")
    plain(folder / "qrels.train.tsv", "121352\t0\t1\t1\n634306\t0\t7\t1\n634306\t0\t0\t1\n")
    given = [f"--{name}={folder / name}.train.tsv" for name in ("queries", "qrels")]
    return ["import", "msmarco", *given, "--out", folder / "data", "--quiet", "--split"]


def test_msmarco(gr, refused, tmp_path):
    command, out = msmarco(tmp_path), tmp_path / "data"
    assert "has no corpus yet: name the collection, --collection FILE" in refused(*command, "train")
    said = gr(*command, "train", "--collection", tmp_path / "collection.tsv").stdout
    assert "3 passages, 3 of them new" in said
    assert "2 questions; 1 without a relevant passage" in said
    assert [passage[0] for passage in corpus(out)] == ["0", "1", "7"]
    assert read_qrels(out / "qrels.train.tsv.gz") == {"121352": {"1": 1}, "634306": {"7": 1, "0": 1}}
    assert next(read_questions(out / "queries.train.jsonl.gz")) == Question("121352", "define extreme")
    assert "3 passages, 0 of them new" in gr(*command, "dev").stdout
    assert len(names(out)) == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "qrels.train",
            "121352\t0\t1\t1\n121352\t0\t1\t1\n",
            "qrels.train.tsv, line 2: document '1' was judged",
        ),
        ("qrels.train", "121352\t0\t1\t1\n5\t0\t1\t1\n", "qrels.train.tsv, line 2: there is no question '5' in '"),
        ("qrels.train", "9\t0\t1\t1\n9\t0\t8\t1\n9\t0\t6\t1\n", "line 2: there is no passage '8' in '"),
        ("queries.train", "9\ta\n9\tb\n", "queries.train.tsv, line 2: the id '9' stands in the file already"),
        ("collection", "0\ta\n1\tb\n7\tc\n1\tb\n", "collection.tsv, line 4: the id '1' stands in the file already"),
        ("collection", "0\ta\n1\n", "collection.tsv, line 2: expected 2 or 4 columns between tabs, got 1"),
    ],
)
def test_msmarco_refuses_what_does_not_fit(refused, tmp_path, name, text, message):
    command = msmarco(tmp_path)
    plain(tmp_path / f"{name}.tsv", text)
    assert message in refused(*command, "train", "--collection", tmp_path / "collection.tsv")
    assert names(tmp_path / "data") == []


def beir(folder: Path) -> Path:
    lines = [{"_id": "d1", "title": "T", "text": "one", "metadata": {}}, {"_id": "d2", "title": "", "text": "two"}]
    plain(folder / "corpus.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    asked = [{"_id": f"q{n}", "text": f"question {n}", "metadata": {}} for n in (1, 2, 3)]
    plain(folder / "queries.jsonl", "".join(json.dumps(line) + "\n" for line in asked))
    plain(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n")
    plain(folder / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\nq2\td2\t2\n")
    return folder


def test_beir_splits_share_a_file_of_questions(gr, refused, tmp_path):
    folder, out = beir(tmp_path / "nfcorpus"), tmp_path / "data"
    for split, ids in (("train", ["q1"]), ("dev", ["q2"])):
        gr("import", "beir", folder, "--out", out, "--split", split, "--quiet")
        assert [question.id for question in read_questions(out / f"queries.{split}.jsonl.gz")] == ids
    assert read_qrels(out / "qrels.train.tsv.gz") == {"q1": {"d1": 1, "d2": 0}}
    assert "There is no file" in refused("import", "beir", folder, "--out", out, "--split", "test", "--quiet")
    plain(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq3\td9\t1\n")
    message = refused("import", "beir", folder, "--out", out, "--split", "test", "--quiet")
    assert "test.tsv, line 2: there is no passage 'd9' in '" in message


@pytest.mark.parametrize("recipe", sorted(path.stem for path in BASE.glob("*.yaml") if path.stem != "seq2seq_pretrain"))
def test_base_recipes_read_what_was_written(gr, tmp_path, recipe):
    out = tmp_path / "data"
    for split, entries in (("train", TRAIN), ("dev", [entry("and moses", [2], [3])])):
        given = plain(tmp_path / f"biencoder-nq-{split}.json", json.dumps(entries))
        gr("import", "dpr", given, "--out", out, "--split", split, "--quiet")
    data = load_raw(BASE / f"{recipe}.yaml", [f"variables.data={out}"])
    config = parse(recipe_module(data["recipe"], recipe).Config, data, recipe)
    (found,) = load_sources(config.data, config.held_out)
    assert [question.text for question in found.questions] == ["who was aaron", "who was moses"]
    assert [[found.passages[row].id for row in rows] for rows in found.positives] == [["1"], ["2", "1"]]
    assert [question.text for question in load_validation(config.validation, config.held_out).questions] == [
        "and moses"
    ]


@pytest.mark.parametrize("recipe", ["minder", "ltrgr", "dgr", "joint_generative"])
def test_the_settings_for_msmarco_are_settings(recipe):
    """What the head of the base recipes says of MS MARCO."""
    path = BASE / f"{recipe}.yaml"
    head = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("recipe:")[0].splitlines())
    settings = ["pairs.title=0", "pairs.body=8", "pairs.query=8", "search.beams=7"]
    settings += [] if recipe == "minder" else ["mine.label_by=qrels"]
    assert "set " + ", ".join(settings) in head
    data = load_raw(path, settings)
    config = parse(recipe_module(data["recipe"], recipe).Config, data, recipe)
    assert (config.pairs.title, config.search["beams"]) == (0, 7)
