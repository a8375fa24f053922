"""FiDReader as Haystack, services and users see it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, GeneratedAnswer
from haystack.utils import ComponentDevice

from gr_components.data.records import Passage
from gr_components.errors import ConfigError, DeviceError, ModelNotFoundError
from gr_components.readers.fid import FiDReader
from gr_components.testing import ComponentContract

QUERY = "Where was it played?"


@pytest.fixture
def reader(reader_folder: Path) -> FiDReader:
    return FiDReader(model=str(reader_folder), max_answer_tokens=6, device=ComponentDevice.from_str("cpu"))


@pytest.fixture
def documents(passages: list[Passage]) -> list[Document]:
    return [
        Document(id=p.id, content=p.text, meta={"title": p.title}, score=1.0 - n / 10) for n, p in enumerate(passages)
    ]


class TestFiDReader(ComponentContract):
    expected_type = "gr_components.readers.fid.FiDReader"

    @pytest.fixture
    def component(self, reader: FiDReader) -> FiDReader:
        return reader

    @pytest.fixture
    def run_arguments(self, documents: list[Document]) -> dict[str, Any]:
        return {"query": QUERY, "documents": documents}

    @pytest.fixture
    def more_run_arguments(self, documents: list[Document]) -> list[dict[str, Any]]:
        questions = [QUERY, "Who was born there?", "What covers the basin?", "Super Bowl"]
        return [{"query": q, "documents": documents[n % 3 :]} for n, q in enumerate(questions)]

    @pytest.fixture
    def other_init_arguments(self) -> dict[str, Any]:
        return {
            "model": "somebody/model", "top_k": 3, "num_answers": 2, "num_beams": 4, "max_answer_tokens": 9,
            "max_passage_tokens": 128, "length_penalty": 0.5, "extractive": True, "retrieval_weight": 2.0,
            "title_field": "heading", "batch_size": 7, "device": ComponentDevice.from_str("cpu"), "dtype": "bfloat16",
            "revision": "main", "local_files_only": True, "model_kwargs": {"attn_implementation": "eager"},
        }  # fmt: skip


def test_the_answer_carries_its_evidence(reader: FiDReader, documents: list[Document]) -> None:
    (answer,) = reader.run(query=QUERY, documents=documents)["answers"]
    assert isinstance(answer, GeneratedAnswer)
    assert answer.query == QUERY
    assert answer.data
    assert answer.meta["log_probability"] < 0
    scores = answer.meta["passage_scores"]
    assert [d.id for d in answer.documents] == list(scores) == sorted(scores, key=lambda i: -scores[i])
    assert sorted(scores) == sorted(d.id for d in documents)
    # the documents are the caller's, with the scores of retrieval
    assert {d.id: d.score for d in answer.documents} == {d.id: d.score for d in documents}


def test_extractive_answers_name_document_and_characters(reader: FiDReader, documents: list[Document]) -> None:
    answers = reader.run(query=QUERY, documents=documents, num_beams=3, num_answers=3, extractive=True)["answers"]
    assert len(answers) == 3
    assert len({answer.data for answer in answers}) == 3
    log_probabilities = [answer.meta["log_probability"] for answer in answers]
    assert log_probabilities == sorted(log_probabilities, reverse=True)
    by_id = {d.id: d for d in documents}
    for answer in answers:
        content = by_id[answer.meta["answer_document"]].content
        assert content is not None
        assert content[slice(*answer.meta["answer_span"])] == answer.data


def test_top_k_reads_the_first_documents(reader: FiDReader, documents: list[Document]) -> None:
    (answer,) = reader.run(query=QUERY, documents=documents, top_k=2)["answers"]
    assert {d.id for d in answer.documents} == {"bowl", "amazon"}
    assert reader.run(query=QUERY, documents=documents, top_k=0) == {"answers": []}


def test_documents_without_text_and_repetitions_are_skipped(reader: FiDReader, documents: list[Document]) -> None:
    odd = [Document(id="none", content=None), Document(id="blank", content=" \n"), documents[0], *documents]
    (answer,) = reader.run(query=QUERY, documents=odd, top_k=3)["answers"]
    (wanted,) = reader.run(query=QUERY, documents=documents)["answers"]
    assert answer.data == wanted.data
    assert [d.id for d in answer.documents] == [d.id for d in wanted.documents]


def test_nothing_to_read(reader: FiDReader) -> None:
    assert reader.run(query=QUERY, documents=[Document(content="")]) == {"answers": []}
    assert reader.run(query="  ", documents=[Document(content="Some text.")]) == {"answers": []}
    assert asyncio.run(reader.run_async(query="", documents=[])) == {"answers": []}


def test_title_field(reader_folder: Path, documents: list[Document]) -> None:
    given = {"model": str(reader_folder), "max_answer_tokens": 6}
    untitled = [Document(id=d.id, content=d.content, meta={"heading": d.meta["title"]}) for d in documents]
    scores = [
        FiDReader(**given).run(query=QUERY, documents=documents)["answers"][0].meta["passage_scores"],
        FiDReader(**given, title_field="heading")
        .run(query=QUERY, documents=untitled)["answers"][0]
        .meta["passage_scores"],
        FiDReader(**given).run(query=QUERY, documents=untitled)["answers"][0].meta["passage_scores"],
    ]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] != pytest.approx(scores[2])


def test_half_precision(reader_folder: Path, documents: list[Document]) -> None:
    answers = [
        FiDReader(model=str(reader_folder), dtype=dtype).run(query=QUERY, documents=documents)["answers"][0]
        for dtype in ("float32", "bfloat16")
    ]
    exact, rough = (answer.meta["passage_scores"] for answer in answers)
    assert rough == pytest.approx(exact, rel=0.1, abs=0.3)


def test_a_long_question_is_cut_and_said_so(
    reader: FiDReader, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    long = "where " * 40
    answers = reader.run(query=long, documents=documents)["answers"]
    assert answers[0].query == long
    assert "1 of 1 questions are longer than the 32 tokens that the model reads" in caplog.text


@pytest.mark.parametrize("name", ["top_k", "num_answers", "num_beams", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_numbers_are_refused_at_once(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1, got {value!r}"):
        FiDReader(model="m", **{name: value})


def test_bad_run_time_settings(reader: FiDReader, documents: list[Document]) -> None:
    with pytest.raises(ConfigError, match="top_k must be a whole number of at least 0, got -1"):
        reader.run(query=QUERY, documents=documents, top_k=-1)
    with pytest.raises(ConfigError, match="num_answers=2 needs as many beams"):
        reader.run(query=QUERY, documents=documents, num_answers=2)
    with pytest.raises(ConfigError, match="num_beams must be a whole number of at least 1, got 0"):
        reader.run(query=QUERY, documents=documents, num_beams=0)


def test_a_missing_model_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no model folder"):
        FiDReader(model=str(tmp_path / "absent")).warm_up()


def test_an_absent_device_is_named(reader_folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="'cuda:0' was asked for"):
        FiDReader(model=str(reader_folder), device=ComponentDevice.from_str("cuda:0")).warm_up()
