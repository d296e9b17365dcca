"""The truth about jobs as a pure data structure."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.server import jobtable
from asyncsandbox.server.jobtable import CursorExpired, Ending, JobTable
from asyncsandbox.server.records import JobKind, JobRecord, Launch

_DONE = Ending(
    state=JobState.COMPLETED, reason=EndReason.EXIT, at=3.0, exit_code=0, stdout=b"x", stdout_size=1
)


def _launch() -> Launch:
    return Launch(argv=["true"], env={}, cwd="/")


def _add(
    table: JobTable, process_id: str, *, sandbox_id: str = "s", kind: JobKind = JobKind.CODE
) -> JobRecord:
    info = JobInfo(process_id=process_id, sandbox_id=sandbox_id, state=JobState.QUEUED)
    return table.add(info, kind=kind, launch=_launch())


def _seqs(table: JobTable, since: int = 0, *, limit: int = 100) -> Any:
    delta = table.since("s", since, limit=limit)
    return [record.process_id for record in delta.records], list(delta.removed), delta.seq, delta.more


def test_a_job_goes_from_queued_to_running_to_its_end() -> None:
    """Each visible change takes the next number; how to run it is forgotten at the end."""
    table = JobTable()
    assert _add(table, "a").seq == 1
    assert table.mark_launched("a").seq == 1
    running = table.mark_running("a", pid=7, at=2.0)
    assert running is not None
    assert (running.info.state, running.info.pid, running.seq) == (JobState.RUNNING, 7, 2)
    ended = table.finish("a", _DONE)
    assert ended is not None
    assert (ended.info.state, ended.info.exit_code, ended.seq, ended.launch) == (
        JobState.COMPLETED,
        0,
        3,
        None,
    )


def test_a_final_state_never_changes() -> None:
    """Whatever comes late is ignored, and takes no number."""
    table = JobTable()
    _add(table, "a")
    ended = table.finish("a", _DONE)
    killed = attrs.evolve(_DONE, state=JobState.KILLED, reason=EndReason.KILLED)
    assert table.finish("a", killed) == ended
    assert table.mark_running("a", pid=1, at=9.0) == ended
    assert table.next_seq == 3


def test_news_of_unknown_jobs_is_ignored() -> None:
    """A supervisor may tell of a job whose record is gone."""
    table = JobTable()
    assert table.finish("a", _DONE) is None
    assert table.mark_running("a", pid=1, at=1.0) is None
    assert not table.changes


def test_jobs_are_found_in_their_own_sandbox_only() -> None:
    """An id from elsewhere opens nothing."""
    table = JobTable()
    record = _add(table, "a")
    assert table.find("s", "a") == record
    assert table.find("other", "a") is None


def test_since_tells_each_change_once() -> None:
    """Several changes of one job are one row, at the place of the last."""
    table = JobTable()
    _add(table, "a")
    _add(table, "b")
    assert _seqs(table) == (["a", "b"], [], 2, False)
    table.mark_running("a", pid=1, at=1.0)
    assert _seqs(table) == (["b", "a"], [], 3, False)
    assert _seqs(table, 2) == (["a"], [], 3, False)
    assert _seqs(table, 3) == ([], [], 3, False)


def test_since_goes_on_where_it_was_cut() -> None:
    """Following the cursor gives everything, in pieces."""
    table = JobTable()
    for name in "abcde":
        _add(table, name)
    assert _seqs(table, limit=2) == (["a", "b"], [], 2, True)
    assert _seqs(table, 2, limit=2) == (["c", "d"], [], 4, True)
    assert _seqs(table, 4, limit=2) == (["e"], [], 5, False)


def test_since_tells_of_removals() -> None:
    """A removed record shows as its id alone."""
    table = JobTable()
    _add(table, "a")
    table.finish("a", _DONE)
    table.remove("a")
    assert _seqs(table, 1) == ([], ["a"], 3, False)
    assert table.is_removed("s", "a")
    assert not table.is_removed("s", "b")


def test_a_sandbox_s_cursor_passes_the_changes_of_others() -> None:
    """Numbers are the server's; a quiet sandbox's cursor still moves on."""
    table = JobTable()
    _add(table, "a")
    _add(table, "b", sandbox_id="other")
    assert _seqs(table) == (["a"], [], 2, False)


def test_a_cursor_from_the_future_has_expired() -> None:
    """It can only come from another state."""
    with pytest.raises(CursorExpired):
        JobTable().since("s", 5, limit=1)


def test_a_cursor_before_forgotten_removals_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals are remembered up to a bound, also over a restart."""
    monkeypatch.setattr(jobtable, "_TOMBSTONES_KEPT", 2)
    table = JobTable()
    stones = []
    for name in "abc":
        _add(table, name)
        table.finish(name, _DONE)
        table.remove(name)
        stones.append(table.changes.removed[name])
    again = JobTable((), stones, next_seq=table.next_seq)
    for each in (table, again):
        with pytest.raises(CursorExpired):
            each.since("s", 2, limit=9)
        assert each.since("s", 3, limit=9).removed == ["b", "c"]


def test_executions_are_never_listed_nor_stored() -> None:
    """Somebody waits for each; nobody else knows it."""
    table = JobTable()
    _add(table, "run", kind=JobKind.EXECUTION)
    table.finish("run", _DONE)
    assert _seqs(table)[:2] == ([], [])
    table.remove("run")
    assert not table.changes
    assert table.get("run") is None
    assert _seqs(table)[:2] == ([], [])


def test_changes_are_what_a_commit_has_to_write() -> None:
    """The last version of each record, new output, removals; nothing after it was saved."""
    table = JobTable()
    _add(table, "a")
    table.finish("a", _DONE)
    assert table.changes.outputs == {"a": (b"x", None)}
    assert [record.info.state for record in table.changes.saved.values()] == [JobState.COMPLETED]
    table.changes_saved()
    assert not table.changes
    table.remove("a")
    assert list(table.changes.removed) == ["a"]
    assert table.changes.saved == {}


def test_a_withdrawn_start_leaves_nothing() -> None:
    """It was never on disk, so nobody has to hear of it."""
    table = JobTable()
    _add(table, "a")
    table.withdraw("a")
    assert table.get("a") is None
    assert not table.changes
    assert _seqs(table)[:2] == ([], [])


def test_a_dropped_sandbox_takes_its_jobs_along() -> None:
    """Others stay."""
    table = JobTable()
    _add(table, "a")
    _add(table, "b", sandbox_id="other")
    table.drop_sandbox("s")
    assert table.get("a") is None
    assert table.get("b") is not None
    assert table.changes.dropped_sandboxes == {"s"}
    assert list(table.changes.saved) == ["b"]


def test_unfinished_jobs_come_in_the_order_of_acceptance() -> None:
    """After a restart they queue as they had queued."""
    table = JobTable()
    records = [_add(table, name) for name in "abc"]
    ended = table.finish("b", _DONE)
    assert ended is not None
    again = JobTable([records[2], ended, records[0]], next_seq=table.next_seq)
    assert [record.process_id for record in again.unfinished()] == ["a", "c"]
    assert [record.process_id for record in again.of_sandbox("s")] == ["a", "b", "c"]


class _Follower:
    """Follows the cursor of one sandbox in pieces."""

    def __init__(self, table: JobTable, limit: int) -> None:
        self.table = table
        self.limit = limit
        self.cursor = 0
        self.seen: dict[str, JobState] = {}

    def look(self) -> None:
        more = True
        while more:
            delta = self.table.since("s", self.cursor, limit=self.limit)
            self.seen.update({record.process_id: record.info.state for record in delta.records})
            for process_id in delta.removed:
                self.seen.pop(process_id, None)
            self.cursor, more = delta.seq, delta.more


def _step(table: JobTable, process_id: str, step: str) -> None:
    record = table.get(process_id)
    if record is None:
        if step == "add" and not table.is_removed("s", process_id):
            _add(table, process_id)
    elif step == "run":
        table.mark_running(process_id, pid=1, at=1.0)
    elif step == "finish":
        table.finish(process_id, _DONE)
    elif step == "remove" and record.finished:
        table.remove(process_id)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["add", "run", "finish", "remove", "look"]))
    ),
    st.integers(1, 5),
)
def test_a_follower_of_the_cursor_knows_what_the_table_knows(
    steps: list[tuple[str, str]], limit: int
) -> None:
    """Whatever happens in whatever order, following `since` ends at the same truth as a whole list."""
    table = JobTable()
    follower = _Follower(table, limit)
    for process_id, step in steps:
        if step == "look":
            follower.look()
        else:
            _step(table, process_id, step)
    follower.look()
    assert follower.seen == {record.process_id: record.info.state for record in table.of_sandbox("s")}
