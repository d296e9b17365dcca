"""From the row that tells of an end to the whole result: output, and the files that were asked for."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import AsyncIterator, Sequence
from typing import Final

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import (
    AsyncSandboxError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from asyncsandbox.models import FileInfo, JobInfo, JobResult, OutputChunk, StreamName
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.tracking import Cell

__all__ = ["bare_result", "complete_result", "fetch_result", "read_chunk"]

_COLLECT_LIMIT: Final = 64 * 1024 * 1024
_CHUNK: Final = 1024 * 1024

_WORKSPACE: Final = "/workspace"


def _build(
    info: JobInfo, stdout: bytes, stderr: bytes, *, limit: int, files: dict[str, bytes], error: str | None
) -> JobResult:
    return JobResult(
        process_id=info.process_id,
        name=info.name,
        sandbox_id=info.sandbox_id,
        state=info.state,
        end_reason=info.end_reason,
        exit_code=info.exit_code,
        signal=info.signal,
        stdout_bytes=stdout[-limit:],
        stderr_bytes=stderr[-limit:],
        stdout_truncated=info.stdout_truncated
        or len(stdout) > limit
        or (info.stdout_size or 0) > len(stdout),
        stderr_truncated=info.stderr_truncated
        or len(stderr) > limit
        or (info.stderr_size or 0) > len(stderr),
        queued_at=info.queued_at,
        started_at=info.started_at,
        ended_at=info.ended_at,
        duration=info.duration,
        files=files,
        output_error=error,
        timeout=info.timeout,
    )


def complete_result(cell: Cell, row: ProcessRow, *, limit: int) -> JobResult | None:
    """Return the result if the row alone holds all of it; None when something must be fetched."""
    if row.stdout is None or row.stderr is None or cell.collect:
        return None
    return _build(row.info, row.stdout, row.stderr, limit=limit, files={}, error=None)


def bare_result(row: ProcessRow, *, limit: int, problem: str) -> JobResult:
    """Return the result with what the row holds, and why there is no more."""
    return _build(row.info, row.stdout or b"", row.stderr or b"", limit=limit, files={}, error=problem)


async def fetch_result(cell: Cell, row: ProcessRow, *, limit: int) -> JobResult:
    """Fetch what the row does not hold. What cannot be had is told in `output_error`; nothing is raised."""
    agent, info = cell.board.agent, row.info
    problems: list[str] = []

    async def stream_end(stream: StreamName, known: bytes | None, size: int | None) -> bytes:
        if known is not None:
            return known
        try:
            return await _tail(agent, info.process_id, stream, size=size, limit=limit)
        except AsyncSandboxError as exc:
            problems.append(f"{stream} could not be read: {exc}")
            return b""

    stdout = await stream_end("stdout", row.stdout, info.stdout_size)
    stderr = await stream_end("stderr", row.stderr, info.stderr_size)
    files: dict[str, bytes] = {}
    if cell.collect:
        try:
            await _collect(agent, info.working_dir or _WORKSPACE, cell.collect, into=files)
        except AsyncSandboxError as exc:
            problems.append(f"files could not be collected: {exc}")
    return _build(info, stdout, stderr, limit=limit, files=files, error="; ".join(problems) or None)


async def read_chunk(
    agent: Agent, process_id: str, stream: StreamName, *, offset: int, limit: int
) -> OutputChunk:
    """Read a piece of a job's output from a byte offset."""
    await agent.require("output", what=f"reading output of job {process_id!r}")
    request = protocol.read_output(process_id, stream, offset=offset, limit=limit)
    reply = await agent.call(request, what=f"reading {stream} of job {process_id!r}")
    return protocol.decode_output(reply, offset=offset)


async def _tail(agent: Agent, process_id: str, stream: StreamName, *, size: int | None, limit: int) -> bytes:
    """Read the last `limit` bytes of a finished job's output."""
    offset, kept = max(0, (size or 0) - limit), b""
    while True:
        chunk = await read_chunk(agent, process_id, stream, offset=offset, limit=_CHUNK)
        kept = (kept + chunk.data)[-limit:]
        if chunk.eof or chunk.next_offset <= offset:
            return kept
        offset = chunk.next_offset


async def _collect(agent: Agent, directory: str, patterns: Sequence[str], *, into: dict[str, bytes]) -> None:
    """Add the files below `directory` that match to `into`, by their path relative to it.

    Raises:
        AsyncSandboxError: some could not be read; the others are there.
    """
    unreadable: list[str] = []
    budget = _COLLECT_LIMIT
    async for relative, info in _walk(agent, directory, depth=max(_depth(pattern) for pattern in patterns)):
        if not any(_matches(relative, pattern) for pattern in patterns):
            continue
        budget -= info.size
        if budget < 0:
            raise AsyncSandboxError(
                f"{relative!r} and what comes after it is more than {_COLLECT_LIMIT} bytes; "
                "use sandbox.files.download"
            )
        request = protocol.get("/files/download", path=posixpath.join(directory, relative))
        try:
            into[relative] = (await agent.call(request, what=f"collecting {relative!r}")).body
        except (NotFoundError, InvalidRequestError, PermissionDeniedError) as exc:
            unreadable.append(str(exc))  # gone meanwhile, a pipe, a link that leads outside
    if unreadable:
        raise AsyncSandboxError("; ".join(unreadable))


def _depth(pattern: str) -> int:
    """Return how many directories deep a pattern looks; ``**`` looks as deep as there is anything."""
    return 64 if "**" in pattern else pattern.count("/")


def _matches(path: str, pattern: str) -> bool:
    """Match part by part, as a shell does: ``*`` stays within a directory, ``**`` crosses any number."""
    return _match_parts(path.split("/"), pattern.removeprefix("./").split("/"))


def _match_parts(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _match_parts(parts[1:], patterns[1:])
    )


async def _walk(agent: Agent, directory: str, *, depth: int) -> AsyncIterator[tuple[str, FileInfo]]:
    pending = [("", 0)]
    while pending:
        prefix, level = pending.pop()
        request = protocol.get("/files/list", path=posixpath.join(directory, prefix) if prefix else directory)
        reply = await agent.call(request, what=f"listing {directory!r}")
        for info in protocol.decode_files(reply):
            relative = posixpath.join(prefix, info.name)
            if not info.is_dir:
                yield relative, info
            elif level < depth:
                pending.append((relative, level + 1))
