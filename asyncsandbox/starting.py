"""Starting jobs: one, or as many as an iterable gives, so that none runs without a handle.

Each start is a request of its own here. A server that takes many in one request (design: batch) would be
served by another `_begin` in `_Pipeline`; nothing else would change.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
import warnings
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from asyncsandbox import capture, protocol
from asyncsandbox._tasks import Tasks
from asyncsandbox.adoption import is_ambiguous, settle_start
from asyncsandbox.agent import Agent
from asyncsandbox.errors import (
    APIError,
    AsyncSandboxError,
    AuthenticationError,
    ClientStateError,
    EmbeddedServerError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    SandboxClosedError,
    StartError,
    TransportError,
)
from asyncsandbox.jobs import Job, kill_all
from asyncsandbox.models import JobSpec, merge_specs
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.tracking import Board
from asyncsandbox.watcher import Watcher

if TYPE_CHECKING:
    from asyncsandbox.sandbox import Sandbox

__all__ = ["DEFAULT_MAX_IN_FLIGHT", "AcceptedJobs", "Specs", "StartAll", "Starter"]

Specs = Iterable[str | JobSpec] | AsyncIterable[str | JobSpec]

DEFAULT_MAX_IN_FLIGHT: Final = 32
CLEAN_UP_GRACE: Final = 30.0

# After one of these the next start would fail in the same way: there is no point in going on.
_HOPELESS: Final = (
    AuthenticationError,
    PermissionDeniedError,
    ClientStateError,
    EmbeddedServerError,
    SandboxClosedError,
)

_POSTS: Final = 3
"""How often a start is sent to a server without idempotency keys, when it is sure not to have happened."""

_MOST_REFUSALS: Final = 1_000
_READ_AT_ONCE: Final = 256

_END: Final = object()


class Starter:
    """Starts jobs in one sandbox."""

    def __init__(self, sandbox: Sandbox, *, agent: Agent, watcher: Watcher, tasks: Tasks) -> None:
        self._sandbox = sandbox
        self._agent = agent
        self._watcher = watcher
        self.tasks = tasks

    async def code(self, spec: JobSpec) -> Job:
        """Start a background job from a spec. See `start`."""
        body = protocol.encode_code(spec)
        return await self.start(protocol.BACKGROUND, body, spec=spec)

    async def start(self, path: str, body: Mapping[str, Any], *, spec: JobSpec | None) -> Job:
        """Send one start and return the handle.

        Cancellation: what was sent is settled all the same; a job that was started is killed.
        """
        return await self.tasks.run_or_undo(
            self._send(path, body, spec), Job.kill, name="start a job", grace=CLEAN_UP_GRACE
        )

    async def _send(self, path: str, body: Mapping[str, Any], spec: JobSpec | None) -> Job:
        board = self._watcher.board(self._agent)
        ticket = board.begin_start()
        try:
            if await self._agent.announces("idempotency"):
                row = await self._post(path, body, key=uuid.uuid4().hex)
            else:
                row = await self._start_stock(board, path, body)
            collect = () if spec is None else spec.collect
            cell = self._watcher.track(board, row, started=True, collect=collect)
        finally:
            board.end_start(ticket)
        return Job(cell, watcher=self._watcher, sandbox=self._sandbox, spec=spec)

    async def _start_stock(self, board: Board, path: str, body: Mapping[str, Any]) -> ProcessRow:
        """Start a job on a server that has only the contract, so that its output is kept in any case."""
        key = protocol.new_start_key()
        sent = capture.wrap(path, body, key=key, inline=self._watcher.result_limit)
        row = await self._post_once(board, path, sent, key=key)
        known = attrs.evolve(
            row.info,
            name=body.get("name"),
            language=body.get("language", ""),
            timeout=float(body["timeout"]),
            working_dir=capture.directory(key) if "own_directory" in body else body.get("working_dir"),
        )
        return attrs.evolve(row, info=known)

    async def _post(self, path: str, body: Mapping[str, Any], *, key: str | None = None) -> ProcessRow:
        reply = await self._agent.call(protocol.start(path, body, key=key), what="starting a job")
        return protocol.decode_started(reply, sandbox_id=self._agent.sandbox_id)

    async def _post_once(self, board: Board, path: str, body: Mapping[str, Any], *, key: str) -> ProcessRow:
        """Start a job on a server that cannot tell a repetition from another start (`adoption`)."""
        named = {**body, "name": protocol.mark_name(body.get("name"), key)}
        doubt = False
        for left in reversed(range(_POSTS)):
            try:
                row = attrs.evolve(await self._post(path, named), start_key=key)
            except (APIError, TransportError, ProtocolError) as exc:
                if not is_ambiguous(exc):
                    raise
                doubt = True
                verdict = await settle_start(board, key, exc, watcher=self._watcher)
                if verdict.row is None and verdict.again and left:
                    continue
                if verdict.row is None:
                    board.settle(key, None)
                    raise
                row = verdict.row
            if doubt:
                board.settle(key, row.info.process_id)
            return row
        raise AssertionError("the last try returns or raises")


class _Pipeline:
    """Reads specs and sends starts while there is room; gives back what was accepted."""

    def __init__(
        self, starter: Starter, specs: Specs, *, max_in_flight: int, defaults: Mapping[str, Any]
    ) -> None:
        self._starter = starter
        self._tasks = starter.tasks
        self._sync: Iterator[str | JobSpec] | None = None
        self._async: AsyncIterator[str | JobSpec] | None = None
        if isinstance(specs, AsyncIterable):
            self._async = aiter(specs)
        elif isinstance(specs, Iterable) and not isinstance(specs, str | bytes | Mapping):
            self._sync = iter(specs)
        else:
            raise InvalidRequestError(
                f"start_all takes an iterable of programs or specs, not one {type(specs).__name__}"
            )
        self._max_in_flight = max_in_flight
        self._defaults = defaults
        self._indexes = itertools.count()
        self._reading: asyncio.Task[object] | None = None
        self._flying: dict[asyncio.Task[Job], int] = {}
        self._accepted: deque[tuple[int, Job]] = deque()
        self._failed: dict[int, Exception] = {}
        self._exhausted = False
        self._hopeless = False

    async def next(self) -> tuple[int, Job] | None:
        """Return the next accepted job and its place in the input; None when nothing is left."""
        while not self._accepted:
            self._read()
            waiting = [*self._flying, *([] if self._reading is None else [self._reading])]
            if waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                self._take_in(done)
            elif self._exhausted or self._hopeless:
                return None
            else:
                await asyncio.sleep(0)  # only refusals so far; others want to run too
        return self._accepted.popleft()

    def failure(self, started: Mapping[int, Job]) -> StartError | None:
        """Return, once, the error that tells of all that were refused so far."""
        failed, self._failed = self._failed, {}
        if not failed:
            return None
        index, first = min(failed.items())
        untried = "; the rest of the input was not tried" if self._hopeless and not self._exhausted else ""
        error = StartError(
            f"{len(failed)} jobs were not accepted, the first of them number {index}: {first}{untried}",
            started=[started[index] for index in sorted(started)],
            failed=dict(sorted(failed.items())),
        )
        error.__cause__ = first
        return error

    def _has_room(self) -> bool:
        return not (self._exhausted or self._hopeless) and len(self._flying) < self._max_in_flight

    def _read(self) -> None:
        """Read input while there is room; an async source in a task, so that nothing else waits for it."""
        if self._async is not None:
            if self._reading is None and self._has_room():
                self._reading = asyncio.ensure_future(anext(self._async, _END))
            return
        assert self._sync is not None
        for _ in range(_READ_AT_ONCE):
            if not self._has_room():
                return
            self._begin(next(self._sync, _END))

    def _begin(self, given: object) -> None:
        if given is _END:
            self._exhausted = True
            return
        index = next(self._indexes)
        try:
            spec = merge_specs(given, self._defaults)  # type: ignore[arg-type] # it refuses what is neither
        except InvalidRequestError as exc:
            self._refuse(index, exc)
            return
        task = self._tasks.promise(self._starter.code(spec), name=f"start job {index}")
        self._flying[task] = index

    def _refuse(self, index: int, error: Exception) -> None:
        self._failed[index] = error
        self._hopeless |= isinstance(error, _HOPELESS) or len(self._failed) >= _MOST_REFUSALS
        # What surely never reached a server will not for the next start either.
        self._hopeless |= isinstance(error, TransportError) and not error.sent

    def _take_in(self, done: Collection[asyncio.Task[Any]]) -> None:
        if self._reading is not None and self._reading in done:
            reading, self._reading = self._reading, None
            self._begin(reading.result())
        for task in sorted((task for task in done if task in self._flying), key=self._flying.__getitem__):
            index = self._flying.pop(task)
            error = ClientStateError("the client was closed") if task.cancelled() else task.exception()
            if error is None:
                self._accepted.append((index, task.result()))
            elif isinstance(error, AsyncSandboxError):
                self._refuse(index, error)
            else:
                raise error

    async def undo(self, jobs: Iterable[Job]) -> None:
        """Settle what is under way, then kill it, `jobs`, and whatever was accepted but not given back.

        Cancellation: ends the waiting, not the work.
        """
        await self._tasks.settle(self._undo(list(jobs)), name="undo start_all", grace=CLEAN_UP_GRACE)

    async def _undo(self, jobs: list[Job]) -> None:
        self._exhausted = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        if self._flying:
            await asyncio.wait(self._flying)
            self._take_in(list(self._flying))
        unclaimed = [job for _, job in self._accepted]
        self._accepted.clear()
        await kill_all(jobs + unclaimed)

    def abandon(self) -> None:
        """Do `undo` in the background. For an iterator that was dropped in the middle."""
        if self._flying or self._accepted or self._reading is not None:
            _ = self._tasks.promise(self._undo([]), name="undo a dropped start_all")


class StartAll:
    """Many starts: await it for all handles in input order, or iterate over handles as they are accepted.

    Made by `Sandbox.start_all`; does nothing until it is used, and can be used once.
    """

    def __init__(
        self, starter: Starter, specs: Specs, *, max_in_flight: int, defaults: Mapping[str, Any]
    ) -> None:
        if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise InvalidRequestError(f"max_in_flight must be a number from 1, not {max_in_flight!r}")
        JobSpec("pass", **defaults)  # refuses impossible defaults here, where they are given
        self._pipeline: _Pipeline | None = _Pipeline(
            starter, specs, max_in_flight=max_in_flight, defaults=defaults
        )

    def __del__(self) -> None:
        if getattr(self, "_pipeline", None) is not None:
            warnings.warn("start_all was never awaited: no job was started", RuntimeWarning, stacklevel=2)

    def _take(self) -> _Pipeline:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            raise ClientStateError("this start_all was used already; call sandbox.start_all(...) again")
        return pipeline

    def __await__(self) -> Generator[Any, None, list[Job]]:
        return self._all(self._take()).__await__()

    @staticmethod
    async def _all(pipeline: _Pipeline) -> list[Job]:
        started: dict[int, Job] = {}
        try:
            while (item := await pipeline.next()) is not None:
                started[item[0]] = item[1]
        except BaseException:
            await pipeline.undo(started.values())
            raise
        if (error := pipeline.failure(started)) is not None:
            raise error
        return [started[index] for index in sorted(started)]

    def __aiter__(self) -> AcceptedJobs:
        return AcceptedJobs(self._take())


class AcceptedJobs:
    """Hands out jobs as they are accepted, and reads the input only as fast as they are taken.

    Leaving the loop early kills what was started but not handed out: nothing runs without a handle.
    """

    def __init__(self, pipeline: _Pipeline) -> None:
        self._pipeline = pipeline

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        """Return the next accepted job.

        Raises:
            StopAsyncIteration: the input is at its end and everything was handed out.
            StartError: the same, but some were refused.
        """
        item = await self._pipeline.next()
        if item is not None:
            return item[1]
        if (error := self._pipeline.failure({})) is not None:
            raise error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Read no more input, and kill what was started but not handed out. Returns when that is done."""
        await self._pipeline.undo(())

    def __del__(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # no loop runs any more: the client is closed or its process about to end
        self._pipeline.abandon()
