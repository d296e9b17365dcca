"""From the row that tells of an end to the whole result: output, and the files that were asked for."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import AsyncIterator, Sequence
from typing import Final

import attrs

from asyncsandbox import capture, protocol
from asyncsandbox.agent import Agent
from asyncsandbox.capture import Captured
from asyncsandbox.errors import (
    AsyncSandboxError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from asyncsandbox.models import EndReason, FileInfo, JobInfo, JobResult, JobState, OutputChunk, StreamName
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.tracking import Cell

__all__ = ["bare_result", "complete_result", "fetch_result", "last_word", "read_chunk"]

_COLLECT_LIMIT: Final = 64 * 1024 * 1024
_CHUNK: Final = 1024 * 1024

_WORKSPACE: Final = "/workspace"

_PLAIN_TEXT: Final = 1_000
"""Bytes of a stream up to which a stock server is trusted to have listed all of it: it does not say if it cut."""

_REPLACEMENT: Final = "\ufffd".encode()
"""What servers put in the place of bytes that are no UTF-8."""

_FIRST_ODD_CODE: Final = 126
"""From here on an exit code may be a shell's word for something else, such as a signal."""

_SLACK: Final = 0.5
"""Seconds by which a server's time-out may be early."""


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
    if cell.start_key is not None and not _tells_all(cell, row.stdout, row.stderr):
        return None
    return _build(_judge(cell), row.stdout, row.stderr, limit=limit, files={}, error=None)


def bare_result(cell: Cell, row: ProcessRow, *, limit: int, problem: str) -> JobResult:
    """Return the result with what the row holds, and why there is no more."""
    return _build(cell.info, row.stdout or b"", row.stderr or b"", limit=limit, files={}, error=problem)


async def fetch_result(cell: Cell, row: ProcessRow, *, limit: int) -> JobResult:
    """Fetch what the row does not hold. What cannot be had is told in `output_error`; nothing is raised."""
    problems: list[str] = []
    if cell.start_key is not None:
        info, stdout, stderr = await _fetch_captured(
            cell, cell.start_key, row, limit=limit, problems=problems
        )
    else:
        info = _judge(cell)
        stdout = await _fetch_stream(cell, "stdout", row.stdout, limit=limit, problems=problems)
        stderr = await _fetch_stream(cell, "stderr", row.stderr, limit=limit, problems=problems)
    files: dict[str, bytes] = {}
    if cell.collect:
        try:
            await _collect(cell.board.agent, info.working_dir or _WORKSPACE, cell.collect, into=files)
        except AsyncSandboxError as exc:
            problems.append(f"files could not be collected: {exc}")
    return _build(info, stdout, stderr, limit=limit, files=files, error="; ".join(problems) or None)


async def last_word(cell: Cell, *, limit: int) -> JobResult | None:
    """Return the result of a job that its server lists no more, if it left one in files; None otherwise."""
    assert cell.start_key is not None
    captured = await capture.read_captured(cell.board.agent, cell.start_key)
    if captured is None:
        return None
    info = _merge(cell, captured)
    return _build(info, captured.stdout.end, captured.stderr.end, limit=limit, files={}, error=None)


def _tells_all(cell: Cell, stdout: bytes, stderr: bytes) -> bool:
    """Whether a stock server's row is as good as the files: little text, a plain end, and output at all."""
    if not (stdout or stderr or cell.board.agent.lists_output):
        return False
    if max(len(stdout), len(stderr)) > _PLAIN_TEXT or _REPLACEMENT in stdout + stderr:
        return False
    code = cell.info.exit_code
    return code is not None and 0 <= code < _FIRST_ODD_CODE


def _judge(cell: Cell) -> JobInfo:
    """Return the record with the end that it must have been, where a stock server only says that it failed."""
    info = cell.info
    if info.state not in (JobState.FAILED, JobState.KILLED) or cell.board.agent.speaks_ours:
        return info
    if info.exit_code is not None and 0 < info.exit_code < _FIRST_ODD_CODE:
        return info
    if cell.killed:
        return _ended(info, JobState.KILLED, EndReason.KILLED)
    if info.timeout is not None and info.duration is not None and info.duration >= info.timeout - _SLACK:
        return _ended(info, JobState.TIMED_OUT, EndReason.TIMEOUT)
    return info


def _ended(info: JobInfo, state: JobState, reason: EndReason) -> JobInfo:
    return attrs.evolve(info, state=state, end_reason=reason, exit_code=None, signal=None)


def _merge(cell: Cell, captured: Captured) -> JobInfo:
    """Return the record with what the job itself left word of."""
    info = attrs.evolve(
        cell.info,
        exit_code=captured.exit_code,
        signal=captured.signal,
        started_at=cell.info.started_at or captured.started_at,
        ended_at=cell.info.ended_at or captured.ended_at,
        stdout_size=captured.stdout.size,
        stderr_size=captured.stderr.size,
        stdout_truncated=captured.stdout.cut,
        stderr_truncated=captured.stderr.cut,
    )
    if captured.refused is not None:
        return attrs.evolve(info, state=JobState.FAILED, end_reason=EndReason.UNKNOWN)
    if captured.exit_code == 0:
        return attrs.evolve(info, state=JobState.COMPLETED, end_reason=EndReason.EXIT)
    if captured.exit_code is not None:
        return attrs.evolve(info, state=JobState.FAILED, end_reason=EndReason.EXIT)
    if cell.killed or info.state in (JobState.KILLED, JobState.TIMED_OUT):
        state = JobState.KILLED if cell.killed else info.state
        return attrs.evolve(
            info, state=state, end_reason=EndReason.KILLED if state is JobState.KILLED else EndReason.TIMEOUT
        )
    if info.timeout is not None and info.duration is not None and info.duration >= info.timeout - _SLACK:
        return attrs.evolve(info, state=JobState.TIMED_OUT, end_reason=EndReason.TIMEOUT)
    return attrs.evolve(info, state=JobState.FAILED, end_reason=EndReason.SIGNAL)


async def _fetch_captured(
    cell: Cell, key: str, row: ProcessRow, *, limit: int, problems: list[str]
) -> tuple[JobInfo, bytes, bytes]:
    agent = cell.board.agent
    try:
        captured = await capture.read_captured(agent, key)
        if captured is not None:
            problems += [
                f"{name} could not be kept: {stream.error}"
                for name, stream in (("stdout", captured.stdout), ("stderr", captured.stderr))
                if stream.error is not None
            ]
            refused = b"" if captured.refused is None else f"{captured.refused}\n".encode()
            return _merge(cell, captured), captured.stdout.end, captured.stderr.end or refused
        stdout = await _partial(agent, key, "stdout", row.stdout, limit=limit)
        stderr = await _partial(agent, key, "stderr", row.stderr, limit=limit)
    except AsyncSandboxError as exc:
        problems.append(f"output could not be read: {exc}")
        return _judge(cell), row.stdout or b"", row.stderr or b""
    info = attrs.evolve(_judge(cell), stdout_truncated=stdout.cut, stderr_truncated=stderr.cut)
    if not (stdout.data or stderr.data or agent.lists_output) and info.end_reason is EndReason.EXIT:
        problems.append("the server lists no output, and what the job kept of it was not found")
    return info, stdout.data, stderr.data


@attrs.frozen
class _Partial:
    """What there is of a stream; `cut` when there was more."""

    data: bytes
    cut: bool = False


async def _partial(
    agent: Agent, key: str, stream: StreamName, known: bytes | None, *, limit: int
) -> _Partial:
    """Return what a job wrote that was ended before it could say so: its end, or as near as was kept."""
    kept = await capture.read_output(agent, key, stream, offset=-limit, limit=limit, finished=False)
    if not kept.data:
        return _Partial(known or b"")
    # The job keeps the tail of much output in its memory, and that went with it.
    return _Partial(kept.data, cut=kept.offset > 0 or kept.next_offset >= capture.OUTPUT_LIMIT // 2)


async def _fetch_stream(
    cell: Cell, stream: StreamName, known: bytes | None, *, limit: int, problems: list[str]
) -> bytes:
    if known is not None:
        return known
    info = cell.info
    size = info.stdout_size if stream == "stdout" else info.stderr_size
    try:
        return await _tail(cell.board.agent, info.process_id, stream, size=size, limit=limit)
    except AsyncSandboxError as exc:
        problems.append(f"{stream} could not be read: {exc}")
        return b""


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
