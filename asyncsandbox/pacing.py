"""How much may be asked of a server that counts: what it told us of its limits, and a bound where it told nothing.

One `Pace` an agent and one for the control plane, because that is how servers count (contract 1.1). All calls
pass through it, so that one refusal makes all of them wait, and not each of them run into its own.
"""

from __future__ import annotations

import email.utils
import time
from collections import deque
from typing import Final

from asyncsandbox import protocol
from asyncsandbox._clock import Clock, sleep
from asyncsandbox.protocol import Reply

__all__ = ["LookQuota", "Pace"]

_TOO_MANY: Final = 429

_LONGEST_HOLD: Final = 120.0
"""Seconds; a server that asks for more is asked again anyway, and may then say so again."""


class Pace:
    """Lets calls through while the server has room for them.

    Args:
        clock: where time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held_until = 0.0
        self._in_flight = 0

    async def enter(self) -> None:
        """Wait until there is room, and take it. `leave` gives it back.

        Cancellation: nothing was taken.
        """
        while (wait := self._held_until - self._clock.now()) > 0:
            await sleep(self._clock, wait)
        self._in_flight += 1

    def leave(self) -> None:
        """Note that a call is over."""
        self._in_flight -= 1

    def hear(self, reply: Reply) -> None:
        """Take in what an answer says of limits: a refusal, or the headers of any answer."""
        if reply.status == _TOO_MANY:
            self._hold(protocol.asked_to_wait(reply) or 0.0)
            return
        limit = protocol.decode_rate_limit(reply.headers)
        if limit is None or limit.reset is None:
            return
        # Those in flight may not have been counted yet: the one that was answered has.
        if limit.remaining - (self._in_flight - 1) <= 0:
            self._hold(limit.reset - _server_time(reply))

    def _hold(self, seconds: float) -> None:
        until = self._clock.now() + min(max(seconds, 0.0), _LONGEST_HOLD)
        self._held_until = max(self._held_until, until)


def _server_time(reply: Reply) -> float:
    """Return the time on the server's clock when it answered, or on ours where it does not say."""
    try:
        return email.utils.parsedate_to_datetime(reply.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return time.time()


class LookQuota:
    """Keeps looks at one sandbox within what the contract grants an agent, where the server says nothing of it.

    Bursts are fine, a minute of them is not: at most 60 looks in any 15 seconds, which leaves a fifth of the
    documented 300 requests a minute to everything else.
    """

    _LOOKS: Final = 60
    _SECONDS: Final = 15.0

    def __init__(self) -> None:
        self._looks: deque[float] = deque(maxlen=self._LOOKS)

    def note(self, now: float) -> None:
        """Note a look."""
        self._looks.append(now)

    def earliest(self) -> float:
        """Return when the next look may be, on the client's clock."""
        return self._looks[0] + self._SECONDS if len(self._looks) == self._LOOKS else 0.0
