"""Refusals: written so that every official client can read them, read whoever wrote them."""

from __future__ import annotations

import datetime as dt
import email.utils
import math
import time
from collections.abc import Mapping
from typing import Any

from asyncsandbox.errors import APIError, ProtocolError, api_error_class
from asyncsandbox.protocol._messages import Reply, json_object
from asyncsandbox.protocol._scalars import as_number, as_seconds, as_text, first_of, timestamp

__all__ = ["asked_to_wait", "decode_error", "encode_error", "retry_after"]


def encode_error(
    message: str,
    *,
    code: str,
    request_id: str,
    path: str,
    details: Mapping[str, Any] | None = None,
    retry_after: float | None = None,
    agent: bool,
) -> dict[str, Any]:
    """Return the body of a refusal that every official client can read.

    Contract 1.7: the control plane nests it under ``error`` and repeats it flat. Contract 2: the agent writes
    the text in ``error`` and again in ``message``. `retry_after`, in seconds, goes into both places that a
    body has for it; V: the Python SDK obeys the one in ``details`` alone.
    """
    body: dict[str, Any] = {
        "message": message,
        "code": code,
        "request_id": request_id,
        "timestamp": timestamp(dt.datetime.now(dt.UTC).timestamp()),
        "path": path,
        "details": dict(details or {}),
    }
    if retry_after is not None:
        body["retry_after"] = as_seconds(retry_after)
        body["details"]["retry_after_seconds"] = as_seconds(retry_after)
    nested = {"message": message, "code": code, "request_id": request_id, "details": body["details"]}
    return {"error": message if agent else nested, **body}


def retry_after(headers: Mapping[str, str], body: Mapping[str, Any]) -> float | None:
    """Return the seconds that a server asks to wait, from any of the three places (contract 1.7)."""
    nested = body.get("error")
    candidates: list[object] = [headers.get("retry-after"), body.get("retry_after")]
    for holder in (nested, body):
        details = holder.get("details") if isinstance(holder, Mapping) else None
        if isinstance(details, Mapping):
            candidates.append(details.get("retry_after_seconds"))
    for candidate in candidates:
        seconds = _seconds_of(candidate)
        if seconds is not None:
            return seconds
    return None


def asked_to_wait(reply: Reply) -> float | None:
    """Return the seconds that a refusal asks to wait; None when it does not."""
    try:
        body = json_object(reply)
    except ProtocolError:
        body = {}
    return retry_after(reply.headers, body)


def _seconds_of(value: object) -> float | None:
    """Read a number of seconds, or the date that HTTP allows instead in ``Retry-After`` (RFC 9110, 10.2.3)."""
    if isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                return None
        return max(0.0, seconds) if math.isfinite(seconds) else None
    number = as_number(value)
    return None if number is None or number < 0 else number


def decode_error(reply: Reply, *, what: str) -> APIError:
    """Return the error for a refusal.

    Args:
        reply: an answer with a status of 400 or more.
        what: the call in words, such as "starting a job in sandbox 's-1'".
    """
    try:
        body = json_object(reply)
    except ProtocolError:
        body = {}
    nested = body.get("error")
    inner: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}
    text = first_of(inner, "message") or first_of(body, "message") or nested
    if not isinstance(text, str) or not text:
        text = reply.body[:200].decode(errors="replace").strip() or "no reason given"
    code = str(first_of(inner, "code") or first_of(body, "code") or "")
    request_id = (
        first_of(inner, "request_id") or first_of(body, "request_id") or reply.headers.get("x-request-id")
    )
    return api_error_class(reply.status)(
        f"{what}: the server answered {reply.status}{f' {code}' if code else ''}: {text}",
        status=reply.status,
        code=code,
        request_id=as_text(request_id),
        retry_after=retry_after(reply.headers, body),
    )
