"""Reads on in what a streamed job writes, until its end."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from asyncsandbox.errors import NotFoundError
from asyncsandbox.models import EndReason, StreamName
from asyncsandbox.server import refusals
from asyncsandbox.server.engine import Order
from asyncsandbox.server.records import JobKind, JobRecord, SandboxRecord
from asyncsandbox.server.state import Server

__all__ = ["Follower", "check_started", "following"]

_PIECE: Final = 64 * 1024
"""Bytes in one frame at most. Few large frames are what slow readers lose least of (contract 2.8)."""

_GATHER: Final = 0.006
"""Seconds in which what was written together comes together: a round of the supervisor is a bit less."""

_STREAMS: Final[tuple[StreamName, ...]] = ("stdout", "stderr")

Tell = Callable[[StreamName, str], Awaitable[None]]


class _Position:
    """How far one stream was read."""

    def __init__(self) -> None:
        self.offset = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")


class Follower:
    """One streamed job as its only reader sees it (`asyncsandbox.server.jobs.StreamListener`).

    The spool files are the buffer between the job and whoever it is told to: nothing is held here, and the
    supervisor holds a job back that is far ahead.

    Attributes:
        record: the job's; of its end once `follow` has returned.
        running: set when the job runs, or will never run.
        room: set whenever its terminal has taken some of what was typed.
        taken: how many bytes that was so far.
        truncated: whether some of its output was gone before it was read.
    """

    def __init__(self, server: Server, record: JobRecord) -> None:
        self.record = record
        self.running = asyncio.Event()
        self.room = asyncio.Event()
        self.taken = 0
        self.truncated = False
        self._server = server
        self._news = asyncio.Event()
        self._positions = {stream: _Position() for stream in _STREAMS}

    def moved(self) -> None:
        """The job runs, or has written more."""
        self.running.set()
        self._news.set()

    def typed(self, count: int) -> None:
        """Its terminal has taken so many bytes of what was typed."""
        self.taken += count
        self.room.set()

    async def follow(self, tell: Tell) -> JobRecord:
        """Tell everything that the job writes; returns its record once it has ended and all was told.

        What `tell` raises ends it.
        """
        process_id = self.record.process_id
        ended = asyncio.ensure_future(self._server.jobs.ended(process_id))
        ended.add_done_callback(lambda _: self.moved())
        try:
            while True:
                self._news.clear()
                over = ended.done()
                if over:
                    self.record = ended.result()
                if await self._read_on(tell):
                    self._acknowledge()
                    await asyncio.sleep(0)  # a reader as fast as the job must not keep out everybody else
                elif over:
                    break
                else:
                    await self._news.wait()
                    await asyncio.sleep(_GATHER)
        finally:
            ended.cancel()
        for stream, position in self._positions.items():
            rest = position.decoder.decode(b"", final=True)
            if rest:
                await tell(stream, rest)
        return self.record

    async def _read_on(self, tell: Tell) -> bool:
        """Tell what is new; return whether there was anything."""
        moved = False
        for stream, position in self._positions.items():
            piece = self._server.outputs.read(self.record, stream, offset=position.offset, limit=_PIECE)
            if piece.next_offset <= position.offset:
                continue
            moved = True
            self.truncated |= piece.next_offset - position.offset > len(piece.data)
            position.offset = piece.next_offset
            text = position.decoder.decode(piece.data)
            if text:
                await tell(stream, text)
        return moved

    def _acknowledge(self) -> None:
        if not self.record.finished:
            stdout, stderr = (position.offset for position in self._positions.values())
            self._server.engine.consumed(self.record.sandbox_id, self.record.process_id, stdout, stderr)


@contextlib.asynccontextmanager
async def following(server: Server, sandbox: SandboxRecord, order: Order) -> AsyncIterator[Follower]:
    """Run an order that is streamed. Leaving the block ends it and leaves nothing of it behind.

    Raises:
        APIError: it was refused.
    """
    jobs = server.jobs
    record = await jobs.start(sandbox, order, kind=JobKind.EXECUTION)
    follower = Follower(server, record)
    try:
        with jobs.listening(record.process_id, follower):
            yield follower
    finally:
        with contextlib.suppress(NotFoundError):  # its sandbox is gone, and took it along
            record = await jobs.kill(record.process_id)
            await jobs.remove(record)


def check_started(server: Server, record: JobRecord) -> None:
    """Refuse what could not be started at all.

    Raises:
        InvalidRequestError: it could not.
    """
    if record.info.started_at is None and record.info.end_reason is EndReason.UNKNOWN:
        why = server.outputs.whole(record, "stderr").decode(errors="replace").strip()
        raise refusals.invalid(f"it could not be started: {why}")
