"""Options that several commands share, and the values behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

__all__ = [
    "EnvOption",
    "IsolationChoice",
    "JsonOption",
    "NewTemplateOption",
    "RefsArgument",
    "SandboxOption",
    "UrlOption",
    "pairs",
]

IsolationChoice = Literal["bwrap", "none"]

EnvOption = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the jobs; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, nothing else.")]
NewTemplateOption = Annotated[
    str, typer.Option("--template", "-t", metavar="NAME", help="What a new sandbox is made from.")
]
RefsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB",
        help="SANDBOX/PROCESS as `run --background` prints it, or PROCESS alone.",
        show_default=False,
    ),
]
SandboxOption = Annotated[
    str | None,
    typer.Option("--sandbox", "-s", metavar="ID", help="The sandbox; by default all are looked through."),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The server, instead of ASYNCSANDBOX_URL.")
]


def pairs(given: Iterable[str] | None, *, option: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` words.

    Raises:
        typer.BadParameter: a word that is none.
    """
    found: dict[str, str] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{word!r} is not of the form NAME=VALUE", param_hint=option)
        found[name] = value
    return found
