"""Running code and commands, in the background or while somebody waits (contract 2.2, 2.3, 2.7)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from asyncsandbox.errors import ProtocolError
from asyncsandbox.models import DEFAULT_TIMEOUT, EndReason, ExecutionResult, JobSpec, JobState
from asyncsandbox.protocol._messages import IDEMPOTENCY_KEY, Reply, Request, broken, json_object
from asyncsandbox.protocol._processes import ProcessRow, decode_process
from asyncsandbox.protocol._scalars import as_integer, as_number, as_seconds, as_text, from_base64

__all__ = [
    "BACKGROUND",
    "RUN_TIMED_OUT",
    "decode_execution",
    "decode_execution_timeout",
    "decode_started",
    "encode_code",
    "encode_command",
    "needs_inputs",
    "start",
]

BACKGROUND: Final = "/execute/background"

RUN_TIMED_OUT: Final = 408
"""D: what ``/execute`` answers when the run took too long, with the code ``EXECUTION_TIMEOUT``."""


def encode_code(spec: JobSpec) -> dict[str, Any]:
    """Return the body of ``/execute`` and ``/execute/background``.

    `workdir` and `working_dir` are both sent: D documents one, the SDKs send the other (contract 2b). `args`,
    `stdin_base64`, `files` and `own_directory` are ours ("inputs").
    """
    body: dict[str, Any] = {
        "code": spec.code,
        "language": spec.language or "python",
        "timeout": as_seconds(DEFAULT_TIMEOUT if spec.timeout is None else spec.timeout),
    }
    if spec.env:
        body["env"] = dict(spec.env)
    if spec.name is not None:
        body["name"] = spec.name
    if spec.working_dir is not None:
        body["workdir"] = body["working_dir"] = spec.working_dir
    elif spec.files or spec.collect:
        body["own_directory"] = True
    if spec.args:
        body["args"] = list(spec.args)
    if spec.stdin is not None:
        body["stdin_base64"] = base64.b64encode(spec.stdin).decode()
    if spec.files:
        body["files"] = {path: base64.b64encode(data).decode() for path, data in spec.files.items()}
    return body


def needs_inputs(body: Mapping[str, Any]) -> list[str]:
    """Return which of our extensions a start's body uses, by the names that users know."""
    names = {"args": "args", "stdin_base64": "stdin", "files": "files"}
    return [name for field, name in names.items() if field in body]


def encode_command(
    command: str,
    *,
    args: Sequence[str] | None,
    timeout: float,
    env: Mapping[str, str] | None,
    working_dir: str | None,
    name: str | None,
) -> dict[str, Any]:
    """Return the body of ``/commands/run`` and ``/commands/background`` (contract 2.7).

    O has `command` and `args`, run directly; D has one shell string. Without `args` the text goes to
    ``bash -c``, as every official SDK sends it, which both kinds of server run.
    """
    body: dict[str, Any] = {"timeout": as_seconds(timeout)}
    if args is None:
        body |= {"command": "bash", "args": ["-c", command]}
    else:
        body |= {"command": command, "args": list(args)}
    if env:
        body["env"] = dict(env)
    if working_dir is not None:
        body["workdir"] = body["working_dir"] = working_dir
    if name is not None:
        body["name"] = name
    return body


def start(path: str, body: Mapping[str, Any], *, key: str | None) -> Request:
    """Return the request that starts a background job; repeatable only with a key (ours)."""
    headers = {} if key is None else {IDEMPOTENCY_KEY: key}
    return Request(method="POST", path=path, json=body, headers=headers, repeatable=key is not None)


def decode_started(reply: Reply, *, sandbox_id: str) -> ProcessRow:
    """Read the answer to a start (contract 2.3).

    Raises:
        ProtocolError: it names no process.
    """
    body = json_object(reply)
    process_id = body.get("process_id")
    if not isinstance(process_id, str) or not process_id:
        raise broken(reply, "the answer to a start has no process_id")
    return decode_process(body, sandbox_id=sandbox_id)


_ENDED_OTHERWISE: Final = {EndReason.KILLED.value: JobState.KILLED, EndReason.LOST.value: JobState.LOST}
"""Ours: what became of a run whose sandbox was ended, or whose server lost it."""


def decode_execution(reply: Reply, *, timeout: float) -> ExecutionResult:
    """Read the answer to ``/execute`` or ``/commands/run`` (contract 2.2, 2.7)."""
    body = json_object(reply)
    signal = as_integer(body.get("signal"))
    exit_code = None if signal is not None else as_integer(body.get("exit_code"))
    success = body.get("success")
    completed = exit_code == 0 if exit_code is not None else signal is None and success is not False
    omitted = body.get("omitted")
    figures = _figures(body)
    return ExecutionResult(
        stdout=as_text(body.get("stdout")) or "",
        stderr=as_text(body.get("stderr")) or "",
        exit_code=exit_code,
        signal=signal,
        state=_ENDED_OTHERWISE.get(
            str(body.get("end_reason")), JobState.COMPLETED if completed else JobState.FAILED
        ),
        duration=as_number(body.get("execution_time")),
        timeout=timeout,
        result=as_text(body.get("result")),
        png=figures[0] if figures else None,
        figures=figures,
        html=as_text(body.get("html")),
        svg=as_text(body.get("svg")),
        markdown=as_text(body.get("markdown")),
        json=body.get("json"),
        dataframe=body.get("dataframe"),
        omitted=[name for name in omitted if isinstance(name, str)] if isinstance(omitted, list) else (),
    )


def _figures(body: Mapping[str, Any]) -> list[bytes]:
    """Return all pictures: `png` has one of them (contract 2.2), `display` each, where there are several (ours)."""
    display = body.get("display")
    items = display if isinstance(display, list) else []
    pictures = [from_base64(item.get("png")) for item in items if isinstance(item, Mapping)]
    found = [picture for picture in pictures if picture]
    first = from_base64(body.get("png"))
    return found or ([first] if first else [])


def decode_execution_timeout(reply: Reply, *, timeout: float) -> ExecutionResult | None:
    """Read a 408 with ``EXECUTION_TIMEOUT`` (contract 2.2); None for any other refusal.

    `details` with what was written until then is ours.
    """
    try:
        body = json_object(reply)
    except ProtocolError:
        return None
    if reply.status != RUN_TIMED_OUT or body.get("code") != "EXECUTION_TIMEOUT":
        return None
    details = body.get("details")
    details = details if isinstance(details, Mapping) else {}
    return ExecutionResult(
        stdout=as_text(details.get("stdout")) or "",
        stderr=as_text(details.get("stderr")) or "",
        state=JobState.TIMED_OUT,
        duration=as_number(details.get("execution_time")),
        timeout=timeout,
    )
