"""What servers say of their limits is kept to, by all calls together."""

from __future__ import annotations

import asyncio
import email.utils

import pytest

from asyncsandbox import wait_all
from asyncsandbox.pacing import LookQuota, Pace
from asyncsandbox.protocol import Reply
from asyncsandbox.testing import FakeClient, FakeClock, FakeServer


async def _passed(clock: FakeClock, pace: Pace, seconds: float) -> bool:
    """Whether a call that wants in now is let in within so many seconds."""
    entering = asyncio.ensure_future(pace.enter())
    await clock.advance(seconds)
    passed = entering.done()
    entering.cancel()
    return passed


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, headers={"retry-after": "7"}),
        Reply(status=429, body=b'{"retry_after": 7}'),
        Reply(status=429, body=b'{"error": {"details": {"retry_after_seconds": 7}}}'),
    ],
)
async def test_one_refusal_holds_every_call(reply: Reply) -> None:
    """Not each of them runs into its own."""
    clock = FakeClock()
    pace = Pace(clock)
    assert await _passed(clock, pace, 0)
    pace.hear(reply)
    assert not await _passed(clock, pace, 6)
    assert await _passed(clock, pace, 1)


def _limited(remaining: int) -> Reply:
    headers = {
        "x-ratelimit-limit": "300",
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": "1700000010",
        "date": email.utils.formatdate(1_700_000_000, usegmt=True),
    }
    return Reply(status=200, headers=headers)


async def test_a_window_that_is_used_up_is_waited_out() -> None:
    """The reset is on the server's clock, whatever ours shows; calls under way use up room, too."""
    clock = FakeClock()
    pace = Pace(clock)
    for _ in range(3):
        await pace.enter()
    pace.hear(_limited(3))
    assert await _passed(clock, pace, 0)
    pace.hear(_limited(2))
    assert not await _passed(clock, pace, 9)
    assert await _passed(clock, pace, 1)


async def test_answers_that_say_nothing_hold_nobody() -> None:
    """No headers, half of them, or nonsense: no limit is known."""
    clock = FakeClock()
    pace = Pace(clock)
    for headers in (
        {},
        {"x-ratelimit-remaining": "0"},
        {"x-ratelimit-limit": "x", "x-ratelimit-remaining": "0"},
    ):
        pace.hear(Reply(status=200, headers=headers))
        assert await _passed(clock, pace, 0)


def test_looks_come_in_bursts_but_not_for_a_minute() -> None:
    """The sixty-first in fifteen seconds waits."""
    quota = LookQuota()
    for n in range(60):
        assert quota.earliest() == 0
        quota.note(100 + n / 10)
    assert quota.earliest() == 115


async def test_a_thousand_jobs_on_a_stock_server_cost_fewer_than_300_looks_a_minute(
    stock: FakeServer,
) -> None:
    """However fast they end."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()

        async def start() -> list[str]:
            return [job.process_id for job in await sandbox.start_all(["pass"] * 1_000)]

        ids = await stock.clock.run(start())
        waiting = asyncio.ensure_future(wait_all([sandbox.job(process_id) for process_id in ids]))
        for first in range(0, 1_000, 2):
            for process_id in ids[first : first + 2]:
                stock.finish(process_id, stdout=b"x")
            await stock.clock.advance(0.12)
        assert stock.looks() < 300
        assert len(await stock.clock.run(waiting)) == 1_000
