import json

from haystack import Document
from haystack.dataclasses import GeneratedAnswer

from gr_pipelines.rendering import answers_json, answers_text, documents_json, documents_text, figures_text

KEYS = [
    {"text": "super bowl", "view": "body", "count": 3, "contribution": 0.5},
    {"text": "Super Bowl 50", "view": "title", "count": 1, "contribution": 2.25},
]
FOUND = Document(
    id="d1", content="Ünïcode text", meta={"title": "Super Bowl 50", "identifiers": KEYS}, score=0.5, embedding=[1.0]
)


def test_documents_json_is_haystacks_form_without_embeddings() -> None:
    (document,) = json.loads(documents_json([FOUND]))["documents"]
    assert "embedding" not in document
    assert "sparse_embedding" not in document
    assert Document.from_dict(document) == Document(id="d1", content=FOUND.content, meta=FOUND.meta, score=0.5)
    assert documents_json([]) == '{"documents": []}'


def test_answers_json_is_haystacks_form_without_embeddings() -> None:
    answer = GeneratedAnswer(data="Denver", query="who?", documents=[FOUND], meta={"log_probability": -0.5})
    (data,) = json.loads(answers_json([answer]))["answers"]
    assert "embedding" not in data["documents"][0]
    again = GeneratedAnswer.from_dict(data)
    assert (again.data, again.query, again.meta) == ("Denver", "who?", {"log_probability": -0.5})
    assert again.documents[0].id == "d1"


def test_documents_text_shows_the_strongest_identifiers_first() -> None:
    lines = list(documents_text([FOUND]))
    assert lines[0] == "  1    0.5000  d1  Super Bowl 50"
    assert lines[-1] == '     matched: "Super Bowl 50" (title 2.25), "super bowl" (body 0.50)'
    assert list(documents_text([])) == ["Nothing was found."]


def test_long_and_empty_texts_are_shown() -> None:
    lines = list(documents_text([Document(id="a", content="word " * 500), Document(id="b", content=None)]))
    assert max(len(part) for line in lines for part in line.splitlines()) <= 110
    assert "…" in lines[1]


def test_answers_text_shows_the_share_of_attention() -> None:
    meta = {"log_probability": -0.5, "passage_scores": {"d1": 3.0, "d2": 3.0}}
    documents = [FOUND, Document(id="d2", content="other")]
    lines = list(answers_text([GeneratedAnswer(data="Denver", query="who?", documents=documents, meta=meta)]))
    assert lines[0] == "Denver   (log-probability -0.50)"
    assert lines[1] == "    50%  d1  Super Bowl 50"
    assert lines[3] == "    50%  d2"
    assert list(answers_text([])) == ["No answer was found."]


def test_figures_text_names_the_unit_of_answer_measures() -> None:
    figures = {"nDCG@10": 0.87654, "EM": 0.615, "F1": 0.7004, "ms_per_query": 12.345, "num_queries": 300.0}
    assert [line.split(maxsplit=1) for line in figures_text(figures)] == [
        ["nDCG@10", "0.8765"], ["EM", "0.6150 = 61.5 %"], ["F1", "0.7004 = 70.0 %"], ["ms_per_query", "12.3"],
        ["num_queries", "300"],
    ]  # fmt: skip
