"""Jobs and sandboxes as JSON objects and as rows of a table. The keys are the command line's own contract."""

from __future__ import annotations

import datetime as dt
import signal
from typing import Any

import attrs

from asyncsandbox.models import JobInfo, JobResult, SandboxInfo

__all__ = ["end_of", "info_fields", "moment", "ref_of", "result_fields", "sandbox_fields"]


def ref_of(sandbox_id: str, process_id: str) -> str:
    """Return the word that names a job in the next command."""
    return f"{sandbox_id}/{process_id}"


def info_fields(info: JobInfo) -> dict[str, Any]:
    """Return what a record of a job becomes as JSON."""
    return {
        "ref": ref_of(info.sandbox_id, info.process_id),
        "process_id": info.process_id,
        "sandbox_id": info.sandbox_id,
        "name": info.name,
        "language": info.language or None,
        "command": info.command,
        "state": info.state.value,
        "end_reason": info.end_reason and info.end_reason.value,
        "exit_code": info.exit_code,
        "signal": info.signal,
        "pid": info.pid,
        "queued_at": info.queued_at,
        "started_at": info.started_at,
        "ended_at": info.ended_at,
        "duration": info.duration,
        "timeout": info.timeout,
    }


def result_fields(result: JobResult) -> dict[str, Any]:
    """Return what the result of a job becomes as JSON. Output that is no UTF-8 has U+FFFD in it."""
    return {
        "ref": ref_of(result.sandbox_id, result.process_id),
        "process_id": result.process_id,
        "sandbox_id": result.sandbox_id,
        "name": result.name,
        "state": result.state.value,
        "end_reason": result.end_reason and result.end_reason.value,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "queued_at": result.queued_at,
        "started_at": result.started_at,
        "ended_at": result.ended_at,
        "duration": result.duration,
        "timeout": result.timeout,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "output_error": result.output_error,
    }


def sandbox_fields(info: SandboxInfo) -> dict[str, Any]:
    """Return what a sandbox becomes as JSON."""
    return {"sandbox_id": info.id, **attrs.asdict(info, filter=lambda field, _: field.name != "id")}


def end_of(exit_code: int | None, number: int | None) -> str:
    """Return how a process ended: its exit code, or the name of the signal; "" when neither is known."""
    if number is None:
        return "" if exit_code is None else str(exit_code)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def moment(when: float | None) -> str:
    """Return a time for people, in their own zone; "" for None."""
    if when is None:
        return ""
    return dt.datetime.fromtimestamp(when).astimezone().isoformat(" ", "seconds")
