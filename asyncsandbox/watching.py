"""Changes of files in a sandbox, as they happen."""

from __future__ import annotations

from typing import Self

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import InvalidRequestError, TransportError
from asyncsandbox.events import FileChange
from asyncsandbox.sockets import Socket
from asyncsandbox.streaming import Conversation

__all__ = ["FileWatch"]


class FileWatch(Conversation):
    """Changes of a file, or of a directory and everything below it: ``async for change in watch``.

    Once ``async with`` has been entered, no later change is missed (on a stock server: shortly after). Without
    it, watching begins with the first iteration. It goes on until it is left.

    `NotFoundError` or `PermissionDeniedError` is raised for a path that cannot be watched, and `ConnectError`
    where the connection is lost.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        super().__init__(agent, protocol.FILE_WATCH, what=f"watching {path!r}")
        if not isinstance(path, str) or not path:
            raise InvalidRequestError(f"a path to watch is a string such as '/workspace', not {path!r}")
        self._watched = path

    def __repr__(self) -> str:
        state = "over" if self._over else "new" if self._socket is None else "open"
        return f"<FileWatch {self._watched!r} of {self._agent.sandbox_id!r} {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileChange:
        while not self._over:
            socket = await self._open()
            try:
                frame = await socket.receive()
            except TransportError:
                await self.aclose()
                raise
            if frame is None:
                await self.aclose()
            elif frame.get("type") == "error":
                await self.aclose()
                raise self._refused(frame)
            elif (change := protocol.decode_change(frame)) is not None:
                return change
        raise StopAsyncIteration

    async def _begin(self, socket: Socket) -> None:
        await socket.send(protocol.watch_frame(self._watched))
        frame = await socket.settled()
        if frame is not None and frame.get("type") == "error":
            raise self._refused(frame)
