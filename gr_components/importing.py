"""`gr import`: data in the formats of other projects become the files that recipes read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gr_components.data.imports import Imported

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Folder of the data, `variables.data` of a recipe; made if needed.",
)  # fmt: skip
_SPLIT = click.option("--split", required=True, help="Name of the split: train, dev, ...")
_QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")


@click.group("import", short_help="Make training data of files in the formats of DPR, MS MARCO and BEIR.")
def command() -> None:
    """
    Write corpus.jsonl.gz, queries.SPLIT.jsonl.gz and qrels.SPLIT.tsv.gz, as the base recipes read them.

    Import each split with a command of its own; the corpus is named with the first one only.
    """


@command.command("dpr", short_help="Training files of DPR: Natural Questions, TriviaQA, ...")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--passages", type=_FILE, help="psgs_w100.tsv.gz, or another file of: id TAB text TAB title.")
@_OUT
@_SPLIT
@_QUIET
def dpr(files: tuple[Path, ...], passages: Path | None, out: Path, split: str, quiet: bool) -> None:
    """
    Import FILES, such as biencoder-nq-train.json.gz, as one split.

    Without --passages the corpus consists of the passages that the files name, positive and negative ones; those that
    it does not have yet are added.
    """
    from gr_components.data.imports import import_dpr

    _show(import_dpr(files, out, split, passages=passages, report=_reporter(quiet)))


@command.command("msmarco", short_help="Tab-separated files of MS MARCO.")
@click.option("--collection", type=_FILE, help="collection.tsv; leave it out where the folder has a corpus.")
@click.option("--queries", type=_FILE, required=True, help="queries.train.tsv: id TAB text.")
@click.option("--qrels", type=_FILE, required=True, help="qrels.train.tsv: judgements in TREC's four columns.")
@_OUT
@_SPLIT
@_QUIET
def msmarco(collection: Path | None, queries: Path, qrels: Path, out: Path, split: str, quiet: bool) -> None:
    """Import a split of MS MARCO; questions without a judgement are left out."""
    from gr_components.data.imports import import_msmarco

    _show(import_msmarco(queries, qrels, out, split, collection=collection, report=_reporter(quiet)))


@command.command("beir", short_help="A data set of BEIR.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_OUT
@_SPLIT
@_QUIET
def beir(folder: Path, out: Path, split: str, quiet: bool) -> None:
    """Import a split of FOLDER, which has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""
    from gr_components.data.imports import import_beir

    _show(import_beir(folder, out, split, report=_reporter(quiet)))


def _show(imported: "Imported") -> None:
    for line in imported.lines():
        click.echo(line)


def _reporter(quiet: bool) -> Any:
    from gr_components.progress import Console, Silent

    return Silent() if quiet else Console()
