"""
The command `gr`: finds its sub-commands among the installed packages and turns errors into messages.

A package adds a sub-command with an entry point of the group `gr.commands`; it is imported only when it is used or
listed. Exit codes: 0 done, 1 unexpected, 2 the user can mend it (bad input, missing extra), 130 interrupted.
"""

import difflib
import errno
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import click

from gr_components import __version__
from gr_components.errors import GRError, full_disk

_GROUP = "gr.commands"
_EXPECTED_HAYSTACK = ("FilterError", "DocumentStoreError", "DeserializationError", "PipelineConnectError")


class Failure(click.ClickException):
    """
    An error that the user can mend: one message on standard error, exit code 2.

    :param message: What happened, where, with which value, and what to do.
    """

    exit_code = 2


class Commands(click.Group):
    """Sub-commands from entry points, imported when needed."""

    @cached_property
    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=_GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted({*super().list_commands(ctx), *self._entry_points})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        point = self._entry_points.get(cmd_name)
        if point is None:
            return super().get_command(ctx, cmd_name)
        try:
            command = point.load()
        except (ImportError, AttributeError) as error:
            return _broken(cmd_name, error)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, and suggest a near one if there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"No such command '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; expected errors become one message unless `--debug` is given."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug") or _is_broken_pipe(error):
                raise
            message = explain(error)
            if message is None:
                raise
            raise Failure(message) from error


def explain(error: BaseException) -> str | None:
    """
    Return the message for an error that has a known cause, or None for what must be a defect of the program.

    Haystack wraps the error of a component; the component is named and the cause is shown.

    :param error: What a command raised.
    """
    component: str | None = None
    for cause in _causes(error):
        component = getattr(cause, "component_name", None) or component
        if isinstance(cause, GRError) or _expected(cause):
            text = _message(cause)
            return f"{text} (component '{component}' of the pipeline)" if component else text
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _expected(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith("haystack.")}
    known = bool(names.intersection(_EXPECTED_HAYSTACK)) or isinstance(error, OSError | MemoryError)
    return known or full_disk(error) is not None


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"Out of memory. {error} Use a smaller batch size.".replace("  ", " ")
    if full_disk(error):
        return f"The disk is full ({error}). What was committed before is safe; make room and run the command again."
    return str(error) or type(error).__name__


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE  # click ends quietly on it


def _broken(name: str, error: ImportError | AttributeError) -> click.Command:
    text = str(error)

    @click.command(name, short_help=f"(not available: {text})", context_settings={"ignore_unknown_options": True})
    @click.argument("args", nargs=-1, type=click.UNPROCESSED)
    def command(args: tuple[str, ...]) -> None:
        msg = f"'gr {name}' is not available: {text}. Run `gr doctor` to see what is missing."
        raise Failure(msg) from error

    return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="gr")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and the log lines of all libraries.")
def main(debug: bool) -> None:
    """Search and question answering with generative retrieval, dense retrieval, ranking and Fusion-in-Decoder."""
    # Haystack reports usage unless told otherwise; a command line tool must not do so unasked.
    os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
