"""``ps``, ``logs``, ``wait``, ``kill`` and ``rm``: the jobs that a served instance has."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Final

import typer

from asyncsandbox.cli._errors import Status, status_of_error
from asyncsandbox.cli._following import pass_through
from asyncsandbox.cli._options import JsonOption, RefsArgument, SandboxOption, UrlOption
from asyncsandbox.cli._output import note, print_json, print_line, print_table, seconds, visible
from asyncsandbox.cli._records import end_of, info_fields, moment, ref_of, result_fields
from asyncsandbox.cli._server import find_jobs, list_jobs, open_client
from asyncsandbox.cli._signals import run_command
from asyncsandbox.errors import AsyncSandboxError
from asyncsandbox.jobs import Job
from asyncsandbox.models import OutputEvent, StreamName
from asyncsandbox.waiting import as_completed

__all__ = ["kill", "logs", "ps", "rm", "wait"]

_STREAMS: Final[tuple[StreamName, StreamName]] = ("stdout", "stderr")
_CHUNK: Final = 256 * 1024


def _ref(job: Job) -> str:
    return ref_of(job.sandbox.id, job.process_id)


# --- ps -----------------------------------------------------------------------------------------------------


def ps(*, sandbox: SandboxOption = None, url: UrlOption = None, json: JsonOption = False) -> None:
    """List jobs.

    Those that have ended too, oldest first.

    --json prints for each: ref process_id sandbox_id name language command state end_reason exit_code signal
    pid queued_at started_at ended_at duration timeout.
    """
    run_command(_ps(sandbox, url, json=json))


async def _ps(sandbox: str | None, url: str | None, *, json: bool) -> int:
    async with open_client(url, outlives="ps") as client:
        infos = await list_jobs(client, sandbox)
    if json:
        for info in infos:
            print_json(info_fields(info))
        return Status.OK
    print_table(
        ("JOB", "STATE", "EXIT", "STARTED", "DURATION", "NAME"),
        (
            (
                ref_of(info.sandbox_id, info.process_id),
                info.state.value,
                end_of(info.exit_code, info.signal),
                moment(info.started_at),
                seconds(info.duration),
                visible(info.name or info.command or ""),
            )
            for info in infos
        ),
    )
    return Status.OK


# --- logs ---------------------------------------------------------------------------------------------------


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="SANDBOX/PROCESS, or PROCESS alone.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only what it wrote to stdout.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only what it wrote to stderr.")] = False,
    sandbox: SandboxOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Print what a job wrote.

    Its stdout goes to stdout, its stderr to stderr.

    --json prints pieces as they come: stream offset data. Ctrl-C ends the following, not the job.
    """
    wanted = (
        tuple(name for name, chosen in zip(_STREAMS, (stdout, stderr), strict=True) if chosen) or _STREAMS
    )
    run_command(_logs(job, wanted, follow=follow, sandbox=sandbox, url=url, json=json))


async def _logs(
    word: str, wanted: Sequence[StreamName], *, follow: bool, sandbox: str | None, url: str | None, json: bool
) -> int:
    async with open_client(url, outlives="logs") as client:
        (job,) = await find_jobs(client, [word], sandbox_id=sandbox)
        if isinstance(job, AsyncSandboxError):
            raise job
        events = job.follow() if follow else _written(job, wanted)
        if not json:
            await pass_through(events, wanted=wanted)
            return Status.OK
        decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in wanted}
        async for event in events:
            if event.stream in decoders:
                text = decoders[event.stream].decode(event.data)
                print_json({"stream": event.stream, "offset": event.offset, "data": text})
    return Status.OK


async def _written(job: Job, wanted: Sequence[StreamName]) -> AsyncIterator[OutputEvent]:
    """Yield what the job has written so far, one stream after the other."""
    for stream in wanted:
        offset = 0
        while True:
            chunk = await job.output(stream, offset, limit=_CHUNK)
            if not chunk.data and chunk.next_offset <= offset:
                break
            offset = chunk.next_offset
            yield OutputEvent(stream=stream, data=chunk.data, offset=chunk.offset)


# --- wait ---------------------------------------------------------------------------------------------------


def wait(
    jobs: RefsArgument,
    *,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long to wait.")
    ] = None,
    sandbox: SandboxOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Wait for jobs; print each as it ends.

    Status 0 when all completed, 1 when one did not, 5 when the time was over first; the jobs go on then, as
    they do after Ctrl-C. --json prints what `run --json` does, without file and error.
    """
    run_command(_wait(jobs, timeout, sandbox=sandbox, url=url, json=json))


async def _wait(
    words: Sequence[str], timeout: float | None, *, sandbox: str | None, url: str | None, json: bool
) -> int:
    async with open_client(url, outlives="wait") as client:
        found = await find_jobs(client, words, sandbox_id=sandbox)
        jobs = [job for job in found if isinstance(job, Job)]
        for error in found:
            if isinstance(error, AsyncSandboxError):
                raise error
        try:
            async for job in as_completed(jobs, timeout=timeout):
                _print_end(job, json=json)
        except asyncio.CancelledError:
            note(f"interrupted; {sum(not job.done for job in jobs)} of {len(jobs)} jobs go on")
            raise
        return Status.OK if all(job.result().ok for job in jobs) else Status.FAILED


def _print_end(job: Job, *, json: bool) -> None:
    result = job.result()
    if json:
        print_json(result_fields(result))
    else:
        print_line(f"{_ref(job)} {result.state.value} {end_of(result.exit_code, result.signal)}".rstrip())


# --- kill, rm -----------------------------------------------------------------------------------------------


def kill(
    jobs: RefsArgument,
    *,
    sandbox: SandboxOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Kill jobs; print what became of each.

    Everything that they started ends with them. Returns when the end is confirmed. A job that had ended stays
    as it is. --json prints what `wait` does.
    """

    async def end(job: Job) -> None:
        await job.kill()
        await job.wait()
        _print_end(job, json=json)

    run_command(_each(jobs, end, sandbox=sandbox, url=url, command="kill"))


def rm(
    jobs: RefsArgument,
    *,
    sandbox: SandboxOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Remove jobs that have ended.

    Their output goes with them. Prints their names.

    --json prints for each: ref removed.
    """

    async def remove(job: Job) -> None:
        await job.remove()
        if json:
            print_json({"ref": _ref(job), "removed": True})
        else:
            print_line(_ref(job))

    run_command(_each(jobs, remove, sandbox=sandbox, url=url, command="rm"))


async def _each(
    words: Sequence[str],
    work: Callable[[Job], Awaitable[None]],
    *,
    sandbox: str | None,
    url: str | None,
    command: str,
) -> int:
    """Do `work` with every job that is there; what fails is told, and the first failure is the status."""
    async with open_client(url, outlives=command) as client:
        found = await find_jobs(client, words, sandbox_id=sandbox)
        done = await asyncio.gather(
            *(work(job) for job in found if isinstance(job, Job)), return_exceptions=True
        )
    failures: list[AsyncSandboxError] = []
    for outcome in (*found, *done):
        if isinstance(outcome, AsyncSandboxError):
            failures.append(outcome)
            note(str(outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
    return status_of_error(failures[0]) if failures else Status.OK
