"""What is known of the jobs of one client, and who waits for which. No I/O and no await but one.

A `Cell` is one job, shared by all handles to it. A `Board` is one sandbox: it takes in answers and says what
they changed. A `Waiter` is a count, a queue of what has ended, and something to be woken by; cells hold their
waiters weakly, so whoever stops waiting leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import attrs

from asyncsandbox._clock import Clock
from asyncsandbox.agent import Agent
from asyncsandbox.errors import ClientStateError
from asyncsandbox.models import EndReason, JobInfo, JobResult, JobState
from asyncsandbox.pacing import LookQuota
from asyncsandbox.protocol import ProcessList, ProcessRow

__all__ = ["Board", "Cell", "News", "Poller", "Waiter"]

_MISSES_UNTIL_LOST = 2

_LAG = 2.0
"""Seconds by which the list of a server that has only the contract may lag behind its starts."""


class Poller(Protocol):
    """What looks at boards while somebody waits."""

    clock: Clock

    def attend(self, board: Board, waiter: Waiter) -> None:
        """Look at `board` while `waiter` waits."""

    def leave(self, board: Board, waiter: Waiter) -> None:
        """Take that back."""

    async def look(self, boards: Iterable[Board]) -> None:
        """Look at each of `boards` once, now."""

    def gives_up_at(self, board: Board, patient_since: float) -> float | None:
        """When a waiter that is patient since then counts the board as unreachable; None = not as things are."""


class Cell:
    """One job, as it was last seen. Every handle to the job shares it.

    Attributes:
        board: its sandbox.
        process_id: its id.
        info: what the server said last.
        result: how it ended; None until the end and its output are both here.
        removed: whether the record was removed while it was tracked.
        collect: glob patterns of files to bring along with the result.
        acknowledged: when its start was, on the client's clock.
        misses: good, whole lists in a row that lacked it.
        settling: whether its output is being fetched.
        shown: whether a list ever had it.
        start_key: the key in its name on the wire, below which its output is kept (`asyncsandbox.capture`); None on
            a server that keeps it itself.
        killed: whether it was killed from here.
        calls_back: whether its server posts its end to this program, so that looking is for a lost post only.
        listed: whether a list that lacks it says something; False where nobody knows that lists have it.
    """

    __slots__ = (
        "__weakref__",
        "_waiters",
        "acknowledged",
        "board",
        "calls_back",
        "collect",
        "info",
        "killed",
        "listed",
        "misses",
        "process_id",
        "removed",
        "result",
        "settling",
        "shown",
        "start_key",
    )

    def __init__(self, board: Board, row: ProcessRow, *, acknowledged: float, collect: Sequence[str]) -> None:
        self.board = board
        self.process_id = row.info.process_id
        self.info = row.info
        self.start_key = row.start_key
        self.killed = False
        self.result: JobResult | None = None
        self.removed = False
        self.collect = collect
        self.acknowledged = acknowledged
        self.misses = 0
        self.settling = False
        self.shown = False
        self.calls_back = False
        self.listed = True
        # Almost every job has one waiter or none: a tuple is the smallest thing that holds either.
        self._waiters: tuple[weakref.ref[Waiter], ...] = ()

    def see(self, row: ProcessRow) -> None:
        """Take in what the server said. A final state is never taken back, nor what the result says."""
        self.misses = 0
        self.start_key = row.start_key or self.start_key
        if self.result is None and (not self.info.finished or row.info.finished):
            self.info = self._completed(row.info)

    def _completed(self, info: JobInfo) -> JobInfo:
        """Fill in what was known before and the row leaves open, as those of a stock server do."""
        before = self.info
        if info.timeout is not None and info.working_dir is not None:
            return info
        return attrs.evolve(
            info,
            name=before.name or info.name,
            language=before.language or info.language,
            timeout=before.timeout if info.timeout is None else info.timeout,
            working_dir=info.working_dir or before.working_dir,
        )

    def subscribe(self, waiter: Waiter) -> None:
        """Tell `waiter` of the end."""
        self._waiters = (*(ref for ref in self._waiters if ref() is not None), weakref.ref(waiter))

    def unsubscribe(self, waiter: Waiter) -> None:
        """Stop telling it."""
        self._waiters = tuple(ref for ref in self._waiters if ref() not in (None, waiter))

    def finish(self, result: JobResult) -> None:
        """Keep the result and wake who waits for it."""
        if self.result is not None:
            return
        self.result = result
        if result.state is not self.info.state or result.exit_code != self.info.exit_code:
            self.info = attrs.evolve(
                self.info,
                state=result.state,
                end_reason=result.end_reason,
                exit_code=result.exit_code,
                signal=result.signal,
            )
        self.board.forget(self)
        waiters, self._waiters = self._waiters, ()
        for ref in waiters:
            if (waiter := ref()) is not None:
                waiter.note(self)

    def lose(self, reason: str, *, removed: bool = False) -> None:
        """Finish it as lost: neither success nor failure, because nobody can know."""
        if self.result is not None:
            return
        self.removed = removed
        lost = JobResult(
            process_id=self.process_id,
            name=self.info.name,
            sandbox_id=self.board.agent.sandbox_id,
            state=JobState.LOST,
            end_reason=EndReason.LOST,
            queued_at=self.info.queued_at,
            started_at=self.info.started_at,
            output_error=reason,
            timeout=self.info.timeout,
        )
        self.finish(lost)


@attrs.frozen(kw_only=True)
class News:
    """What an answer changed.

    Attributes:
        ended: jobs whose end is new, by server end time, each with the row that told of it.
        lost: jobs that are no longer there, each with the reason and whether its record was removed.
        orphans: ids of jobs from starts that were given up, or sent again: nobody has a handle to them.
    """

    ended: Sequence[tuple[Cell, ProcessRow]] = ()
    lost: Sequence[tuple[Cell, str, bool]] = ()
    orphans: Sequence[str] = ()


class Board:
    """What is known of one sandbox's unfinished jobs, and when to look again.

    The schedule is the poller's to set.

    Attributes:
        agent: how the sandbox is asked.
        poller: who asks.
        waiting: waiters that are suspended right now on a job of it.
        cursor: where the last answer ended; None = the next look must see everything.
        due: when to look next, on the client's clock; None = not scheduled.
        gap: seconds between the last two looks; None before the first.
        resting: whether the next look is far off because all jobs call back.
        failures: looks in a row that gave an error.
        failing_since: when the first of them began; None while there are none.
        quota: how often a server that has only the contract may be looked at.
        good_looks: answers that were taken in so far.
        all_marked: whether every row of the last of them had a key in its name: one without may be any start's.
        good_since: when the request for the last of them was sent; None before the first.
    """

    def __init__(self, agent: Agent, poller: Poller) -> None:
        self.agent = agent
        self.poller = poller
        self.waiting: set[Waiter] = set()
        self.cursor: str | None = None
        self.due: float | None = None
        self.gap: float | None = None
        self.resting = False
        self.failures = 0
        self.failing_since: float | None = None
        self.quota = LookQuota()
        self.good_looks = 0
        self.all_marked = True
        self.good_since: float | None = None
        self._cells: weakref.WeakValueDictionary[str, Cell] = weakref.WeakValueDictionary()
        self._ended: weakref.WeakValueDictionary[str, Cell] = weakref.WeakValueDictionary()
        self._order: list[str] = []
        self._suspect = False
        # Rows of jobs whose start is not acknowledged yet. An answer to a look can overtake the answer to a
        # start, and a list of changes tells of each change once. Value: the row, and the youngest start then
        # under way; once all of those are settled, the row is somebody else's.
        self._strays: dict[str, tuple[ProcessRow, int]] = {}
        self._starts: dict[int, None] = {}
        self._tickets = 0
        # Keys of starts that were in doubt, each with the one job that it may have; None = none.
        self._settled: dict[str, str | None] = {}

    @property
    def since(self) -> str | None:
        """The cursor for the next look; None when it must see everything."""
        return None if self._suspect else self.cursor

    def youngest_age(self, now: float) -> float | None:
        """Return the age of the youngest unfinished job, in seconds; None when there is none."""
        while self._order:
            cell = self._cells.get(self._order[-1])
            if cell is not None:
                return now - cell.acknowledged
            self._order.pop()
        return None

    def all_call_back(self) -> bool:
        """Whether the ends of all unfinished jobs are posted to this program."""
        return bool(self._cells) and all(cell.calls_back for cell in self._cells.values())

    def begin_start(self) -> int:
        """Note that a start is under way; what it returns goes to `end_start`."""
        self._tickets += 1
        self._starts[self._tickets] = None
        return self._tickets

    def end_start(self, ticket: int) -> None:
        """Note that the start is settled and its job, if any, tracked."""
        del self._starts[ticket]
        if not self._starts:
            self._strays.clear()

    def settle(self, key: str, process_id: str | None) -> None:
        """Note what came of a start that was in doubt. Any other job with its key is an orphan from now on."""
        self._settled[key] = process_id

    def claim(self, key: str) -> ProcessRow | None:
        """Return the row of the job that the start with `key` made, if one was seen."""
        return next((row for row, _ in self._strays.values() if row.start_key == key), None)

    def track(
        self, known: ProcessRow, *, started: bool, collect: Sequence[str] = ()
    ) -> tuple[Cell, ProcessRow | None]:
        """Return the cell of a job, and the row that told of its end before it was tracked, if one did.

        Args:
            known: what is known of it.
            started: whether its start was acknowledged just now. Any other job may have ended before the
                cursor, so the next look sees everything.
            collect: glob patterns of files to bring along.
        """
        process_id = known.info.process_id
        cell = self._cells.get(process_id) or self._ended.get(process_id)
        if cell is None:
            cell = Cell(self, known, acknowledged=self.poller.clock.now(), collect=collect)
            self._cells[process_id] = cell
            self._order.append(process_id)
            if not started:
                self.cursor = None
        row = self._strays.pop(process_id, (None, 0))[0]
        if row is not None:
            cell.see(row)
        return cell, row if row is not None and row.info.finished else None

    def forget(self, cell: Cell) -> None:
        """Stop tracking a job that has ended. While a handle to it lives, another one will find it."""
        if self._cells.pop(cell.process_id, None) is not None:
            self._ended[cell.process_id] = cell

    def unfinished(self) -> list[Cell]:
        """Return the jobs that are tracked."""
        return list(self._cells.values())

    def take_in(self, listing: ProcessList, *, asked: float) -> News:
        """Take in the answer to a look that was sent at `asked`, and return what it changed."""
        self.cursor = listing.cursor
        self.good_looks += 1
        self.good_since = asked
        self.all_marked = all(row.start_key is not None for row in listing.rows)
        self._drop_strays()
        ended = []
        orphans = []
        for row in listing.rows:
            cell = self._cells.get(row.info.process_id)
            if cell is None and (cell := self._cells.get(row.execution_id or "")) is not None:
                # Its start was answered with this id alone (contract 2.6).
                row = attrs.evolve(row, info=attrs.evolve(row.info, process_id=cell.process_id))  # noqa: PLW2901
            if cell is None:
                self._keep_stray(row)
                if self._is_orphan(row):
                    orphans.append(row.info.process_id)
                continue
            cell.see(row)
            cell.shown = True
            if row.info.finished and not cell.settling:
                cell.settling = True
                ended.append((cell, row))
        ended.sort(key=lambda item: item[1].info.ended_at or 0.0)
        lost = [
            (cell, "its record was removed", True)
            for process_id in listing.removed
            if (cell := self._cells.get(process_id)) is not None and not cell.settling
        ]
        if not listing.partial:
            lost += self._missing({row.info.process_id for row in listing.rows}, asked)
        return News(ended=ended, lost=lost, orphans=orphans)

    def _is_orphan(self, row: ProcessRow) -> bool:
        """Whether a job that nobody tracks comes from a start of ours that was settled without it."""
        key = row.start_key
        if key is None or row.info.finished or key not in self._settled:
            return False
        return self._settled[key] != row.info.process_id

    def _missing(self, listed: set[str], asked: float) -> list[tuple[Cell, str, bool]]:
        """Count whom a whole list lacks. One list may be wrong; two that began after the start may not."""
        lost = []
        lag = 0.0 if self.agent.speaks_ours else _LAG
        self._suspect = False
        for cell in self._cells.values():
            if cell.process_id in listed or cell.settling or not cell.listed:
                continue
            if cell.acknowledged >= asked - (0.0 if cell.shown else lag):
                continue
            cell.misses += 1
            if cell.misses >= _MISSES_UNTIL_LOST:
                lost.append((cell, "the server no longer lists it", False))
            else:
                self._suspect = True
        return lost

    def _keep_stray(self, row: ProcessRow) -> None:
        if self._starts:
            self._strays[row.info.process_id] = (row, self._tickets)

    def _drop_strays(self) -> None:
        if self._strays:
            oldest = next(iter(self._starts))
            self._strays = {key: item for key, item in self._strays.items() if item[1] >= oldest}


class Waiter:
    """Counts what has not ended, queues what has, and can be waited on. For one coroutine at a time.

    Attributes:
        pending: jobs that have not ended.
        ready: jobs that have, in the order in which it became known, until somebody takes them.
        boards: their sandboxes, each with how many of the pending jobs are in it.
    """

    __slots__ = ("__weakref__", "_patient_since", "_wake", "boards", "pending", "ready")

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.pending: set[Cell] = set()
        self.ready: deque[Cell] = deque()
        self.boards: dict[Board, int] = {}
        self._patient_since: dict[Board, float] = {}
        self._wake: asyncio.Event | None = None
        for cell in cells:
            self.add(cell)

    def add(self, cell: Cell) -> None:
        """Wait for one more; one that has ended is ready at once, one that is known does nothing."""
        board = cell.board
        if cell.result is not None:
            self.ready.append(cell)
        elif cell not in self.pending:
            self.pending.add(cell)
            if board not in self._patient_since:
                self.forgive(board)
            self.boards[board] = self.boards.get(board, 0) + 1
            cell.subscribe(self)
        self.nudge()  # whoever is suspended has one more sandbox to look at, or something to take

    def note(self, cell: Cell) -> None:
        """Hear of an end."""
        if cell not in self.pending:
            return
        self._drop(cell)
        self.ready.append(cell)
        if self._wake is not None:
            self._wake.set()

    def _drop(self, cell: Cell) -> None:
        self.pending.discard(cell)
        left = self.boards[cell.board] - 1
        if left:
            self.boards[cell.board] = left
        else:
            del self.boards[cell.board]

    def nudge(self) -> None:
        """Wake whoever waits, so that it looks at the state of things again."""
        if self._wake is not None:
            self._wake.set()

    def close(self) -> None:
        """Stop hearing of anything."""
        for cell in tuple(self.pending):
            cell.unsubscribe(self)
        self.pending.clear()
        self.boards.clear()

    def unreachable(self) -> Iterator[Board]:
        """Yield the boards with pending jobs whose server gave nothing but errors for too long."""
        for board, gives_up_at in self._limits():
            if board.poller.clock.now() >= gives_up_at:
                yield board

    def _limits(self) -> Iterator[tuple[Board, float]]:
        for board in self.boards:
            gives_up_at = board.poller.gives_up_at(board, self._patient_since[board])
            if gives_up_at is not None:
                yield board, gives_up_at

    def forgive(self, board: Board) -> None:
        """Be patient with the board from now on, whatever was before."""
        self._patient_since[board] = board.poller.clock.now()

    def all_unreachable(self) -> bool:
        """Whether nothing is pending but jobs of unreachable servers."""
        return bool(self.boards) and len(list(self.unreachable())) == len(self.boards)

    async def suspend(self, clock: Clock, deadline: float | None) -> None:
        """Wait until something may have changed: an end, an unreachable server, the deadline.

        While this is suspended, and only then, the boards of the pending jobs are looked at. No server and no
        job notices when it is cancelled.

        Raises:
            ClientStateError: another coroutine is suspended in this waiter.
        """
        if self._wake is not None:
            raise ClientStateError("two coroutines wait on one iterator; give each an iterator of its own")
        wake = self._wake = asyncio.Event()
        boards = tuple(self.boards)
        now = clock.now()
        moments = [limit for _, limit in self._limits() if limit > now]
        if deadline is not None:
            moments.append(deadline)
        timer = clock.call_at(min(moments), wake.set) if moments else None
        for board in boards:
            board.poller.attend(board, self)
        try:
            await wake.wait()
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()
            for board in boards:
                board.poller.leave(board, self)
