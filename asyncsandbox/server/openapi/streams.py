"""WebSockets of a sandbox's agent (contract 2.7, 2.8). Frames are no part of OpenAPI; the contract has them."""

from __future__ import annotations

from typing import Final

from asyncsandbox import protocol
from asyncsandbox.server.openapi.operations import socket

__all__ = ["OPERATIONS"]

OPERATIONS: Final = (
    socket(f"GET {protocol.CODE_STREAM}", "Run code and hear what it writes as it comes"),
    socket(f"GET {protocol.COMMAND_STREAM}", "Run a command and hear what it writes as it comes"),
    socket(f"GET {protocol.FILE_WATCH}", "Hear what changes in a file or directory", 501),
    socket(f"GET {protocol.TERMINAL}", "Type into a shell"),
)
