"""
BM25 and MiniLM through the product, beside the same methods computed by other libraries.

    python tests/benchmarks/baselines.py --scifact FOLDER --out docs/results/baselines.md

SQuAD is the data of the demo. FOLDER holds SciFact as `corpus.jsonl.gz`, `queries.train.jsonl.gz` and
`qrels.train.tsv.gz`; without it SQuAD alone is measured. Everything goes through `gr index` and `gr eval`. What was
measured before is not measured again. Exits with 1 if a figure misses. On one core SQuAD takes about five minutes and
SciFact about six.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

import gr_pipelines

DEMO = Path(gr_pipelines.__file__).parent / "demo"
MEASURES = ("nDCG@10", "RR@10", "R@20", "R@100")
NAMES = {"bm25": "BM25", "dense": "all-MiniLM-L6-v2"}
# How far nDCG@10 may be from the reference: (below, above).
ALLOWED = {"bm25": (0.01, 1.0), "dense": (0.003, 0.003)}
# bm25s (method lucene, k1 1.5, b .75, English Snowball stemmer and stop words) and sentence-transformers (256 tokens,
# cosine, exact search), both over title + text.
REFERENCE = {
    ("squad", "bm25"): (0.8681, 0.8378, 0.9747, 0.9947),
    ("squad", "dense"): (0.7774, 0.7300, 0.9596, 0.9935),
    ("scifact", "bm25"): (0.6969, 0.6666, 0.8597, 0.9293),
    ("scifact", "dense"): (0.6606, 0.6264, 0.8433, 0.9323),
}

_PAGE = """# BM25 and MiniLM, checked against other libraries

Before anything is built on them, the two baselines must be what they claim to be. Both run through `gr index` and
`gr eval` with default settings; the reference values were computed on the same files with bm25s (Lucene's BM25, k1 1.5,
b .75, English Snowball stemmer and stop words) and with sentence-transformers (256 tokens, cosine, exact search).

    python tests/benchmarks/baselines.py --scifact FOLDER --out docs/results/baselines.md

{table}

nDCG@10 of MiniLM must be within .003 of the reference, that of BM25 not more than .01 below: {verdict}. BM25 differs a
little by design: tantivy's constants are k1 1.2 and b .75, and its tokenizer is another one.

Data:

- **squad**: SQuAD 1.1, development part: 1,048 paragraphs, 5,696 questions with one relevant paragraph each
  (https://rajpurkar.github.io/SQuAD-explorer/, CC BY-SA 4.0). It is in the package, `pipelines/gr_pipelines/demo`.
- **scifact**: SciFact: 5,183 abstracts, 807 claims of the training part with 917 relevant abstracts
  (https://github.com/allenai/scifact; claims CC BY 4.0, abstracts ODC-By 1.0), not shipped. FOLDER has it in the JSONL
  layout of BEIR ([formats](../data-formats.md)) as `corpus.jsonl.gz`, `queries.train.jsonl.gz`, `qrels.train.tsv.gz`.
"""


@dataclass(frozen=True)
class Files:
    """
    A collection.

    :param corpus: Passages.
    :param queries: Questions.
    :param qrels: Judgements.
    """

    corpus: Path
    queries: Path
    qrels: Path


def measure(name: str, files: Files, folder: Path) -> dict[str, dict[str, float]]:
    """
    Index a collection and search it with both pipelines.

    :param name: Of the collection.
    :param files: The collection.
    :param folder: Where stores and results go.
    :returns: The measures of each pipeline.
    """
    store, found = folder / name / "store", {}
    for pipeline in NAMES:
        out = folder / name / pipeline
        if not (out / "metrics.json").is_file():
            _gr("index", files.corpus, "--store", store, "--indexes", "lexical,dense")
            _gr("eval", pipeline, "--store", store, "--queries", files.queries, "--qrels", files.qrels, "--out", out)
        found[pipeline] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """
    Return a Markdown table: each measure as found, with the reference in brackets.

    :param results: Measures by collection and pipeline.
    """
    lines = ["| set | system | " + " | ".join(MEASURES) + " | nDCG@10 - reference |"]
    lines.append("|---|---|" + "---|" * (len(MEASURES) + 1))
    for name, found in results.items():
        for pipeline, metrics in found.items():
            wanted = REFERENCE[name, pipeline]
            cells = [f"{metrics[m]:.4f} ({w:.4f})" for m, w in zip(MEASURES, wanted, strict=True)]
            difference = metrics[MEASURES[0]] - wanted[0]
            lines.append(f"| {name} | {NAMES[pipeline]} | {' | '.join(cells)} | {round(difference, 4) + 0.0:+.4f} |")
    return "\n".join(lines)


def misses(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """
    Return the figures that are outside what is allowed, in words.

    :param results: Measures by collection and pipeline.
    """
    out = []
    for name, found in results.items():
        for pipeline, metrics in found.items():
            below, above = ALLOWED[pipeline]
            difference = metrics["nDCG@10"] - REFERENCE[name, pipeline][0]
            if not -below <= difference <= above:
                out.append(f"{NAMES[pipeline]} on {name} by {difference:+.4f}")
    return out


def _gr(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "gr_components", *map(str, arguments)], check=True)


@click.command()
@click.option("--scifact", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with SciFact.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/baselines"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write a page with the results.")
def main(scifact: Path | None, folder: Path, out: Path | None) -> None:
    """Measure BM25 and MiniLM on SQuAD, and on SciFact where it is given."""
    sets = {"squad": Files(DEMO / "corpus.jsonl.gz", DEMO / "questions.jsonl.gz", DEMO / "qrels.tsv.gz")}
    if scifact is not None:
        parts = ("corpus.jsonl.gz", "queries.train.jsonl.gz", "qrels.train.tsv.gz")
        sets["scifact"] = Files(*(scifact / part for part in parts))
    results = {name: measure(name, files, folder) for name, files in sets.items()}
    click.echo(table(results))
    missed = misses(results)
    verdict = f"missed: {'; '.join(missed)}" if missed else "every figure is"
    click.echo(f"\nWithin what is allowed: {verdict}")
    if out is not None:
        out.write_text(_PAGE.format(table=table(results), verdict=verdict), encoding="utf-8")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
