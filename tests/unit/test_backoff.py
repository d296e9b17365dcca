"""The formulas of `asyncsandbox.backoff`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsandbox import PollPolicy
from asyncsandbox.backoff import first_gap, next_gap, retry_delay


def low(a: float, b: float) -> float:
    """Draw the lower bound."""
    del b
    return a


def high(a: float, b: float) -> float:
    """Draw the upper bound."""
    del a
    return b


def middle(a: float, b: float) -> float:
    """Draw the middle."""
    return (a + b) / 2


POLICY = PollPolicy(floor=0.1, factor=1.5, cap=2.0, age_share=0.3, jitter=0.1)


def test_the_first_look_has_a_random_phase() -> None:
    """Anywhere in one floor."""
    assert (first_gap(POLICY, low), first_gap(POLICY, high)) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("gap", "news", "age", "cost", "expected"),
    [
        (0.1, False, 100.0, 0.0, 0.15),
        (1.9, False, 100.0, 0.0, 2.0),
        (1.0, False, 1.0, 0.0, 0.3),
        (1.0, False, 0.0, 0.0, 0.1),
        (1.0, False, None, 0.0, 1.5),
        (1.0, True, 100.0, 0.0, 0.5),
        (0.1, True, 100.0, 0.0, 0.1),
        (0.1, False, 100.0, 0.01, 0.5),
    ],
)
def test_gaps_grow_and_are_bounded(
    gap: float, news: bool, age: float | None, cost: float, expected: float
) -> None:
    """By the cap, the youngest job's age and the cost of a look; news halves."""
    got = next_gap(POLICY, gap, news=news, youngest_age=age, cost=cost, uniform=middle)
    assert got == pytest.approx(expected)


@given(st.floats(0.1, 10), st.booleans(), st.none() | st.floats(0, 1e6), st.integers())
def test_gaps_stay_within_jitter_of_their_bounds(
    gap: float, news: bool, age: float | None, seed: int
) -> None:
    """Jitter varies the gap, at the bounds too: pollers that sit at the cap do not tick together."""
    got = next_gap(POLICY, gap, news=news, youngest_age=age, uniform=random.Random(seed).uniform)
    assert 0.1 * 0.9 <= got <= 2.0 * 1.1


def test_retries_are_spread_over_the_whole_interval() -> None:
    """Full jitter below a bound that doubles up to the cap."""
    delays = [retry_delay(n, floor=0.1, cap=5.0, uniform=high) for n in range(1, 9)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert retry_delay(10**6, floor=0.1, cap=5.0, uniform=high) == 5.0
    assert retry_delay(3, floor=0.1, cap=5.0, uniform=low) == 0.0


def test_a_servers_hint_is_never_undercut() -> None:
    """Exceeded a little, so that all who got the same hint do not come back together."""
    assert retry_delay(1, floor=0.1, cap=5.0, uniform=low, hint=7) == 7
    assert retry_delay(9, floor=0.1, cap=5.0, uniform=high, hint=7) == pytest.approx(7.1)
