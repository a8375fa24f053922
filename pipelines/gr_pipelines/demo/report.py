"""The page with the demo's results, and the same as JSON."""

import json
import os
import platform
from pathlib import Path

from gr_components.data.files import writing
from gr_pipelines.demo.results import Results

_PAGE = """# Results of the demo

`{command}` made this page in {minutes:.1f} minutes on {machine}, packages installed.

Corpus: 1,048 Wikipedia paragraphs of SQuAD 1.1. Every question has one relevant paragraph. Committed lists of ids
divide the questions (`pipelines/gr_pipelines/demo/splits`). Of these questions, only those of the training split train
the models and serve as pseudo-queries. Test questions are about paragraphs most of which have training questions, too;
*unseen passages* are 150 paragraphs that have none.

{table}

- *ms/query*: one question at a time on one core, median of {timed}; rows of the reader include the search they need.
  Generator, ranker and reader computed in {dtype}, the fastest type of this machine; MiniLM in float32.
- *BM25, training questions in its text* reads the same text as the generative retriever, whose query view these
  questions are. On unseen passages they only mislead, since they belong to other paragraphs.
- *dense* is all-MiniLM-L6-v2, which was trained on SQuAD and other sets of questions; generator, ranker and reader
  start from it. Nothing here is zero-shot.
- *constant log-probability*: every identifier counts as if the model gave it the same ({constants};
  each row's best on validation questions). *untrained decoder*: the generator before its training. *only the question's
  own 1-3-grams*: no model at all.
- *no passage*: the reader has to answer from what it remembers of its training.

## Paired tests

Two-sided paired randomisation tests over the same questions, corrected within each heading (Holm). *detectable* is the
true difference that the test would find with power .8 at level .05.

{tests}

## Models

{models}
"""


def write_report(results: Results, path: Path) -> None:
    """
    Write the page and, beside it, a JSON file of the same name.

    :param results: What was measured.
    :param path: The Markdown file.
    """
    settings = results.settings
    constants: dict[str, float] = settings["constant_log_probabilities"]
    page = _PAGE.format(
        command="gr demo --all" if settings["sample"] is None else "gr demo",
        machine=settings["machine"],
        minutes=settings["seconds"] / 60,
        table=results.table(),
        timed=settings["timed_questions"],
        dtype=settings["dtype"],
        constants=" and ".join(f"{value:g} nats" for value in constants.values()),
        tests=results.tests(),
        models="\n".join(f"- {role}: `{name}`" for role, name in settings["models"].items()),
    )
    with writing(path) as file:
        file.write(page)
    with writing(path.with_suffix(".json")) as file:
        file.write(json.dumps(results.to_dict(), indent=1) + "\n")


def machine() -> str:
    """Return what the demo ran on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores ({platform.machine()}), Python {platform.python_version()}"
