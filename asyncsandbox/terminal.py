"""A shell on a terminal in a sandbox."""

from __future__ import annotations

from typing import Final, Self

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import ClientStateError, InvalidRequestError, TransportError
from asyncsandbox.sockets import Socket
from asyncsandbox.streaming import Conversation

__all__ = ["Terminal"]

_LARGEST: Final = 10_000


class Terminal(Conversation):
    r"""A shell on a terminal: ``async with sandbox.terminal() as terminal``.

    Iterating gives what it shows, as text with control sequences, and ends when the shell does. What is not
    taken waits on the server. Leaving the block ends the shell and what it started.

    Iterating raises `ConnectError` where the connection is lost before the shell's end was told.

    Attributes:
        exit_code: the shell's, once it has ended; minus a signal's number when that ended it. None until then,
            and where the server did not say.

    Example:
        >>> async with sandbox.terminal(cols=100, rows=30) as terminal:  # doctest: +SKIP
        ...     await terminal.send("make\nexit\n")
        ...     async for text in terminal:
        ...         print(text, end="")
    """

    def __init__(self, agent: Agent, *, cols: int, rows: int) -> None:
        super().__init__(agent, protocol.TERMINAL, what="a terminal")
        _check_size(cols, rows)
        self.exit_code: int | None = None
        self._size = (cols, rows)

    def __repr__(self) -> str:
        state = f"exit_code={self.exit_code}" if self._over else "new" if self._socket is None else "open"
        return f"<Terminal of {self._agent.sandbox_id!r} {state}>"

    async def send(self, text: str) -> None:
        r"""Type into the terminal: ``"ls\n"`` is a line, ``"\x03"`` Ctrl-C, ``"\x04"`` Ctrl-D.

        Waits while the shell does not read.

        Raises:
            ClientStateError: the terminal has ended, or was not entered with ``async with``.
            ConnectError: the connection is gone.
        """
        if not isinstance(text, str):
            raise InvalidRequestError(f"what is typed must be str, not {type(text).__name__}")
        await self._entered().send(protocol.input_frame(text))

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size; programs in it are told (SIGWINCH).

        Raises:
            InvalidRequestError: no such size: whole numbers from 1 to 10 000.
            ClientStateError: the terminal has ended, or was not entered with ``async with``.
            ConnectError: the connection is gone.
        """
        _check_size(cols, rows)
        await self._entered().send(protocol.resize_frame(cols, rows))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._over:
            socket = self._entered()
            try:
                frame = await socket.receive()
            except TransportError:
                await self.aclose()
                raise
            kind = None if frame is None else frame.get("type")
            if frame is None or kind == "exit":
                code = None if frame is None else frame.get("code")
                self.exit_code = code if isinstance(code, int) else None
                await self.aclose()
            elif kind == "error":
                await self.aclose()
                raise self._refused(frame)
            elif kind == "output" and isinstance(frame.get("data"), str):
                return str(frame["data"])
        raise StopAsyncIteration

    async def _begin(self, socket: Socket) -> None:
        await socket.send(protocol.resize_frame(*self._size))

    def _entered(self) -> Socket:
        if self._over:
            raise ClientStateError("the terminal has ended; open another one with sandbox.terminal()")
        if self._socket is None:
            raise ClientStateError("enter the terminal first: async with sandbox.terminal() as terminal")
        return self._socket


def _check_size(cols: int, rows: int) -> None:
    for name, size in (("cols", cols), ("rows", rows)):
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _LARGEST:
            raise InvalidRequestError(f"{name} must be a whole number from 1 to {_LARGEST}, not {size!r}")
