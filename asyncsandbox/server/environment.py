"""The variables that every later job of a sandbox gets (contract 2.11)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.server import wire
from asyncsandbox.server.handling import json_body, sandbox_of, server_of

__all__ = ["routes"]

routes = web.RouteTableDef()


def _reply(env: Mapping[str, str]) -> web.Response:
    # Shown as they are: the SDKs read, change and write back the whole, and a mask would be written too.
    return web.json_response(
        {"env_vars": dict(env), "count": len(env), "timestamp": protocol.timestamp(time.time())}
    )


@routes.get("/env")
async def get_env(request: web.Request) -> web.Response:
    """Return all of them."""
    return _reply(sandbox_of(request).env)


@routes.put("/env")
async def replace_env(request: web.Request) -> web.Response:
    """Replace all of them."""
    return await _set(request, wire.decode_env(await json_body(request)))


@routes.patch("/env")
async def merge_env(request: web.Request) -> web.Response:
    """Add to them."""
    added = wire.decode_env(await json_body(request))
    return await _set(request, {**_current(request), **added})


@routes.delete("/env")
async def clear_env(request: web.Request) -> web.Response:
    """Drop all of them."""
    return await _set(request, {})


def _current(request: web.Request) -> Mapping[str, str]:
    """Return them as they are now, after the body was waited for."""
    return server_of(request).sandboxes.find(sandbox_of(request).id).env


async def _set(request: web.Request, env: Mapping[str, str]) -> web.Response:
    record = await server_of(request).sandboxes.set_env(sandbox_of(request).id, env)
    return _reply(record.env)
