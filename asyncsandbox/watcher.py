"""Learns what became of the jobs of one client, while somebody waits for them.

One `Watcher` serves all waits of a client, however many: one look a sandbox and tick tells of all its jobs.
It learns by listing; where a server announces a stream of events, that can take the place of `_look`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import attrs

from asyncsandbox import protocol
from asyncsandbox._clock import Clock
from asyncsandbox._tasks import Tasks
from asyncsandbox.agent import Agent
from asyncsandbox.backoff import Uniform, first_gap, next_gap, retry_delay
from asyncsandbox.errors import (
    APIError,
    AsyncSandboxError,
    ClientStateError,
    EmbeddedServerError,
    NotFoundError,
    SandboxClosedError,
    TransportError,
)
from asyncsandbox.models import JobInfo, JobResult, PollPolicy
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.results import bare_result, complete_result, fetch_result, last_word
from asyncsandbox.sweeping import Sweeper
from asyncsandbox.tracking import Board, Cell, News, Waiter

__all__ = ["Watcher"]

_log = logging.getLogger("asyncsandbox.watcher")

_FETCHES: Final = 16
_GONE: Final = 410
_CALLBACK_GAP: Final = 30.0
"""Seconds between looks where every end is posted to this program: only a lost post makes them useful."""
_ENDED: Final = frozenset({"deleted", "stopped", "expired", "error"})


class Watcher:
    """Looks at the boards of one client while waiters are suspended on them.

    Args:
        policy: how often.
        clock: the client's clock.
        uniform: the randomness in the gaps.
        tasks: the client's tasks.
        result_limit: bytes of each stream that a result carries.
    """

    def __init__(
        self, *, policy: PollPolicy, clock: Clock, uniform: Uniform, tasks: Tasks, result_limit: int
    ) -> None:
        self.policy = policy
        self.clock = clock
        self._uniform = uniform
        self._tasks = tasks
        self.result_limit = result_limit
        self._boards: weakref.WeakValueDictionary[str, Board] = weakref.WeakValueDictionary()
        self._wanted: set[Board] = set()
        self._looking: dict[Board, asyncio.Task[Sequence[asyncio.Task[None]]]] = {}
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._fetches = asyncio.Semaphore(_FETCHES)
        self._orphans: set[str] = set()
        self._sweeper = Sweeper(clock=clock, tasks=tasks)
        self._lost: str | None = None

    # --- what is tracked ------------------------------------------------------------------------------------

    def board(self, agent: Agent) -> Board:
        """Return the board of a sandbox, one for all handles to it."""
        board = self._boards.get(agent.sandbox_id)
        if board is None:
            agent.board = board = Board(agent, self)
            if agent.closed is None:
                self._boards[agent.sandbox_id] = board
        return board

    def track(
        self, board: Board, row: ProcessRow, *, started: bool = False, collect: Sequence[str] = ()
    ) -> Cell:
        """Return the cell of a job of which `row` tells; its end, if it has ended, is taken in."""
        cell, ended = board.track(row, started=started, collect=collect)
        if ended is not None or row.info.finished:
            self.deliver(cell, ended or row)
        elif (reason := self._lost or board.agent.closed) is not None:
            cell.lose(reason)
        return cell

    def reattach(self, board: Board, process_id: str) -> Cell:
        """Return the cell of a job of which nothing is known yet but its id."""
        info = JobInfo(process_id=process_id, sandbox_id=board.agent.sandbox_id)
        return self.track(board, ProcessRow(info=info))

    def deliver(self, cell: Cell, row: ProcessRow) -> None:
        """Take in what one answer says of one job."""
        cell.see(row)
        if row.info.finished and not cell.settling:
            cell.settling = True
            self._apply(cell.board, News(ended=[(cell, row)]))

    def called_back(self, cell: Cell, row: ProcessRow) -> None:
        """Take in what a callback says of one job. It holds the end of a long output; more is fetched if wanted."""
        info = row.info
        if cell.listed:  # only then there is more to be had
            row = attrs.evolve(
                row,
                stdout=self._if_enough(row.stdout, info.stdout_size),
                stderr=self._if_enough(row.stderr, info.stderr_size),
            )
        self.deliver(cell, row)

    def _if_enough(self, data: bytes | None, size: int | None) -> bytes | None:
        return None if data is not None and len(data) < min(size or 0, self.result_limit) else data

    def close_board(self, sandbox_id: str, reason: str) -> None:
        """Lose what has not ended in a sandbox that is gone."""
        board = self._boards.pop(sandbox_id, None)
        if board is None:
            return
        board.agent.close(reason)
        board.due = self.clock.now() + self.policy.cap  # output may still be on its way; no need to hurry
        for cell in board.unfinished():
            if not cell.settling:
                cell.lose(reason)

    def close_all(self, reason: str) -> None:
        """Lose everything that has not ended: the server is gone."""
        self._lost = reason
        for sandbox_id in list(self._boards):
            self.close_board(sandbox_id, reason)

    async def sweep(self, sandbox_ids: Collection[str]) -> None:
        """Delete now what finished jobs left in these sandboxes. Never raises for what that runs into."""
        await self._sweeper.sweep(board for key, board in self._boards.items() if key in sandbox_ids)

    # --- who waits ------------------------------------------------------------------------------------------

    def attend(self, board: Board, waiter: Waiter) -> None:
        """Look at `board` while `waiter` waits. Part of `Poller`."""
        board.waiting.add(waiter)
        rests = board.all_call_back()
        if board in self._wanted and (rests or not board.resting):
            return
        self._wanted.add(board)
        now = self.clock.now()
        # A schedule that still runs is kept: waiting again, or for one more job, does not make it faster.
        if board.due is None or board.due < now or (board.resting and not rests):
            board.due = now + first_gap(self.policy, self._uniform)
            if rests:
                board.due = max(board.due, now + _CALLBACK_GAP - (board.youngest_age(now) or 0.0))
        board.resting = rests
        self._wake.set()
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = self._tasks.spawn(self._run(), name="asyncsandbox watcher")

    def leave(self, board: Board, waiter: Waiter) -> None:
        """Stop looking at `board` for `waiter`. Part of `Poller`."""
        board.waiting.discard(waiter)
        if not board.waiting:
            self._wanted.discard(board)
            if not self._wanted:
                self._wake.set()

    def gives_up_at(self, board: Board, patient_since: float) -> float | None:
        """When a waiter counts the board as unreachable. Part of `Poller`."""
        limit = self.policy.unreachable_after
        if limit is None or board.failing_since is None:
            return None
        return max(board.failing_since, patient_since) + limit

    # --- looking --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Look at each wanted board when it is due. Ends as soon as none is wanted."""
        while self._wanted:
            self._wake.clear()
            now = self.clock.now()
            following: float | None = None
            for board in self._wanted:
                if board in self._looking:
                    continue
                due = now if board.due is None else board.due
                if due <= now:
                    self._looking[board] = self._start_look(board)
                elif following is None or due < following:
                    following = due
            timer = None if following is None else self.clock.call_at(following, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _start_look(self, board: Board) -> asyncio.Task[Sequence[asyncio.Task[None]]]:
        return self._tasks.spawn(self._look(board), name=f"look at {board.agent.sandbox_id}")

    async def look(self, boards: Iterable[Board], *, since: float = math.inf) -> None:
        """Look at each of `boards` once, now, and return when what that told of is delivered.

        Args:
            boards: where to look.
            since: a good look that began after this moment will do, on the client's clock.

        Never raises for what a look runs into. Cancellation: the looks go on.
        """
        boards = tuple(boards)
        if stale := [self._looking[board] for board in boards if board in self._looking]:
            await asyncio.wait(stale)  # they may have begun before the caller asked: not fresh enough
        boards = tuple(board for board in boards if board.good_since is None or board.good_since <= since)
        for board in boards:
            if board not in self._looking:
                self._looking[board] = self._start_look(board)
        looks = [self._looking[board] for board in boards]
        if looks:
            await asyncio.wait(looks)
        if settling := [task for look in looks for task in look.result()]:
            await asyncio.wait(settling)

    async def _look(self, board: Board) -> Sequence[asyncio.Task[None]]:
        """Look at a board, and return the tasks that fetch the output of what has ended."""
        asked = self.clock.now()
        board.quota.note(asked)
        try:
            since = board.since if await board.agent.announces("since") else None
            request = protocol.list_processes(since=since)
            reply = await board.agent.call(
                request, what="listing jobs", timeout=self.policy.request_timeout, retry=False
            )
            began = self.clock.now()
            listing = protocol.decode_processes(reply, sandbox_id=board.agent.sandbox_id, since=since)
            news = board.take_in(listing, asked=asked)
            settling = self._apply(board, news)
        except (SandboxClosedError, EmbeddedServerError, ClientStateError) as exc:
            board.agent.gone(str(exc))
        except AsyncSandboxError as exc:
            await self._failed(board, exc, asked)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with one look must not end all, nor spin
            _log.exception("a look at sandbox %s went wrong", board.agent.sandbox_id)
            await self._failed(board, exc, asked)
        else:
            # With a cursor each change is read once, however often one looks; without, every look reads all.
            cost = 0.0 if listing.cursor is not None else self.clock.now() - began
            self._schedule(board, news=bool(news.ended or news.lost), more=listing.more, cost=cost)
            return settling
        finally:
            del self._looking[board]
            self._wake.set()
        return ()

    def _schedule(self, board: Board, *, news: bool, more: bool, cost: float) -> None:
        now = self.clock.now()
        board.failures, board.failing_since = 0, None
        board.gap = next_gap(
            self.policy,
            board.gap or self.policy.floor,
            news=news,
            youngest_age=board.youngest_age(now),
            cost=cost,
            uniform=self._uniform,
        )
        board.resting = board.all_call_back()
        if board.resting:
            board.gap = max(board.gap, _CALLBACK_GAP)
        board.due = now if more else now + board.gap
        if not board.agent.speaks_ours:
            board.due = max(board.due, board.quota.earliest())

    async def _failed(self, board: Board, error: Exception, asked: float) -> None:
        """Decide what a failed look means: a stale cursor, a sandbox that is gone or rests, or trouble."""
        now = self.clock.now()
        if isinstance(error, APIError) and error.status == _GONE and board.since is not None:
            board.cursor = None
            board.due = now
            return
        status = await self._status(board) if self._worth_asking(board, error) else None
        if status == "gone":
            board.agent.gone("the server does not know the sandbox any more")
            return
        if status == "paused":  # contract 3: its agent cannot be reached then, and that is as it should be
            board.failures, board.failing_since = 0, None
            board.due = now + self.policy.cap
            return
        board.failures += 1
        hint = error.retry_after if isinstance(error, APIError) else None
        board.due = now + retry_delay(
            board.failures,
            floor=self.policy.retry_floor,
            cap=self.policy.retry_cap,
            uniform=self._uniform,
            hint=hint,
        )
        _log.debug("look %d at sandbox %s failed: %s", board.failures, board.agent.sandbox_id, error)
        if board.failing_since is None:
            board.failing_since = asked
            for waiter in tuple(board.waiting):
                waiter.nudge()  # it has a new moment at which to give up

    @staticmethod
    def _worth_asking(board: Board, error: Exception) -> bool:
        """Whether the control plane may know better: of a 404, and of an agent that is out of reach."""
        unreachable = isinstance(error, TransportError) and board.failures >= 1
        return isinstance(error, NotFoundError) or unreachable

    async def _status(self, board: Board) -> str | None:
        """Return "gone", "paused" or "there" as the control plane says; None when it does not."""
        try:
            described = await self._control_status(board)
        except NotFoundError:
            return "gone"
        except AsyncSandboxError:
            return None
        return described

    async def _control_status(self, board: Board) -> str:
        info = (await board.agent.control.get(board.agent.sandbox_id, retry=False)).info
        if info.status in _ENDED:
            return "gone"
        return "paused" if info.status == "paused" else "there"

    def _apply(self, board: Board, news: News) -> list[asyncio.Task[None]]:
        """Finish what can be finished now, and return the tasks that finish the rest."""
        settling = []
        for cell, reason, removed in news.lost:
            if cell.start_key is not None and not removed:
                cell.settling = True
                work = self._settle_lost(cell, reason)
                settling.append(self._tasks.spawn(work, name=f"look for {cell.process_id}"))
            else:
                cell.lose(reason, removed=removed)
        for process_id in news.orphans:
            if process_id not in self._orphans:
                self._orphans.add(process_id)
                _ = self._tasks.promise(self._end_orphan(board, process_id), name=f"end orphan {process_id}")
        for cell, row in news.ended:
            board.agent.lists_output |= bool(row.stdout or row.stderr)
            result = complete_result(cell, row, limit=self.result_limit)
            if result is None:
                settling.append(self._tasks.spawn(self._settle(cell, row), name=f"fetch {cell.process_id}"))
            else:
                self._finish(cell, result)
        return settling

    def _finish(self, cell: Cell, result: JobResult) -> None:
        cell.finish(result)
        whole = not (result.stdout_truncated or result.stderr_truncated or result.output_error)
        if cell.start_key is not None and whole:
            self._sweeper.add(cell.board, cell.start_key)  # the handle has all of it

    async def _end_orphan(self, board: Board, process_id: str) -> None:
        """Kill a job whose start was given up; if that fails, the next look tells of it again."""
        try:
            await board.agent.call(protocol.kill(process_id), what=f"killing orphan {process_id!r}")
        except AsyncSandboxError as exc:
            _log.warning("job %s, from a start that was given up, could not be killed: %s", process_id, exc)
        finally:
            self._orphans.discard(process_id)

    async def _settle(self, cell: Cell, row: ProcessRow) -> None:
        """Fetch what the row does not hold. The end is told in any case: no wait hangs on output."""
        problem = "the client was closed before the output was read"
        try:
            async with self._fetches:
                self._finish(cell, await fetch_result(cell, row, limit=self.result_limit))
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with the output, the job has ended
            _log.exception("the output of job %s could not be fetched", cell.process_id)
            problem = f"the output could not be read: {exc}"
        finally:
            cell.finish(bare_result(cell, row, limit=self.result_limit, problem=problem))

    async def _settle_lost(self, cell: Cell, reason: str) -> None:
        """Look for what a job left before it is given up: its server may only have forgotten it."""
        try:
            async with self._fetches:
                result = await last_word(cell, limit=self.result_limit)
            if result is not None:
                self._finish(cell, result)
        except AsyncSandboxError as exc:
            _log.debug("nothing was found of lost job %s: %s", cell.process_id, exc)
        finally:
            cell.lose(reason)
