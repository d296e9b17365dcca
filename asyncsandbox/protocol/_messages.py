"""Requests and replies, before and after anything about connections is decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from asyncsandbox.errors import ProtocolError

__all__ = ["IDEMPOTENCY_KEY", "FormPart", "Lane", "Reply", "Request", "broken", "get", "json_object"]

IDEMPOTENCY_KEY: Final = "Idempotency-Key"

Lane = Literal["call", "status", "hold", "end"]


@attrs.frozen(kw_only=True)
class FormPart:
    """One part of a multipart body."""

    name: str
    data: bytes | str
    filename: str | None = None


@attrs.frozen(kw_only=True)
class Request:
    """One call, before anything about connections is decided.

    Attributes:
        method: the HTTP method.
        path: below the base URL, already percent-encoded.
        params: the query.
        json: the JSON body; None = no body.
        form: the parts of a multipart body.
        headers: beyond what every call carries.
        repeatable: whether sending it twice does no harm.
        lane: which bound on requests in flight it counts against: "call", "status" (looks at jobs), "hold" (runs:
            the server answers when they have ended), or "end" (kills, which must not wait behind runs).
    """

    method: str
    path: str
    params: Mapping[str, str] = attrs.field(factory=dict)
    json: Any = None
    form: Sequence[FormPart] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict)
    repeatable: bool = False
    lane: Lane = "call"


@attrs.frozen(kw_only=True)
class Reply:
    """One answer.

    Attributes:
        status: the HTTP status.
        headers: names in lower case.
        body: the bytes.
        url: where it came from, without its query, for messages.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    url: str = ""


def get(path: str, /, **params: str) -> Request:
    """Return a GET, which may be repeated."""
    return Request(method="GET", path=path, params=params, repeatable=True)


def json_object(reply: Reply) -> dict[str, Any]:
    """Return the JSON object in a reply.

    Raises:
        ProtocolError: the body is no JSON, or no object.
    """
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError) as exc:
        raise broken(reply, f"the body is no JSON ({exc})") from exc
    if not isinstance(value, dict):
        raise broken(reply, f"the body is a JSON {type(value).__name__}, not an object")
    return value


def broken(reply: Reply, detail: str) -> ProtocolError:
    shown = reply.body[:200].decode(errors="replace")
    return ProtocolError(
        f"{reply.url or 'the server'} answered {reply.status} with something this protocol has no word for: "
        f"{detail}; it began with {shown!r}",
        url=reply.url,
        detail=detail,
    )
