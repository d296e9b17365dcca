"""Running code and calling back when it has ended (contract 2.6)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

import yarl
from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.server import refusals, wire
from asyncsandbox.server.deliveries import Callback, Delivery, DeliveryState
from asyncsandbox.server.handling import json_body, key_of, sandbox_of, server_of
from asyncsandbox.server.keys import body_digest
from asyncsandbox.server.records import JobKind

__all__ = ["decode_order", "routes"]

_LONGEST_URL: Final = 8192
_LONGEST_SECRET: Final = 4096
_MOST_HEADERS: Final = 64
_HEADER_BYTES: Final = 16 * 1024

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\uffff]*")

_NOT_OURS_TO_GIVE: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say how the message itself is sent."""

routes = web.RouteTableDef()


@routes.post(protocol.ASYNC)
async def start(request: web.Request) -> web.Response:
    """Start code as a background job like any other, and post to a URL when it has ended.

    The URL is the starter's choice and may name any host that this server reaches; `webhooks` says what such a
    call carries and what it never does.
    """
    server, body = server_of(request), await json_body(request)
    callback = decode_order(body)
    order = wire.decode_code(body, timeout=protocol.ASYNC_TIMEOUT)
    key = key_of(request)
    digest = "" if key is None else body_digest({"": request.path, **body})
    record = await server.jobs.start(
        sandbox_of(request), order, kind=JobKind.CODE, key=key, digest=digest, callback=callback
    )
    row = protocol.encode_process(record.info, stdout=None, stderr=None)
    return web.json_response(
        {
            **row,
            "callback_url": callback.url,
            "message": f"Started {record.process_id}; the callback follows when it has ended",
            "timestamp": protocol.timestamp(time.time()),
        }
    )


@routes.get(protocol.async_path("") + "{execution_id}")
async def describe_delivery(request: web.Request) -> web.Response:
    """Say how far the callback of one run got (ours)."""
    server = server_of(request)
    server.ledger.commit()
    execution_id = request.match_info["execution_id"]
    entry = server.ledger.deliveries.get(execution_id)
    if entry is None or entry.sandbox_id != sandbox_of(request).id:
        raise refusals.not_found(f"execution {execution_id!r} is none of this sandbox that calls back")
    return web.json_response(encode_delivery(entry))


def encode_delivery(entry: Delivery) -> dict[str, Any]:
    """Return what is known of one callback (ours). Its headers and secret are told to nobody."""
    settled = protocol.timestamp(entry.settled_at)
    return {
        "execution_id": entry.execution_id,
        "process_id": entry.process_id,
        "delivery_id": entry.delivery_id,
        "callback_url": entry.callback.url,
        "state": entry.state.value,
        "attempts": entry.attempts,
        "last_status": entry.last_status,
        "last_error": entry.last_error,
        "next_attempt_at": protocol.timestamp(entry.next_attempt_at),
        "expires_at": protocol.timestamp(entry.expires_at),
        "delivered_at": settled if entry.state is DeliveryState.DELIVERED else None,
        "given_up_at": settled if entry.state is DeliveryState.GIVEN_UP else None,
    }


def decode_order(body: Mapping[str, Any]) -> Callback:
    """Read whom to call back.

    Raises:
        InvalidRequestError: no absolute http or https URL, or headers or a secret that cannot be sent.
    """
    secret = body.get("callback_signature_secret")
    if secret is not None and (not isinstance(secret, str) or not 0 < len(secret) <= _LONGEST_SECRET):
        raise refusals.invalid(
            f"callback_signature_secret must be a string of 1 to {_LONGEST_SECRET} characters"
        )
    return Callback(url=_url(body.get("callback_url")), headers=_headers(body), secret=secret)


def _url(given: object) -> str:
    if given is None:
        raise refusals.invalid(
            "callback_url is missing; say where to post when the run has ended, or use /execute/background",
            code="MISSING_PARAMETER",
        )
    if not isinstance(given, str) or len(given) > _LONGEST_URL or not given.isprintable() or " " in given:
        raise refusals.invalid(
            f"callback_url must be an absolute http or https URL of up to {_LONGEST_URL} characters"
        )
    try:
        url = yarl.URL(given)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise refusals.invalid(
            "callback_url must be an absolute http or https URL, such as https://example.com/hook"
        )
    return given


def _headers(body: Mapping[str, Any]) -> dict[str, str]:
    given = body.get("callback_headers")
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise refusals.invalid("callback_headers must be an object of strings")
    size = sum(len(name) + len(value) for name, value in given.items())
    if len(given) > _MOST_HEADERS or size > _HEADER_BYTES:
        raise refusals.invalid(
            f"callback_headers may be {_MOST_HEADERS} headers of together {_HEADER_BYTES} characters"
        )
    for name, value in given.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise refusals.invalid(f"callback_headers has {name!r}, which no HTTP header can be")
        if name.lower() in _NOT_OURS_TO_GIVE or name.lower().startswith("proxy-"):
            raise refusals.invalid(f"callback_headers may not set {name!r}: it says how the message is sent")
    return dict(given)
