"""The commands `gr index`, `search`, `ask`, `eval`, `pipelines` and `demo`; Haystack is imported when one runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gr_components.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from gr_pipelines.query import QueryPipeline

F = TypeVar("F", bound=Callable[..., Any])

_PIPELINE_HELP = "PIPELINE is a shipped name (see `gr pipelines`) or the path of a YAML file."


def _pipeline_options(function: F) -> F:
    """Add the argument and the options that say which pipeline runs over which store."""
    function = click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the pipeline; repeatable."
    )(function)
    function = click.option(
        "--store", type=click.Path(path_type=Path), help="Folder of the store, as `gr index` made it."
    )(function)
    return click.argument("pipeline")(function)


@click.command("index", short_help="Write documents to a store and bring its indexes up to date.")
@click.argument("docs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Folder of the store; made if needed.")
@click.option(
    "--indexes",
    default="lexical,dense,generative",
    show_default=True,
    help="Which indexes to keep, separated by commas.",
)
@click.option("--dense-model", help="Encoder: a folder, a package: path or a hub name.  [default: MiniLM]")
@click.option(
    "--generative-model", help="Generator: a folder, a package: path or a hub name.  [default: the shipped one]"
)
@click.option("--dense-index", default="dense", show_default=True, help="Name of the dense index.")
@click.option("--generative-index", default="generative", show_default=True, help="Name of the generative index.")
@click.option("--rebuild", multiple=True, metavar="NAME", help="Throw an index away and make it again; repeatable.")
@click.option("--language", help="Snowball language of a new store's lexical index.  [default: english]")
@click.option(
    "--lexical-queries/--no-lexical-queries", default=None,
    help="Whether a new store's lexical index reads pseudo-queries too.  [default: no]",
)  # fmt: skip
@click.option("--device", help="Where the models run, such as cpu or cuda:0.  [default: the best there is]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts encoded at once.")
@click.option(
    "--max-words",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Cut longer text files into passages.",
)
@click.option("--verify", is_flag=True, help="Only look for damage in the store and its indexes.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def index(docs: tuple[Path, ...], store: Path, quiet: bool, **options: Any) -> None:
    """
    Write DOCS to a store and bring its indexes up to date. Running it again does only what changed.

    DOCS are JSONL files (also .gz, .xz), one {"id", "title", "text", ...} a line, or folders of .txt and .md files.
    Other keys of a line become metadata; "queries" (a list) are pseudo-queries. Without DOCS only indexes are updated.
    """
    from gr_pipelines.indexing import IndexOptions, index_documents

    if options.pop("verify"):
        if docs:
            msg = "--verify only looks for damage and writes nothing: leave DOCS out, or leave --verify out."
            raise ConfigError(msg)
        from gr_components.doctor import print_findings, store_findings

        print_findings(store_findings(store, verify=True))
        return
    wanted = tuple(name.strip() for name in options.pop("indexes").split(",") if name.strip())
    chosen = {name: value for name, value in options.items() if value is not None}
    try:
        summary = index_documents(docs, store, IndexOptions(indexes=wanted, **chosen), _reporter(quiet))
    except KeyboardInterrupt:
        click.echo("What was written is kept: run the same command again to go on.", err=True)
        raise
    for line in summary.lines():
        click.echo(line)


@click.command("search", short_help="Search a store.", epilog=_PIPELINE_HELP)
@_pipeline_options
@click.argument("query")
@click.option("--top-k", type=click.IntRange(min=0), help="Number of documents.  [default: the pipeline's]")
@click.option("--filters", help="Haystack filters as JSON.")
@click.option("--json", "as_json", is_flag=True, help='Print one object: {"documents": [...]}.')
def search(
    pipeline: str, store: Path | None, settings: tuple[str, ...], query: str, top_k: int | None, filters: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Search a store with PIPELINE for QUERY."""
    from gr_pipelines.rendering import documents_json, documents_text

    condition = _filters(filters)
    with _open(pipeline, store, settings) as loaded:
        documents = loaded.documents(query, top_k=top_k, filters=condition)
    if not documents and condition and store is not None:
        from gr_pipelines.hints import unknown_fields

        for hint in unknown_fields(condition, store):
            click.echo(hint, err=True)
    _print([documents_json(documents)] if as_json else documents_text(documents))


@click.command("ask", short_help="Answer a question from a store.", epilog=_PIPELINE_HELP)
@_pipeline_options
@click.argument("question")
@click.option("--filters", help="Haystack filters as JSON.")
@click.option("--json", "as_json", is_flag=True, help='Print one object: {"answers": [...]}.')
def ask(
    pipeline: str, store: Path | None, settings: tuple[str, ...], question: str, filters: str | None, as_json: bool
) -> None:
    """Answer QUESTION from a store with PIPELINE, which must have a reader (such as qa)."""
    from gr_pipelines.rendering import answers_json, answers_text

    with _open(pipeline, store, settings) as loaded:
        answers = loaded.answers(question, filters=_filters(filters))
    _print([answers_json(answers)] if as_json else answers_text(answers))


@click.command("eval", short_help="Run a pipeline over questions and measure it.", epilog=_PIPELINE_HELP)
@_pipeline_options
@click.option("--queries", type=click.Path(path_type=Path), required=True, help='JSONL: {"id", "text"[, "answers"]}.')
@click.option("--qrels", type=click.Path(path_type=Path), help="Judgements: question TAB document TAB grade.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results; made if needed.")
@click.option("--top-k", type=click.IntRange(min=1), default=100, show_default=True, help="Documents per question.")
@click.option("--measure", "measures", multiple=True, help="A measure as ir-measures writes it; repeatable.")
@click.option("--filters", help="Haystack filters as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def evaluate(
    pipeline: str, store: Path | None, settings: tuple[str, ...], queries: Path, qrels: Path | None, out: Path,
    top_k: int, measures: tuple[str, ...], filters: str | None, quiet: bool,
) -> None:  # fmt: skip
    """
    Run PIPELINE over a file of questions, one at a time.

    Writes run.trec; with --qrels metrics.json; and answers.jsonl if the pipeline has a reader. All measures
    are fractions from 0 to 1, EM and F1 too; `gr demo` and training show those two in percent.
    """
    from gr_components.evaluation import DEFAULT_MEASURES
    from gr_pipelines import evaluating
    from gr_pipelines.rendering import figures_text

    with _open(pipeline, store, settings) as loaded:
        figures = evaluating.evaluate(
            loaded, queries, out, qrels=qrels, top_k=top_k, filters=_filters(filters),
            measures=measures or DEFAULT_MEASURES, report=_reporter(quiet),
        )  # fmt: skip
    _print(figures_text(figures))
    click.echo(f"Written to {out}")


@click.group("pipelines", invoke_without_command=True, short_help="List, show and check pipeline definitions.")
@click.pass_context
def pipelines(ctx: click.Context) -> None:
    """List the shipped pipelines, show one to start your own from, or check a file."""
    if ctx.invoked_subcommand is None:
        from gr_pipelines.definition import names, read

        for name in names():
            first = next((line for line in read(name).source.splitlines() if line.startswith("#")), "#")
            click.echo(f"{name:<12} {first.lstrip('# ')}")


@pipelines.command("show")
@_pipeline_options
@click.option("--filled", is_flag=True, help="Fill in the parameters: plain Haystack YAML, which Hayhooks deploys.")
def show(pipeline: str, store: Path | None, settings: tuple[str, ...], filled: bool) -> None:
    """Print PIPELINE as YAML, for example: gr pipelines show hybrid > mine.yaml."""
    import yaml

    from gr_pipelines.definition import read

    definition = read(pipeline)
    if not filled:
        click.echo(definition.source, nl=False)
        return
    plain = definition.fill(_parameters(store, settings))
    click.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), nl=False)


@pipelines.command("check")
@_pipeline_options
def check(pipeline: str, store: Path | None, settings: tuple[str, ...]) -> None:
    """Check PIPELINE without loading models; every problem names its component."""
    from gr_pipelines.loading import validate

    validate(pipeline, **_parameters(store, settings))
    click.echo(f"{pipeline}: no problems found.")


@click.command("demo", short_help="Search real text with every pipeline and print one table.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True,
    help="Where stores go; what is there already is used again.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Ask all test and unseen questions, not 300 of each.")
@click.option("--out", type=click.Path(path_type=Path), help="Markdown file for the results; JSON goes beside it.")
@click.option("--interactive/--no-interactive", default=None, help="Answer typed questions.  [default: on a terminal]")
@click.option("--train", is_flag=True, help="Make the models again first, with the recipes that made the shipped ones.")
@click.option("--resume", is_flag=True, help="With --train: go on where it was interrupted.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def demo(
    folder: Path, everything: bool, out: Path | None, interactive: bool | None, train: bool, resume: bool, quiet: bool
) -> None:
    """
    Index 1,048 Wikipedia paragraphs, answer questions with every pipeline, and print one table.

    On a terminal, questions that you type are answered afterwards.
    """
    from gr_components.extras import check_installed

    check_installed(("torch", "transformers", "numba", "faiss", "tantivy", "ir_measures"), "demo")
    from gr_pipelines.demo import data, runner, training
    from gr_pipelines.demo.engines import Models

    models = training.train(folder / "training", resume=resume) if train else Models()
    sample = None if everything else data.SAMPLE_SIZE
    options = runner.DemoOptions(folder=folder, sample=sample, out=out, interactive=interactive, models=models)
    runner.run(options, _reporter(quiet))


def _open(pipeline: str, store: Path | None, settings: tuple[str, ...]) -> "QueryPipeline":
    from gr_components.document_stores.local_schema import FILE
    from gr_pipelines.query import QueryPipeline

    loaded = QueryPipeline(pipeline, **_parameters(store, settings))
    for missing in loaded.missing_stores():
        msg = f"There is no store in '{missing}' (no file {FILE}). Make it with: gr index DOCS --store {missing}"
        raise StoreError(msg)
    return loaded


def _parameters(store: Path | None, settings: tuple[str, ...]) -> dict[str, Any]:
    import yaml

    parameters: dict[str, Any] = {} if store is None else {"store": str(store)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            msg = f"--set needs NAME=VALUE, got '{setting}'."
            raise ConfigError(msg)
        parameters[name.strip()] = yaml.safe_load(value)
    return parameters


def _filters(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    example = '{"field": "meta.year", "operator": ">", "value": 1990}'
    try:
        filters = json.loads(text)
    except json.JSONDecodeError as error:
        msg = f"--filters is not valid JSON ({error.msg} at column {error.colno}). Example: {example}"
        raise ConfigError(msg) from error
    if not isinstance(filters, dict):
        msg = f"--filters must be a JSON object, got {text}. Example: {example}"
        raise ConfigError(msg)
    return filters


def _print(lines: Any) -> None:
    for line in lines:
        click.echo(line)


def _reporter(quiet: bool) -> Any:
    from gr_components.progress import Console, Silent

    return Silent() if quiet else Console()
