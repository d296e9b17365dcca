"""``asyncsandbox serve``: the server over TCP. The only command that imports it."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated, Final

import attrs
import typer

from asyncsandbox.cli._errors import Status
from asyncsandbox.cli._options import IsolationChoice, JsonOption, pairs
from asyncsandbox.cli._output import note, print_json, print_line

__all__ = ["serve"]

_KEY_VARIABLE: Final = "ASYNCSANDBOX_API_KEY"

_ABOUT_ISOLATION: Final = {
    "none": "ISOLATION IS OFF: every job is a plain process with your own rights; serve only code that you trust",
    "bwrap": "isolation by bubblewrap is not there yet in this version: every sandbox will be refused; "
    "--isolation none runs jobs as plain processes with your own rights",
}


@attrs.frozen
class _Key:
    """The API key, how a shell gets at it (None: it is in the environment), and whether it is a new one."""

    value: str = attrs.field(repr=False)
    shell: str | None = attrs.field(default=None, repr=False)
    made: bool = False


def serve(
    *,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 = any that is free.")] = 8080,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            help="Where records and sandboxes live; by default the user's state directory.",
        ),
    ] = None,
    isolation: Annotated[
        IsolationChoice,
        typer.Option("--isolation", envvar="ASYNCSANDBOX_ISOLATION", help="How jobs are kept apart."),
    ] = "bwrap",
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", metavar="NAME=PATH", help="A virtual environment to offer; may be repeated."
        ),
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option(
            "--max-running", metavar="N", min=1, help="Jobs at once; by default what the machine bears."
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            "--public-url", metavar="URL", help="What clients call it, if it is not what it listens on."
        ),
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(
            "--rate-limit",
            metavar="LIMITS",
            help="How often clients may ask, such as agent=300/min,control=100/min,create=20/min; 'contract' = "
            "just these. By default as often as they like.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="Holds the key, instead of ASYNCSANDBOX_API_KEY."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Serve sandboxes to other programs.

    Goes on until Ctrl-C or SIGTERM, which end all jobs.

    Prints what clients need as lines for a shell. The key comes from a file or the environment; where neither
    has one, one is made and shown once. --json prints one object when it listens: url, and api_key if it was
    made.
    """
    key = _find_key(api_key_file)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )

    from asyncsandbox.server.config import ServerConfig, default_state_dir  # noqa: PLC0415 - for this command alone
    from asyncsandbox.server.main import run  # noqa: PLC0415
    from asyncsandbox.server.rates import parse_rates  # noqa: PLC0415
    from asyncsandbox.server.store import StoreError  # noqa: PLC0415
    from asyncsandbox.server.templates import TemplateError  # noqa: PLC0415

    try:
        rates = {} if rate_limit is None else parse_rates(rate_limit)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--rate-limit") from exc
    config = ServerConfig(
        state_dir=(state_dir or default_state_dir()).expanduser().absolute(),
        api_key=key.value,
        isolation=isolation,
        templates=pairs(template, option="--template"),
        max_running=max_running,
        public_url=public_url,
        rates=rates,
    )

    def announce(url: str) -> None:
        note(_ABOUT_ISOLATION[isolation])
        _announce(public_url or url, key, json=json)

    try:
        run(config, host=host, port=port, on_ready=announce)
    except (OSError, TemplateError, StoreError) as exc:
        note(str(exc))
        raise typer.Exit(Status.FAILED) from exc
    note("stopped; all jobs have ended")


def _announce(url: str, key: _Key, *, json: bool) -> None:
    if json:
        print_json({"url": url, "api_key": key.value} if key.made else {"url": url})
        return
    words = [f"ASYNCSANDBOX_URL={shlex.quote(url)}"]
    if key.shell is not None:
        words.append(f"{_KEY_VARIABLE}={key.shell}")
    print_line(f"export {' '.join(words)}")
    note(f"serving at {url}; Ctrl-C ends it and all jobs")


def _find_key(file: Path | None) -> _Key:
    """Return the key to ask for.

    Raises:
        typer.BadParameter: the file or the variable holds none that a header could carry.
    """
    if file is not None:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            raise typer.BadParameter(f"{file} cannot be read: {exc}", param_hint="--api-key-file") from exc
        return _Key(_checked(text.strip(), str(file)), f'"$(cat {shlex.quote(str(file.absolute()))})"')
    if given := os.environ.get(_KEY_VARIABLE):
        return _Key(_checked(given, _KEY_VARIABLE))
    made = secrets.token_urlsafe(32)
    return _Key(made, shlex.quote(made), made=True)


def _checked(key: str, where: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise typer.BadParameter(f"{where} holds no key: one word of printable ASCII is needed")
    return key
