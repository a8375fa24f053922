"""
Choose on validation questions what the demo and the shipped pipelines leave open.

    python -m gr_pipelines.demo.tuning constants
    python -m gr_pipelines.demo.tuning fusion
    python -m gr_pipelines.demo.tuning reader

`constants` prints Success@1 of both control rows for each constant: every control gets its own best one (`engines.py`),
so that the trained model is compared with the strongest form of each. `fusion` prints nDCG@10 for weights of the
generative retriever and of the cross-encoder, `reader` EM and F1 for numbers of passages and weights of their scores.
"""

import sys
from functools import partial
from pathlib import Path

import click
from haystack import Document
from haystack.components.joiners import DocumentJoiner

from gr_components.evaluation.reports import Cell, markdown_table
from gr_components.evaluation.retrieval import evaluate_run
from gr_components.joiners.score_fusion import ScoreFusionJoiner
from gr_components.models.devices import fast_dtype
from gr_components.progress import Console, Reporter, Silent, Task
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_components.retrievers.bm25 import BM25Retriever
from gr_components.retrievers.dense import DenseRetriever
from gr_components.retrievers.generative import GenerativeRetriever
from gr_pipelines.demo import data
from gr_pipelines.demo.engines import CONSTANT, RANKED, WORDS, Engines, Models, constant_control, systems
from gr_pipelines.demo.prepare import Stores, build_stores
from gr_pipelines.demo.reading import conditions, read
from gr_pipelines.demo.systems import DEPTH, batched, fused, lexical, remembered, run_of
from gr_pipelines.indexing import IndexOptions

CONSTANTS = (-1.0, -2.0, -3.0, -5.0, -8.0)
GENERATIVE_WEIGHTS = (0.5, 0.75, 1.0)
RANKER_WEIGHTS = (0.0, 0.1, 0.25, 0.5)
RETRIEVAL_WEIGHTS = (0.0, 2.0, 5.0, 10.0)
_MEASURES = ("Success@1", "nDCG@10")


def tune(stores: Stores, models: Models, size: int = sys.maxsize, report: Reporter = Silent()) -> str:  # noqa: B008
    """
    Return a table: for each row and constant Success@1 and nDCG@10 on validation questions.

    :param stores: The demo's stores.
    :param models: Which models.
    :param size: How many validation questions, drawn by the demo's seed; all of them by default.
    :param report: Where progress goes.
    """
    questions = data.sample("validation", size)
    ids, texts = [question.id for question in questions], [question.text for question in questions]
    judged = data.qrels("validation")
    qrels = {identity: judged[identity] for identity in ids}
    lines: list[list[Cell]] = []
    with Task(report, "constants", 2 * len(CONSTANTS)) as task:
        for name in (CONSTANT, WORDS):
            for constant in CONSTANTS:
                retriever = constant_control(name, stores, models, constant, dtype=fast_dtype())
                means = evaluate_run(run_of(batched(retriever)(texts), ids), qrels, _MEASURES).means
                retriever.close()
                lines.append([name, f"{constant:g}", *(means[measure] for measure in _MEASURES)])
                task.advance()
    return markdown_table(["row", "nats", "hit@1", "nDCG@10"], lines, digits=4)


def tune_fusion(opened: Engines, size: int = sys.maxsize) -> str:
    """
    Return a table: nDCG@10 on validation questions for each way to add the generative scores and weight of the ranker.

    :param opened: What it runs on.
    :param size: How many validation questions.
    """
    questions = data.sample("validation", size)
    texts, ids = [question.text for question in questions], [question.id for question in questions]
    judged = data.qrels("validation")
    qrels = {identity: judged[identity] for identity in ids}
    full = remembered(lexical(opened.part("bm25", BM25Retriever)))
    vectors = remembered(batched(opened.part("dense", DenseRetriever)))
    generative = opened.part("generative", GenerativeRetriever)
    ranker, depth = opened.part("ranker", CrossEncoderRanker), opened.part("best", DocumentJoiner).top_k
    chances: dict[tuple[str, str], float] = {}

    def ranked(question: str, found: list[Document], weight: float) -> list[Document]:
        new = [document for document in found[:depth] if (question, document.id) not in chances]
        for document in ranker.run(query=question, documents=new, top_k=max(1, len(new)))["documents"]:
            chances[question, document.id] = document.score or 0.0
        added = {document.id: weight * chances[question, document.id] for document in found[:depth]}
        return sorted(found, key=lambda document: -((document.score or 0.0) + added.get(document.id, 0.0)))

    lines: list[list[Cell]] = []
    for calibrated in (False, True):
        scaled = remembered(partial(generative.retrieve, top_k=DEPTH, scale_score=calibrated))
        for weight in GENERATIVE_WEIGHTS:
            joiner = ScoreFusionJoiner(
                combine="sum", weights=[1.0, 1.0, weight], calibrated=[False, False, calibrated], top_k=DEPTH
            )
            found = fused([full, vectors, scaled], joiner)(texts)
            values = []
            for share in RANKER_WEIGHTS:
                results = [ranked(text, several, share) for text, several in zip(texts, found, strict=True)]
                values.append(evaluate_run(run_of(results, ids), qrels, ("nDCG@10",)).means["nDCG@10"])
            lines.append(["probabilities" if calibrated else "rescaled", f"{weight:g}", *values])
    head = ["generative scores", "their weight", *(f"ranker {share:g}" for share in RANKER_WEIGHTS)]
    return markdown_table(head, lines, digits=4)


def tune_reader(opened: Engines, size: int = sys.maxsize) -> str:
    """
    Return a table: EM and F1 on validation questions for numbers of passages and weights of their scores.

    :param opened: What it runs on.
    :param size: How many validation questions.
    """
    questions = data.sample("validation", size)
    results = systems(opened, remembered)[RANKED]([question.text for question in questions])
    found = dict(zip([question.id for question in questions], results, strict=True))
    lines: list[list[Cell]] = []
    for passages, weights in ((1, (0.0,)), (opened.passages, RETRIEVAL_WEIGHTS)):
        several = conditions({}, found, passages)[2]
        for weight in weights:
            means = read(opened.reader, questions, several.choose, weight)[0].means
            lines.append([str(passages), f"{weight:g}", 100 * means["EM"], 100 * means["F1"]])
    return markdown_table(["passages", "retrieval_weight", "EM", "F1"], lines, digits=1)


@click.command()
@click.argument("what", type=click.Choice(["constants", "fusion", "reader"]))
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
def main(what: str, folder: Path) -> None:
    """Print a table; FOLDER is where `gr demo` keeps its stores."""
    models, report = Models(), Console()
    options = IndexOptions(dense_model=models.dense, generative_model=models.generator)
    stores = build_stores(folder, options, report)
    if what == "constants":
        click.echo(tune(stores, models, report=report))
        return
    opened = Engines(stores, models, Path(models.generator), fast_dtype())  # the untrained twin is not asked
    click.echo(tune_fusion(opened) if what == "fusion" else tune_reader(opened))
    opened.close()


if __name__ == "__main__":
    main()
