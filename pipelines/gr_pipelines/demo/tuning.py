"""
Choose the constants of the demo's control rows on validation questions.

    python -m gr_pipelines.demo.tuning

prints Success@1 of both rows for each constant. Every control gets its own best one (`engines.py`), so that the trained
model is compared with the strongest form of each.
"""

import sys
from pathlib import Path

import click

from gr_components.evaluation.reports import Cell, markdown_table
from gr_components.evaluation.retrieval import evaluate_run
from gr_components.models.devices import fast_dtype
from gr_components.progress import Console, Reporter, Silent, Task
from gr_pipelines.demo import data
from gr_pipelines.demo.engines import CONSTANT, WORDS, Models, constant_control
from gr_pipelines.demo.prepare import Stores, build_stores
from gr_pipelines.demo.systems import batched, run_of
from gr_pipelines.indexing import IndexOptions

CONSTANTS = (-1.0, -2.0, -3.0, -5.0, -8.0)
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


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
def main(folder: Path) -> None:
    """Print the table; FOLDER is where `gr demo` keeps its stores."""
    models, report = Models(), Console()
    options = IndexOptions(dense_model=models.dense, generative_model=models.generator)
    click.echo(tune(build_stores(folder, options, report), models, report=report))


if __name__ == "__main__":
    main()
