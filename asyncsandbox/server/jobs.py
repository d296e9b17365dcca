"""What runs: takes orders, lets them start when there is room, hears how they end, ends them when asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from asyncsandbox.errors import APIError, ServerError
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.protocol import execution_id
from asyncsandbox.server import refusals
from asyncsandbox.server.admission import Admission
from asyncsandbox.server.deliveries import Callback
from asyncsandbox.server.engine import Engine, Order, Prepared
from asyncsandbox.server.jobtable import Ending
from asyncsandbox.server.launcher import LaunchEnd
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.outputs import Outputs
from asyncsandbox.server.records import JobKind, JobRecord, Launch, SandboxRecord, SandboxStatus
from asyncsandbox.server.tally import RunTally

__all__ = ["JobEvents", "Jobs", "StreamListener"]

log = logging.getLogger(__name__)

_THREAD_SIZE: Final = 256 * 1024
"""Inputs beyond so many bytes are written by a thread, so that the event loop does not wait for the disk."""

_PREFIX: Final = {JobKind.CODE: "bg", JobKind.COMMAND: "cmd", JobKind.EXECUTION: "run"}

_ENDED_BY: Final = {
    EndReason.TIMEOUT: JobState.TIMED_OUT,
    EndReason.KILLED: JobState.KILLED,
}


class StreamListener(Protocol):
    """Who hears of a streamed job while it runs. Calls are synchronous and must not block."""

    def moved(self) -> None:
        """It runs, or has written more."""

    def typed(self, count: int) -> None:
        """Its terminal has taken so many bytes of what was typed."""


class Jobs:
    """The jobs of one server.

    Args:
        ledger: their records.
        engine: their sandboxes.
        outputs: what they write.
        admission: who may start.
        output_limit: bytes kept of each stream.

    Attributes:
        tally: what ran so far.
        on_end: called with the record of each job that has ended, once that is on disk.
    """

    def __init__(
        self, *, ledger: Ledger, engine: Engine, outputs: Outputs, admission: Admission, output_limit: int
    ) -> None:
        self.tally = RunTally()
        self._ledger = ledger
        self._table = ledger.jobs
        self._engine = engine
        self._outputs = outputs
        self._admission = admission
        self._output_limit = output_limit
        self._picked: list[str] = []
        self._ended: list[str] = []
        self._waiters: dict[str, list[asyncio.Future[JobRecord]]] = {}
        self._listeners: dict[str, StreamListener] = {}
        self._look: asyncio.TimerHandle | None = None
        self.on_end: Callable[[JobRecord], None] = lambda _record: None
        ledger.before_commit = self._pick
        ledger.after_commit = self._act

    # --- what clients ask for ---------------------------------------------------------------------------

    async def start(
        self,
        sandbox: SandboxRecord,
        order: Order,
        *,
        kind: JobKind,
        key: str | None = None,
        digest: str = "",
        callback: Callback | None = None,
    ) -> JobRecord:
        """Take an order in, once for each key. Returns when that is on disk, not when it runs.

        `callback` says whom to tell of its end; that is on disk with it.

        Raises:
            InvalidRequestError: the order cannot be run here.
            ConflictError: the key came with another body before, or the sandbox is not running.
            APIError: 410, what the key started was removed.
            ServerError: 503, nothing was started.
        """
        known = self._known(sandbox.id, key, digest)
        if known is not None:
            await self._ledger.committed()
            return known
        process_id = f"{_PREFIX[kind]}_{secrets.token_hex(8)}"
        if order.size > _THREAD_SIZE:
            prepared = await asyncio.to_thread(self._engine.prepare, sandbox, process_id, order)
            # Meanwhile the same request may have come again, or the sandbox may be gone.
            try:
                known = self._known(sandbox.id, key, digest)
            except APIError:
                self._engine.discard(sandbox.id, process_id, prepared.launch)
                raise
            if known is not None:
                self._engine.discard(sandbox.id, process_id, prepared.launch)
                return known
        else:
            prepared = self._engine.prepare(sandbox, process_id, order)
        record = self._take_in(sandbox.id, process_id, order, prepared, kind=kind)
        if callback is not None:
            self._ledger.deliveries.expect(process_id, sandbox.id, callback)
        self._ledger.keys.record(sandbox.id, key, digest, process_id)
        try:
            await self._ledger.committed()
        except ServerError:
            self._withdraw(process_id, prepared.launch)
            raise
        self.tally.accept(sandbox.id, kind)
        return self._table.get(process_id) or record

    async def kill(self, process_id: str) -> JobRecord:
        """End a job; a queued one never starts. Returns its record once it is over, whatever the end was."""
        self._ledger.commit()
        record = self._table.get(process_id)
        if record is not None and not record.finished:
            if self._admission.withdraw(process_id):
                ending = Ending(state=JobState.KILLED, reason=EndReason.KILLED, at=time.time())
                self._finish(process_id, ending)
            else:
                self._engine.kill(record.sandbox_id, process_id)
        return await self.ended(process_id)

    async def ended(self, process_id: str) -> JobRecord:
        """Wait for a job's end and return its record.

        Raises:
            NotFoundError: there is no such job.
        """
        record = self._table.get(process_id)
        if record is None:
            raise refusals.not_found(f"there is no job {process_id!r}", code="PROCESS_NOT_FOUND")
        if record.finished:
            await self._ledger.committed()
            return record
        waiter: asyncio.Future[JobRecord] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(process_id, []).append(waiter)
        return await waiter

    @contextlib.contextmanager
    def listening(self, process_id: str, listener: StreamListener) -> Iterator[None]:
        """Let `listener` hear of a streamed job for as long as the block lasts."""
        self._listeners[process_id] = listener
        try:
            yield
        finally:
            del self._listeners[process_id]

    async def remove(self, record: JobRecord) -> None:
        """Remove a finished job: its record, its output, its own directory.

        Raises:
            ConflictError: it has not ended.
        """
        if not record.finished:
            raise refusals.conflict(
                f"job {record.process_id!r} is {record.info.state}; kill it before removing it"
            )
        self._table.remove(record.process_id)
        self._outputs.release(record.process_id)
        if record.kind is not JobKind.EXECUTION:
            self._ledger.keys.mark_gone(record.process_id, time.time())
            await self._ledger.committed()
        await asyncio.to_thread(self._engine.discard, record.sandbox_id, record.process_id, record.launch)

    # --- what sandboxes go through ----------------------------------------------------------------------

    def hold(self, sandbox_id: str) -> None:
        """Start nothing more in a sandbox until `release`."""
        for lane in _lanes(sandbox_id):
            self._admission.hold(lane)

    def release(self, sandbox_id: str) -> None:
        """Let its queued jobs start again."""
        for lane in _lanes(sandbox_id):
            self._admission.release(lane)
        self._ledger.touch()

    def end_all(self, sandbox_id: str) -> None:
        """Note that everything in a sandbox was killed; the engine has done so."""
        for record in self._table.of_sandbox(sandbox_id):
            if not record.finished:
                self._admission.withdraw(record.process_id)
                self._finish_unheard(record, JobState.KILLED, EndReason.KILLED)

    def drop(self, sandbox_id: str) -> None:
        """Forget the jobs of a sandbox that is gone; all of them have ended."""
        for record in self._table.of_sandbox(sandbox_id):
            self._outputs.release(record.process_id)
        self._table.drop_sandbox(sandbox_id)
        self._ledger.keys.forget_scope(sandbox_id)
        self.tally.drop(sandbox_id)
        self.release(sandbox_id)

    def recover(self) -> None:
        """Go on after a restart: what may have run is lost, what never did is queued again."""
        for record in self._table.unfinished():
            if record.launched:
                self._finish_unheard(record, JobState.LOST, EndReason.LOST)
            else:
                self._enqueue(record)
        self._ledger.touch()

    # --- what supervisors say ---------------------------------------------------------------------------

    def started(self, process_id: str, pid: int, at: float) -> None:
        """A job's process runs."""
        self._table.mark_running(process_id, pid=pid, at=at)
        self.tally.started += 1
        self._ledger.touch()
        self.wrote(process_id)

    def refused(self, process_id: str, message: str) -> None:
        """A job's process could not be made: it failed, and its stderr says why."""
        said = f"{message}\n".encode()
        ending = Ending(
            state=JobState.FAILED,
            reason=EndReason.UNKNOWN,
            at=time.time(),
            stderr=said,
            stderr_size=len(said),
        )
        self._finish(process_id, ending)

    def busy(self, process_id: str, busy: bool) -> None:
        """A job began or ceased to want a core."""
        self._admission.busy(process_id, busy=busy)
        if not busy:
            self._ledger.touch()

    def wrote(self, process_id: str) -> None:
        """A streamed job has written more."""
        if process_id in self._listeners:
            self._listeners[process_id].moved()

    def typed(self, process_id: str, count: int) -> None:
        """A job's terminal has taken some of what was typed."""
        if process_id in self._listeners:
            self._listeners[process_id].typed(count)

    def over(self, end: LaunchEnd) -> None:
        """A job ended."""
        completed = end.reason is EndReason.EXIT and end.exit_code == 0
        state = JobState.COMPLETED if completed else _ENDED_BY.get(end.reason, JobState.FAILED)
        ending = Ending(
            state=state,
            reason=end.reason,
            at=end.ended_at,
            exit_code=end.exit_code,
            signal=end.signal,
            stdout_size=end.stdout.size,
            stderr_size=end.stderr.size,
            stdout_truncated=end.stdout.size > self._output_limit,
            stderr_truncated=end.stderr.size > self._output_limit,
            stdout=end.stdout.inline,
            stderr=end.stderr.inline,
        )
        self._finish(end.process_id, ending)

    def lost(self, sandbox_id: str) -> None:
        """A sandbox's supervisor died: what it ran is lost, what is queued gets a new one."""
        log.error("the supervisor of sandbox %s died", sandbox_id)
        self._engine.supervisor_gone(sandbox_id)
        lost = [
            record
            for record in self._table.of_sandbox(sandbox_id)
            if record.launched and not record.finished and record.process_id not in self._picked
        ]
        for record in lost:
            self._finish_unheard(record, JobState.LOST, EndReason.LOST)
        if lost:
            self._engine.open(sandbox_id)  # whose first act is to end what these jobs left behind

    # --- inside -----------------------------------------------------------------------------------------

    def _known(self, sandbox_id: str, key: str | None, digest: str) -> JobRecord | None:
        """Return what the same request started earlier; if it is new, check that it may start now."""
        sandbox = self._ledger.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise refusals.not_found(f"sandbox {sandbox_id!r} was not found", code="SANDBOX_NOT_FOUND")
        known = self._ledger.keys.find(sandbox_id, key, digest)
        if known is not None:
            return self._table.get(known)
        if sandbox.status is SandboxStatus.PAUSED:
            raise refusals.conflict(
                f"sandbox {sandbox_id!r} is paused; resume it before starting anything", code="SANDBOX_PAUSED"
            )
        if sandbox.status is SandboxStatus.STOPPED:
            raise refusals.conflict(
                f"sandbox {sandbox_id!r} is stopped; start it before starting anything",
                code="SANDBOX_STOPPED",
            )
        return None

    def _take_in(
        self, sandbox_id: str, process_id: str, order: Order, prepared: Prepared, *, kind: JobKind
    ) -> JobRecord:
        info = JobInfo(
            process_id=process_id,
            sandbox_id=sandbox_id,
            name=order.name,
            language=prepared.language,
            state=JobState.QUEUED,
            queued_at=time.time(),
            timeout=order.timeout,
            command=order.text,
            working_dir=prepared.working_dir,
        )
        record = self._table.add(info, kind=kind, launch=prepared.launch)
        self._enqueue(record)
        return record

    def _withdraw(self, process_id: str, launch: Launch) -> None:
        """Undo a start that could not be put on disk, unless a later commit did it after all."""
        record = self._table.get(process_id)
        if record is None or process_id not in self._table.changes.saved:
            return
        self._admission.withdraw(process_id)
        if process_id in self._picked:
            self._picked.remove(process_id)
            self._admission.ended(process_id, self._now())
        self._table.withdraw(process_id)
        self._ledger.keys.forget(process_id)
        self._ledger.deliveries.forget(execution_id(process_id))
        self._engine.discard(record.sandbox_id, process_id, launch)

    def _enqueue(self, record: JobRecord) -> None:
        lane = _lane(record.sandbox_id, record.kind)
        self._admission.enqueue(record.process_id, lane=lane, now=self._now())

    def _finish_unheard(self, record: JobRecord, state: JobState, reason: EndReason) -> None:
        """Note an end that no supervisor told of: no exit code is known, the output is what is spooled."""
        stdout, stderr = self._outputs.sizes(record) if record.launched else (0, 0)
        ending = Ending(
            state=state,
            reason=reason,
            at=time.time(),
            stdout_size=stdout,
            stderr_size=stderr,
            stdout_truncated=stdout > self._output_limit,
            stderr_truncated=stderr > self._output_limit,
        )
        self._finish(record.process_id, ending)

    def _finish(self, process_id: str, ending: Ending) -> None:
        before = self._table.get(process_id)
        if before is None or before.finished:
            return
        if before.kind is JobKind.EXECUTION:
            self._outputs.hold(process_id, (ending.stdout, ending.stderr))
        self._count(self._table.finish(process_id, ending))
        self._admission.ended(process_id, self._now())
        if before.launch is not None:
            self._engine.finished(before.launch)
        self._ended.append(process_id)
        self._ledger.touch()

    def _count(self, ended: JobRecord | None) -> None:
        if ended is not None:
            info = ended.info
            output = (info.stdout_size or 0) + (info.stderr_size or 0)
            self.tally.end(info.sandbox_id, info.state, seconds=info.duration, output=output)

    def _pick(self) -> None:
        """Before a commit: choose who starts, so that it is on disk before it can run."""
        for process_id in self._admission.take(self._now()):
            self._table.mark_launched(process_id)
            self._picked.append(process_id)

    def _act(self) -> None:
        """After a commit: start who was chosen, wake who waited for an end."""
        picked, self._picked = self._picked, []
        for process_id in picked:
            record = self._table.get(process_id)
            if record is not None and not record.finished:
                self._engine.launch(record)
        ended, self._ended = self._ended, []
        for process_id in ended:
            record = self._table.get(process_id)
            if record is not None:
                self.on_end(record)
            for waiter in self._waiters.pop(process_id, ()):
                if record is not None and not waiter.done():
                    waiter.set_result(record)
        self._plan_look()

    def _plan_look(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        when = self._admission.next_look()
        if when is not None:
            self._look = asyncio.get_running_loop().call_at(when, self._ledger.touch)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _lane(sandbox_id: str, kind: JobKind) -> tuple[str, bool]:
    """Return a job's lane: somebody waits for an execution, so it does not queue behind a thousand jobs."""
    return (sandbox_id, kind is JobKind.EXECUTION)


def _lanes(sandbox_id: str) -> tuple[tuple[str, bool], ...]:
    return ((sandbox_id, False), (sandbox_id, True))


class JobEvents:
    """What one sandbox's supervisor says, passed on (`asyncsandbox.server.launcher.LaunchEvents`)."""

    def __init__(self, jobs: Jobs, sandbox_id: str) -> None:
        self._jobs = jobs
        self._sandbox_id = sandbox_id
        self.started = jobs.started
        self.refused = jobs.refused
        self.busy = jobs.busy
        self.wrote = jobs.wrote
        self.typed = jobs.typed
        self.ended = jobs.over

    def gone(self) -> None:
        """The supervisor died; whatever had not ended is lost."""
        self._jobs.lost(self._sandbox_id)
