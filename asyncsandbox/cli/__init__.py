"""The command line, put together from its commands."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from asyncsandbox._version import __version__
from asyncsandbox.cli import jobs, run, sandboxes, serve
from asyncsandbox.cli._errors import ErrorBoundary, Status
from asyncsandbox.cli._output import discard_stdout

__all__ = ["app", "main"]

_EPILOG = """Exit status: 0 all is well; 1 an error, or a job that did not complete; 2 wrong usage; 3 key refused;
4 not found; 5 out of time; 6 server not reached; 7 rate limit; 130 interrupted; 143 terminated.
`run` of one program, without --background, ends with that program's own status.

Server: --url, else ASYNCSANDBOX_URL, else HOPX_BASE_URL, else (`run` only) an embedded one. The key comes
from ASYNCSANDBOX_API_KEY or HOPX_API_KEY, never from an argument."""

app = typer.Typer(
    cls=ErrorBoundary,
    help="Run code in sandboxes as background jobs, here or on a server.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(serve.serve)
for _command in (jobs.ps, jobs.logs, jobs.wait, jobs.kill, jobs.rm):
    app.command()(_command)
app.add_typer(sandboxes.app, name="sandbox")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncsandbox {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before the command. `ErrorBoundary` reads --debug."""
    del debug, version


def main() -> None:
    """Run the command line and end the process with its status."""
    logging.basicConfig(level=logging.WARNING, format="asyncsandbox: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        try:
            app(prog_name="asyncsandbox")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        sys.exit(Status.BROKEN_PIPE)
