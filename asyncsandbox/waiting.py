"""`wait`, `wait_all` and `as_completed`: many jobs, of any sandboxes, clients and servers, in one call.

No I/O happens here: a `Waiter` is suspended, and while it is, the watchers of its jobs look. Cancelling any
of these stops the waiting and nothing else; the jobs go on.
"""

from __future__ import annotations

import asyncio
import enum
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Final, Literal, Self

from asyncsandbox._clock import Clock, LoopClock
from asyncsandbox.errors import (
    InvalidRequestError,
    JobError,
    ServerUnreachableError,
    WaitTimeoutError,
)
from asyncsandbox.jobs import Job, cell_of, check_wait_timeout, kill_all
from asyncsandbox.models import JobResult
from asyncsandbox.tracking import Board, Cell, Waiter

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AsCompleted",
    "as_completed",
    "wait",
    "wait_all",
]

ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]

ALL_COMPLETED: Final = "ALL_COMPLETED"
FIRST_COMPLETED: Final = "FIRST_COMPLETED"
FIRST_EXCEPTION: Final = "FIRST_EXCEPTION"


def _unique(jobs: Iterable[Job]) -> dict[Cell, Job]:
    """Return the jobs by cell, duplicates once, in input order."""
    known: dict[Cell, Job] = {}
    seen: set[Job] = set()
    if not isinstance(jobs, Iterable):
        raise InvalidRequestError(f"what is waited for is an iterable of jobs, not {type(jobs).__name__}")
    for job in jobs:
        if not isinstance(job, Job):
            raise InvalidRequestError(f"only jobs can be waited for, not {type(job).__name__}")
        cell = cell_of(job)
        cell.board.agent.channel.home.check()
        if job not in seen:
            seen.add(job)
            known[cell] = job
    return known


def _clock_of(jobs: Iterable[Cell]) -> Clock:
    """Return the clock of the jobs' client. Clients with clocks of their own belong to tests."""
    return next((cell.board.poller.clock for cell in jobs), LoopClock())


def _failed(cell: Cell) -> bool:
    return cell.result is not None and not cell.result.ok


def _partition(known: dict[Cell, Job]) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
    done = tuple(job for cell, job in known.items() if cell.result is not None)
    pending = tuple(job for cell, job in known.items() if cell.result is None)
    return done, pending


async def _fresh_look(known: Iterable[Cell]) -> None:
    """Ask each server once about what is pending, all at the same time."""
    boards: dict[object, list[Board]] = {}
    for cell in known:
        if cell.result is None:
            wanted = boards.setdefault(cell.board.poller, [])
            if cell.board not in wanted:
                wanted.append(cell.board)
    looks = [asyncio.ensure_future(several[0].poller.look(several)) for several in boards.values()]
    try:
        await asyncio.gather(*looks)
    finally:
        for look in looks:
            look.cancel()


async def wait(
    jobs: Iterable[Job],
    *,
    return_when: ReturnWhen | int = ALL_COMPLETED,
    timeout: float | None = None,
) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
    """Wait until enough of `jobs` have ended. Kills nothing, and raises for no job that failed.

    Args:
        jobs: handles; duplicates count once; none at all returns at once.
        return_when: `ALL_COMPLETED`; `FIRST_COMPLETED`; `FIRST_EXCEPTION` (the first that did not complete,
            else all); or how many have to have ended.
        timeout: seconds to wait; None = as long as it takes. 0 is one fresh look at each server.

    Returns:
        ``(done, pending)`` in input order. All that is done is in `done`, also beyond what was asked for.
        After the time is over, and where a server cannot be reached, the rest is in `pending`.

    Raises:
        InvalidRequestError: something that is no job, or an impossible `return_when` or `timeout`.
        ClientStateError: a job of another event loop or process.

    Cancellation: ends the waiting; the jobs go on.
    """
    check_wait_timeout(timeout)
    known = _unique(jobs)
    needed = _needed(return_when, len(known))
    await _until(known, needed, stop_at_failure=return_when == FIRST_EXCEPTION, timeout=timeout)
    return _partition(known)


class _Stop(enum.Enum):
    """Why a wait came to its end."""

    ENOUGH = enum.auto()
    LATE = enum.auto()
    CUT_OFF = enum.auto()


async def _until(
    known: dict[Cell, Job], needed: int, *, stop_at_failure: bool, timeout: float | None
) -> _Stop:
    """Wait until `needed` of the jobs have ended, and say why the waiting stopped."""
    clock = _clock_of(known)
    deadline = None if timeout is None else clock.now() + timeout
    if timeout == 0:
        await _fresh_look(known)
    waiter = Waiter(known)
    try:
        while len(known) - len(waiter.pending) < needed:
            if stop_at_failure and any(_failed(cell) for cell in waiter.ready):
                break
            waiter.ready.clear()
            if deadline is not None and clock.now() >= deadline:
                return _Stop.LATE
            if waiter.all_unreachable():
                return _Stop.CUT_OFF
            await waiter.suspend(clock, deadline)
    finally:
        waiter.close()
    return _Stop.ENOUGH


def _needed(return_when: ReturnWhen | int, count: int) -> int:
    if return_when in (ALL_COMPLETED, FIRST_EXCEPTION):
        return count
    if return_when == FIRST_COMPLETED:
        return min(1, count)
    if isinstance(return_when, int) and not isinstance(return_when, bool) and return_when >= 1:
        return min(return_when, count)
    raise InvalidRequestError(
        f"return_when must be ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION or a number from 1, not {return_when!r}"
    )


async def wait_all(
    jobs: Iterable[Job],
    *,
    timeout: float | None = None,
    errors: Literal["return", "raise", "first"] = "return",
    kill: bool = False,
) -> list[JobResult]:
    """Wait until all of `jobs` have ended and return their results in input order.

    Args:
        jobs: handles; a duplicate's result comes as often as it was given.
        timeout: seconds to wait; None = as long as it takes.
        errors: "return": a failed job is a result like any other. "raise": after all have ended, the failures
            are raised together. "first": the first failure is raised as soon as it is known.
        kill: with "first": kill the rest, and return when that is confirmed.

    Raises:
        WaitTimeoutError: the time is over; `done` and `pending` say which. The jobs keep running.
        ServerUnreachableError: a server gave nothing but errors for `PollPolicy.unreachable_after` seconds
            and everything else has ended; `done` and `pending` as above.
        ExceptionGroup: with "raise": a `JobError` for each job that did not complete.
        JobError: with "first": that of the first job that did not complete.

    Cancellation: ends the waiting; the jobs go on.
    """
    if errors not in ("return", "raise", "first"):
        raise InvalidRequestError(f"errors must be 'return', 'raise' or 'first', not {errors!r}")
    check_wait_timeout(timeout)
    if kill and errors != "first":
        raise InvalidRequestError("kill=True goes with errors='first'; the others wait until all have ended")
    given = list(jobs) if isinstance(jobs, Iterable) else jobs
    known = _unique(given)
    stop = await _until(known, len(known), stop_at_failure=errors == "first", timeout=timeout)
    done, pending = _partition(known)
    if errors == "first" and (failed := _first_failure(done)) is not None:
        if kill:
            await kill_all(pending)
        raise failed
    if pending:
        raise _cut_off(done, pending) if stop is _Stop.CUT_OFF else _too_late(done, pending, timeout)
    results = {job: _result(cell) for cell, job in known.items()}
    if errors == "raise":
        failures = [error for job in results if (error := _error(job)) is not None]
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(known)} jobs did not complete", failures)
    return [results[job] for job in given]


def _result(cell: Cell) -> JobResult:
    assert cell.result is not None, "asked for the result of a job that is pending"
    return cell.result


def _error(job: Job) -> JobError | None:
    try:
        job.result().check()
    except JobError as error:
        return error
    return None


def _first_failure(done: Sequence[Job]) -> JobError | None:
    failed = [job for job in done if _failed(cell_of(job))]
    first = min(failed, key=lambda job: _result(cell_of(job)).ended_at or 0.0, default=None)
    return None if first is None else _error(first)


def _cut_off(done: Sequence[Job], pending: Sequence[Job]) -> ServerUnreachableError:
    url = pending[0].sandbox.server
    return ServerUnreachableError(
        f"{url} cannot be reached: nothing but errors for too long; what became of {len(pending)} jobs is not "
        "known. Waiting for them again tries once more",
        url=url,
        done=done,
        pending=pending,
    )


def _too_late(done: Sequence[Job], pending: Sequence[Job], timeout: float | None) -> WaitTimeoutError:
    return WaitTimeoutError(
        f"{len(pending)} jobs have not ended after {timeout or 0:g} s, the first of them "
        f"{pending[0].process_id!r}; they go on: wait again with a longer timeout=, or kill them",
        timeout=timeout or 0.0,
        done=done,
        pending=pending,
    )


def as_completed(jobs: Iterable[Job], *, timeout: float | None = None) -> AsCompleted:
    """Return an async iterator over `jobs` as each ends: the same handles, each once.

    Args:
        jobs: handles; duplicates come once.
        timeout: seconds until `WaitTimeoutError`, counted from this call; what is ready is handed out first.
            None = as long as it takes.

    Returns:
        An `AsCompleted`. Leaving the loop early leaves nothing behind: the jobs go on, and nobody asks about
        them any more.

    Example:
        >>> async for job in as_completed(jobs):  # doctest: +SKIP
        ...     print(job.name, job.result().stdout)
    """
    return AsCompleted(jobs, timeout=timeout)


class AsCompleted:
    """Hands out jobs as they end. Also a context manager, for those who like to see where it stops.

    Order: by the server's end time within one answer, as they arrive between answers.
    """

    def __init__(self, jobs: Iterable[Job], *, timeout: float | None = None) -> None:
        check_wait_timeout(timeout)
        self._known = _unique(jobs)
        # Neither handles nor results are kept once they were handed out: `add` may go on for ever.
        self._handed_out: weakref.WeakSet[Cell] = weakref.WeakSet()
        self._clock = _clock_of(self._known)
        self._timeout = timeout
        self._deadline = None if timeout is None else self._clock.now() + timeout
        self._looked = False
        self._waiter = Waiter(self._known)

    def add(self, job: Job) -> None:
        """Wait for one more. A job that is known already is not added again."""
        for cell, handle in _unique([job]).items():
            if cell not in self._known and cell not in self._handed_out:
                self._known[cell] = handle
                self._waiter.add(cell)

    @property
    def pending(self) -> tuple[Job, ...]:
        """The jobs that were not handed out yet, in input order."""
        return tuple(self._known.values())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        """Return the next job that has ended.

        Raises:
            StopAsyncIteration: all were handed out.
            WaitTimeoutError: the time is over.
            ServerUnreachableError: only jobs of servers that cannot be reached are left. Going on with the
                iteration waits for them once more.
        """
        if not await self._some_ready():
            raise StopAsyncIteration
        return self._hand_out(self._waiter.ready.popleft())

    async def batches(self) -> AsyncIterator[list[Job]]:
        """Yield lists of jobs: all that have ended since the last, at least one."""
        while await self._some_ready():
            batch = [self._hand_out(cell) for cell in self._waiter.ready]
            self._waiter.ready.clear()
            yield batch

    async def _some_ready(self) -> bool:
        """Wait until something can be handed out; False when nothing is left."""
        while not self._waiter.ready:
            if not self._waiter.pending:
                return False
            if self._timeout == 0 and not self._looked:
                self._looked = True
                await _fresh_look(self._known)
                continue
            if self._deadline is not None and self._clock.now() >= self._deadline:
                raise _too_late(*_partition(self._known), self._timeout)
            if self._waiter.all_unreachable():
                for board in tuple(self._waiter.unreachable()):
                    self._waiter.forgive(board)
                raise _cut_off(*_partition(self._known))
            await self._waiter.suspend(self._clock, self._deadline)
        return True

    def _hand_out(self, cell: Cell) -> Job:
        self._handed_out.add(cell)
        return self._known.pop(cell)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiter.close()
        self._waiter.ready.clear()
