"""The truth about jobs: states and transitions. Synchronous, no I/O.

Every visible change takes the next sequence number and lands in the pending changes, which whoever owns the
table writes to disk before anybody is told (`asyncsandbox.server.ledger`). A final state never changes.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs

from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.server.records import JobKind, JobRecord, Launch

__all__ = ["CursorExpired", "Delta", "Ending", "JobChanges", "JobTable", "Tombstone"]

_TOMBSTONES_KEPT: Final = 10_000
"""Removals remembered per sandbox; an older cursor has to list again."""

_LOG_SLACK: Final = 256


class CursorExpired(Exception):  # noqa: N818 - a state of affairs, answered with 410
    """The table no longer knows all that happened after a cursor."""


@attrs.frozen(kw_only=True)
class Ending:
    """How a job ended.

    Attributes:
        state: one of the final states.
        reason: why.
        at: Unix time.
        exit_code: as the kernel gave it; None where there was none.
        signal: the number of the signal that ended it; None otherwise.
        stdout_size: bytes it wrote.
        stderr_size: the same for stderr.
        stdout_truncated: whether the middle was dropped.
        stderr_truncated: the same for stderr.
        stdout: all of its stdout, to be kept with the record; None when it is in its spool file.
        stderr: the same for stderr.
    """

    state: JobState
    reason: EndReason
    at: float
    exit_code: int | None = None
    signal: int | None = None
    stdout_size: int = 0
    stderr_size: int = 0
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    stdout: bytes | None = None
    stderr: bytes | None = None


@attrs.frozen(kw_only=True)
class Tombstone:
    """A record that was removed, and the sequence number of that."""

    sandbox_id: str
    process_id: str
    seq: int


@attrs.frozen(kw_only=True)
class Delta:
    """What changed in one sandbox after a sequence number.

    Attributes:
        records: jobs that changed, oldest change first.
        removed: ids whose records are gone.
        seq: everything up to here is told.
        more: whether something was left out for another time.
    """

    records: Sequence[JobRecord]
    removed: Sequence[str]
    seq: int
    more: bool


@attrs.define
class JobChanges:
    """What a commit has to write.

    Attributes:
        saved: records as they are now.
        outputs: output to keep with records, ``{id: (stdout, stderr)}``.
        removed: removals; the records and outputs of these go.
        dropped_sandboxes: everything in these goes.
    """

    saved: dict[str, JobRecord] = attrs.field(factory=dict)
    outputs: dict[str, tuple[bytes | None, bytes | None]] = attrs.field(factory=dict)
    removed: dict[str, Tombstone] = attrs.field(factory=dict)
    dropped_sandboxes: set[str] = attrs.field(factory=set)

    def __bool__(self) -> bool:
        return bool(self.saved or self.removed or self.dropped_sandboxes)


class _Shelf:
    """The jobs of one sandbox, and a log of their changes in order."""

    def __init__(self) -> None:
        self.records: dict[str, JobRecord] = {}
        self.tombstones: dict[str, int] = {}
        self.floor = 0
        self._log: list[tuple[int, str]] = []

    def note(self, seq: int, process_id: str) -> None:
        self._log.append((seq, process_id))
        if len(self._log) > 2 * (len(self.records) + len(self.tombstones)) + _LOG_SLACK:
            self._log = [entry for entry in self._log if self._current(entry)]

    def bury(self, process_id: str, seq: int) -> None:
        self.records.pop(process_id, None)
        self.tombstones[process_id] = seq
        if len(self.tombstones) > _TOMBSTONES_KEPT:
            oldest = next(iter(self.tombstones))
            self.floor = self.tombstones.pop(oldest)
        self.note(seq, process_id)

    def after(self, seq: int) -> Iterator[tuple[int, str]]:
        start = bisect.bisect_right(self._log, seq, key=lambda entry: entry[0])
        for entry in self._log[start:]:
            if self._current(entry):
                yield entry

    def _current(self, entry: tuple[int, str]) -> bool:
        seq, process_id = entry
        record = self.records.get(process_id)
        return (self.tombstones.get(process_id) if record is None else record.seq) == seq


class JobTable:
    """Every job of one server.

    Args:
        records: as they were stored.
        tombstones: removals as they were stored.
        next_seq: the number of the next change.
    """

    def __init__(
        self, records: Iterable[JobRecord] = (), tombstones: Iterable[Tombstone] = (), *, next_seq: int = 1
    ) -> None:
        self.next_seq = next_seq
        self._shelves: dict[str, _Shelf] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._changes = JobChanges()
        for record in sorted(records, key=lambda record: record.added):
            self._shelf(record.sandbox_id).records[record.process_id] = record
            self._jobs[record.process_id] = record
        changes: list[JobRecord | Tombstone] = [*self._jobs.values(), *tombstones]
        for change in sorted(changes, key=lambda change: change.seq):
            shelf = self._shelf(change.sandbox_id)
            if isinstance(change, Tombstone):
                shelf.bury(change.process_id, change.seq)
            else:
                shelf.note(change.seq, change.process_id)

    def add(self, info: JobInfo, *, kind: JobKind, launch: Launch) -> JobRecord:
        """Take in a new job, queued."""
        seq = self._take_seq()
        record = JobRecord(info=info, kind=kind, added=seq, seq=seq, launch=launch)
        return self._put(record)

    def withdraw(self, process_id: str) -> None:
        """Undo `add` before it was ever committed: nobody was told."""
        record = self._jobs.pop(process_id)
        del self._shelf(record.sandbox_id).records[process_id]
        self._changes.saved.pop(process_id, None)

    def get(self, process_id: str) -> JobRecord | None:
        """Return a job's record."""
        return self._jobs.get(process_id)

    def find(self, sandbox_id: str, process_id: str) -> JobRecord | None:
        """Return a job's record if it lives in that sandbox."""
        record = self._jobs.get(process_id)
        return record if record is not None and record.sandbox_id == sandbox_id else None

    def is_removed(self, sandbox_id: str, process_id: str) -> bool:
        """Whether the job was here once and its record was removed, as far as that is remembered."""
        shelf = self._shelves.get(sandbox_id)
        return shelf is not None and process_id in shelf.tombstones

    def of_sandbox(self, sandbox_id: str) -> list[JobRecord]:
        """Return every job of a sandbox, executions too, in the order of their acceptance."""
        shelf = self._shelves.get(sandbox_id)
        return [] if shelf is None else list(shelf.records.values())

    def count_states(self) -> Counter[JobState]:
        """Return how many jobs are in which state. Looks at every job."""
        return Counter(job.info.state for job in self._jobs.values())

    def unfinished(self) -> list[JobRecord]:
        """Return every job that has not ended, in the order of acceptance."""
        return sorted((job for job in self._jobs.values() if not job.finished), key=lambda job: job.added)

    def mark_launched(self, process_id: str) -> JobRecord:
        """Note that the job goes to its supervisor: from here on it may have run. Not visible to clients."""
        return self._put(attrs.evolve(self._jobs[process_id], launched=True))

    def mark_running(self, process_id: str, *, pid: int, at: float) -> JobRecord | None:
        """Note that its process runs. A job that has ended, or is unknown, stays as it is."""
        record = self._jobs.get(process_id)
        if record is None or record.info.state is not JobState.QUEUED:
            return record
        info = attrs.evolve(record.info, state=JobState.RUNNING, pid=pid, started_at=at)
        return self._put(attrs.evolve(record, info=info, seq=self._take_seq(), launched=True))

    def finish(self, process_id: str, ending: Ending) -> JobRecord | None:
        """Note its end. A job that has ended already, or is unknown, stays as it is."""
        record = self._jobs.get(process_id)
        if record is None or record.finished:
            return record
        info = attrs.evolve(
            record.info,
            state=ending.state,
            end_reason=ending.reason,
            ended_at=ending.at,
            exit_code=ending.exit_code,
            signal=ending.signal,
            stdout_size=ending.stdout_size,
            stderr_size=ending.stderr_size,
            stdout_truncated=ending.stdout_truncated,
            stderr_truncated=ending.stderr_truncated,
        )
        if (ending.stdout or ending.stderr) and record.kind is not JobKind.EXECUTION:
            self._changes.outputs[process_id] = (ending.stdout, ending.stderr)
        return self._put(attrs.evolve(record, info=info, seq=self._take_seq(), launch=None))

    def remove(self, process_id: str) -> None:
        """Take a finished job's record away; `since` tells of it."""
        record = self._jobs.pop(process_id)
        shelf = self._shelf(record.sandbox_id)
        self._changes.saved.pop(process_id, None)
        self._changes.outputs.pop(process_id, None)
        if record.kind is JobKind.EXECUTION:
            del shelf.records[process_id]
            return
        tombstone = Tombstone(sandbox_id=record.sandbox_id, process_id=process_id, seq=self._take_seq())
        shelf.bury(process_id, tombstone.seq)
        self._changes.removed[process_id] = tombstone

    def drop_sandbox(self, sandbox_id: str) -> None:
        """Forget everything of a sandbox that is gone."""
        shelf = self._shelves.pop(sandbox_id, None)
        for process_id in shelf.records if shelf is not None else ():
            del self._jobs[process_id]
            self._changes.saved.pop(process_id, None)
            self._changes.outputs.pop(process_id, None)
        self._changes.dropped_sandboxes.add(sandbox_id)

    def since(self, sandbox_id: str, seq: int, *, limit: int) -> Delta:
        """Return what changed in a sandbox after `seq`, at most `limit` changes of it.

        Raises:
            CursorExpired: removals after `seq` are no longer remembered, or `seq` was never reached.
        """
        shelf = self._shelf(sandbox_id)
        if seq < shelf.floor or seq >= self.next_seq:
            raise CursorExpired
        records: list[JobRecord] = []
        removed: list[str] = []
        told = seq
        for changed, process_id in shelf.after(seq):
            if len(records) + len(removed) >= limit:
                return Delta(records=records, removed=removed, seq=told, more=True)
            told = changed
            record = shelf.records.get(process_id)
            if record is None:
                removed.append(process_id)
            elif record.kind is not JobKind.EXECUTION:
                records.append(record)
        return Delta(records=records, removed=removed, seq=self.next_seq - 1, more=False)

    @property
    def changes(self) -> JobChanges:
        """What was not yet committed."""
        return self._changes

    def changes_saved(self) -> None:
        """Note that `changes` is on disk."""
        self._changes = JobChanges()

    def _put(self, record: JobRecord) -> JobRecord:
        process_id = record.process_id
        shelf = self._shelf(record.sandbox_id)
        before = shelf.records.get(process_id)
        shelf.records[process_id] = self._jobs[process_id] = record
        if before is None or before.seq != record.seq:
            shelf.note(record.seq, process_id)
        if record.kind is not JobKind.EXECUTION:
            self._changes.saved[process_id] = record
        return record

    def _take_seq(self) -> int:
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def _shelf(self, sandbox_id: str) -> _Shelf:
        shelf = self._shelves.get(sandbox_id)
        if shelf is None:
            shelf = self._shelves[sandbox_id] = _Shelf()
        return shelf
