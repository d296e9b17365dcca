"""Deletes what captured jobs left in a sandbox once their results are here, many at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections.abc import Iterable
from typing import Final

from asyncsandbox import capture
from asyncsandbox._clock import Clock, sleep
from asyncsandbox._tasks import Tasks
from asyncsandbox.errors import AsyncSandboxError
from asyncsandbox.tracking import Board

__all__ = ["Sweeper"]

_log = logging.getLogger("asyncsandbox.watcher")

_PAUSE: Final = 1.0
"""Seconds to wait for more before a call is made."""

_MOST: Final = 200
"""Jobs in one call: their keys have to fit on a command line."""


class Sweeper:
    """Collects what can go, and deletes it after a pause, one call for all jobs of a sandbox."""

    def __init__(self, *, clock: Clock, tasks: Tasks) -> None:
        self._clock = clock
        self._tasks = tasks
        self._leftovers: weakref.WeakKeyDictionary[Board, dict[str, None]] = weakref.WeakKeyDictionary()

    def add(self, board: Board, key: str) -> None:
        """Delete what the job of that key left, soon."""
        keys = self._leftovers.get(board)
        if keys is None:
            keys = self._leftovers[board] = {}
            _ = self._tasks.spawn(self._later(board), name="sweep a sandbox")
        keys[key] = None

    async def sweep(self, boards: Iterable[Board]) -> None:
        """Delete now what is known of `boards`. Never raises for what that runs into."""
        await asyncio.gather(*(self._sweep(board) for board in tuple(boards) if board in self._leftovers))

    async def _later(self, board: Board) -> None:
        await sleep(self._clock, _PAUSE)
        await self._sweep(board)

    async def _sweep(self, board: Board) -> None:
        """Delete in batches. Keys go only when that was tried: a client that closes meanwhile tries again."""
        while keys := self._leftovers.get(board):
            batch = tuple(itertools.islice(keys, _MOST))
            try:
                await capture.remove_captured(board.agent, batch)
            except AsyncSandboxError as exc:
                _log.debug("what %d jobs left could not be deleted: %s", len(batch), exc)
            for key in batch:
                keys.pop(key, None)
        self._leftovers.pop(board, None)
