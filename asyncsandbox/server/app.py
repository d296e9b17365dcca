"""The application: the control plane, and every sandbox's agent below ``/vm/{sandbox_id}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from asyncsandbox.server import (
    absent,
    agent,
    callbacks,
    control,
    environment,
    files,
    metrics,
    openapi,
    processes,
    running,
    streaming,
    terminal,
    watching,
)
from asyncsandbox.server.handling import (
    AGENT_PREFIX,
    MAX_BODY,
    authenticate,
    name_request,
    turn_errors_into_replies,
)
from asyncsandbox.server.ratelimits import limit_requests
from asyncsandbox.server.sockets import keep_sockets
from asyncsandbox.server.state import SERVER, Server

__all__ = ["make_app"]

_AGENT_ROUTES: Final = (
    running.routes,
    processes.routes,
    callbacks.routes,
    environment.routes,
    files.routes,
    agent.routes,
    metrics.routes,
    openapi.agent_routes,
    absent.agent_routes,
)
"""Those first that are asked most: the router tries them in this order."""

_STREAM_ROUTES: Final = (streaming.routes, terminal.routes, watching.routes)
"""These are at the root too, where the token says which sandbox is meant."""


def _below(prefix: str, tables: Iterable[web.RouteTableDef]) -> Iterator[web.RouteDef]:
    for table in tables:
        for route in table:
            if isinstance(route, web.RouteDef):
                yield web.RouteDef(route.method, f"{prefix}{route.path}", route.handler, route.kwargs)


def make_app(server: Server) -> web.Application:
    """Return the application that serves `server`."""
    app = web.Application(
        middlewares=[metrics.count_requests, turn_errors_into_replies, authenticate], client_max_size=MAX_BODY
    )
    limit_requests(app, server.config.rates)
    app[SERVER] = server
    keep_sockets(app)
    app.add_routes(_below(f"{AGENT_PREFIX}{{sandbox_id}}", (*_AGENT_ROUTES, *_STREAM_ROUTES)))
    app.add_routes(_below("", _STREAM_ROUTES))
    app.add_routes(control.routes)
    app.add_routes(metrics.control_routes)
    app.add_routes(openapi.routes)
    app.add_routes(absent.routes)
    app.on_response_prepare.append(name_request)
    return app
