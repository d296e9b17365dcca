"""Running code and commands whose output is read as it is written (contract 2.7, 2.8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import attrs
from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.models import JobState, StreamName
from asyncsandbox.protocol import Frame
from asyncsandbox.server import refusals, wire
from asyncsandbox.server.engine import Order
from asyncsandbox.server.following import check_started, following
from asyncsandbox.server.handling import sandbox_of, server_of
from asyncsandbox.server.records import JobRecord
from asyncsandbox.server.sockets import Socket, serve

__all__ = ["routes"]

_EXECUTE_TIMEOUT: Final = 60.0
_COMMAND_TIMEOUT: Final = 30.0

_WORDS: Final = ("execute", "command", None)
"""What the first frame may be called; of commands O says nothing."""

routes = web.RouteTableDef()


@routes.get(protocol.CODE_STREAM)
async def stream_code(request: web.Request) -> web.WebSocketResponse:
    """Run code and tell what it writes."""
    return await _serve(request, lambda frame: wire.decode_code(frame, timeout=_EXECUTE_TIMEOUT))


@routes.get(protocol.COMMAND_STREAM)
async def stream_command(request: web.Request) -> web.WebSocketResponse:
    """Run a command and tell what it writes."""
    return await _serve(request, lambda frame: wire.decode_command(frame, timeout=_COMMAND_TIMEOUT))


async def _serve(request: web.Request, decode: Callable[[Frame], Order]) -> web.WebSocketResponse:
    async def talk(socket: Socket) -> None:
        frame = await socket.first()
        if frame.get("type") not in _WORDS:
            raise refusals.invalid(f"the first frame's type must be 'execute', not {frame['type']!r}")
        await _run(socket, attrs.evolve(decode(frame), streamed=True))

    return await serve(request, talk, farewell=[protocol.complete_frame(success=False)])


async def _run(socket: Socket, order: Order) -> None:
    server, sandbox = server_of(socket.request), sandbox_of(socket.request)

    async def tell(stream: StreamName, text: str) -> None:
        await socket.send(protocol.output_frame(stream, text, time.time()))

    async with following(server, sandbox, order) as follower:
        process_id = follower.record.process_id

        async def listen() -> None:
            await socket.until_hung_up()
            await server.jobs.kill(process_id)

        listening = asyncio.create_task(listen())
        try:
            record = await follower.follow(tell)
            check_started(server, record)
            await _tell_end(socket, record, truncated=follower.truncated)
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def _tell_end(socket: Socket, record: JobRecord, *, truncated: bool) -> None:
    info, now = record.info, time.time()
    if info.state is JobState.TIMED_OUT:
        message = f"the execution ran longer than its time-out of {info.timeout:g} s and was ended"
        await socket.send(protocol.error_frame(message, code=protocol.EXECUTION_TIMEOUT, status=408, at=now))
    await socket.send(protocol.result_frame(info, truncated=truncated, at=now))
    await socket.send(protocol.complete_frame(success=info.state is JobState.COMPLETED))
