"""Tasks that the client owns, whoever's call they were made in."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from asyncsandbox.errors import AsyncSandboxError, ClientStateError

__all__ = ["Home", "SingleFlight", "Tasks"]

_log = logging.getLogger("asyncsandbox")

T = TypeVar("T")


class Home:
    """The event loop and process that a client belongs to: those of its first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def check(self) -> asyncio.AbstractEventLoop:
        """Return the running loop.

        Raises:
            ClientStateError: the client was first used in another loop or process.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._pid = loop, os.getpid()
        elif self._pid != os.getpid():
            raise ClientStateError(
                f"this client belongs to process {self._pid}, not to its fork {os.getpid()}; "
                "make a client of its own in each process"
            )
        elif self._loop is not loop:
            raise ClientStateError(
                "this client belongs to another event loop; make it, use it and close it inside one asyncio.run()"
            )
        return loop


class Tasks:
    """Background tasks with an owner. They start with an empty context: no user's scope reaches into them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._promised: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` in a task that lives until it is done or the owner closes."""
        task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._promised.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever awaits the task gets the error too; this keeps the unawaited ones from vanishing.
            _log.debug("background task %s ended with %s", task.get_name(), type(error).__name__)

    def promise(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` in a task that the owner lets come to its end before it closes."""
        task = self.spawn(work, name=name)
        self._promised.add(task)
        return task

    async def settle(self, work: Coroutine[Any, Any, object], *, name: str, grace: float) -> None:
        """Run `work` to its end, whatever happens to the caller, but wait for it at most `grace` seconds.

        Cancellation: ends the waiting, not the work.
        """
        await asyncio.wait([self.promise(work, name=name)], timeout=grace)

    async def complete(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Return what `work` gives.

        Raises:
            ClientStateError: the owner closed before it was done.

        Cancellation: ends the waiting, not the work.
        """
        return await _shielded(self.promise(work, name=name))

    async def run_or_undo(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], Coroutine[Any, Any, object]],
        *,
        name: str,
        grace: float,
    ) -> T:
        """Return what `work` gives.

        Cancellation: `work` goes on to its end, and what it gave is undone; that is waited for at most
        `grace` seconds, but done in any case.
        """
        task = self.promise(work, name=name)
        try:
            return await _shielded(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                await self.settle(_undo(task, undo), name=f"undo: {name}", grace=grace)
            raise

    async def keep_promises(self, *, grace: float) -> None:
        """Wait up to `grace` seconds for everything that was promised, and for what that promises in turn."""
        async with asyncio.timeout(grace):
            while self._promised:
                await asyncio.wait(self._promised)

    async def cancel(self) -> None:
        """Cancel what still runs and wait until it is gone."""
        waiting = self._running - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)


async def _shielded(task: asyncio.Task[T]) -> T:
    """Await a task that others may need too. Its own cancellation is the owner's doing, not the caller's."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if task.cancelled() and caller is not None and not caller.cancelling():
            raise ClientStateError("the client was closed meanwhile") from None
        raise


async def _undo(task: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, object]]) -> None:
    try:
        made = await task
    except AsyncSandboxError:
        return
    await undo(made)


class SingleFlight(Generic[T]):
    """Makes many concurrent callers of one piece of work share one run of it.

    A caller that is cancelled leaves the run to the others. A failed run is told to all who waited for it;
    the next call runs again.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]], tasks: Tasks, *, name: str) -> None:
        self._work = work
        self._tasks = tasks
        self._name = name
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """Return the result of the run under way, or of a new one.

        Raises:
            ClientStateError: the owner closed meanwhile.
        """
        if self._task is None or self._task.done():
            self._task = self._tasks.spawn(self._work(), name=self._name)
        return await _shielded(self._task)
