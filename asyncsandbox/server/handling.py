"""What every handler needs: who is asking, what for, and how refusals become replies."""

from __future__ import annotations

import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from asyncsandbox import protocol
from asyncsandbox.errors import APIError
from asyncsandbox.server import refusals
from asyncsandbox.server.outputs import SMALL_OUTPUT
from asyncsandbox.server.records import JobKind, JobRecord, SandboxRecord
from asyncsandbox.server.state import SERVER, Server

__all__ = [
    "AGENT_PREFIX",
    "MAX_BODY",
    "REQUEST_ID",
    "Handler",
    "agent_of",
    "authenticate",
    "describe",
    "find_job",
    "json_body",
    "key_of",
    "name_request",
    "number",
    "refuse",
    "request_id_of",
    "sandbox_of",
    "server_of",
    "turn_errors_into_replies",
]

log = logging.getLogger(__name__)

AGENT_PREFIX: Final = "/vm/"

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of a request's body. Uploads are not read into memory and have no such limit."""

REQUEST_ID: Final = "X-Request-ID"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = web.RequestKey("request_id", str)
_SANDBOX = web.RequestKey("sandbox", SandboxRecord)

_OPEN_AGENT_PATHS: Final = frozenset({"/", "/health", "/info", "/ping", "/system", "/openapi.json"})
"""O asks for no token on these; the last is ours."""

_OPEN_CONTROL_PATHS: Final = frozenset({"/health", "/openapi.json"})

_HTTP_CODES: Final = {
    404: "RESOURCE_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
}


def server_of(request: web.Request) -> Server:
    """Return the server that a request came to."""
    return request.app[SERVER]


def sandbox_of(request: web.Request) -> SandboxRecord:
    """Return the sandbox whose agent a request came to, as it is now."""
    return request[_SANDBOX]


def agent_of(request: web.Request) -> SandboxRecord | None:
    """Return the sandbox whose agent a request came to; None when it came to the control plane."""
    return request.get(_SANDBOX)


def describe(server: Server, record: JobRecord) -> dict[str, Any]:
    """Return the row of one job, with its output as far as it is small."""
    shown, pair = server.outputs.small([record], budget=2 * SMALL_OUTPUT)[record.process_id]
    return protocol.encode_process(shown.info, stdout=pair[0], stderr=pair[1])


def find_job(request: web.Request, process_id: str | None) -> JobRecord:
    """Return a job of the request's sandbox, everything so far committed.

    Raises:
        InvalidRequestError: no id was given.
        NotFoundError: there is no such job.
    """
    if not process_id:
        raise refusals.invalid("process_id is missing; say which job is meant", code="MISSING_PARAMETER")
    server = server_of(request)
    server.ledger.commit()
    record = server.ledger.jobs.find(sandbox_of(request).id, process_id)
    if record is None or record.kind is JobKind.EXECUTION:
        removed = server.ledger.jobs.is_removed(sandbox_of(request).id, process_id)
        # The JavaScript SDK takes a 404 that says "sandbox" and "not found" for an expired sandbox (contract 1.7).
        message = f"process {process_id!r} was removed" if removed else f"there is no process {process_id!r}"
        raise refusals.not_found(message, code="PROCESS_NOT_FOUND")
    return record


def request_id_of(request: web.Request) -> str:
    """Return the id under which the log knows this request."""
    return str(request.get(_REQUEST_ID, ""))


def key_of(request: web.Request) -> str | None:
    """Return the request's idempotency key."""
    return request.headers.get(protocol.IDEMPOTENCY_KEY)


async def json_body(request: web.Request, *, required: bool = True) -> dict[str, Any]:
    """Return the JSON object that a request carries.

    Args:
        request: as it came.
        required: whether no body at all is refused; else it counts as an empty object.

    Raises:
        InvalidRequestError: the body is no JSON, or no object.
        HTTPRequestEntityTooLarge: it is larger than the application allows.
    """
    if (request.content_length or 0) > MAX_BODY:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY)  # before it is read
    try:
        raw = await request.read()
    except (web.RequestPayloadError, BadHttpMessage) as exc:
        raise refusals.invalid(
            "the request body is not encoded as its headers say", code="INVALID_JSON"
        ) from exc
    if not raw.strip() and not required:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise refusals.invalid(f"the request body is no JSON: {exc}", code="INVALID_JSON") from exc
    if not isinstance(body, dict):
        raise refusals.invalid("the request body must be a JSON object", code="INVALID_JSON")
    return body


def number(request: web.Request, name: str, *, default: int) -> int:
    """Return a whole number from the query.

    Raises:
        InvalidRequestError: it is something else.
    """
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise refusals.invalid(f"{name} must be a whole number, not {text!r}") from None


def refuse(
    request: web.Request,
    status: int,
    *,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    retry_after: float | None = None,
) -> web.Response:
    """Return a refusal that every official client can read; `retry_after` seconds are said in all three places."""
    body = protocol.encode_error(
        message,
        code=code,
        request_id=request_id_of(request),
        path=request.path,
        details=details,
        retry_after=retry_after,
        agent=request.path.startswith(AGENT_PREFIX) or request.path in protocol.STREAMS,
    )
    headers = None if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return web.json_response(body, status=status, headers=headers)


@web.middleware
async def turn_errors_into_replies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and answer in the contract's words whatever goes wrong."""
    request_id = request[_REQUEST_ID] = secrets.token_hex(8)
    try:
        return await handler(request)
    except APIError as exc:
        response = refuse(
            request,
            exc.status or 400,
            code=exc.code or "INVALID_REQUEST",
            message=str(exc),
            retry_after=exc.retry_after,
        )
    except web.HTTPException as exc:
        code = _HTTP_CODES.get(exc.status, "INVALID_REQUEST")
        message = f"{request.method} {request.path}: {exc.text or exc.reason}"
        response = refuse(request, exc.status, code=code, message=message)
        if "Allow" in exc.headers:  # a 405 has to say what would be allowed (RFC 9110, 15.5.6)
            response.headers["Allow"] = exc.headers["Allow"]
    except Exception:  # the one boundary behind which nothing may break the connection without a word
        log.exception("request %s (%s %s) failed", request_id, request.method, request.path)
        message = f"the server failed at this request; its log says more under {request_id}"
        response = refuse(request, 500, code="INTERNAL_ERROR", message=message)
    return response


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id beside every answer, those that are sent in pieces included."""
    response.headers[REQUEST_ID] = request_id_of(request)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who has the API key, or on an agent the token of that sandbox."""
    if request.path.startswith(AGENT_PREFIX):
        return await _enter_agent(request, handler)
    if request.path in protocol.STREAMS:
        return await _enter_by_token(request, handler)
    if request.path not in _OPEN_CONTROL_PATHS:
        given = request.headers.get("X-API-Key") or _bearer(request)
        if not given:
            raise refusals.unauthorized(
                "no API key; send it as X-API-Key or as Authorization: Bearer", code="AUTHENTICATION_REQUIRED"
            )
        if not hmac.compare_digest(given.encode(), server_of(request).config.api_key.encode()):
            raise refusals.unauthorized("the API key is not the one of this server", code="INVALID_TOKEN")
    return await handler(request)


async def _enter_agent(request: web.Request, handler: Handler) -> web.StreamResponse:
    sandbox_id, slash, rest = request.path.removeprefix(AGENT_PREFIX).partition("/")
    server = server_of(request)
    request[_SANDBOX] = server.sandboxes.find(sandbox_id)
    server.requests[sandbox_id] += 1
    try:
        if slash + rest not in _OPEN_AGENT_PATHS:
            _check_token(request, sandbox_id)
        return await handler(request)
    except Exception:
        server.errors[sandbox_id] += 1
        raise


async def _enter_by_token(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let the token say which sandbox is meant: official clients drop the path of `public_host` (V)."""
    server = server_of(request)
    sandbox_id = server.ledger.sandboxes.opened_by(_bearer(request), now=time.time())
    if sandbox_id is None:
        raise _wrong_token()
    request[_SANDBOX] = server.sandboxes.find(sandbox_id)
    server.requests[sandbox_id] += 1
    return await handler(request)


def _check_token(request: web.Request, sandbox_id: str) -> None:
    token = _bearer(request)
    if not token or not server_of(request).ledger.sandboxes.opens(token, sandbox_id, now=time.time()):
        raise _wrong_token()


def _wrong_token() -> APIError:
    return refusals.unauthorized(
        "the token does not open this sandbox; refresh it by the control plane", code="INVALID_TOKEN"
    )


def _bearer(request: web.Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
