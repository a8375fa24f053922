"""Ask the demo questions on a terminal: answers, passages with the reader's attention, matched identifiers."""

from collections.abc import Iterator

import click
from haystack import Document

from gr_pipelines.query import QueryPipeline
from gr_pipelines.rendering import answers_text, documents_text

_SHOWN = 3


def converse(qa: QueryPipeline, generative: QueryPipeline) -> None:
    """
    Answer questions typed on the terminal until an empty line or the end of input.

    :param qa: Pipeline with answers.
    :param generative: Pipeline whose documents carry the identifiers that the generator wrote.
    """
    click.echo("\nAsk about the Wikipedia articles of the demo, for example: What stadium hosted Super Bowl 50?")
    click.echo("An empty line ends.")
    while question := _next_question():
        for line in reply(question, qa, generative):
            click.echo(line)


def reply(question: str, qa: QueryPipeline, generative: QueryPipeline) -> Iterator[str]:
    """
    Yield the lines that answer one question.

    :param question: What was asked.
    :param qa: Pipeline with answers.
    :param generative: Pipeline whose documents carry identifiers.
    """
    yield ""
    yield "Answer, and the passages that the reader looked at, by its attention:"
    yield from answers_text(qa.answers(question)[:1])
    yield ""
    yield "Identifiers that the generator wrote, and the passages they are in:"
    found: list[Document] = generative.documents(question, top_k=_SHOWN)
    yield from documents_text(found)


def _next_question() -> str:
    try:
        text: str = click.prompt("\nQuestion", default="", show_default=False)
    except (click.Abort, EOFError):
        return ""
    return text.strip()
