"""From options to a client, and from the words that name jobs to their handles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from asyncsandbox.cli._options import IsolationChoice
from asyncsandbox.client import EMBEDDED, Client
from asyncsandbox.errors import AsyncSandboxError, InvalidRequestError, NotFoundError, SandboxClosedError
from asyncsandbox.jobs import Job
from asyncsandbox.models import JobInfo, JobRef, PollPolicy

__all__ = ["Found", "create_sandbox", "find_jobs", "list_jobs", "open_client"]

Found = Job | AsyncSandboxError
"""A job that was asked for, or why there is none."""

_POLL: Final = PollPolicy(cap=0.5)
"""Somebody watches: an end, or a line of output, is seen half a second later at most."""


@contextlib.asynccontextmanager
async def open_client(
    url: str | None, *, isolation: IsolationChoice | None = None, outlives: str | None = None
) -> AsyncIterator[Client]:
    """Open a client for the length of the block.

    Args:
        url: the server; None = as the environment says.
        isolation: of an embedded server; a served one decides for itself.
        outlives: the command that makes no sense on a server which ends with it; None = any server does.

    Raises:
        InvalidRequestError: no server is configured and the command needs one, or the server is not the kind
            that `isolation` is for.
    """
    client = Client(url, isolation=isolation, poll=_POLL)
    if outlives is not None and client.server == EMBEDDED:
        raise InvalidRequestError(
            f"`{outlives}` needs a server that goes on after it: start one with `asyncsandbox serve`, "
            "then set ASYNCSANDBOX_URL and ASYNCSANDBOX_API_KEY as it says, or give --url"
        )
    if isolation is not None and client.server != EMBEDDED:
        raise InvalidRequestError(
            f"--isolation is for the embedded server; {client.server} decides for itself"
        )
    # Not `async with client`: a start of the embedded server that is interrupted must be cleared up too.
    async with contextlib.aclosing(client):
        yield client


async def create_sandbox(
    client: Client, *, template: str, timeout_seconds: float | None = None, env: dict[str, str] | None = None
) -> str:
    """Make a sandbox that stays when the client is closed, and return its id.

    Cancellation: a sandbox that was made is ended.
    """
    created = await client.tasks.run_or_undo(
        client.control.create(
            template=template, timeout_seconds=timeout_seconds, env=env, internet_access=False
        ),
        lambda made: client.control.delete(made.info.id),
        name="create a sandbox",
        grace=30.0,
    )
    return created.info.id


async def list_jobs(client: Client, sandbox_id: str | None) -> list[JobInfo]:
    """Return the jobs of one sandbox, or of all that the key has, oldest first."""
    if sandbox_id is not None:
        return _in_order(await _jobs_in(client, sandbox_id))
    sandboxes = await client.list_sandboxes()
    lists = await asyncio.gather(*(_jobs_in(client, info.id) for info in sandboxes), return_exceptions=True)
    found: list[JobInfo] = []
    for infos in lists:
        if isinstance(infos, NotFoundError | SandboxClosedError):
            continue  # it ended between the two questions
        if isinstance(infos, BaseException):
            raise infos
        found += infos
    return _in_order(found)


def _in_order(infos: Sequence[JobInfo]) -> list[JobInfo]:
    return sorted(infos, key=lambda info: info.queued_at or info.started_at or 0.0)


async def _jobs_in(client: Client, sandbox_id: str) -> list[JobInfo]:
    return await (await client.connect(sandbox_id)).list_processes()


async def find_jobs(client: Client, words: Sequence[str], *, sandbox_id: str | None) -> list[Found]:
    """Return the job that each word names, as the server knows it now, or the error that says why not.

    Args:
        client: where to look.
        words: ``SANDBOX/PROCESS``, or ``PROCESS`` alone.
        sandbox_id: where a process without a sandbox is; None = in whichever sandbox has it.
    """
    words = list(dict.fromkeys(words))
    everywhere: list[JobInfo] = []
    if sandbox_id is None and any("/" not in word for word in words):
        everywhere = await list_jobs(client, None)

    async def find(word: str) -> Found:
        try:
            job = client.job(_ref(client, word, sandbox_id, everywhere))
            await job.refresh()
        except AsyncSandboxError as exc:
            return exc
        return job

    return await asyncio.gather(*(find(word) for word in words))


def _ref(client: Client, word: str, sandbox_id: str | None, everywhere: Sequence[JobInfo]) -> JobRef:
    place, slash, process_id = word.rpartition("/")
    if not process_id or (slash and not place):
        raise InvalidRequestError(f"{word!r} names no job; write SANDBOX/PROCESS, or PROCESS")
    places = [place] if place else [sandbox_id] if sandbox_id else _places(process_id, everywhere)
    if not places:
        raise NotFoundError(f"no sandbox of this key has a job {process_id!r}", code="PROCESS_NOT_FOUND")
    if len(places) > 1:
        raise InvalidRequestError(
            f"{process_id!r} is in several sandboxes ({', '.join(places)}); write SANDBOX/{process_id}"
        )
    return JobRef(server=client.server, sandbox_id=places[0], process_id=process_id)


def _places(process_id: str, everywhere: Sequence[JobInfo]) -> list[str]:
    return [info.sandbox_id for info in everywhere if info.process_id == process_id]
