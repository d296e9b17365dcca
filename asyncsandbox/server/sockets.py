"""WebSockets of a sandbox's agent: accepted, counted, spoken to in frames, closed with the server."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

from asyncsandbox import protocol
from asyncsandbox.errors import APIError
from asyncsandbox.protocol import Frame
from asyncsandbox.server import refusals
from asyncsandbox.server.handling import MAX_BODY, sandbox_of, server_of

__all__ = ["HungUpError", "Socket", "keep_sockets", "serve"]

log = logging.getLogger(__name__)

_FIRST_FRAME_SECONDS: Final = 60.0
_CLOSE_SECONDS: Final = 1.0
"""How long a client may take to answer a close when the server stops."""


class _Sockets:
    """Those that are open."""

    def __init__(self) -> None:
        self.responses = weakref.WeakSet[web.WebSocketResponse]()


_SOCKETS: Final = web.AppKey("sockets", _Sockets)


class HungUpError(Exception):
    """The client is not there any more, or the server is about to stop."""


class Socket:
    """One WebSocket.

    Attributes:
        request: what it grew out of.
    """

    def __init__(self, request: web.Request, response: web.WebSocketResponse) -> None:
        self.request = request
        self._response = response

    @property
    def present(self) -> bool:
        """Whether the connection is still there, as far as it is known without reading."""
        transport = self.request.transport
        return not self._response.closed and transport is not None and not transport.is_closing()

    async def send(self, frame: Frame) -> None:
        """Send a frame. Waits while the client does not read.

        Raises:
            HungUpError: nobody is there.
        """
        try:
            await self._response.send_str(protocol.encode_frame(frame))
        except (ConnectionError, RuntimeError) as exc:
            raise HungUpError from exc

    async def receive(self) -> Frame | None:
        """Return the next frame, None once nothing more will come. What is no frame is skipped."""
        while True:
            message: Any = await self._response.receive()
            if message.type is WSMsgType.TEXT:
                frame = protocol.decode_frame(message.data)
                if frame is not None:
                    return frame
                if message.data.strip():
                    log.warning("a frame on %s is no JSON object and is skipped", self.request.path)
            elif message.type is not WSMsgType.BINARY:
                return None

    async def first(self) -> Frame:
        """Return the frame that says what is wanted.

        Raises:
            APIError: none came in time.
            HungUpError: none will come.
        """
        try:
            async with asyncio.timeout(_FIRST_FRAME_SECONDS):
                frame = await self.receive()
        except TimeoutError:
            raise refusals.invalid(
                f"no frame came within {_FIRST_FRAME_SECONDS:g} s that says what is wanted",
                code="MISSING_PARAMETER",
            ) from None
        if frame is None:
            raise HungUpError
        return frame

    async def until_hung_up(self) -> None:
        """Return when the client is gone. Whatever it says until then is skipped."""
        while await self.receive() is not None:
            pass


async def serve(
    request: web.Request, talk: Callable[[Socket], Awaitable[None]], *, farewell: Iterable[Frame] = ()
) -> web.WebSocketResponse:
    """Accept a WebSocket, talk, and close it.

    Args:
        request: the upgrade.
        talk: what is said; what it raises is told in an error frame.
        farewell: frames that follow such an error.
    """
    # Compressed for clients that offer it. V: the JavaScript SDK loses all but the first of several plain
    # frames that reach it together, `complete` among them, and hangs; compressed ones come to it one by one.
    response = web.WebSocketResponse(compress=True, max_msg_size=MAX_BODY)
    await response.prepare(request)
    server, sandbox_id = server_of(request), sandbox_of(request).id
    server.streams[sandbox_id] += 1
    request.app[_SOCKETS].responses.add(response)
    socket = Socket(request, response)
    try:
        await _talk(socket, talk, farewell)
        await response.close()
    except HungUpError:
        pass
    finally:
        server.streams[sandbox_id] -= 1
        if not server.streams[sandbox_id]:
            del server.streams[sandbox_id]
    return response


async def _talk(socket: Socket, talk: Callable[[Socket], Awaitable[None]], farewell: Iterable[Frame]) -> None:
    request = socket.request
    try:
        await talk(socket)
    except HungUpError:
        raise
    except APIError as exc:
        message, code, status = str(exc), exc.code or "INVALID_REQUEST", exc.status
    except Exception:  # the boundary of handlers that have answered already
        log.exception("the stream %s failed", request.path)
        message, code, status = "the server failed at this stream; its log says more", "INTERNAL_ERROR", 500
    else:
        return
    server_of(request).errors[sandbox_of(request).id] += 1
    await socket.send(protocol.error_frame(message, code=code, status=status, at=time.time()))
    for frame in farewell:
        await socket.send(frame)


def keep_sockets(app: web.Application) -> None:
    """Let `serve` work in `app`, and close what is open when it shuts down."""
    app[_SOCKETS] = _Sockets()
    app.on_shutdown.append(_close_all)


async def _close_all(app: web.Application) -> None:
    """Say goodbye to every client; one that does not listen is not waited for."""
    closing = [
        asyncio.ensure_future(
            response.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops", drain=False)
        )
        for response in tuple(app[_SOCKETS].responses)
    ]
    if closing:
        _, late = await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
