"""What a captured job left behind, read with the files API."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final

import attrs

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import NotFoundError, ProtocolError
from asyncsandbox.models import OutputChunk, StreamName
from asyncsandbox.protocol import Request

__all__ = ["Captured", "CapturedStream", "directory", "read_captured", "read_output", "remove_captured"]

_DIRECTORY: Final = "/tmp/.asyncsandbox"  # noqa: S108 - in the sandbox
_CLEANING_SECONDS: Final = 30


@attrs.frozen(kw_only=True)
class CapturedStream:
    """One stream of a captured job.

    Attributes:
        size: bytes that the job wrote.
        head: bytes kept of its begin.
        tail: bytes kept of its end; with `head` less than `size` when the middle was dropped.
        end: the last bytes.
        error: why not all of it could be kept; None when it could.
    """

    size: int
    head: int
    tail: int
    end: bytes
    error: str | None = None

    @property
    def cut(self) -> bool:
        """Whether the middle was dropped."""
        return self.head + self.tail < self.size


@attrs.frozen(kw_only=True)
class Captured:
    """How a captured job ended.

    Attributes:
        exit_code: None after a signal, and when it could not be run.
        signal: its number; None otherwise.
        refused: why it could not be run; None when it could.
        started_at: Unix time on the sandbox's clock; None when it could not be run.
        ended_at: the same.
        directory: where it ran.
        stdout: what it wrote.
        stderr: the same.
    """

    exit_code: int | None = None
    signal: int | None = None
    refused: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    directory: str | None = None
    stdout: CapturedStream = CapturedStream(size=0, head=0, tail=0, end=b"")
    stderr: CapturedStream = CapturedStream(size=0, head=0, tail=0, end=b"")


def directory(key: str) -> str:
    """Return where a job of that key runs when it has a directory of its own, as clients write paths."""
    return f"{_DIRECTORY}/{key}/work"


async def read_captured(agent: Agent, key: str) -> Captured | None:
    """Return how a job ended; None when it left no word: it runs, was killed, or never began.

    Raises:
        AsyncSandboxError: the server did not answer, or not with what a job leaves.
    """
    data = await _download(agent, key, "result")
    return None if data is None else _decode(data)


async def read_output(
    agent: Agent, key: str, stream: StreamName, *, offset: int, limit: int, finished: bool
) -> OutputChunk:
    """Return a piece of what a job wrote, from a byte offset; a read inside the cut goes on after it.

    Args:
        agent: its sandbox.
        key: its start's key.
        stream: which stream.
        offset: bytes from the start of what it wrote; negative = from the end.
        limit: bytes at most.
        finished: whether the job has ended.

    Raises:
        AsyncSandboxError: the server did not answer.
    """
    captured = await read_captured(agent, key) if finished else None
    data = await _download(agent, key, stream) or b""
    known = None if captured is None else getattr(captured, stream)
    size, head = (known.size, known.head) if known is not None else (len(data), len(data))
    low = size - (len(data) - head)  # where the tail begins, in bytes that the job wrote
    begin = max(0, size + offset) if offset < 0 else min(offset, size)
    if head <= begin < low:
        begin = low
    first, last = (begin, head) if begin < head else (head + begin - low, len(data))
    piece = data[first:last][:limit]
    following = begin + len(piece)
    if following == head:
        following = low
    return OutputChunk(data=piece, offset=begin, next_offset=following, eof=finished and following >= size)


async def remove_captured(agent: Agent, keys: Iterable[str]) -> None:
    """Delete what jobs left, in one call.

    Raises:
        AsyncSandboxError: the server did not do it.
    """
    script = 'cd "${TMPDIR:-/tmp}/.asyncsandbox" && rm -rf "$@"; cd /tmp/.asyncsandbox && rm -rf "$@"; true'
    body = {"command": "bash", "args": ["-c", script, "bash", *keys], "timeout": _CLEANING_SECONDS}
    request = Request(method="POST", path="/commands/run", json=body, repeatable=True, lane="hold")
    await agent.call(request, what="deleting kept output")


async def _download(agent: Agent, key: str, name: str) -> bytes | None:
    request = protocol.get("/files/download", path=f"{_DIRECTORY}/{key}/{name}")
    try:
        return (await agent.call(request, what="reading kept output")).body
    except NotFoundError:
        return None


def _decode(data: bytes) -> Captured:
    try:
        body = json.loads(data)
        if "refused" in body:
            return Captured(refused=str(body["refused"]))
        code = int(body["code"])
        return Captured(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            started_at=float(body["started_at"]),
            ended_at=float(body["ended_at"]),
            directory=str(body["cwd"]),
            stdout=_decode_stream(body["stdout"]),
            stderr=_decode_stream(body["stderr"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as exc:
        raise ProtocolError(
            f"what a job left beside its output is damaged: {exc}", detail="damaged result"
        ) from exc


def _decode_stream(body: Any) -> CapturedStream:
    return CapturedStream(
        size=int(body["size"]),
        head=int(body["head"]),
        tail=int(body["tail"]),
        end=base64.b64decode(body["end"]),
        error=body["error"],
    )
