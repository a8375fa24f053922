"""Run a pipeline over a file of questions and measure it."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haystack import Document
from haystack.dataclasses import GeneratedAnswer

from gr_components.data import Question, read_qrels, read_questions, write_run
from gr_components.data.files import write_objects, writing
from gr_components.errors import DataError
from gr_components.evaluation import DEFAULT_MEASURES, evaluate_answers, evaluate_run
from gr_components.progress import Reporter, Silent, track
from gr_pipelines.query import QueryPipeline


@dataclass
class Outcome:
    """
    What a pipeline gave for a list of questions.

    :param run: For each question its documents and scores, best first.
    :param answers: For each question its answers, for pipelines with a reader.
    :param ms_per_query: Mean wall-clock milliseconds of one question, models loaded, one question at a time.
    """

    run: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    answers: dict[str, list[GeneratedAnswer]] = field(default_factory=dict)
    ms_per_query: float = 0.0


def evaluate(
    pipeline: QueryPipeline,
    queries: Path,
    out: Path,
    *,
    qrels: Path | None = None,
    top_k: int = 100,
    filters: Mapping[str, Any] | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    report: Reporter | None = None,
) -> dict[str, float]:
    """
    Run all questions; write `run.trec`, with judgements `metrics.json`, and `answers.jsonl` if the pipeline reads.

    :param pipeline: A loaded pipeline.
    :param queries: JSONL of questions.
    :param out: Folder for the results; made if needed.
    :param qrels: Judgements; without them there are no retrieval measures.
    :param top_k: Documents per question in the run.
    :param filters: Haystack filters for every question.
    :param measures: Names as `ir-measures` writes them.
    :param report: Where progress goes.
    :returns: The measures (0 to 1, EM and F1 too), `ms_per_query` and `num_queries`.
    :raises DataError: If a file is malformed, or the judgements are for other questions.
    :raises ConfigError: If a measure is unknown.
    """
    questions = list(read_questions(queries))
    judged = None if qrels is None else _judgements(qrels, questions, queries)
    if judged is not None:
        evaluate_run({}, {}, measures)  # a measure that cannot be computed is named before the search, not after it
    outcome = answer_all(pipeline, questions, top_k=top_k, filters=filters, report=report)
    out.mkdir(parents=True, exist_ok=True)
    write_run(out / "run.trec", outcome.run, tag="".join(Path(pipeline.name).stem.split()) or "gr")
    metrics: dict[str, float] = {}
    if judged is not None:
        metrics.update(evaluate_run(outcome.run, judged, measures).means)
    if "answers" in pipeline.interface.outputs:
        write_objects(out / "answers.jsonl", (_answer_line(question, outcome) for question in questions))
        metrics.update(_answer_measures(questions, outcome))
    figures = {**metrics, "ms_per_query": round(outcome.ms_per_query, 3), "num_queries": float(len(questions))}
    if metrics:
        with writing(out / "metrics.json") as file:
            file.write(json.dumps(figures, indent=2) + "\n")
    return figures


def answer_all(
    pipeline: QueryPipeline,
    questions: Sequence[Question],
    *,
    top_k: int,
    filters: Mapping[str, Any] | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """
    Run questions one at a time.

    :param pipeline: A loaded pipeline.
    :param questions: The questions.
    :param top_k: Documents per question.
    :param filters: Haystack filters for every question.
    :param report: Where progress goes.
    """
    outcome = Outcome()
    pipeline.warm_up()
    if questions:  # compiles what is compiled at first use; not timed
        pipeline.run(questions[0].text, top_k=top_k, filters=filters)
    seconds = 0.0
    for question in track(questions, report or Silent(), "questions", total=len(questions)):
        started = time.perf_counter()
        results = pipeline.run(question.text, top_k=top_k, filters=filters)
        seconds += time.perf_counter() - started
        outcome.run[question.id] = _scored(results.get("documents", [])[:top_k])
        if "answers" in results:
            outcome.answers[question.id] = results["answers"]
    outcome.ms_per_query = 1000 * seconds / max(1, len(questions))
    return outcome


def _scored(documents: Sequence[Document]) -> list[tuple[str, float]]:
    """Scores that keep the pipeline's order, also where a component scores only some of the documents."""
    scores = [document.score for document in documents]
    known = [score for score in scores if score is not None]
    if len(known) == len(scores) and all(a >= b for a, b in itertools.pairwise(known)):
        return [(document.id, float(score)) for document, score in zip(documents, known, strict=True)]
    return [(document.id, 1.0 / rank) for rank, document in enumerate(documents, start=1)]


def _judgements(qrels: Path, questions: Sequence[Question], queries: Path) -> dict[str, dict[str, int]]:
    judged = read_qrels(qrels)
    asked = {question.id: judged[question.id] for question in questions if question.id in judged}
    if questions and not asked:
        msg = f"None of the {len(judged)} questions judged in '{qrels}' is in '{queries}'. Are they from the same set?"
        raise DataError(msg)
    return asked


def _answer_line(question: Question, outcome: Outcome) -> dict[str, Any]:
    answers = outcome.answers.get(question.id, [])
    best = answers[0] if answers else None
    return {
        "id": question.id,
        "question": question.text,
        "answer": best.data if best else "",
        "log_probability": best.meta.get("log_probability") if best else None,
        "documents": [document.id for document in best.documents] if best else [],
    }


def _answer_measures(questions: Sequence[Question], outcome: Outcome) -> dict[str, float]:
    asked = [question for question in questions if question.answers or question.answers_all]
    predictions = {question: answers[0].data if answers else "" for question, answers in outcome.answers.items()}
    return evaluate_answers(predictions, asked).means if asked else {}
