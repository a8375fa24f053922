"""Every shipped definition is valid, documented, survives YAML, and runs."""

import asyncio
import re
from pathlib import Path

import pytest
import yaml
from haystack import Document, Pipeline

import gr_pipelines
from gr_components.document_stores.local import LocalDocumentStore
from gr_pipelines.definition import parse, read
from gr_pipelines.query import QueryPipeline
from tests.pipelines.conftest import TinyModels, passages

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in ROOT.glob("pipelines/**/*.yaml") if ".venv" not in path.parts)
SEARCHING = ["bm25", "dense", "generative", "hybrid", "qa"]
QUESTION = "What stadium hosted Super Bowl 50?"


def test_the_promised_pipelines_are_there() -> None:
    assert {*SEARCHING, "indexing"} <= set(gr_pipelines.names())
    assert {path.stem for path in SHIPPED} == set(gr_pipelines.names())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_definitions_are_valid_and_every_parameter_is_used(path: Path) -> None:
    gr_pipelines.validate(path)
    definition = read(path)
    assert definition.source.startswith("# ")
    for name in definition.parameters:
        assert re.search(rf"\$\{{{name}\}}", yaml.safe_dump(definition.body)), f"{name} is not used"
    assert {"inputs", "outputs"} <= set(definition.body)


@pytest.mark.parametrize("name", gr_pipelines.names())
def test_definitions_survive_yaml(name: str) -> None:
    pipeline = gr_pipelines.load(name, store="nowhere")
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["gr_components"])
    first, second = pipeline.to_dict(), again.to_dict()
    for plain in (first, second):  # their order is not kept
        plain["connections"] = sorted((c["sender"], c["receiver"]) for c in plain["connections"])
    assert second == first


@pytest.mark.parametrize("name", gr_pipelines.names())
def test_shared_parameters_have_the_same_defaults(name: str) -> None:
    reference = {**read("qa").parameters}
    for parameter, default in read(name).parameters.items():
        assert reference.get(parameter, default) == default


def test_hybrid_and_qa_search_alike() -> None:
    hybrid, qa = read("hybrid"), read("qa")
    only_qa = {"reader_model", "passages", "retrieval_weight"}
    assert {name: value for name, value in qa.parameters.items() if name not in only_qa} == hybrid.parameters
    assert {name: part for name, part in qa.body["components"].items() if name != "reader"} == hybrid.body["components"]
    assert [c for c in qa.body["connections"] if "reader" not in c["receiver"]] == hybrid.body["connections"]
    sockets = {name: [s for s in ([to] if isinstance(to, str) else to) if not s.startswith("reader.")]
               for name, to in qa.body["inputs"].items()}  # fmt: skip
    plain = {name: [to] if isinstance(to, str) else to for name, to in hybrid.body["inputs"].items()}
    assert sockets == plain
    assert qa.body["outputs"] == {**hybrid.body["outputs"], "answers": "reader.answers"}


def parameters(name: str, tiny: TinyModels) -> dict[str, str]:
    return {key: value for key, value in tiny.parameters.items() if key in read(name).parameters}


@pytest.mark.parametrize("name", SEARCHING)
def test_pipelines_run_and_filter(name: str, tiny: TinyModels) -> None:
    with QueryPipeline(name, **parameters(name, tiny)) as pipeline:
        found = pipeline.documents(QUESTION, top_k=4)
        assert len(found) == 4
        assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
        wanted = [passages()[3].id, passages()[7].id]
        keep = {"field": "id", "operator": "in", "value": wanted}
        assert {d.id for d in pipeline.documents("the", filters=keep)} <= set(wanted)
        assert {d.id for d in pipeline.documents(passages()[3].text[:60], filters=keep)} <= set(wanted)
        assert pipeline.documents(QUESTION, top_k=0) == []
        assert pipeline.documents("") == []


@pytest.mark.parametrize("fusion", ["distribution_based_rank_fusion", "reciprocal_rank_fusion"])
def test_the_ranker_moves_documents_and_keeps_the_others(fusion: str, tiny: TinyModels) -> None:
    base = parameters("hybrid", tiny)
    with QueryPipeline("hybrid", **base, fusion=fusion, ranked=5, candidates=20, ranker_weight=1e-9) as pipeline:
        before = [d.id for d in pipeline.documents(QUESTION, top_k=20)]
    with QueryPipeline("hybrid", **base, fusion=fusion, ranked=5, candidates=20, ranker_weight=1e9) as pipeline:
        after = [d.id for d in pipeline.documents(QUESTION, top_k=20)]
        scores = pipeline.pipeline.get_component("ranker").run(
            query=QUESTION, documents=[d for d in pipeline.documents(QUESTION, top_k=20) if d.id in before[:5]]
        )["documents"]
    assert len(before) == len(after) == 20
    assert after[:5] == [d.id for d in scores]
    assert after[5:] == before[5:]


@pytest.mark.parametrize("fusion", ["distribution_based_rank_fusion", "reciprocal_rank_fusion"])
def test_what_generative_search_found_keeps_its_identifiers(fusion: str, tiny: TinyModels) -> None:
    with QueryPipeline("generative", **parameters("generative", tiny)) as pipeline:
        alone = {d.id: d.meta["identifiers"] for d in pipeline.documents(QUESTION, top_k=100)}
    with QueryPipeline("hybrid", **parameters("hybrid", tiny), fusion=fusion) as pipeline:
        found = {d.id: d.meta.get("identifiers") for d in pipeline.documents(QUESTION, top_k=100)}
    assert alone
    assert {name: found[name] for name in alone} == alone
    with QueryPipeline("qa", **parameters("qa", tiny), fusion=fusion) as pipeline:
        (answer,) = pipeline.answers(QUESTION)
    assert all("identifiers" in document.meta for document in answer.documents if document.id in alone)


def test_a_filter_that_leaves_one_document_to_a_retriever_does_not_decide(tiny: TinyModels) -> None:
    with QueryPipeline("hybrid", **parameters("hybrid", tiny)) as pipeline:
        only = {"field": "id", "operator": "==", "value": passages()[3].id}
        (document,) = pipeline.documents(passages()[3].text[:60], filters=only)
        assert document.score is not None
        assert 0 <= document.score <= 1


def test_answers_come_with_their_passages(tiny: TinyModels) -> None:
    with QueryPipeline("qa", **parameters("qa", tiny), passages=3) as pipeline:
        results = pipeline.run(QUESTION, top_k=5)
        (answer,) = results["answers"]
        assert len(answer.documents) == 3
        assert {d.id for d in answer.documents} == {d.id for d in results["documents"][:3]}
        assert set(answer.meta["passage_scores"]) == {d.id for d in answer.documents}
        assert pipeline.answers("") == []


@pytest.mark.parametrize("name", ["hybrid", "qa"])
def test_asynchronous_runs_give_the_same(name: str, tiny: TinyModels) -> None:
    with QueryPipeline(name, **parameters(name, tiny)) as pipeline:
        data: dict[str, dict[str, str]] = {}
        for component, socket in pipeline.interface.inputs["query"]:
            data.setdefault(component, {})[socket] = QUESTION
        wait = pipeline.pipeline.run_async(data, include_outputs_from={"final"})
        result = asyncio.run(wait)
        expected = pipeline.documents(QUESTION)
        assert [(d.id, d.score) for d in result["final"]["documents"]] == [(d.id, d.score) for d in expected]


def test_indexing_writes_documents_and_indexes(tiny: TinyModels, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    pipeline = gr_pipelines.load("indexing", store=store, generative_model=tiny.generator)
    documents = [Document(id=p.id, content=p.text, meta={"title": p.title}) for p in passages()[:4]]
    pipeline.run({"writer": {"documents": documents}})
    pipeline.close()
    states = {state.name: state for state in LocalDocumentStore(store).indexes()}
    assert (states["dense"].lag, states["generative"].lag) == (0, 0)
    for name in ("bm25", "dense", "generative"):
        with QueryPipeline(name, **{**parameters(name, tiny), "store": store}) as search:
            assert search.documents(QUESTION)


def test_a_filled_definition_is_plain_haystack(tiny: TinyModels) -> None:
    filled = read("hybrid").fill(parameters("hybrid", tiny))
    plain = parse(yaml.safe_dump(filled), "filled")
    assert plain.parameters == {}
    assert Pipeline.loads(yaml.safe_dump(filled), allowed_modules=["gr_components"]).get_component("ranker")
