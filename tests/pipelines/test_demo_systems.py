"""The demo's batched systems give what the shipped pipelines give, and its measurement covers all of them."""

import json
from pathlib import Path

import pytest

from gr_components.progress import JsonLines
from gr_components.retrievers.generative import GenerativeRetriever
from gr_pipelines.demo import data, engines, measurement
from gr_pipelines.demo.engines import Engines, Models, constant_control, controls, systems
from gr_pipelines.demo.measurement import Measurement
from gr_pipelines.demo.prepare import Stores
from gr_pipelines.demo.reading import conditions, read
from gr_pipelines.demo.report import machine, write_report
from gr_pipelines.demo.systems import DEPTH, remembered, run_of
from gr_pipelines.demo.tuning import (
    CONSTANTS,
    GENERATIVE_WEIGHTS,
    RETRIEVAL_WEIGHTS,
    tune,
    tune_fusion,
    tune_reader,
)
from gr_pipelines.query import QueryPipeline

QUESTIONS = [question.text for question in data.questions("test")[:3]]


@pytest.fixture(scope="module")
def opened(tiny):
    models = Models(generator=tiny.generator, ranker=tiny.ranker, reader=tiny.reader)
    engines_of_tiny = Engines(Stores(Path(tiny.store), Path(tiny.store)), models, Path(tiny.generator))
    yield engines_of_tiny
    engines_of_tiny.close()


@pytest.mark.parametrize(
    ("system", "pipeline"),
    [
        (engines.BM25Q, "bm25"),
        (engines.DENSE, "dense"),
        (engines.GENERATIVE, "generative"),
        (engines.RANKED, "hybrid"),
    ],
)
def test_a_system_finds_what_its_pipeline_finds(opened, tiny, system, pipeline):
    from gr_pipelines.definition import read as definition

    everything = {**tiny.parameters, "scale_score": True}
    parameters = {key: value for key, value in everything.items() if key in definition(pipeline).parameters}
    batch = systems(opened, remembered)[system](QUESTIONS)
    with QueryPipeline(pipeline, **parameters) as shipped:
        for question, found in zip(QUESTIONS, batch, strict=True):
            expected = shipped.documents(question, top_k=DEPTH)
            assert len(expected) > 5
            assert [d.score for d in found] == pytest.approx([d.score for d in expected], rel=1e-3, abs=1e-5)
            assert {d.id for d in found[:5]} == {d.id for d in expected[:5]}


def test_what_systems_share_is_run_once():
    calls = []

    def search(questions):
        calls.append(list(questions))
        return [[question] for question in questions]

    shared = remembered(search)
    assert shared(["a", "b", "a"]) == [["a"], ["b"], ["a"]]
    assert shared(["c", "b"]) == [["c"], ["b"]]
    assert calls == [["a", "b"], ["c"]]


def test_controls_differ_from_the_generative_retriever(opened):
    retriever = opened.part("generative", GenerativeRetriever)
    own = retriever.retrieve(QUESTIONS, top_k=DEPTH, scale_score=False)
    found = {name: search(QUESTIONS) for name, search in controls(opened).items()}
    views = {key["view"] for d in found[engines.WORDS][0] for key in d.meta["identifiers"]}
    assert views == {"words"}
    scores = {name: [d.score for d in results[0]] for name, results in found.items()}
    assert scores[engines.CONSTANT] != pytest.approx([d.score for d in own[0]])
    assert scores[engines.UNTRAINED] == pytest.approx([d.score for d in own[0]])  # here the twin is the model itself


def test_every_control_row_has_its_own_constant(tiny, monkeypatch):
    models, stores = Models(generator=tiny.generator), Stores(Path(tiny.store), Path(tiny.store))
    table = tune(stores, models, size=3).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [line[:2] for line in cells] == [[n, f"{c:g}"] for n in (engines.CONSTANT, engines.WORDS) for c in CONSTANTS]
    assert all(0 <= float(line[2]) <= 1 for line in cells)
    monkeypatch.setattr(engines, "CONSTANT_LOG_PROBABILITIES", {engines.CONSTANT: -2.0, engines.WORDS: -7.0})
    for name, constant in ((engines.CONSTANT, -2.0), (engines.WORDS, -7.0)):
        scores = []
        for chosen in (None, constant, -4.0):
            control = constant_control(name, stores, models, chosen)
            scores.append([document.score for document in control.retrieve(QUESTIONS[:1], top_k=5)[0]])
            control.close()
        assert scores[0] == pytest.approx(scores[1])
        assert scores[0] != pytest.approx(scores[2])


def test_weights_are_tuned_on_validation_questions(opened):
    fusion, reader = tune_fusion(opened, size=3).splitlines(), tune_reader(opened, size=3).splitlines()
    assert len(fusion) == 2 + 2 * len(GENERATIVE_WEIGHTS)
    assert len(reader) == 2 + 1 + len(RETRIEVAL_WEIGHTS)
    assert fusion[2] != fusion[5]


def test_a_run_keeps_the_order_of_the_results(opened):
    found = systems(opened, remembered)[engines.HYBRID](QUESTIONS)
    run = run_of(found, ["q1", "q2", "q3"])
    assert [d for d, _ in run["q2"]] == [d.id for d in found[1]]
    assert all(a > b for (_, a), (_, b) in zip(run["q2"], run["q2"][1:], strict=False))


def test_the_reader_gets_the_passages_of_each_condition(opened):
    questions = data.questions("test")[:2]
    documents = dict(
        zip([q.id for q in questions], systems(opened, remembered)[engines.BM25Q](QUESTIONS), strict=False)
    )
    gold = {question.id: data.corpus()[0] for question in questions}
    one, two = questions
    right, best, several, alike, shuffled, nothing = conditions(gold, documents, 5)
    assert [p.id for p, _ in right.choose(one)] == [data.corpus()[0].id]
    assert [p.id for p, _ in best.choose(one)] == [documents[one.id][0].id]
    assert [(p.id, s) for p, s in several.choose(two)] == [(d.id, d.score) for d in documents[two.id][:5]]
    assert alike.choose(two) == several.choose(two)
    assert sorted((p.id, s) for p, s in shuffled.choose(two)) == sorted((p.id, s) for p, s in several.choose(two))
    assert alike.alike
    orders = [[p.id for p, _ in c.choose(q)] for q in questions for c in (shuffled, several)]
    assert orders[0] != orders[1] or orders[2] != orders[3]
    assert shuffled.choose(one) == shuffled.choose(one)
    assert nothing.choose(one) == []
    evaluation, answers = read(opened.reader, questions, several.choose)
    assert set(answers) == {one.id, two.id}
    assert list(evaluation.means) == ["EM", "F1"]


def test_the_measurement_covers_all_systems_and_writes_its_page(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "_SLICE", 2)
    results = Measurement(opened, sample=3, report=JsonLines(tmp_path / "progress.jsonl")).run()
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    steps = {event["event"]: [] for event in events}
    for event in events:
        steps[event["event"]].append((event["step"], event["total"]))
    # A person who waits sees every few questions, not every system; the last event says that the task is over.
    assert steps["3 test questions"] == [(0, 24), *((n, 24) for n in range(25) if n % 3 != 1 and n), (24, 24)]
    assert steps["milliseconds on one core"][-1] == (8 * 4, 8 * 4)
    assert len(steps["milliseconds on one core"]) == (3 * 4 + 2) + (8 * 4 + 2)
    rows = [(row.group, row.system) for row in results.rows]
    assert rows[: len(engines.SYSTEMS)] == [("3 test questions", name) for name in engines.SYSTEMS]
    assert len(set(rows)) == len(rows) == 8 + 3 + 6 + 7 + 2
    assert all((row.ms_per_query is not None) == ("unseen" not in row.group) for row in results.rows)
    assert [len(family) for family in results.comparisons.values()] == [3, 4, 1, 1, 4]
    results.settings = {
        "sample": 3, "models": {"dense": "x"}, "machine": machine(), "seconds": 60, "timed_questions": 3,
        "constant_log_probabilities": engines.CONSTANT_LOG_PROBABILITIES,
        "dtype": "float32",
    }  # fmt: skip
    write_report(results, tmp_path / "demo.md")
    page = (tmp_path / "demo.md").read_text()
    assert results.table() in page
    assert results.tests() in page
    assert "{" not in page
    assert len(json.loads((tmp_path / "demo.json").read_text())["rows"]) == len(rows)
