"""How often callers may ask, with the time given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsandbox.server.rates import CONTRACT, Rate, RateWindows, parse_rates


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("agent=300/min", {"agent": Rate(300, 60)}),
        (" agent=5/s , create=1/h ", {"agent": Rate(5, 1), "create": Rate(1, 3600)}),
        ("agent=300/min,control=100/min,create=20/min", CONTRACT),
        ("contract", CONTRACT),
    ],
)
def test_limits_are_read_as_they_are_written(text: str, rates: object) -> None:
    """The documented numbers have a word of their own."""
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no limit"),
        ("300/min", "agent=300/min"),
        ("agent=300", "'agent=300' is no limit"),
        ("agent=-1/min", "is no limit"),
        ("agent=1.5/min", "is no limit"),
        ("agent=0/min", "allow at least 1"),
        ("agent=1/day", "'day' is no unit"),
        ("vm=1/min", "agent, control, create"),
        ("agent=1/min,agent=2/min", "agent is limited twice"),
        ("agent=1/min,", "'' is no limit"),
        ("contract,agent=1/min", "'contract' is no limit"),
    ],
)
def test_a_senseless_limit_is_refused_in_words(text: str, says: str) -> None:
    """What is wrong, and where it helps what would be right."""
    with pytest.raises(ValueError, match=r"limit|unit|allow") as caught:
        parse_rates(text)
    assert says in str(caught.value)


def test_a_window_lasts_from_the_first_request_and_then_begins_anew() -> None:
    """What was refused has not counted, so nobody who keeps asking is kept out for longer."""
    windows = RateWindows({"agent": Rate(2, 60)})

    def ask(now: float) -> tuple[bool, int, float]:
        quota = windows.take({"agent": "sb"}, now)
        assert quota is not None
        assert (quota.limit, quota.scope) == (2, "agent")
        return quota.allowed, quota.remaining, quota.reset_after

    assert ask(1000) == (True, 1, 60)
    assert ask(1010) == (True, 0, 50)
    assert ask(1059.5) == (False, 0, 0.5)
    assert ask(1060) == (True, 1, 60)
    assert ask(1061) == (True, 0, 59)
    assert ask(1062) == (False, 0, 58)


def test_callers_do_not_share() -> None:
    """One sandbox's agent knows nothing of another's."""
    windows = RateWindows({"agent": Rate(1, 60)})
    for caller, allowed in (("a", True), ("b", True), ("a", False), ("b", False)):
        quota = windows.take({"agent": caller}, 0)
        assert quota is not None
        assert quota.allowed is allowed


def test_what_has_no_limit_is_not_spoken_of() -> None:
    """No scope, or one without a limit."""
    windows = RateWindows({"agent": Rate(1, 60)})
    assert windows.take({}, 0) is None
    assert windows.take({"control": ""}, 0) is None


def test_a_request_in_two_scopes_counts_in_both_or_in_none() -> None:
    """A create that is refused has not used up the control plane; the tightest limit is told."""
    windows = RateWindows({"control": Rate(4, 60), "create": Rate(2, 60)})
    creating = {"control": "", "create": ""}
    told = [windows.take(creating, 0) for _ in range(4)]
    assert [(q.allowed, q.scope, q.remaining) for q in told if q] == [
        (True, "create", 1),
        (True, "create", 0),
        (False, "create", 0),
        (False, "create", 0),
    ]
    told = [windows.take({"control": ""}, 1) for _ in range(3)]
    assert [(q.allowed, q.remaining) for q in told if q] == [(True, 1), (True, 0), (False, 0)]
    refused = windows.take(creating, 2)
    assert refused is not None
    assert not refused.allowed


def test_of_two_that_refuse_the_one_that_lasts_is_told() -> None:
    """Whoever waits as long as he is told gets in."""
    windows = RateWindows({"control": Rate(1, 60), "create": Rate(1, 3600)})
    windows.take({"control": "", "create": ""}, 0)
    quota = windows.take({"control": "", "create": ""}, 1)
    assert quota is not None
    assert (quota.scope, quota.reset_after) == ("create", 3599)


def test_windows_that_are_over_are_forgotten() -> None:
    """A server does not remember every sandbox that it ever had."""
    windows = RateWindows({"agent": Rate(1, 60)})
    for number in range(10_000):
        windows.take({"agent": str(number)}, float(number))
    assert len(windows._windows) <= 1024
    assert "windows=" in repr(windows)


@given(
    st.integers(1, 5),
    st.lists(st.floats(0, 10, allow_nan=False), max_size=60),
)
def test_no_more_than_allowed_gets_through_in_any_window(requests: int, gaps: list[float]) -> None:
    """Whenever they come, a window has its number and no more, and at its end there is always room."""
    windows = RateWindows({"agent": Rate(requests, 7)})
    now, begun, let_in = 0.0, -100.0, 0
    for gap in gaps:
        now += gap
        quota = windows.take({"agent": "x"}, now)
        assert quota is not None
        if begun + 7 <= now:
            begun, let_in = now, 0
        let_in += quota.allowed
        assert let_in <= requests
        assert quota.allowed or let_in == requests
        assert quota.remaining == requests - let_in
