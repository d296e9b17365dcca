"""Runs whose output is read as it is written, and what all conversations over a WebSocket share."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import APIError, ClientStateError, ConnectError, TransportError
from asyncsandbox.events import StreamOutput, StreamResult
from asyncsandbox.sockets import Socket

__all__ = ["Conversation", "RunStream"]

_LAST_WORDS: Final = 5.0
"""Seconds in which what ends a stream must follow the result of its run."""


class Conversation:
    """What is said over one WebSocket, once: a context manager that hangs up at the end.

    Args:
        agent: of the sandbox.
        path: where the WebSocket is.
        what: the call in words, for messages.
    """

    def __init__(self, agent: Agent, path: str, *, what: str) -> None:
        self._agent = agent
        self._path = path
        self._what = what
        self._socket: Socket | None = None
        self._over = False

    async def _begin(self, socket: Socket) -> None:
        """Say what is wanted."""
        raise NotImplementedError

    async def _open(self) -> Socket:
        """Return the socket, opened at the first call."""
        if self._over:
            raise ClientStateError(f"{self._what}: this has ended; begin another one")
        if self._socket is None:
            socket = await self._agent.connect(self._path, what=self._what)
            try:
                await self._begin(socket)
            except BaseException:
                self._over = True
                await socket.aclose()
                raise
            self._socket = socket
        return self._socket

    def _refused(self, frame: Mapping[str, Any]) -> APIError:
        """Return the error that an error frame stands for.

        Raises:
            SandboxClosedError: it says that the sandbox is gone.
        """
        error = protocol.decode_frame_error(frame, what=self._agent.where(self._what))
        self._agent.raise_gone(error)
        return error

    async def aclose(self) -> None:
        """Hang up; what runs for this conversation is ended by the server. Twice is fine.

        Cancellation: hangs up at once.
        """
        self._over = True
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.aclose()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class RunStream(Conversation):
    """A run whose output is read as it is written: ``async for event in stream``.

    Events are `StreamOutput`s, and as the last one a `StreamResult`, which is `result` too. What is not taken
    waits on the server, and when that has enough of it, the run waits. Leaving ``async with``, `aclose`, or
    letting go of the stream ends the run. It begins with ``async with``, or else with the first event.

    Iterating raises `APIError` where the server refuses the run, and `ConnectError` where the connection is
    lost before the run's end was told: an end that raises nothing is the end of the run. A run that fails or
    takes too long raises nothing; its result says so.

    Attributes:
        result: how the run ended; None until that is known.
    """

    def __init__(
        self, agent: Agent, path: str, frame: Mapping[str, Any], *, timeout: float | None, what: str
    ) -> None:
        super().__init__(agent, path, what=what)
        self.result: StreamResult | None = None
        self._frame = frame
        self._decoder = protocol.RunDecoder(timeout=timeout, what=agent.where(what))

    def __repr__(self) -> str:
        state = "over" if self._over else "new" if self._socket is None else "open"
        return f"<RunStream of {self._agent.sandbox_id!r} {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamOutput | StreamResult:
        if self._over:
            raise StopAsyncIteration
        socket = await self._open()
        try:
            output = await self._next_output(socket)
        except (APIError, TransportError) as exc:
            await self.aclose()
            if isinstance(exc, APIError):
                self._agent.raise_gone(exc)
            raise
        if output is not None:
            return output
        await self.aclose()
        self.result = self._decoder.result()
        if self.result is None:
            raise ConnectError(
                f"{self._agent.where(self._what)}: the server ended the stream without saying how the run ended",
                method="GET",
                url=self._path,
            )
        return self.result

    async def _begin(self, socket: Socket) -> None:
        await socket.send(self._frame)

    async def _next_output(self, socket: Socket) -> StreamOutput | None:
        """Return the next piece of output; None when there will be none."""
        decoder = self._decoder
        while not decoder.complete:
            try:
                frame = await socket.receive(patience=_LAST_WORDS if decoder.ended else None)
            except TransportError:
                if decoder.ended:
                    return None
                raise
            if frame is None:
                return None
            output = decoder.take(frame)
            if output is not None:
                return output
        return None
