"""One WebSocket, frame by frame. Connections of their own, beside those of ordinary requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from asyncsandbox import protocol
from asyncsandbox.errors import ConnectError
from asyncsandbox.protocol import Frame

__all__ = ["LARGEST_MESSAGE", "WS_TIMEOUT", "Socket"]

LARGEST_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one message that are taken."""

WS_TIMEOUT: Final = aiohttp.ClientWSTimeout(ws_close=2.0)

_SILENCE: Final = 30.0
"""Seconds without a word after which the server is pinged, and again until the connection counts as lost."""

_FINE: Final = frozenset({aiohttp.WSCloseCode.OK, 1005, None})
"""Close codes that say that all was said; 1005 stands for none."""

_closing: set[asyncio.Task[bool]] = set()


class Socket:
    """One WebSocket that is open.

    It reads only when it is asked to, so what nobody takes waits in the server, not here.

    Args:
        response: aiohttp's side of it, with `autoping` off.
        url: where it leads, for messages.
    """

    def __init__(self, response: aiohttp.ClientWebSocketResponse[Any], *, url: str) -> None:
        self._response = response
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._early: Frame | None = None

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame. Waits while the server does not read.

        Raises:
            ConnectError: the connection is gone.
        """
        try:
            await self._response.send_str(protocol.encode_frame(frame))
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise self._lost(str(exc) or type(exc).__name__) from exc

    async def receive(self, *, patience: float | None = None) -> Frame | None:
        """Return the next frame; None when the server has said goodbye. What is no frame is skipped.

        Args:
            patience: seconds after which None is returned as well; None = as long as the server answers pings.

        Raises:
            ConnectError: the connection broke, or was closed for another reason than that all was said.

        Cancellation: no frame is lost.
        """
        early, self._early = self._early, None
        if early is not None:
            return early
        while True:
            message = await self._message(patience)
            if message is None or message.type is aiohttp.WSMsgType.CLOSE:
                return None
            if message.type is aiohttp.WSMsgType.TEXT:
                frame = protocol.decode_frame(message.data)
                if frame is not None:
                    return frame

    async def settled(self) -> Frame | None:
        """Wait until the server has acted on what was sent: it answers pings in their turn.

        Returns:
            A frame that came first, which `receive` gives again; None when there was none.

        Raises:
            ConnectError: the connection broke.
        """
        await self._ping()
        while self._early is None:
            message = await self._message(_SILENCE)
            if message is None or message.type in (aiohttp.WSMsgType.PONG, aiohttp.WSMsgType.CLOSE):
                break
            if message.type is aiohttp.WSMsgType.TEXT:
                self._early = protocol.decode_frame(message.data)
        return self._early

    async def aclose(self) -> None:
        """Hang up. Twice is fine.

        Cancellation: hangs up at once, without waiting for the server's own goodbye.
        """
        await self._response.close()

    async def _message(self, patience: float | None) -> Any:
        """Return the next message that is not for the connection itself; None when patience is over."""
        pinged = False
        while True:
            try:
                async with asyncio.timeout(patience or _SILENCE):
                    message: Any = await self._response.receive()
            except TimeoutError:
                if patience is not None:
                    return None
                if pinged:
                    await self._response.close()
                    raise self._lost(f"the server has not said anything for {2 * _SILENCE:g} s") from None
                await self._ping()
                pinged = True
                continue
            if message.type is aiohttp.WSMsgType.PING:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # then the next read says so
                    await self._response.pong(message.data)
                continue
            self._check(message)
            return message

    def _check(self, message: Any) -> None:
        if message.type is aiohttp.WSMsgType.CLOSE:
            if message.data not in _FINE:
                raise self._lost(f"the server closed it with {message.data} {message.extra or ''}".rstrip())
        elif message.type in (aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            raise self._lost("it was cut")
        elif message.type is aiohttp.WSMsgType.ERROR:
            raise self._lost(str(message.data))

    async def _ping(self) -> None:
        try:
            await self._response.ping()
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise self._lost(str(exc) or type(exc).__name__) from exc

    def _lost(self, reason: str) -> ConnectError:
        return ConnectError(f"{self._url}: the connection broke: {reason}", method="GET", url=self._url)

    def __del__(self) -> None:
        # A loop that is left by `break` lets go of its stream without a word; the run is to end all the same.
        if not self._response.closed and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_hang_up, self._loop, self._response)


def _hang_up(loop: asyncio.AbstractEventLoop, response: aiohttp.ClientWebSocketResponse[Any]) -> None:
    task = loop.create_task(response.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
