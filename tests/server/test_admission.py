"""Who may start, as a pure data structure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncsandbox.server.admission import STALL_SECONDS, Admission


def _queue(admission: Admission, names: str, *, lane: str = "s", now: float = 0.0) -> None:
    for name in names:
        admission.enqueue(name, lane=lane, now=now)


def test_busy_jobs_take_slots_and_ends_give_them_back() -> None:
    """No more start than there are slots."""
    admission = Admission(slots=2)
    _queue(admission, "abcd")
    assert admission.take(0.0) == ["a", "b"]
    assert admission.take(0.0) == []
    admission.ended("a", 0.1)
    assert admission.take(0.1) == ["c"]


def test_an_idle_job_holds_nobody_back() -> None:
    """Its slot is another's until it wants it again, and then nobody new starts."""
    admission = Admission(slots=1)
    _queue(admission, "abc")
    assert admission.take(0.0) == ["a"]
    admission.busy("a", busy=False)
    assert admission.take(0.0) == ["b"]
    admission.busy("a", busy=True)
    admission.busy("b", busy=False)
    assert admission.take(0.0) == []


def test_lanes_take_turns() -> None:
    """A sandbox with a thousand jobs does not make another's one wait for them."""
    admission = Admission(slots=1)
    _queue(admission, "abc", lane="many")
    _queue(admission, "x", lane="few")
    order = []
    while taken := admission.take(0.0):
        order += taken
        admission.ended(taken[0], 0.0)
    assert order == ["a", "x", "b", "c"]


def test_max_running_counts_idle_jobs_too() -> None:
    """It is a hard limit, for the stall as well."""
    admission = Admission(slots=8, max_running=2)
    _queue(admission, "abc")
    assert admission.take(0.0) == ["a", "b"]
    admission.busy("a", busy=False)
    assert admission.take(STALL_SECONDS * 9) == []
    assert admission.next_look() is None
    admission.ended("b", 1.0)
    assert admission.take(1.0) == ["c"]


def test_when_nothing_moves_one_more_starts() -> None:
    """Jobs may wait for each other by burning their core."""
    admission = Admission(slots=1)
    _queue(admission, "abc")
    assert admission.take(0.0) == ["a"]
    assert admission.next_look() == STALL_SECONDS
    assert admission.take(STALL_SECONDS / 2) == []
    assert admission.take(STALL_SECONDS) == ["b"]
    assert admission.take(STALL_SECONDS) == []
    assert admission.next_look() == 2 * STALL_SECONDS


def test_a_stall_is_counted_from_the_last_progress() -> None:
    """Ends put it off; an empty queue has none."""
    admission = Admission(slots=2)
    _queue(admission, "abc")
    admission.take(0.0)
    admission.busy("a", busy=True)
    admission.ended("a", 1.5)
    assert admission.take(1.5) == ["c"]
    assert admission.next_look() is None
    _queue(admission, "d", now=100.0)
    assert admission.take(100.0) == []
    assert admission.next_look() == 100.0 + STALL_SECONDS


def test_a_held_lane_waits_and_others_go_on() -> None:
    """A paused sandbox's jobs keep their places."""
    admission = Admission(slots=9)
    _queue(admission, "a", lane="paused")
    admission.hold("paused")
    _queue(admission, "b", lane="paused")
    _queue(admission, "x", lane="other")
    assert admission.take(0.0) == ["x"]
    admission.release("paused")
    admission.release("never held")
    assert admission.take(0.0) == ["a", "b"]


def test_a_withdrawn_job_never_starts() -> None:
    """Wherever it waits; one that was taken or is unknown cannot be withdrawn."""
    admission = Admission(slots=1)
    _queue(admission, "ab")
    assert admission.take(0.0) == ["a"]
    assert not admission.withdraw("a")
    assert admission.withdraw("b")
    assert not admission.withdraw("b")
    admission.hold("s")
    _queue(admission, "c")
    assert admission.withdraw("c")
    admission.release("s")
    admission.ended("a", 0.0)
    assert admission.take(0.0) == []
    assert admission.next_look() is None


def test_news_of_jobs_that_do_not_run_is_ignored() -> None:
    """A supervisor may speak of what has ended already."""
    admission = Admission(slots=1)
    admission.busy("a", busy=True)
    admission.ended("a", 0.0)
    _queue(admission, "b")
    assert admission.take(0.0) == ["b"]


def test_repr_shows_live_state() -> None:
    """For whoever looks at a server that seems stuck."""
    admission = Admission(slots=2)
    _queue(admission, "abc")
    admission.take(0.0)
    admission.busy("a", busy=False)
    assert repr(admission) == "<Admission waiting=1 running=2 busy=1/2>"


@given(st.lists(st.sampled_from(["enqueue", "idle", "end", "tick"]), max_size=60), st.integers(1, 3))
def test_whatever_happens_everything_queued_starts_in_the_end(steps: list[str], slots: int) -> None:
    """Once per job, in the order of its lane."""
    admission = Admission(slots=slots)
    queued: list[str] = []
    started: list[str] = []
    now = 0.0

    def take() -> None:
        started.extend(admission.take(now))

    for number, step in enumerate(steps):
        now += 0.1
        if step == "enqueue":
            queued.append(str(number))
            admission.enqueue(str(number), lane=number % 2, now=now)
        elif step == "idle" and started:
            admission.busy(started[-1], busy=False)
        elif step == "end" and started:
            admission.ended(started[0], now)
        take()
    for _ in range(len(queued)):
        now += STALL_SECONDS
        take()
    assert sorted(started) == sorted(queued)
    for lane in (0, 1):
        assert [name for name in started if int(name) % 2 == lane] == [
            name for name in queued if int(name) % 2 == lane
        ]
