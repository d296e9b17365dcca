"""The supervisor's end of the talk with its server: one JSON object a line, never blocking."""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["Channel", "ChannelClosedError", "Message"]

Message = dict[str, Any]

_RECEIVE = 256 * 1024


class ChannelClosedError(Exception):
    """The server closed its end, or died."""


class Channel:
    """Buffers both ways. What could not be sent yet waits for `flush`.

    Attributes:
        sock: the socket, for the selector.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._outgoing)

    def receive(self) -> list[Message]:
        """Return the messages that are there.

        Raises:
            ChannelClosedError: nothing more will come.
        """
        try:
            data = self.sock.recv(_RECEIVE)
        except BlockingIOError:
            return []
        except OSError as exc:
            raise ChannelClosedError from exc
        if not data:
            raise ChannelClosedError
        self._incoming += data
        if b"\n" not in data:
            return []
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = rest
        return [json.loads(line) for line in lines]

    def send(self, op: str, **fields: object) -> None:
        """Put a message behind those that wait."""
        self._outgoing += json.dumps({"op": op, **fields}, separators=(",", ":")).encode() + b"\n"

    def flush(self) -> None:
        """Send what the socket takes.

        Raises:
            ChannelClosedError: nobody reads.
        """
        while self._outgoing:
            try:
                sent = self.sock.send(self._outgoing)
            except BlockingIOError:
                return
            except OSError as exc:
                raise ChannelClosedError from exc
            del self._outgoing[:sent]
