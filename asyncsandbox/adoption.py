"""Finds out what became of a start whose answer was lost, on servers that know no idempotency keys.

The name on the wire carries a key (`asyncsandbox.protocol.mark_name`). If the list shows it, the job is there
and is adopted; if good lists go on lacking it, the request never arrived and may be sent again. Should a job
turn up after all that nobody expects any more, the watcher kills it: nothing runs without a handle, and
nothing twice.
"""

from __future__ import annotations

from typing import Final

import attrs

from asyncsandbox._clock import sleep
from asyncsandbox.errors import APIError, ProtocolError, RequestTimeoutError, TransportError
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.tracking import Board
from asyncsandbox.watcher import Watcher

__all__ = ["Verdict", "is_ambiguous", "settle_start"]

_LOOKS: Final = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each look for a start that nobody answered."""

_SERVER_ERROR: Final = 500


@attrs.frozen(kw_only=True)
class Verdict:
    """What is known of a start.

    Attributes:
        row: the job that it made; None when there is none.
        again: whether it may be sent once more.
    """

    row: ProcessRow | None = None
    again: bool = False


def is_ambiguous(error: Exception) -> bool:
    """Return whether a start that failed with `error` may have happened."""
    if isinstance(error, TransportError):
        return error.sent
    if isinstance(error, ProtocolError):  # a good answer that cannot be read; a redirect starts nothing
        return error.detail != "redirect"
    return isinstance(error, APIError) and (error.status or 0) >= _SERVER_ERROR


async def settle_start(board: Board, key: str, error: Exception, *, watcher: Watcher) -> Verdict:
    """Look for the start with `key` until it is found, or surely did not happen.

    Never raises for what the looks run into. With no good look at all nothing is known: not again.
    """
    good = 0
    for delay in _LOOKS:
        before, moment = board.good_looks, watcher.clock.now()
        await sleep(watcher.clock, delay)
        await watcher.look([board], since=moment)
        row = board.claim(key)
        if row is not None:
            return Verdict(row=row)
        good += board.good_looks > before
    # A server that was silent for so long may still be at it, and one whose answer cannot be read has done it:
    # what it makes now would be a second job. And one that lists jobs without the names that they were given
    # may have made this one.
    surely_not = good > 0 and board.all_marked
    return Verdict(again=surely_not and not isinstance(error, RequestTimeoutError | ProtocolError))
