"""``asyncsandbox sandbox``: make, list and end the sandboxes of a served instance."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from asyncsandbox.cli._errors import Status
from asyncsandbox.cli._options import EnvOption, JsonOption, NewTemplateOption, UrlOption, pairs
from asyncsandbox.cli._output import note, print_json, print_line, print_table
from asyncsandbox.cli._records import moment, sandbox_fields
from asyncsandbox.cli._server import create_sandbox, open_client
from asyncsandbox.cli._signals import run_command

__all__ = ["app"]

app = typer.Typer(
    help="Make, list and end sandboxes on a server.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def create(
    *,
    template: NewTemplateOption = "code-interpreter",
    timeout_seconds: Annotated[
        float | None,
        typer.Option("--timeout-seconds", metavar="SECONDS", help="Its life; by default until it is killed."),
    ] = None,
    env: EnvOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Make a sandbox; print its id.

    --json prints: sandbox_id.
    """
    run_command(_create(template, timeout_seconds, pairs(env, option="--env"), url=url, json=json))


async def _create(
    template: str, timeout_seconds: float | None, env: dict[str, str], *, url: str | None, json: bool
) -> int:
    async with open_client(url, outlives="sandbox create") as client:
        sandbox_id = await create_sandbox(client, template=template, timeout_seconds=timeout_seconds, env=env)
    if json:
        print_json({"sandbox_id": sandbox_id})
    else:
        print_line(sandbox_id)
    return Status.OK


@app.command("list")
def list_(*, url: UrlOption = None, json: JsonOption = False) -> None:
    """List the sandboxes of the key.

    --json prints for each: sandbox_id status template created_at expires_at timeout_seconds internet_access
    public_host.
    """
    run_command(_list(url, json=json))


async def _list(url: str | None, *, json: bool) -> int:
    async with open_client(url, outlives="sandbox list") as client:
        infos = await client.list_sandboxes()
    if json:
        for info in infos:
            print_json(sandbox_fields(info))
    else:
        print_table(
            ("SANDBOX", "STATUS", "TEMPLATE", "CREATED", "EXPIRES"),
            (
                (info.id, info.status, info.template, moment(info.created_at), moment(info.expires_at))
                for info in infos
            ),
        )
    return Status.OK


@app.command()
def kill(
    sandboxes: Annotated[list[str], typer.Argument(metavar="ID", show_default=False)],
    *,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """End sandboxes with all their jobs and files.

    --json prints for each: sandbox_id killed.
    """
    run_command(_kill(sandboxes, url=url, json=json))


async def _kill(ids: Sequence[str], *, url: str | None, json: bool) -> int:
    async with open_client(url, outlives="sandbox kill") as client:
        killed = await asyncio.gather(*(client.control.delete(sandbox_id) for sandbox_id in ids))
    for sandbox_id, there in zip(ids, killed, strict=True):
        if not there:
            note(f"there is no sandbox {sandbox_id!r} on this server")
        elif json:
            print_json({"sandbox_id": sandbox_id, "killed": True})
        else:
            print_line(sandbox_id)
    return Status.OK if all(killed) else Status.NOT_FOUND
