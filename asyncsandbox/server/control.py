"""The control plane: sandboxes and templates (contract 1)."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.server import refusals, wire
from asyncsandbox.server.handling import AGENT_PREFIX, json_body, key_of, number, request_id_of, server_of
from asyncsandbox.server.keys import body_digest
from asyncsandbox.server.records import SandboxRecord, SandboxStatus

__all__ = ["routes"]

_PAGE: Final = 100

_LONGEST_CURSOR: Final = 18
"""Digits."""

routes = web.RouteTableDef()


def _describe(request: web.Request, record: SandboxRecord) -> dict[str, Any]:
    server = server_of(request)
    base = (server.config.public_url or f"{request.scheme}://{request.host}").rstrip("/")
    return wire.encode_sandbox(record, host=f"{base}{AGENT_PREFIX}{record.id}", resources=server.resources)


def _place(request: web.Request) -> int:
    """Return the place in the order of creation that a cursor stands for; nothing but a cursor of ours does.

    Raises:
        InvalidRequestError: it is something else. Beginning again instead would page for ever.
    """
    text = request.query.get("cursor", "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_CURSOR):
        raise refusals.invalid(f"cursor must be the next_cursor of an earlier page, not {text[:50]!r}")
    return int(text)


def _reply(request: web.Request, body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.json_response({**body, "request_id": request_id_of(request)}, status=status)


def _changed(request: web.Request, record: SandboxRecord, **more: object) -> web.Response:
    return _reply(request, {"id": record.id, "status": record.status.value, **more})


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """Say that the server is there. The Python SDK asks again until it hears exactly "healthy" (2.9)."""
    features = {"asyncsandbox": dict(protocol.FEATURES)}
    return web.json_response(
        {"status": "healthy", "instance": server_of(request).ledger.instance, "features": features}
    )


@routes.post("/v1/sandboxes")
async def create(request: web.Request) -> web.Response:
    """Make a sandbox."""
    body = await json_body(request)
    order = wire.decode_create(body)
    record, grant = await server_of(request).sandboxes.create(
        order, key=key_of(request), digest=body_digest(body)
    )
    return _reply(request, _describe(request, record) | wire.encode_grant(grant), status=201)


@routes.get("/v1/sandboxes")
async def list_sandboxes(request: web.Request) -> web.Response:
    """List sandboxes by pages. The cursor is a place in the order of creation, so paging always ends."""
    limit = min(max(number(request, "limit", default=_PAGE), 1), _PAGE)
    after = _place(request)
    status = request.query.get("status")
    if status and status not in list(SandboxStatus):
        allowed = ", ".join(word for word in SandboxStatus if word is not SandboxStatus.DELETED)
        raise refusals.invalid(f"status must be one of {allowed}, not {status!r}")
    server = server_of(request)
    server.ledger.commit()
    matching = [
        record
        for record in server.sandboxes.listed()
        if record.added > after and (not status or record.status.value == status)
    ]
    page = matching[:limit]
    more = len(matching) > limit
    return _reply(
        request,
        {
            "object": "list",
            "data": [_describe(request, record) for record in page],
            "has_more": more,
            "next_cursor": str(page[-1].added) if more else None,
            "url": "/v1/sandboxes",
        },
    )


@routes.get("/v1/sandboxes/{id}")
async def get(request: web.Request) -> web.Response:
    """Describe a sandbox."""
    server = server_of(request)
    server.ledger.commit()
    return _reply(request, _describe(request, server.sandboxes.find(request.match_info["id"])))


@routes.delete("/v1/sandboxes/{id}")
async def delete(request: web.Request) -> web.Response:
    """End everything in a sandbox and delete it. A body, always: the Python SDK cannot do without (4.1)."""
    sandbox_id = request.match_info["id"]
    server = server_of(request)
    await server.sandboxes.delete(sandbox_id)
    del server.requests[sandbox_id], server.errors[sandbox_id]
    return _reply(request, {"id": sandbox_id, "status": SandboxStatus.DELETED.value})


@routes.post("/v1/sandboxes/{id}/pause")
async def pause(request: web.Request) -> web.Response:
    """Stop a sandbox's processes for a while."""
    return _changed(request, await server_of(request).sandboxes.pause(request.match_info["id"]))


@routes.post("/v1/sandboxes/{id}/resume")
@routes.post("/v1/sandboxes/{id}/start")
async def resume(request: web.Request) -> web.Response:
    """Let a paused or stopped sandbox go on."""
    return _changed(request, await server_of(request).sandboxes.resume(request.match_info["id"]))


@routes.post("/v1/sandboxes/{id}/stop")
async def stop(request: web.Request) -> web.Response:
    """End a sandbox's processes; its files stay."""
    return _changed(request, await server_of(request).sandboxes.stop(request.match_info["id"]))


@routes.put("/v1/sandboxes/{id}/timeout")
async def set_timeout(request: web.Request) -> web.Response:
    """Set how long a sandbox lives from now."""
    seconds = wire.decode_seconds(await json_body(request), "timeout_seconds")
    record = await server_of(request).sandboxes.set_timeout(request.match_info["id"], seconds)
    shown = int(seconds) if seconds == int(seconds) else seconds
    return _changed(request, record, timeout_seconds=shown, expires_at=protocol.timestamp(record.expires_at))


@routes.post("/v1/sandboxes/{id}/token/refresh")
async def refresh_token(request: web.Request) -> web.Response:
    """Give a new token for a sandbox."""
    grant = await server_of(request).sandboxes.grant(request.match_info["id"])
    return _reply(request, wire.encode_grant(grant))


@routes.get("/v1/templates")
async def list_templates(request: web.Request) -> web.Response:
    """List the templates."""
    data = [wire.encode_template(template) for template in server_of(request).templates]
    return _reply(
        request,
        {"object": "list", "data": data, "has_more": False, "next_cursor": None, "url": "/v1/templates"},
    )


@routes.get("/v1/templates/{name}")
async def get_template(request: web.Request) -> web.Response:
    """Describe a template, found by name, alias or id."""
    template = server_of(request).templates.find(request.match_info["name"])
    return _reply(request, wire.encode_template(template))


@routes.delete("/v1/templates/{name}")
async def delete_template(request: web.Request) -> web.Response:
    """Refuse: every template is there for everybody, and only the operator takes one away (contract 1.2)."""
    template = server_of(request).templates.find(request.match_info["name"])
    raise refusals.forbidden(f"template {template.name!r} is the server's own; clients cannot delete it")
