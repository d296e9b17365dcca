"""A shell on a pseudo-terminal (contract 2.8)."""

from __future__ import annotations

import asyncio
import shutil
from typing import Final

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.models import StreamName
from asyncsandbox.protocol import Frame
from asyncsandbox.server.engine import CommandOrder
from asyncsandbox.server.following import Follower, check_started, following
from asyncsandbox.server.handling import sandbox_of, server_of
from asyncsandbox.server.sockets import Socket, serve

__all__ = ["routes"]

_SIZE: Final = (80, 24)
_LARGEST: Final = 10_000
_TERM: Final = "xterm-256color"

_TIMEOUT: Final = 365 * 24 * 3600.0
"""Seconds. A terminal ends with its connection, not by itself."""

_TYPED_AHEAD: Final = 64 * 1024
"""Bytes that the shell has not read yet, beyond which the client is read no further."""

_PIECE: Final = 16 * 1024

_PRESENCE_SECONDS: Final = 0.25
"""How often to look whether a client that is not being read is still there."""

routes = web.RouteTableDef()


@routes.get(protocol.TERMINAL)
async def open_terminal(request: web.Request) -> web.WebSocketResponse:
    """Run a shell for as long as the connection lasts."""
    return await serve(request, _talk)


async def _talk(socket: Socket) -> None:
    server, sandbox = server_of(socket.request), sandbox_of(socket.request)
    shell = shutil.which("bash") or "/bin/sh"
    order = CommandOrder(
        argv=[shell],
        text=shell,
        env={} if "TERM" in sandbox.env else {"TERM": _TERM},
        timeout=_TIMEOUT,
        streamed=True,
        terminal=_SIZE,
    )

    async def tell(_stream: StreamName, text: str) -> None:
        await socket.send(protocol.terminal_frame(text))

    async with following(server, sandbox, order) as follower:
        typist = asyncio.create_task(_Typist(socket, follower).run())
        try:
            record = await follower.follow(tell)
            check_started(server, record)
            await socket.send(protocol.exit_frame(protocol.exit_code_of(record.info)))
        finally:
            typist.cancel()
            await asyncio.wait([typist])


class _Typist:
    """Passes on what a client types, as fast as the terminal takes it."""

    def __init__(self, socket: Socket, follower: Follower) -> None:
        self._socket = socket
        self._follower = follower
        self._server = server_of(socket.request)
        self._where = (follower.record.sandbox_id, follower.record.process_id)
        self._given = 0

    async def run(self) -> None:
        """Listen until the client is gone; then the shell ends."""
        await self._follower.running.wait()
        while self._socket.present:
            frame = await self._socket.receive()
            if frame is None:
                break
            data = frame.get("data")
            if frame.get("type") == "input" and isinstance(data, str):
                await self._type(data.encode(errors="surrogatepass"))
            elif frame.get("type") == "resize":
                self._resize(frame)
        await self._server.jobs.kill(self._where[1])

    async def _type(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while self._given - self._follower.taken > _TYPED_AHEAD:
                self._follower.room.clear()
                if not self._socket.present:
                    return
                await asyncio.wait(
                    [waiting := asyncio.ensure_future(self._follower.room.wait())], timeout=_PRESENCE_SECONDS
                )
                waiting.cancel()
            self._given += len(piece)
            self._server.engine.type(*self._where, piece)

    def _resize(self, frame: Frame) -> None:
        cols, rows = frame.get("cols"), frame.get("rows")
        sizes = [size for size in (cols, rows) if isinstance(size, int) and 0 < size <= _LARGEST]
        if len(sizes) == len(_SIZE):
            self._server.engine.resize(*self._where, *sizes)
