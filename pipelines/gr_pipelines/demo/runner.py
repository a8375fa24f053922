"""
Run the demo: build the stores, run every system over the demo's questions, print one table, answer typed questions.

The figures are those of the shipped pipelines (`systems.py`), computed in batches on all cores. Milliseconds are
measured one question at a time on one core.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from gr_components.models.devices import fast_dtype
from gr_components.progress import Reporter, Silent
from gr_pipelines.demo import data
from gr_pipelines.demo.engines import CONSTANT_LOG_PROBABILITIES, Engines, Models
from gr_pipelines.demo.measurement import Measurement
from gr_pipelines.demo.prepare import build_stores
from gr_pipelines.demo.report import machine, write_report
from gr_pipelines.demo.results import Results
from gr_pipelines.demo.timing import TIMED_QUESTIONS
from gr_pipelines.demo.untrained import save_untrained
from gr_pipelines.indexing import IndexOptions


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """
    What the demo does.

    :param folder: Where stores and intermediate models go; what is there already is used again.
    :param sample: How many test questions, and how many on unseen passages, are asked; None for all.
    :param out: Markdown file for the results; a JSON file of the same name is written beside it. None writes nothing.
    :param interactive: Whether typed questions are answered afterwards; None asks on a terminal only.
    :param models: Which models.
    """

    folder: Path = Path("runs/demo")
    sample: int | None = data.SAMPLE_SIZE
    out: Path | None = None
    interactive: bool | None = None
    models: Models = field(default_factory=Models)


def run(options: DemoOptions, report: Reporter = Silent()) -> Results:  # noqa: B008
    """
    Do everything: measure, print, write, converse.

    :param options: What to do.
    :param report: Where progress goes.
    """
    results = measure(options, report)
    click.echo(results.table())
    click.echo("\nPaired randomisation tests over the same questions:\n")
    click.echo(results.tests())
    if options.out is not None:
        write_report(results, options.out)
        click.echo(f"\nWritten to {options.out}")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal if options.interactive is None else options.interactive:
        _converse(options)
    return results


def measure(options: DemoOptions, report: Reporter = Silent()) -> Results:  # noqa: B008
    """
    Build the stores and run every system.

    :param options: What to do.
    :param report: Where progress goes.
    """
    started = time.monotonic()
    models = options.models
    indexes = IndexOptions(dense_model=models.dense, generative_model=models.generator)
    stores = build_stores(options.folder, indexes, report)
    texts = [passage.text for passage in data.corpus()]
    twin = save_untrained(models.generator, texts, options.folder / "untrained")
    dtype = fast_dtype()
    engines = Engines(stores, models, twin, dtype)
    try:
        results = Measurement(engines, sample=options.sample, report=report).run()
    finally:
        engines.close()
    results.settings = {
        "sample": options.sample,
        "models": asdict(models),
        "machine": machine(),
        "dtype": dtype,
        "seconds": round(time.monotonic() - started),
        "seed": data.SAMPLE_SEED,
        "constant_log_probabilities": CONSTANT_LOG_PROBABILITIES,
        "timed_questions": TIMED_QUESTIONS,
    }
    return results


def _converse(options: DemoOptions) -> None:
    from gr_pipelines.demo.console import converse
    from gr_pipelines.query import QueryPipeline

    store, models, dtype = str(options.folder / "store"), options.models, fast_dtype()
    qa = QueryPipeline(
        "qa", store=store, dense_model=models.dense, generative_model=models.generator, ranker_model=models.ranker,
        reader_model=models.reader, dtype=dtype,
    )  # fmt: skip
    generative = QueryPipeline("generative", store=store, generative_model=models.generator, dtype=dtype)
    with qa, generative:
        converse(qa, generative)
