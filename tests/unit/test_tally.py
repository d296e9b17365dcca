"""What a server counts while it works."""

from __future__ import annotations

import pytest

from asyncsandbox.server.tally import BUCKETS, RequestTally, RunTally, SandboxRuns


@pytest.mark.parametrize(
    ("durations", "average", "p95"),
    [
        ([], 0.0, 0.0),
        ([3.0], 3.0, 3.0),
        ([4.0, 2.0], 3.0, 4.0),
        ([float(number) for number in range(1, 101)], 50.5, 95.0),
        ([1.0] * 19 + [20.0], 1.95, 1.0),
    ],
)
def test_durations_have_a_mean_and_a_percentile(durations: list[float], average: float, p95: float) -> None:
    """The percentile is one of the values: 95 of 100 took that long at most."""
    runs = SandboxRuns()
    for duration in durations:
        runs.measure(duration)
    assert (runs.average, runs.p95) == (pytest.approx(average), p95)


def test_the_percentile_forgets_what_is_long_ago() -> None:
    """The mean is about all runs, and nothing grows with their number."""
    runs = SandboxRuns()
    for _ in range(1000):
        runs.measure(100.0)
    for _ in range(1000):
        runs.measure(1.0)
    assert (runs.average, runs.p95, runs.measured) == (50.5, 1.0, 2000)


def test_runs_are_counted_for_the_server_and_for_their_sandbox() -> None:
    """A sandbox that goes takes its own counts along, not the server's."""
    tally = RunTally()
    tally.accept("a", "code")
    tally.accept("b", "command")
    tally.end("a", "completed", seconds=2.0, output=10)
    tally.end("b", "killed", seconds=None, output=5)
    assert (tally.accepted, tally.ended, tally.output_bytes) == (
        {"code": 1, "command": 1},
        {"completed": 1, "killed": 1},
        15,
    )
    runs = tally.of_sandbox("b")
    assert (runs.accepted, runs.ended, runs.measured) == (1, 1, 0)
    tally.drop("a")
    tally.drop("a")
    assert tally.of_sandbox("a").accepted == 0
    assert tally.ended["completed"] == 1


def test_requests_are_counted_by_route_status_and_latency() -> None:
    """A latency at a bound is in that bound's bucket, one beyond all in the last."""
    tally = RequestTally()
    tally.note("GET", "/x", 200, BUCKETS[0])
    tally.note("GET", "/x", 404, BUCKETS[0] * 1.01)
    tally.note("GET", "/x", 503, BUCKETS[-1] + 1)
    tally.note("POST", "/x", 101, 0.0)
    (method, route, got), (other, _route, _tally) = tally
    assert (method, route, other) == ("GET", "/x", "POST")
    assert got.classes == [0, 0, 1, 0, 1, 1]
    assert (got.buckets[0], got.buckets[1], got.buckets[-1], sum(got.buckets)) == (1, 1, 1, 3)
    assert got.seconds == pytest.approx(BUCKETS[0] * 2.01 + BUCKETS[-1] + 1)
