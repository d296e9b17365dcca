"""Takes what the jobs write out of their pipes, without waking up for every line."""

from __future__ import annotations

import functools
import os
import selectors
import time
from collections.abc import Callable

from asyncsandbox.server.launcher.sink import Sink
from asyncsandbox.server.launcher.timers import Timers

__all__ = ["Pipe", "Pump"]

_CHUNK = 64 * 1024
_LITTLE = 4 * 1024
_DRAIN_READS = 64
_SHORTEST_ROUND = 0.005
_LONGEST_ROUND = 0.1
_REST_SHARE = 5.0


class Pipe:
    """The reading end of one stream of one job.

    When the sink fails, that is reported once; from then on what comes is thrown away.

    Attributes:
        fd: None once it is closed.
        sink: where the bytes go.
        window: bytes that may be there beyond `consumed` before it is read no further; None = any number.
        consumed: how far somebody has read what went to the sink.
        held: whether it is not read now, because the window is full.
        wrote: called whenever something came; None = nobody is to be told.
    """

    __slots__ = ("_broken", "_lossy", "consumed", "fd", "held", "sink", "watched", "window", "wrote")

    def __init__(self, fd: int | None, sink: Sink, broken: Callable[[OSError], None]) -> None:
        if fd is not None:
            os.set_blocking(fd, False)
        self.fd = fd
        self.sink = sink
        self.watched = False
        self.window: int | None = None
        self.consumed = 0
        self.held = False
        self.wrote: Callable[[], None] | None = None
        self._broken = broken
        self._lossy = False

    @property
    def full(self) -> bool:
        """Whether it should be read no further for now."""
        return self.window is not None and self.sink.size - self.consumed >= self.window

    def stream(self, window: int, wrote: Callable[[], None]) -> None:
        """Let everything go to the spool file at once, because somebody reads it there."""
        self.window = window
        self.wrote = wrote
        self.spill()

    def read(self) -> int | None:
        """Move what one read gives; return how much, 0 at the end of file, None when there is nothing now."""
        if self.fd is None:
            return 0
        room = _CHUNK if self.window is None else self.window - (self.sink.size - self.consumed)
        try:
            data = self._take(min(max(room, 1), _CHUNK))
        except BlockingIOError:
            return None
        self._keep(functools.partial(self.sink.write, data))
        if data and self.wrote is not None:
            self.wrote()
        return len(data)

    def _take(self, limit: int) -> bytes:
        assert self.fd is not None
        return os.read(self.fd, limit)

    def spill(self) -> None:
        """Put what is held in memory into the spool file."""
        self._keep(self.sink.spill)

    def _keep(self, call: Callable[[], None]) -> None:
        if self._lossy:
            return
        try:
            call()
        except OSError as exc:
            self._lossy = True
            self._broken(exc)


class Pump:
    """Reads pipes in rounds.

    A pipe that gives little is *parked*: it is looked at again in the next round, a few milliseconds later,
    and only one that then has nothing is left to the selector. So a job that prints a thousand lines a
    second costs one read a round, a silent one nothing, a short one no call of the selector. Rounds that
    take long come less often. A pipe that gives much is read again at once, one chunk at a time, so that no
    job is waited for.
    """

    def __init__(self, selector: selectors.BaseSelector, timers: Timers) -> None:
        self._selector = selector
        self._timers = timers
        self._parked: list[Pipe] = []
        self._pause = _SHORTEST_ROUND
        self._armed = False

    def add(self, pipe: Pipe) -> None:
        """Begin to read `pipe`."""
        self._park(pipe)

    def readable(self, pipe: Pipe) -> None:
        """Read a pipe that the selector named."""
        got = pipe.read()
        if got == 0:
            self.close(pipe)
        elif pipe.full:
            self._unwatch(pipe)
            pipe.held = True
        elif got is not None and got < _LITTLE:
            self._unwatch(pipe)
            self._park(pipe)

    def consumed(self, pipe: Pipe, offset: int) -> None:
        """Note how far a streamed pipe's bytes were read, and go on with one that was held back."""
        pipe.consumed = max(pipe.consumed, offset)
        if pipe.held and not pipe.full:
            pipe.held = False
            self._park(pipe)

    def drain(self, pipe: Pipe) -> None:
        """Take what is in the pipe and close it. Whoever still holds the other end is not waited for."""
        pipe.window = None
        for _ in range(_DRAIN_READS):
            if not pipe.read():
                break
        self.close(pipe)

    def close(self, pipe: Pipe) -> None:
        """Read no more of it."""
        if pipe.fd is not None:
            self._unwatch(pipe)
            os.close(pipe.fd)
            pipe.fd = None

    def _park(self, pipe: Pipe) -> None:
        self._parked.append(pipe)
        if not self._armed:
            self._armed = True
            self._timers.call_later(self._pause, self._round)

    def _round(self) -> None:
        began = time.monotonic()
        parked, self._parked, self._armed = self._parked, [], False
        for pipe in parked:
            if pipe.fd is None:
                continue
            got = pipe.read()
            if got == 0:
                self.close(pipe)
            elif pipe.full:
                pipe.held = True
            elif got is None or got >= _LITTLE:
                self._watch(pipe)
            else:
                self._parked.append(pipe)
        took = time.monotonic() - began
        self._pause = min(max(_REST_SHARE * took, _SHORTEST_ROUND), _LONGEST_ROUND)
        if self._parked:
            self._armed = True
            self._timers.call_later(self._pause, self._round)

    def _watch(self, pipe: Pipe) -> None:
        assert pipe.fd is not None
        self._selector.register(pipe.fd, selectors.EVENT_READ, pipe)
        pipe.watched = True

    def _unwatch(self, pipe: Pipe) -> None:
        if pipe.watched:
            assert pipe.fd is not None
            self._selector.unregister(pipe.fd)
            pipe.watched = False
