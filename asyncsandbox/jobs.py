"""The handle of one background job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Generator, Iterable
from typing import TYPE_CHECKING, Final

from asyncsandbox import capture, protocol
from asyncsandbox._clock import Clock, sleep
from asyncsandbox.agent import Agent
from asyncsandbox.backoff import next_gap
from asyncsandbox.errors import (
    APIError,
    ConflictError,
    InvalidRequestError,
    JobNotFinishedError,
    JobRemovedError,
    NotFoundError,
    RequestTimeoutError,
    ServerUnreachableError,
    WaitTimeoutError,
)
from asyncsandbox.models import (
    JobInfo,
    JobRef,
    JobResult,
    JobSpec,
    JobState,
    OutputChunk,
    OutputEvent,
    StreamName,
)
from asyncsandbox.protocol import Reply, Request
from asyncsandbox.results import read_chunk
from asyncsandbox.tracking import Cell, Waiter
from asyncsandbox.watcher import Watcher

if TYPE_CHECKING:
    from asyncsandbox.sandbox import Sandbox

__all__ = ["Job", "cell_of", "check_wait_timeout", "kill_all"]

_log = logging.getLogger("asyncsandbox")

_KILL_CONFIRMATION: Final = 60.0
_FOLLOW_CHUNK: Final = 65_536
_STOCK_FOLLOW_GAP: Final = 1.0
_NO_SUCH_CALL: Final = frozenset({404, 405})
_NO_SUCH_PROCESS: Final = "PROCESS_NOT_FOUND"
_STREAMS: Final[tuple[StreamName, StreamName]] = ("stdout", "stderr")


def check_wait_timeout(timeout: float | None) -> None:
    """Refuse what is no number of seconds to wait.

    Raises:
        InvalidRequestError: negative, or no number.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidRequestError(f"a wait's timeout must be 0 seconds or more, not {timeout!r}")


def _middle(low: float, high: float) -> float:
    return (low + high) / 2


class Job:
    """A background job: code or a command that runs in a sandbox, whatever its handle's fate.

    Handles to the same job are equal and have one hash. ``await job`` is ``await job.wait()``. Made by
    `Sandbox.run_code_background`, `Sandbox.start_all`, `Sandbox.job` and `Client.job`.

    Attributes:
        sandbox: where it runs.
        spec: what it was started from; None for a background command and for a job that was re-attached.
    """

    __slots__ = ("__weakref__", "_cell", "_watcher", "sandbox", "spec")

    def __init__(
        self, cell: Cell, *, watcher: Watcher, sandbox: Sandbox, spec: JobSpec | None = None
    ) -> None:
        self._cell = cell
        self._watcher = watcher
        self.sandbox = sandbox
        self.spec = spec

    @property
    def process_id(self) -> str:
        """The job's id on the wire."""
        return self._cell.process_id

    @property
    def name(self) -> str | None:
        """The name that it was given; None when it was given none, or none is known yet."""
        return self._cell.info.name

    @property
    def ref(self) -> JobRef:
        """A picklable reference, for `Client.job`."""
        return JobRef(server=self.sandbox.server, sandbox_id=self.sandbox.id, process_id=self.process_id)

    @property
    def info(self) -> JobInfo:
        """What the server said last. No I/O; `refresh` asks again."""
        return self._cell.info

    @property
    def state(self) -> JobState:
        """The state as it was last seen. No I/O."""
        return self._cell.info.state

    @property
    def done(self) -> bool:
        """Whether the job has ended and its result is here. No I/O."""
        return self._cell.result is not None

    def __eq__(self, other: object) -> bool:
        return self.ref == other.ref if isinstance(other, Job) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.sandbox.server, self.sandbox.id, self.process_id))

    def __repr__(self) -> str:
        name = f" name={self.name!r}" if self.name else ""
        return f"<Job {self.process_id!r}{name} {self.state.value} sandbox={self.sandbox.id!r}>"

    def __await__(self) -> Generator[object, None, JobResult]:
        return self.wait().__await__()

    def result(self) -> JobResult:
        """Return how the job ended. No I/O.

        Raises:
            JobNotFinishedError: its end is not known here yet.
            JobRemovedError: its record was removed while somebody waited.
        """
        result = self._cell.result
        if result is None:
            raise JobNotFinishedError(
                f"job {self.process_id!r} is {self.state.value} as far as is known; await job.wait() first",
                process_id=self.process_id,
            )
        if self._cell.removed:
            raise JobRemovedError(
                f"job {self.process_id!r} was removed before its result was fetched",
                process_id=self.process_id,
            )
        return result

    async def wait(self, timeout: float | None = None) -> JobResult:
        """Wait until the job has ended and return how, success or not.

        Args:
            timeout: seconds to wait; None = as long as it takes. 0 asks the server once.

        Raises:
            WaitTimeoutError: the time is over; the job keeps running.
            JobRemovedError: its record was removed meanwhile.
            ServerUnreachableError: nothing but errors for `PollPolicy.unreachable_after` seconds.

        Cancellation: ends the waiting; the job keeps running.
        """
        check_wait_timeout(timeout)
        self._watcher_home()
        clock = self._watcher.clock
        deadline = None if timeout is None else clock.now() + timeout
        if timeout == 0 and self._cell.result is None:
            await self._watcher.look([self._cell.board])
        waiter = Waiter([self._cell])
        try:
            while self._cell.result is None:
                if deadline is not None and clock.now() >= deadline:
                    raise WaitTimeoutError(
                        f"job {self.process_id!r} still {self.state.value} after {timeout:g} s; it goes on: "
                        "wait again with a longer timeout=, or call job.kill()",
                        timeout=timeout or 0.0,
                        done=(),
                        pending=(self,),
                    )
                if waiter.all_unreachable():
                    raise ServerUnreachableError(
                        f"the server of job {self.process_id!r} cannot be reached: nothing but errors for "
                        f"{self._watcher.policy.unreachable_after:g} s",
                        url=self.sandbox.server,
                        done=(),
                        pending=(self,),
                    )
                await waiter.suspend(clock, deadline)
        finally:
            waiter.close()
        return self.result()

    def _watcher_home(self) -> None:
        self._cell.board.agent.channel.home.check()

    async def refresh(self) -> JobInfo:
        """Ask the server about the job now and return what it says.

        Raises:
            NotFoundError: the server does not know the job.
            SandboxClosedError: the sandbox is gone.
        """
        agent = self._cell.board.agent
        what = f"looking up job {self.process_id!r}"
        if await agent.announces("record"):
            reply = await agent.call(protocol.get(protocol.process_path(self.process_id)), what=what)
            row = protocol.decode_process(protocol.json_object(reply), sandbox_id=agent.sandbox_id)
        else:
            row = await self._find_in_list(what)
        self._watcher.deliver(self._cell, row)
        return self._cell.info

    async def _find_in_list(self, what: str) -> protocol.ProcessRow:
        agent = self._cell.board.agent
        reply = await agent.call(protocol.list_processes(since=None), what=what)
        listing = protocol.decode_processes(reply, sandbox_id=agent.sandbox_id, since=None)
        for row in listing.rows:
            if row.info.process_id == self.process_id:
                return row
        raise NotFoundError(
            f"{what}: sandbox {agent.sandbox_id!r} lists no such job", code="PROCESS_NOT_FOUND"
        )

    async def kill(self) -> None:
        """End the job and everything that it started. Returns when the end is confirmed and the result here.

        A job that has ended stays as it is.

        Raises:
            RequestTimeoutError: the server did not confirm the end within a minute.
            SandboxClosedError: the sandbox is gone, and the job with it.

        Cancellation: the kill may still happen.
        """
        if self.done:
            return
        agent = self._cell.board.agent
        self._cell.killed = True
        reply = await self._send_kill(agent)
        if reply is None:
            self._cell.killed = False
        else:
            row = protocol.decode_process(
                {"process_id": self.process_id, **protocol.json_object(reply)}, sandbox_id=agent.sandbox_id
            )
            if (
                row.info.ended_at is not None
            ):  # a stock server confirms with three fields: the list has the rest
                self._watcher.deliver(self._cell, row)
        try:
            await self.wait(timeout=_KILL_CONFIRMATION)
        except WaitTimeoutError as exc:
            raise RequestTimeoutError(
                f"the server took the kill of job {self.process_id!r} but still lists it as {self.state.value}",
                timeout=_KILL_CONFIRMATION,
            ) from exc
        except JobRemovedError:
            pass

    async def _send_kill(self, agent: Agent) -> Reply | None:
        """Return the answer to a kill; None when the server says that there is nothing to kill.

        Contract 2b: some servers say that of a finished job, too; what became of it is for the list to tell.
        """
        what = f"killing job {self.process_id!r}"
        try:
            return await agent.call(protocol.kill(self.process_id), what=what, timeout=_KILL_CONFIRMATION)
        except APIError as exc:
            if exc.status not in _NO_SUCH_CALL:
                raise
            if exc.code == _NO_SUCH_PROCESS:
                return None
        try:
            return await agent.call(
                protocol.kill_by_path(self.process_id), what=what, timeout=_KILL_CONFIRMATION
            )
        except NotFoundError:
            return None

    async def output(self, stream: StreamName = "stdout", offset: int = 0, limit: int = 65536) -> OutputChunk:
        """Read a piece of what the job wrote, while it runs or afterwards.

        Args:
            stream: "stdout" or "stderr".
            offset: bytes from the start of what it wrote; negative = from the end.
            limit: bytes at most.

        Raises:
            InvalidRequestError: no such stream.
            NotFoundError: the server does not know the job.
        """
        if stream not in _STREAMS:
            raise InvalidRequestError(f"stream must be 'stdout' or 'stderr', not {stream!r}")
        for name, value in (("offset", offset), ("limit", limit)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise InvalidRequestError(f"{name} must be a whole number of bytes, not {value!r}")
        if limit < 1:
            raise InvalidRequestError(f"limit must be at least 1 byte, not {limit!r}")
        cell = self._cell
        if await cell.board.agent.announces("output"):
            return await read_chunk(cell.board.agent, self.process_id, stream, offset=offset, limit=limit)
        return await self._read_captured(stream, offset=offset, limit=limit)

    async def _read_captured(self, stream: StreamName, *, offset: int, limit: int) -> OutputChunk:
        cell = self._cell
        whole = self._whole(stream)
        if whole is None and cell.start_key is None:
            await self.refresh()  # a handle by id alone does not know yet where the output is kept
            whole = self._whole(stream)
        if whole is not None:
            begin = max(0, len(whole) + offset) if offset < 0 else min(offset, len(whole))
            data = whole[begin : begin + limit]
            following = begin + len(data)
            return OutputChunk(data=data, offset=begin, next_offset=following, eof=following == len(whole))
        if cell.start_key is None:
            # The list is all that there is: this says so.
            return await read_chunk(cell.board.agent, self.process_id, stream, offset=offset, limit=limit)
        if not cell.info.finished:
            with contextlib.suppress(
                NotFoundError
            ):  # the list may lag, or be done with it: read what there is
                await self.refresh()
        return await capture.read_output(
            cell.board.agent, cell.start_key, stream, offset=offset, limit=limit, finished=cell.info.finished
        )

    def _whole(self, stream: StreamName) -> bytes | None:
        """Return all that the job wrote, if that is here."""
        result = self._cell.result
        if result is None or result.output_error is not None:
            return None
        if stream == "stdout":
            return None if result.stdout_truncated else result.stdout_bytes
        return None if result.stderr_truncated else result.stderr_bytes

    async def follow(self) -> AsyncIterator[OutputEvent]:
        """Yield what the job writes, as it comes, until it has ended and everything was yielded.

        Starts at the beginning. Where the middle of a long output was dropped, it goes on after the gap.
        """
        clock: Clock = self._watcher.clock
        policy = self._watcher.policy
        offsets: dict[StreamName, int] = dict.fromkeys(_STREAMS, 0)
        # On a stock server each look costs a list and whole files.
        floor = policy.floor if await self._cell.board.agent.announces("output") else _STOCK_FOLLOW_GAP
        gap = floor
        while offsets:
            news = more = False
            for stream in tuple(offsets):
                chunk = await self.output(stream, offsets[stream], _FOLLOW_CHUNK)
                offsets[stream] = chunk.next_offset
                more = more or len(chunk.data) >= _FOLLOW_CHUNK
                if chunk.data:
                    news = True
                    yield OutputEvent(stream=stream, data=chunk.data, offset=chunk.offset)
                if chunk.eof:
                    del offsets[stream]
            if more or not offsets:
                continue  # there is more to read right now, or nothing at all any more
            gap = floor if news else next_gap(policy, gap, news=False, youngest_age=None, uniform=_middle)
            await sleep(clock, gap)

    async def remove(self) -> None:
        """Remove the finished job's record and output from the server. What is gone already is fine.

        The result stays in this handle, if it is here.

        Raises:
            ConflictError: the job has not ended; kill it first.
        """
        agent = self._cell.board.agent
        if self._cell.start_key is not None:
            await self._remove_captured(agent, self._cell.start_key)
            return
        await agent.require("record", what=f"removing job {self.process_id!r}")
        request = Request(method="DELETE", path=protocol.process_path(self.process_id), repeatable=True)
        try:
            await agent.call(request, what=f"removing job {self.process_id!r}")
        except NotFoundError:
            return

    async def _remove_captured(self, agent: Agent, key: str) -> None:
        """Remove the output; a stock server's record of the job stays as long as that server likes."""
        if not self._cell.info.finished:
            raise ConflictError(
                f"job {self.process_id!r} is {self.state}; kill it before removing it", code="CONFLICT"
            )
        await capture.remove_captured(agent, [key])


async def kill_all(jobs: Iterable[Job]) -> None:
    """Kill jobs at the same time; what cannot be killed because its sandbox or server is gone is logged."""
    alive = [job for job in jobs if not job.done]
    outcomes = await asyncio.gather(*(job.kill() for job in alive), return_exceptions=True)
    for job, outcome in zip(alive, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            _log.warning("job %s could not be killed: %s", job.process_id, outcome)


def cell_of(job: Job) -> Cell:
    """Return what the waiting functions need of a handle."""
    return job._cell  # noqa: SLF001 - the one friend
