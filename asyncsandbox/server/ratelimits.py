"""Refuses who asks too often, as the contract says (1.1, 1.7). Off unless the server was told limits.

What authentication lets in counts, whatever comes of it: an agent's requests for its sandbox, the control
plane's for the API key. A refused request has not reached its handler, so nothing was started.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.server import refusals
from asyncsandbox.server.handling import Handler, agent_of
from asyncsandbox.server.rates import Rate, RateWindows, Scope

__all__ = ["limit_requests"]

_LEFT = web.RequestKey("left", protocol.RateLimit)

_CONTROL: Final = "/v1/"
"""The control plane's resources. ``GET /health`` is outside, needs no key and has no limit (contract 1.1)."""

_CREATE: Final = ("POST", "/v1/sandboxes")

_THE_KEY: Final = ""
"""There is one API key, and who comes here has it."""

_IN_WORDS: Final[Mapping[Scope, str]] = {
    "agent": "requests to this sandbox's agent",
    "control": "requests to the control plane",
    "create": "creates of sandboxes",
}


def limit_requests(app: web.Application, rates: Mapping[Scope, Rate]) -> None:
    """Limit an application's requests. Comes after the middleware that authenticates.

    Args:
        app: whose; its middlewares so far go first.
        rates: the limits; with none, nothing is done.
    """
    if not rates:
        return
    windows = RateWindows(rates)

    @web.middleware
    async def refuse_what_is_too_much(request: web.Request, handler: Handler) -> web.StreamResponse:
        quota = windows.take(_callers(request), time.monotonic())
        if quota is not None:
            request[_LEFT] = protocol.RateLimit(
                limit=quota.limit,
                remaining=quota.remaining,
                reset=math.ceil(time.time() + quota.reset_after),
            )
            if not quota.allowed:
                seconds = max(1, math.ceil(quota.reset_after))
                raise refusals.too_many(
                    f"more than {quota.limit} {_IN_WORDS[quota.scope]} in its window; try again in {seconds} s",
                    retry_after=seconds,
                )
        return await handler(request)

    app.middlewares.append(refuse_what_is_too_much)
    app.on_response_prepare.append(_tell)


def _callers(request: web.Request) -> dict[Scope, str]:
    sandbox = agent_of(request)
    if sandbox is not None:
        return {"agent": sandbox.id}
    if not request.path.startswith(_CONTROL):
        return {}
    if (request.method, request.path) == _CREATE:
        return {"control": _THE_KEY, "create": _THE_KEY}
    return {"control": _THE_KEY}


async def _tell(request: web.Request, response: web.StreamResponse) -> None:
    """Say on every answer what is left; streams and WebSockets too, whose headers leave early."""
    left = request.get(_LEFT)
    if left is not None:
        response.headers.update(protocol.encode_rate_limit(left))
