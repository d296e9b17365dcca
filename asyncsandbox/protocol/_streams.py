"""WebSockets of the agent: runs whose output is read as it is written, terminals, watched files (contract 2.8).

Every frame is a JSON object in a text message. Blank frames and such as are no JSON object are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from asyncsandbox.errors import APIError, api_error_class
from asyncsandbox.events import FileChange, StreamOutput, StreamResult
from asyncsandbox.models import EndReason, JobInfo, JobState, StreamName
from asyncsandbox.protocol._scalars import as_integer, as_number, as_text, first_of, timestamp, unix_time

__all__ = [
    "CODE_STREAM",
    "COMMAND_STREAM",
    "EXECUTION_TIMEOUT",
    "FILE_WATCH",
    "STREAMS",
    "TERMINAL",
    "Frame",
    "RunDecoder",
    "change_frame",
    "code_frame",
    "command_frame",
    "complete_frame",
    "decode_change",
    "decode_frame",
    "decode_frame_error",
    "encode_frame",
    "error_frame",
    "exit_code_of",
    "exit_frame",
    "input_frame",
    "output_frame",
    "resize_frame",
    "result_frame",
    "terminal_frame",
    "watch_frame",
]

CODE_STREAM: Final = "/execute/stream"
COMMAND_STREAM: Final = "/commands/stream"
FILE_WATCH: Final = "/files/watch"
TERMINAL: Final = "/terminal"

STREAMS: Final = frozenset({CODE_STREAM, COMMAND_STREAM, FILE_WATCH, TERMINAL})
"""V: the SDKs ask for some of these at the root of the host, where the token says which sandbox is meant."""

EXECUTION_TIMEOUT: Final = "EXECUTION_TIMEOUT"

Frame = dict[str, Any]


def encode_frame(frame: Mapping[str, Any]) -> str:
    """Return a frame as the text of a message."""
    return json.dumps(frame, separators=(",", ":"))


def decode_frame(text: str) -> Frame | None:
    """Read the text of a message; None for what is to be skipped."""
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


# --- what clients say ---------------------------------------------------------------------------------------


def code_frame(body: Mapping[str, Any]) -> Frame:
    """Return the frame that starts code; `body` is that of ``/execute``."""
    return {"type": "execute", **body}


def command_frame(body: Mapping[str, Any]) -> Frame:
    """Return the frame that starts a command. O names the path without shapes: it mirrors `code_frame`."""
    return {"type": "execute", **body}


def input_frame(text: str) -> Frame:
    """Return the frame that types into a terminal."""
    return {"type": "input", "data": text}


def resize_frame(cols: int, rows: int) -> Frame:
    """Return the frame that gives a terminal its size."""
    return {"type": "resize", "cols": cols, "rows": rows}


def watch_frame(path: str) -> Frame:
    """Return the frame that begins to watch a directory or file."""
    return {"action": "watch", "path": path}


# --- what servers say ---------------------------------------------------------------------------------------


def output_frame(stream: StreamName, text: str, at: float) -> Frame:
    """Return a piece of output."""
    return {"type": stream, "data": text, "timestamp": timestamp(at)}


def exit_code_of(info: JobInfo) -> int | None:
    """Return the exit code as ``/execute`` and `subprocess` show it: a signal is its number, negative."""
    return -info.signal if info.signal is not None else info.exit_code


def result_frame(info: JobInfo, *, truncated: bool, at: float) -> Frame:
    """Return how a run ended. `success`, `signal`, `end_reason`, `timed_out` and `truncated` are ours."""
    return {
        "type": "result",
        "success": info.state is JobState.COMPLETED,
        "exit_code": exit_code_of(info),
        "execution_time": info.duration or 0.0,
        "signal": info.signal,
        "end_reason": info.end_reason,
        "timed_out": info.state is JobState.TIMED_OUT,
        "truncated": truncated,
        "timestamp": timestamp(at),
    }


def complete_frame(*, success: bool) -> Frame:
    """Return the last frame of a run. V: it alone ends the loops of both official clients."""
    return {"type": "complete", "success": success}


def error_frame(message: str, *, code: str, status: int | None, at: float) -> Frame:
    """Return a refusal. The text is in `message` too, as in other answers of an agent; `status` is ours."""
    frame: Frame = {"type": "error", "error": message, "message": message, "code": code}
    if status is not None:
        frame["status"] = status
    return {**frame, "timestamp": timestamp(at)}


def terminal_frame(text: str) -> Frame:
    """Return what a terminal shows."""
    return {"type": "output", "data": text}


def exit_frame(code: int | None) -> Frame:
    """Return the last frame of a terminal."""
    return {"type": "exit", "code": code}


def change_frame(path: str, event: str, at: float) -> Frame:
    """Return a change of a file."""
    return {"type": "change", "path": path, "event": event, "timestamp": timestamp(at)}


# --- what clients hear --------------------------------------------------------------------------------------

_STATUS: Final = {
    "AUTHENTICATION_REQUIRED": 401,
    "INVALID_TOKEN": 401,
    "FORBIDDEN": 403,
    "PERMISSION_DENIED": 403,
    "PATH_NOT_ALLOWED": 403,
    "DIRECTORY_NOT_FOUND": 404,
    "FILE_NOT_FOUND": 404,
    "PROCESS_NOT_FOUND": 404,
    "RESOURCE_NOT_FOUND": 404,
    "SANDBOX_NOT_FOUND": 404,
    "EXECUTION_TIMEOUT": 408,
    "CONFLICT": 409,
    "RATE_LIMIT_EXCEEDED": 429,
    "INVALID_JSON": 400,
    "INVALID_PATH": 400,
    "INVALID_REQUEST": 400,
    "MISSING_PARAMETER": 400,
    "INTERNAL_ERROR": 500,
    "SERVICE_UNAVAILABLE": 503,
}
"""Frames carry no HTTP status; these are the ones that the same codes have in replies (contract 1.7, 2)."""


def decode_frame_error(frame: Mapping[str, Any], *, what: str) -> APIError:
    """Return the error for a refusal in a frame.

    Args:
        frame: of type ``error``.
        what: the call in words.
    """
    code = as_text(frame.get("code")) or ""
    status = as_integer(frame.get("status")) or _STATUS.get(code)
    text = as_text(first_of(frame, "error", "message")) or "no reason given"
    error_class = APIError if status is None else api_error_class(status)
    return error_class(
        f"{what}: the server refused{f' with {code}' if code else ''}: {text}", status=status, code=code
    )


def decode_change(frame: Mapping[str, Any]) -> FileChange | None:
    """Read a change of a file; None for other frames."""
    path, event = as_text(frame.get("path")), as_text(frame.get("event"))
    if frame.get("type") != "change" or path is None or event is None:
        return None
    return FileChange(path=path, event=event, at=unix_time(frame.get("timestamp")))


_STATES: Final = {
    EndReason.TIMEOUT.value: JobState.TIMED_OUT,
    EndReason.KILLED.value: JobState.KILLED,
    EndReason.LOST.value: JobState.LOST,
}


class RunDecoder:
    """Reads the frames of one run, in order.

    Attributes:
        complete: whether the last frame has come.
    """

    def __init__(self, *, timeout: float | None, what: str) -> None:
        self.complete = False
        self._timeout = timeout
        self._what = what
        self._timed_out = False
        self._success: bool | None = None
        self._result: Mapping[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is known to be over, though more may be said about it."""
        return self._result is not None or self._timed_out

    def take(self, frame: Mapping[str, Any]) -> StreamOutput | None:
        """Take the next frame; returns the output in it, None when there is none.

        Raises:
            APIError: the run was refused, or failed as a request.
        """
        match frame.get("type"):
            case "stdout" | "stderr" as stream:
                text = as_text(frame.get("data"))
                at = unix_time(frame.get("timestamp"))
                return StreamOutput(stream=stream, text=text, at=at) if text else None
            case "error" if frame.get("code") == EXECUTION_TIMEOUT:
                self._timed_out = True  # not for exceptions: what it wrote, and how it ended, comes too
            case "error":
                raise decode_frame_error(frame, what=self._what)
            case "result":
                self._result = frame
            case "complete":
                self.complete = True
                success = frame.get("success")
                self._success = success if isinstance(success, bool) else None
        return None

    def result(self) -> StreamResult | None:
        """Return how the run ended; None while that is not known."""
        if not (self.complete or self.ended):
            return None
        told = self._result or {}
        signal = as_integer(told.get("signal"))
        exit_code = None if signal is not None else as_integer(told.get("exit_code"))
        state = _STATES.get(str(told.get("end_reason")))
        if self._timed_out or told.get("timed_out") is True:
            state, exit_code = JobState.TIMED_OUT, None
        if state is None:
            good = exit_code == 0 if exit_code is not None else signal is None and self._success is True
            state = JobState.COMPLETED if good else JobState.FAILED
        return StreamResult(
            success=state is JobState.COMPLETED,
            exit_code=exit_code,
            signal=signal,
            state=state,
            execution_time=as_number(told.get("execution_time")),
            timeout=self._timeout,
            truncated=told.get("truncated") is True,
        )
