"""Reading training sets: what is dropped, what is refused; licences and model cards."""

import io
import json
from typing import Any

import pytest

from gr_components.errors import ConfigError, DataError
from gr_components.progress import Console
from gr_training.card import RESTRICTED, DataUse, Provenance, describe, licence_of
from gr_training.config import parse
from gr_training.generative.search_validation import training_questions
from gr_training.sources import (
    HeldOutConfig,
    SourceConfig,
    ValidationConfig,
    input_names,
    load_sources,
    load_validation,
    local_file,
    texts_of,
    weighted_rows,
)


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.seen.append((name, fields))


def source(sources: dict[str, Any], **changes: object) -> SourceConfig:
    return parse(SourceConfig, {**sources["data"][0], **changes}, "x")


def test_only_listed_questions_with_a_relevant_passage_are_used(sources):
    (loaded,) = load_sources([source(sources)])
    assert len(loaded.passages) == 48
    assert len(loaded.questions) == 96
    assert all(len(rows) == 1 for rows in loaded.positives)
    assert loaded.files is not None
    assert len(loaded.files) == 4


def test_questions_that_hold_a_held_out_question_are_dropped(sources, tmp_path, collection):
    held = json.loads((collection / "questions.jsonl").read_text().splitlines()[0])
    twin, longer = held["text"].upper(), f"Please tell me: {held['text'].lower()} Thanks."
    extra = tmp_path / "questions.jsonl"
    rows = [{"id": "t", "text": twin}, {"id": "l", "text": longer}, {"id": "f", "text": "What is the mayor called?"}]
    extra.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qrels.tsv").write_text("t\tp0\t1\nl\tp0\t1\nf\tp1\t1\n")
    own = source(sources, questions=str(extra), qrels=str(tmp_path / "qrels.tsv"), ids=[])
    assert len(load_sources([own])[0].questions) == 3, "otherwise nothing is dropped below"
    forbidden = [parse(HeldOutConfig, sources["held_out"][0], "x")]
    assert [q.id for q in load_sources([own], forbidden)[0].questions] == ["f"]


def planted(sources, tmp_path, collection):
    """A source whose first passage has pseudo-queries; two of them hold validation questions."""
    held = [json.loads(line) for line in (collection / "questions.jsonl").read_text().splitlines()]
    wanted = set((collection / "validation.txt").read_text().split())
    first, second = [row["text"] for row in held if row["id"] in wanted][:2]
    passages = [json.loads(line) for line in (collection / "corpus.jsonl").read_text().splitlines()]
    passages[0]["queries"] = [first.lower(), "What is old here?", f"Well then: {second}"]
    corpus = tmp_path / "planted.jsonl"
    corpus.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    return source(sources, corpus=str(corpus))


def test_pseudo_queries_that_hold_a_held_out_question_are_dropped(sources, tmp_path, collection):
    own = planted(sources, tmp_path, collection)
    forbidden = [parse(HeldOutConfig, sources["held_out"][0], "x")]
    assert len(load_sources([own])[0].passages[0].queries) == 3, "otherwise nothing is dropped below"
    report = Events()
    (loaded,) = load_sources([own], forbidden, report)
    assert loaded.passages[0].queries == ("What is old here?",)
    assert len(loaded.passages) == 48
    (fields,) = [fields for name, fields in report.seen if name == "held out"]
    assert fields == {"set": "toy", "questions_dropped": 0, "pseudo_queries_dropped": 2}


def test_dropped_questions_are_counted(sources):
    everything = source(sources, ids=[])
    report = Events()
    load_sources([everything], [parse(HeldOutConfig, sources["held_out"][0], "x")], report)
    (fields,) = [fields for name, fields in report.seen if name == "held out"]
    assert fields["questions_dropped"] == 48


def test_validation_does_not_search_its_own_questions(sources, tmp_path, collection):
    corpus = planted(sources, tmp_path, collection).corpus
    report = Events()
    loaded = load_validation(parse(ValidationConfig, {**sources["validation"], "corpus": corpus}, "x"), (), report)
    assert loaded.passages[0].queries == ("What is old here?",)
    assert report.seen == [("held out", {"set": "validation", "pseudo_queries_dropped": 2})]


def test_validation_never_finds_its_questions_among_pseudo_queries(sources, collection):
    """Even where the recipe trains on them and holds nothing out."""
    everything = {**sources["data"][0], "ids": []}
    sets = load_sources([parse(SourceConfig, everything, "x")])
    validation = load_validation(parse(ValidationConfig, sources["validation"], "x"))
    asked = training_questions(sets, validation)
    texts = {query for several in asked.values() for query in several}
    assert texts == {question.text for question in sets[0].questions} - {q.text for q in validation.questions}
    assert len(texts) > 50


def test_optional_sets_may_be_missing_and_others_not(sources):
    stream = io.StringIO()
    gone = [
        source(sources, name=name, corpus=f"nowhere/{name}/corpus.jsonl", optional=True, url="https://example.org/data")
        for name in ("b", "c")
    ]
    console = Console(stream)
    for _ in range(2):  # as the stages of a recipe do
        loaded = load_sources([source(sources), *gone], (), console)
    assert [each.name for each in loaded] == ["toy"]
    (warning,) = [line for line in stream.getvalue().splitlines() if "skipped" in line]
    assert warning.startswith("WARNING: data skipped: sets=b, c ")
    assert "nowhere/b, nowhere/c" in warning
    assert warning.endswith("get_them_from=https://example.org/data")
    with pytest.raises(DataError, match=r"There is no file 'nowhere\.jsonl'"):
        load_sources([source(sources, corpus="nowhere.jsonl")])
    with pytest.raises(DataError, match=r"No training question is left in \['b'\]"):
        load_sources([source(sources, name="b", corpus="nowhere.jsonl", optional=True)])


def test_weights_repeat_and_thin_out_questions(sources):
    one, two, half = (load_sources([source(sources, weight=w)])[0] for w in (1, 2.5, 0.25))
    rows = weighted_rows([one, two, half], seed=1)
    counts = [sum(number == n for number, _ in rows) for n in range(3)]
    assert counts[0] == 96
    assert 2.3 * 96 < counts[1] < 2.7 * 96
    assert 10 < counts[2] < 40
    assert rows == weighted_rows([one, two, half], seed=1)


def test_a_sample_of_validation_questions_is_drawn_by_seed(sources):
    def ids(**changes: object) -> list[str]:
        config = parse(ValidationConfig, {**sources["validation"], **changes}, "x")
        return [question.id for question in load_validation(config).questions]

    assert len(ids()) == 48
    assert len(ids(sample=10)) == 10
    assert ids(sample=10) == ids(sample=10) != ids(sample=10, seed=5)
    assert len(ids(sample=1000)) == 48


def test_files_inside_packages():
    assert local_file("package:gr_pipelines/demo/corpus.jsonl.gz").is_file()
    with pytest.raises(DataError, match="package:gr_pipelines/demo/nothing"):
        local_file("package:gr_pipelines/demo/nothing")


def test_names_of_inputs_keep_packages_and_find_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "qrels.tsv").touch()
    corpus, model = "package:gr_pipelines/demo/corpus.jsonl.gz", "package:gr_pipelines/models/ranker"
    assert input_names([corpus, "~/qrels.tsv"], [model, tmp_path]) == [
        corpus, str(tmp_path / "qrels.tsv"), model, str(tmp_path),
    ]  # fmt: skip


def test_texts_for_a_vocabulary(sources):
    sets = load_sources([source(sources)])
    assert len(texts_of(sets)) == len(texts_of(sets, ["toy"])) == 48 + 96
    with pytest.raises(ConfigError, match=r"no training sets \['tyo'\]; the sets are \['toy'\]"):
        texts_of(sets, ["tyo"])


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "Apache-2.0"], "Apache-2.0"),
        (["CC-BY-4.0", "MIT"], "CC-BY-4.0"),
        (["CC-BY-SA-3.0", "CC-BY-4.0"], "CC-BY-SA-3.0"),
        (["CC-BY-SA-4.0", "CC-BY-SA-3.0"], "CC-BY-SA-4.0"),
        (["CC-BY-SA-4.0", "MS MARCO (non-commercial research)"], RESTRICTED),
        (["unstated"], RESTRICTED),
    ],
)
def test_the_strictest_licence_of_the_data_is_the_models(licences, expected):
    assert licence_of([DataUse("x", licence, 1) for licence in licences]) == expected


def test_a_description_keeps_what_the_folder_says_already(tmp_path):
    provenance = Provenance(
        task="ranker", recipe={"recipe": "listwise_ce"}, base_model="b", data=[DataUse("x", "CC-BY-NC-4.0", 5)],
        metrics={"nDCG@10": 0.5}, steps=(10, 8), minutes=2.0,
    )  # fmt: skip
    describe(tmp_path, provenance, first=1)
    describe(tmp_path, provenance, second=2)
    data = json.loads((tmp_path / "gr_model.json").read_text())
    assert (data["first"], data["second"], data["licence"]) == (1, 2, RESTRICTED)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert f"**Licence: {RESTRICTED}**" in card
    assert "| nDCG@10 | 0.5000 |" in card
