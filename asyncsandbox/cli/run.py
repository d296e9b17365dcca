"""``asyncsandbox run``: one program or many, in the foreground or left to a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import attrs
import typer

from asyncsandbox.cli._inputs import Item, read_items
from asyncsandbox.cli._options import (
    EnvOption,
    IsolationChoice,
    JsonOption,
    NewTemplateOption,
    UrlOption,
    pairs,
)
from asyncsandbox.cli._output import note, print_json, print_line
from asyncsandbox.cli._records import ref_of
from asyncsandbox.cli._reports import (
    LineReport,
    Outcome,
    PassThrough,
    Report,
    TableReport,
    note_refusals,
    outcome_fields,
    status_of_run,
    status_of_starts,
)
from asyncsandbox.cli._server import create_sandbox, open_client
from asyncsandbox.cli._signals import run_command
from asyncsandbox.client import EMBEDDED, Client
from asyncsandbox.errors import InvalidRequestError, StartError
from asyncsandbox.jobs import Job
from asyncsandbox.models import DEFAULT_TIMEOUT
from asyncsandbox.sandbox import Opening, Sandbox
from asyncsandbox.starting import CLEAN_UP_GRACE

__all__ = ["run"]


@attrs.frozen(kw_only=True)
class _Order:
    """What was asked for, besides the programs themselves."""

    url: str | None
    isolation: IsolationChoice | None
    sandbox_id: str | None
    template: str
    timeout: float
    env: dict[str, str]
    json: bool


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CODE|FILE",
            help="Programs: a file where there is one of that name, else code; - reads standard input.",
            show_default=False,
        ),
    ],
    *,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            "-l",
            help="python, javascript, bash or go; by default as the file's name says, else python.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long each job may run.")
    ] = DEFAULT_TIMEOUT,
    env: EnvOption = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The jobs' name, instead of the file's.")
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", "-b", help="Leave the jobs to the server and print their names.")
    ] = False,
    sandbox: Annotated[
        str | None,
        typer.Option("--sandbox", "-s", metavar="ID", help="A sandbox that is there, instead of a new one."),
    ] = None,
    template: NewTemplateOption = "code-interpreter",
    isolation: Annotated[
        IsolationChoice | None,
        typer.Option(
            "--isolation",
            help="How an embedded server keeps jobs apart; by default as ASYNCSANDBOX_ISOLATION says, else bwrap.",
            show_default=False,
        ),
    ] = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Run programs as jobs in a sandbox.

    One program: what it writes is passed through as it comes, and its exit code is the command's: 124 after its
    time-out, 128 and the number of the signal that ended it, 137 when it was killed, 125 when it was lost.

    Several: each is a job; progress on stderr, a table at the end; status 0 when all completed, else 1. What
    the server refuses is told, and holds back no other.

    --json prints an object for each job as it ends: ref process_id sandbox_id name file state end_reason
    exit_code signal queued_at started_at ended_at duration timeout stdout stderr stdout_truncated
    stderr_truncated output_error error. A refused one has the state "refused" and an error.

    Ctrl-C stops the jobs (twice: at once). With --background they go on, in a sandbox that stays until it is
    killed; see ps, logs, wait, kill, rm.
    """
    order = _Order(
        url=url,
        isolation=isolation,
        sandbox_id=sandbox,
        template=template,
        timeout=timeout,
        env=pairs(env, option="--env"),
        json=json,
    )
    items = read_items(sources, language=language, name=name)
    run_command(_leave(order, items) if background else _run(order, items))


async def _run(order: _Order, items: Sequence[Item]) -> int:
    report: Report = LineReport() if order.json else PassThrough() if len(items) == 1 else TableReport()
    if all(item.spec is None for item in items):
        return await _tell_refused(items, report)
    async with (
        open_client(order.url, isolation=order.isolation) as client,
        _open_sandbox(client, order) as sandbox,
    ):
        outcomes = await _start(sandbox, order, items)
        try:
            await _watch(sandbox, outcomes, report)
        finally:
            report.close(outcomes)
        return status_of_run(outcomes)


async def _tell_refused(items: Sequence[Item], report: Report) -> int:
    """Tell of items of which none can be run: no server is needed for that."""
    outcomes = [Outcome(item=item, error=item.error) for item in items]
    await report.watch(outcomes)
    report.close(outcomes)
    return status_of_starts(outcomes)


def _open_sandbox(client: Client, order: _Order) -> Opening:
    if order.sandbox_id is None:
        return client.create_sandbox(order.template)
    if client.server == EMBEDDED:
        raise InvalidRequestError(
            "--sandbox names a sandbox of a server: set ASYNCSANDBOX_URL and ASYNCSANDBOX_API_KEY, or give --url"
        )
    return client.connect(order.sandbox_id)


async def _start(sandbox: Sandbox, order: _Order, items: Sequence[Item]) -> list[Outcome]:
    """Start what can be started, and return what became of each item.

    Cancellation: what was started is killed.
    """
    able = [(item, attrs.evolve(item.spec, metadata=item)) for item in items if item.spec is not None]
    errors: dict[Item, Exception] = {item: item.error for item in items if item.error is not None}
    first: Exception | None = None
    try:
        jobs = await sandbox.start_all([spec for _, spec in able], timeout=order.timeout, env=order.env)
    except StartError as exc:
        jobs, first = exc.started, exc.failed[min(exc.failed)]
        errors |= {able[index][0]: error for index, error in exc.failed.items()}
    except asyncio.CancelledError:
        note("interrupted while starting; what was started has been stopped")
        raise
    started: dict[Item, Job] = {job.spec.metadata: job for job in jobs if job.spec is not None}
    # After an error that would hit all the others too, the rest was not tried: the same error is theirs.
    return [
        Outcome(item=item, job=started.get(item), error=None if item in started else errors.get(item, first))
        for item in items
    ]


async def _watch(sandbox: Sandbox, outcomes: Sequence[Outcome], report: Report) -> None:
    """Tell of the jobs until all have ended. Left in any other way, it kills those that have not."""
    running: list[Job] = []
    try:
        async with sandbox.job_group() as group:
            for outcome in outcomes:
                if outcome.job is not None:
                    _ = group.add(outcome.job)
            try:
                await report.watch(outcomes)
            except asyncio.CancelledError:
                running = [job for job in group.jobs if not job.done]
                note(f"interrupted; stopping {_jobs(len(running))} in sandbox {sandbox.id} (again: at once)")
                raise
    except asyncio.CancelledError:
        left = sum(not job.done for job in running)
        note(f"stopped {_jobs(len(running) - left)}" + (f"; {left} did not confirm it" if left else ""))
        raise


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


async def _leave(order: _Order, items: Sequence[Item]) -> int:
    """Start the jobs, print what the next command calls them, and let go of them."""
    if order.isolation is not None:
        raise InvalidRequestError("--isolation is for the embedded server; with --background there is none")
    async with open_client(order.url, outlives="run --background") as client:
        fresh = order.sandbox_id is None
        sandbox_id = order.sandbox_id or await create_sandbox(client, template=order.template)
        outcomes: list[Outcome] = []
        try:
            outcomes = await _start(await client.connect(sandbox_id), order, items)
        finally:
            if fresh and all(outcome.job is None for outcome in outcomes):
                await client.tasks.settle(
                    client.control.delete(sandbox_id), name="end an empty sandbox", grace=CLEAN_UP_GRACE
                )
    _print_left(outcomes, json=order.json)
    if fresh and any(outcome.job is not None for outcome in outcomes):
        note(f"sandbox {sandbox_id} stays; `asyncsandbox sandbox kill {sandbox_id}` ends it")
    return status_of_starts(outcomes)


def _print_left(outcomes: Sequence[Outcome], *, json: bool) -> None:
    if not json:
        note_refusals(outcomes)
    for outcome in outcomes:
        if json:
            print_json(outcome_fields(outcome))
        elif outcome.job is not None:
            print_line(ref_of(outcome.job.sandbox.id, outcome.job.process_id))
