"""The supervisor's side of a job's pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Callable

from asyncsandbox.server.launcher.pump import Pipe
from asyncsandbox.server.launcher.sink import Sink

__all__ = ["Terminal"]

_READ_SIZE = 4096  # more is never given at once


class Terminal(Pipe):
    """What a job writes to its terminal is read here, and what its user types is written."""

    __slots__ = ("_typed",)

    def __init__(self, fd: int, sink: Sink, broken: Callable[[OSError], None]) -> None:
        super().__init__(fd, sink, broken)
        self._typed = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether the terminal has not yet taken all that was typed."""
        return bool(self._typed)

    def type(self, data: bytes) -> None:
        """Put keys behind those that wait."""
        self._typed += data

    def feed(self) -> int:
        """Give the terminal what it takes now; return how much. One that is gone takes everything."""
        before = len(self._typed)
        try:
            while self._typed and self.fd is not None:
                del self._typed[: os.write(self.fd, self._typed[:_READ_SIZE])]
        except BlockingIOError:
            return before - len(self._typed)
        except OSError:
            pass
        self._typed.clear()
        return before

    def resize(self, cols: int, rows: int) -> None:
        """Set its size; the kernel tells the job (SIGWINCH)."""
        if self.fd is not None:
            with contextlib.suppress(OSError):
                termios.tcsetwinsize(self.fd, (rows, cols))

    def _take(self, limit: int) -> bytes:
        assert self.fd is not None
        pieces = bytearray()
        try:
            while len(pieces) < limit:
                piece = os.read(self.fd, min(_READ_SIZE, limit - len(pieces)))
                if not piece:
                    break
                pieces += piece
        except BlockingIOError:
            if not pieces:
                raise
        except OSError:
            pass  # EIO: nobody has the other side any more
        return bytes(pieces)
