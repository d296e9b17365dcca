"""Background jobs: their rows, kill, output (contract 2.4, 2.5)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import attrs

from asyncsandbox.errors import ProtocolError
from asyncsandbox.models import EndReason, JobInfo, JobState, OutputChunk, StreamName
from asyncsandbox.protocol._messages import Reply, Request, broken, get, json_object
from asyncsandbox.protocol._names import unmark_name
from asyncsandbox.protocol._scalars import (
    as_integer,
    as_number,
    as_text,
    first_of,
    from_base64,
    timestamp,
    unix_time,
)

__all__ = [
    "EOF_HEADER",
    "NEXT_OFFSET_HEADER",
    "OFFSET_HEADER",
    "PROCESSES",
    "ProcessList",
    "ProcessRow",
    "decode_output",
    "decode_process",
    "decode_processes",
    "encode_process",
    "execution_id",
    "kill",
    "kill_by_path",
    "list_processes",
    "process_path",
    "read_output",
]

PROCESSES: Final = "/execute/processes"

OFFSET_HEADER: Final = "X-Output-Offset"
NEXT_OFFSET_HEADER: Final = "X-Output-Next-Offset"
EOF_HEADER: Final = "X-Output-Eof"


@attrs.frozen(kw_only=True)
class ProcessRow:
    """One row of the list: the record, and the output where the server puts it there.

    Attributes:
        info: the record.
        stdout: all of its stdout; None when the row does not hold all of it.
        stderr: the same for stderr.
        start_key: the key in its name on the wire; None when it has none.
        execution_id: the contract's other id of it; None when the server gives none.
    """

    info: JobInfo
    stdout: bytes | None = None
    stderr: bytes | None = None
    start_key: str | None = None
    execution_id: str | None = None


@attrs.frozen(kw_only=True)
class ProcessList:
    """One answer to a look.

    Attributes:
        rows: what it tells of.
        cursor: for the next ``since``; None when the server has none.
        removed: ids whose records are gone (ours; only with ``since``).
        more: whether the server has more to say right now.
        partial: whether it holds changes only, so that a missing row means nothing.
    """

    rows: Sequence[ProcessRow]
    cursor: str | None = None
    removed: Sequence[str] = ()
    more: bool = False
    partial: bool = False


def list_processes(*, since: str | None) -> Request:
    """``GET /execute/processes``; with a cursor only what changed after it (ours)."""
    params = {} if since is None else {"since": since}
    return Request(method="GET", path=PROCESSES, params=params, repeatable=True, lane="status")


def process_path(process_id: str, action: str = "") -> str:
    """Return the path of one job's record (ours)."""
    return f"{PROCESSES}/{quote(process_id, safe='')}{action}"


def kill(process_id: str) -> Request:
    """``DELETE /execute/kill``, the id in the query (O) and in the body (D)."""
    return Request(
        method="DELETE",
        path="/execute/kill",
        params={"process_id": process_id},
        json={"process_id": process_id},
        repeatable=True,
        lane="end",
    )


def kill_by_path(process_id: str) -> Request:
    """``POST /execute/kill/{id}``, which older servers have instead (D0, and the SDKs)."""
    return Request(
        method="POST", path=f"/execute/kill/{quote(process_id, safe='')}", repeatable=True, lane="end"
    )


def read_output(process_id: str, stream: StreamName, *, offset: int, limit: int) -> Request:
    """``GET /execute/processes/{id}/output`` (ours)."""
    return get(process_path(process_id, "/output"), stream=stream, offset=str(offset), limit=str(limit))


def decode_output(reply: Reply, *, offset: int) -> OutputChunk:
    """Read a piece of output and the headers beside it (ours).

    Raises:
        ProtocolError: the headers are missing or no numbers.
    """
    try:
        begin = int(reply.headers.get(OFFSET_HEADER.lower(), offset))
        following = int(reply.headers[NEXT_OFFSET_HEADER.lower()])
        eof = reply.headers[EOF_HEADER.lower()] == "true"
    except (KeyError, ValueError) as exc:
        raise broken(reply, f"the header {NEXT_OFFSET_HEADER} or {EOF_HEADER} is missing or wrong") from exc
    return OutputChunk(data=reply.body, offset=begin, next_offset=following, eof=eof)


def execution_id(process_id: str) -> str:
    """Return the other id that the contract gives a job, made from the one that it is known by."""
    return f"exec_{process_id.partition('_')[2] or process_id}"


def encode_process(info: JobInfo, *, stdout: bytes | None, stderr: bytes | None) -> dict[str, Any]:
    """Return a row of the list, with every spelling that an official client reads (contract 2.4).

    Args:
        info: the record.
        stdout: its output so far, if the row is to hold it; None leaves it out.
        stderr: the same.

    A time-out is ``failed`` with ``timed_out`` on the wire, as is a lost job with ``end_reason`` "lost"
    (contract 2b). `stdout_complete` and the base64 twins, for bytes that are no UTF-8, are ours.
    """
    odd = info.state in (JobState.TIMED_OUT, JobState.LOST)
    row: dict[str, Any] = {
        "process_id": info.process_id,
        "execution_id": execution_id(info.process_id),
        "name": info.name,
        "language": info.language,
        "status": JobState.FAILED.value if odd else info.state.value,
        "timed_out": info.state is JobState.TIMED_OUT,
        "end_reason": None if info.end_reason is None else info.end_reason.value,
        "exit_code": info.exit_code,
        "signal": info.signal,
        "pid": info.pid,
        "queued_at": timestamp(info.queued_at),
        "start_time": timestamp(info.started_at),
        "started_at": timestamp(info.started_at),
        "end_time": timestamp(info.ended_at),
        "completed_at": timestamp(info.ended_at),
        "duration": info.duration,
        "execution_time": info.duration,
        "timeout": info.timeout,
        "command": info.command,
        "working_dir": info.working_dir,
        "stdout_size": info.stdout_size,
        "stderr_size": info.stderr_size,
        "stdout_truncated": info.stdout_truncated,
        "stderr_truncated": info.stderr_truncated,
    }
    for stream, data, size in (("stdout", stdout, info.stdout_size), ("stderr", stderr, info.stderr_size)):
        if data is None:
            continue
        row[f"{stream}_complete"] = size == len(data)
        try:
            row[stream] = data.decode()
        except UnicodeDecodeError:
            row[stream] = data.decode(errors="replace")
            row[f"{stream}_base64"] = base64.b64encode(data).decode()
    return row


_STATES: Final[Mapping[str, JobState]] = {
    "queued": JobState.QUEUED,
    "running": JobState.RUNNING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "killed": JobState.KILLED,
    "timeout": JobState.TIMED_OUT,
    "timed_out": JobState.TIMED_OUT,
    "lost": JobState.LOST,
}


def _state(row: Mapping[str, Any], *, exit_code: int | None, signal: int | None, ended: bool) -> JobState:
    """Read a state from a row. An unknown word is running, unless the row shows an end (design section 3)."""
    state = _STATES.get(str(row.get("status", "")).lower())
    if state is None:
        if not ended and exit_code is None and signal is None:
            return JobState.RUNNING
        return JobState.COMPLETED if exit_code == 0 else JobState.FAILED
    if state is JobState.FAILED:
        if row.get("timed_out") is True or row.get("end_reason") == EndReason.TIMEOUT:
            return JobState.TIMED_OUT
        if row.get("end_reason") == EndReason.LOST:
            return JobState.LOST
    if state is JobState.COMPLETED and (exit_code not in (None, 0) or signal is not None):
        return JobState.FAILED
    return state


def _ending(row: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return signal and exit code, of which there is at most one.

    Some servers write a signal as -9. Those in Go write -1 for any signal: then neither is known.
    """
    signal, exit_code = as_integer(row.get("signal")), as_integer(row.get("exit_code"))
    if signal is not None or exit_code is None or exit_code >= 0:
        return signal, exit_code if signal is None else None
    return (None if exit_code == -1 else -exit_code), None


def _end_reason(
    row: Mapping[str, Any], state: JobState, *, exit_code: int | None, signal: int | None
) -> EndReason | None:
    if not state.finished:
        return None
    try:
        return EndReason(str(row.get("end_reason")))
    except ValueError:
        implied = {
            JobState.TIMED_OUT: EndReason.TIMEOUT,
            JobState.KILLED: EndReason.KILLED,
            JobState.LOST: EndReason.LOST,
        }
        if signal is not None:
            return implied.get(state, EndReason.SIGNAL)
        fallback = EndReason.UNKNOWN if exit_code is None else EndReason.EXIT
        return implied.get(state, fallback)


def _row_output(row: Mapping[str, Any], stream: StreamName, *, finished: bool) -> bytes | None:
    text = as_text(row.get(stream))
    # Without the flag the server is a stock one: D says that a finished row has all of it.
    if text is None or not row.get(f"{stream}_complete", finished):
        return None
    encoded = from_base64(row.get(f"{stream}_base64"))
    return text.encode(errors="surrogatepass") if encoded is None else encoded


def decode_process(row: Mapping[str, Any], *, sandbox_id: str) -> ProcessRow:
    """Read one row of the list, of any server.

    Raises:
        ProtocolError: it has no process_id.
    """
    process_id = row.get("process_id")
    if not isinstance(process_id, str) or not process_id:
        raise ProtocolError(
            f"sandbox {sandbox_id!r} lists a process without an id", detail="process_id is missing"
        )
    ended_at = unix_time(first_of(row, "completed_at", "end_time"))
    name, start_key = unmark_name(as_text(row.get("name")))
    signal, exit_code = _ending(row)
    state = _state(row, exit_code=exit_code, signal=signal, ended=ended_at is not None)
    stdout = _row_output(row, "stdout", finished=state.finished)
    stderr = _row_output(row, "stderr", finished=state.finished)
    info = JobInfo(
        process_id=process_id,
        sandbox_id=sandbox_id,
        name=name,
        language=as_text(row.get("language")) or "",
        state=state,
        raw_status=str(row.get("status", "")),
        end_reason=_end_reason(row, state, exit_code=exit_code, signal=signal),
        exit_code=exit_code,
        signal=signal,
        pid=as_integer(row.get("pid")),
        queued_at=unix_time(row.get("queued_at")),
        started_at=unix_time(first_of(row, "started_at", "start_time")),
        ended_at=ended_at,
        timeout=as_number(row.get("timeout")),
        command=as_text(row.get("command")),
        working_dir=as_text(row.get("working_dir")),
        stdout_size=as_integer(row.get("stdout_size")),
        stderr_size=as_integer(row.get("stderr_size")),
        stdout_truncated=row.get("stdout_truncated") is True,
        stderr_truncated=row.get("stderr_truncated") is True,
    )
    return ProcessRow(
        info=info,
        stdout=stdout,
        stderr=stderr,
        start_key=start_key,
        execution_id=as_text(row.get("execution_id")),
    )


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def decode_processes(reply: Reply, *, sandbox_id: str, since: str | None) -> ProcessList:
    """Read the list (contract 2.4), whole or only the changes (ours).

    Raises:
        ProtocolError: no list, or a row without an id.
    """
    body = json_object(reply)
    rows = body.get("processes")
    if rows is None and body.get("count") == 0:
        rows = []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise broken(reply, "processes is no list of objects")
    return ProcessList(
        rows=tuple(decode_process(row, sandbox_id=sandbox_id) for row in rows),
        cursor=as_text(body.get("cursor")),
        removed=tuple(item for item in _items(body.get("removed")) if isinstance(item, str)),
        more=body.get("more") is True,
        partial=since is not None,
    )
