"""Runs that call back: their start, what is posted when they have ended, and its signature (contract 2.6)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from asyncsandbox.errors import AuthenticationError
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.protocol._messages import Reply, broken, json_object
from asyncsandbox.protocol._processes import ProcessRow, decode_process, encode_process
from asyncsandbox.protocol._scalars import as_integer, as_number, as_text, first_of, timestamp, unix_time

__all__ = [
    "ASYNC",
    "ASYNC_TIMEOUT",
    "CALLBACK_OUTPUT",
    "DELIVERY_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "async_path",
    "decode_accepted",
    "decode_callback",
    "encode_callback",
    "encode_callback_request",
    "sign",
    "verify_signature",
]

ASYNC: Final = "/execute/async"

ASYNC_TIMEOUT: Final = 3600.0
"""Seconds that such a run may take when nobody says otherwise (D)."""

CALLBACK_OUTPUT: Final = 64 * 1024
"""Ours: bytes of each stream that a callback carries, the end of it."""

TIMESTAMP_HEADER: Final = "X-HopX-Timestamp"
SIGNATURE_HEADER: Final = "X-HopX-Signature"
DELIVERY_HEADER: Final = "X-HopX-Delivery"
"""Ours: names one callback, the same in every try."""

_PREFIX: Final = "sha256="
_LONGEST_TIMESTAMP: Final = 12

_WIRE_STATUS: Final = {JobState.COMPLETED: "completed", JobState.TIMED_OUT: "timeout"}
"""A callback knows three words; whatever is not one of these two is ``failed``."""


def async_path(execution_id: str) -> str:
    """Return the path of what is known of one callback (ours)."""
    return f"{ASYNC}/{quote(execution_id, safe='')}"


def encode_callback_request(
    url: str, *, headers: Mapping[str, str] | None, secret: str | None
) -> dict[str, Any]:
    """Return what the body of ``/execute/async`` has beyond that of ``/execute/background``."""
    body: dict[str, Any] = {"callback_url": url}
    if headers:
        body["callback_headers"] = dict(headers)
    if secret is not None:
        body["callback_signature_secret"] = secret
    return body


def decode_accepted(reply: Reply, *, sandbox_id: str) -> ProcessRow:
    """Read the answer to ``/execute/async``. Ours names a process; a stock one only an execution.

    Raises:
        ProtocolError: it names neither.
    """
    body = json_object(reply)
    named = as_text(body.get("process_id")) or as_text(body.get("execution_id"))
    if not named:
        raise broken(reply, "the answer to an asynchronous start has neither process_id nor execution_id")
    return decode_process({**body, "process_id": named}, sandbox_id=sandbox_id)


def encode_callback(
    info: JobInfo, *, stdout: bytes, stderr: bytes, problem: str | None = None
) -> dict[str, Any]:
    """Return the body of a callback: the contract's fields, and those of the job's row (ours).

    ``stdout_truncated`` says that the body does not hold all of it, ``stdout_dropped`` that nobody has all of it.

    Args:
        info: the record of the job, which has ended.
        stdout: its output, or the end of it.
        stderr: the same.
        problem: why there is no output; None when there is.
    """
    row = encode_process(info, stdout=stdout, stderr=stderr)
    for stream, data, size in (("stdout", stdout, info.stdout_size), ("stderr", stderr, info.stderr_size)):
        row[f"{stream}_dropped"] = row[f"{stream}_truncated"]
        row[f"{stream}_truncated"] = row[f"{stream}_truncated"] or (size or 0) > len(data)
    return {
        **row,
        "sandbox_id": info.sandbox_id,
        "status": _WIRE_STATUS.get(info.state, "failed"),
        "success": info.state is JobState.COMPLETED,
        "execution_time": info.duration or 0.0,
        "error": _error(info),
        "output_error": problem,
        "timestamp": timestamp(info.ended_at),
    }


def _error(info: JobInfo) -> str | None:
    if info.state is JobState.COMPLETED:
        return None
    if info.state is JobState.TIMED_OUT:
        return "it ran longer than its time-out" + ("" if info.timeout is None else f" of {info.timeout:g} s")
    if info.state is JobState.KILLED:
        return "it was killed"
    if info.state is JobState.LOST:
        return "it was lost: its server stopped while it ran"
    if info.signal is not None:
        return f"it was ended by signal {info.signal}"
    return "it failed" if info.exit_code is None else f"it ended with exit code {info.exit_code}"


def decode_callback(body: Mapping[str, Any], *, process_id: str, sandbox_id: str) -> ProcessRow:
    """Read the body of a callback, of any server. Whoever calls back says that the run has ended.

    Args:
        body: as it came.
        process_id: what the handle of the job calls it.
        sandbox_id: where it ran.
    """
    row = {**body, "process_id": process_id, "status": _final_word(body)}
    for stream in ("stdout", "stderr"):
        # The row holds the end of a long stream, and that is what a result shows.
        row[f"{stream}_complete"] = True
        row[stream] = as_text(body.get(stream)) or ""
        if f"{stream}_dropped" in body:
            row[f"{stream}_truncated"] = body[f"{stream}_dropped"]
    ended_at = unix_time(first_of(body, "completed_at", "end_time", "timestamp"))
    row["completed_at"] = ended_at
    took = as_number(body.get("execution_time"))
    if first_of(body, "started_at", "start_time") is None and ended_at is not None and took is not None:
        row["started_at"] = ended_at - took
    return decode_process(row, sandbox_id=sandbox_id)


def _final_word(body: Mapping[str, Any]) -> str:
    status = str(body.get("status", "")).lower()
    if status in ("timeout", "timed_out", "killed", "lost", "completed"):
        return status
    if status == "failed":
        return "killed" if body.get("end_reason") == EndReason.KILLED else status
    succeeded = body.get("success") is True or as_integer(body.get("exit_code")) == 0
    return "completed" if succeeded else "failed"


def sign(secret: str, stamp: str, body: bytes) -> str:
    """Return ``sha256=`` and the HMAC-SHA256 of the timestamp followed directly by the raw body."""
    return f"{_PREFIX}{_hmac(secret, stamp.encode() + body)}"


def _hmac(secret: str, data: bytes) -> str:
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def verify_signature(
    body: bytes,
    *,
    secret: str,
    signature: str | None,
    timestamp: str | None,
    now: float,
    max_age: float = 300.0,
) -> None:
    """Return only if `body` was signed with `secret`, not longer ago than `max_age`.

    Accepts a signature of timestamp and body, which our server makes, or of the body alone: the sources
    disagree (contract 2b). Where the body alone is signed, the age is only what the sender says. Takes the
    same time for every signature of the right form. Never remembers anything: a second delivery of the same
    callback is as good as the first.

    Args:
        body: as it came, byte for byte.
        secret: what both sides know.
        signature: the header ``X-HopX-Signature``; None when there was none.
        timestamp: the header ``X-HopX-Timestamp``, whole Unix seconds; None when there was none.
        now: Unix time.
        max_age: seconds that the timestamp may differ from `now`, in either direction.

    Raises:
        AuthenticationError: a header is missing or malformed (``MISSING_SIGNATURE``), the timestamp is too old
            or too far ahead (``STALE_TIMESTAMP``), or somebody else signed it (``INVALID_SIGNATURE``).

    Protocol: contract 2.6.
    """
    if not signature or not timestamp:
        raise _refused(
            f"a callback needs the headers {SIGNATURE_HEADER} and {TIMESTAMP_HEADER}", "MISSING_SIGNATURE"
        )
    # int() takes signs, spaces and underscores too, each of which would sign another text.
    if not (timestamp.isascii() and timestamp.isdecimal()) or len(timestamp) > _LONGEST_TIMESTAMP:
        raise _refused(f"{TIMESTAMP_HEADER} is no whole number of Unix seconds", "MISSING_SIGNATURE")
    if abs(now - int(timestamp)) > max_age:
        raise _refused(
            f"the callback's timestamp is more than {max_age:g} s away from now; if it was sent just now, a "
            "clock is wrong",
            "STALE_TIMESTAMP",
        )
    prefix, given = signature[: len(_PREFIX)], signature[len(_PREFIX) :].encode(errors="replace")
    both = hmac.compare_digest(_hmac(secret, timestamp.encode() + body).encode(), given)
    alone = hmac.compare_digest(_hmac(secret, body).encode(), given)
    if prefix != _PREFIX or not (both | alone):
        raise _refused(
            "the callback's signature is not one of its body with this secret", "INVALID_SIGNATURE"
        )


def _refused(message: str, code: str) -> AuthenticationError:
    return AuthenticationError(message, status=401, code=code)
