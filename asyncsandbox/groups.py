"""`JobGroup`: jobs that do not outlive a block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from asyncsandbox._tasks import Tasks
from asyncsandbox.errors import ClientStateError, StartError
from asyncsandbox.jobs import Job, kill_all
from asyncsandbox.models import JobOptions, JobSpec
from asyncsandbox.starting import CLEAN_UP_GRACE, DEFAULT_MAX_IN_FLIGHT, Specs
from asyncsandbox.waiting import wait_all

if TYPE_CHECKING:
    from asyncsandbox.sandbox import Sandbox

__all__ = ["JobGroup"]


class JobGroup:
    """Leaving the block normally waits for all its jobs; leaving it by an error or cancellation kills them.

    A job that fails is data, as everywhere: it ends no other and raises nothing. Made by
    `Sandbox.job_group` and `Client.job_group`.

    Example:
        >>> async with sandbox.job_group() as group:  # doctest: +SKIP
        ...     await group.run_code_background("print(1)")
        ...     await group.start_all(programs)
        >>> [job.result().ok for job in group.jobs]  # doctest: +SKIP

    Cancellation: inside the block, the jobs that still run are killed in a task of the client's own. A second
    cancellation stops the waiting for that, not the clean-up.
    """

    def __init__(self, *, tasks: Tasks, sandbox: Sandbox | None) -> None:
        self._tasks = tasks
        self._sandbox = sandbox
        self._jobs: dict[Job, None] = {}
        self._open = False
        self._starting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the group, in the order in which they came."""
        return tuple(self._jobs)

    def _checked(self) -> None:
        if not self._open:
            raise ClientStateError("the job group is not open; use it inside its own `async with` block")

    def _where(self, sandbox: Sandbox | None) -> Sandbox:
        self._checked()
        chosen = sandbox or self._sandbox
        if chosen is None:
            raise ClientStateError("a client's job group needs sandbox= to know where to start the job")
        return chosen

    def add(self, job: Job) -> Job:
        """Make `job` one of the group's, and return it."""
        self._checked()
        self._jobs[job] = None
        return job

    async def run_code_background(
        self, code: str | JobSpec, *, sandbox: Sandbox | None = None, **options: Unpack[JobOptions]
    ) -> Job:
        """Start a job as `Sandbox.run_code_background` does, and add it.

        Args:
            code: a program or a spec.
            sandbox: where; None = the group's own.
            options: as `Sandbox.run_code_background` takes them.
        """
        async with self._start_under_way():
            job = await self._where(sandbox).run_code_background(code, **options)
            await self._keep([job])
            return job

    async def start_all(
        self,
        specs: Specs,
        *,
        sandbox: Sandbox | None = None,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **defaults: Unpack[JobOptions],
    ) -> list[Job]:
        """Start jobs as `Sandbox.start_all` does, awaited: all handles in input order; all are the group's.

        Raises:
            StartError: some were refused; those that were not are the group's.
        """
        async with self._start_under_way():
            try:
                jobs = await self._where(sandbox).start_all(specs, max_in_flight=max_in_flight, **defaults)
            except StartError as exc:
                await self._keep(exc.started)
                raise
            return await self._keep(jobs)

    @contextlib.asynccontextmanager
    async def _start_under_way(self) -> AsyncIterator[None]:
        self._checked()
        self._starting += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._quiet.set()

    async def _keep(self, jobs: list[Job]) -> list[Job]:
        """Make jobs that were just started the group's, unless its block was left meanwhile."""
        if not self._open:
            await self._tasks.settle(kill_all(jobs), name="late for its group", grace=CLEAN_UP_GRACE)
            self._checked()
        self._jobs.update(dict.fromkeys(jobs))
        return jobs

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                await self._wait_for_all()
        finally:
            self._open = False
            if any(not job.done for job in self._jobs):
                await self._tasks.settle(kill_all(self._jobs), name="close job group", grace=CLEAN_UP_GRACE)

    async def _wait_for_all(self) -> None:
        """Wait for the jobs, and for those that come while this waits.

        Raises:
            ServerUnreachableError: what became of some cannot be known.
        """
        while self._starting or any(not job.done for job in self._jobs):
            await self._quiet.wait()
            await wait_all(self._jobs)
