"""The application: the control plane, and every sandbox's agent below ``/vm/{sandbox_id}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from asyncsandbox.server import absent, agent, control, environment, files, openapi, processes, running
from asyncsandbox.server.handling import (
    AGENT_PREFIX,
    MAX_BODY,
    authenticate,
    name_request,
    turn_errors_into_replies,
)
from asyncsandbox.server.state import SERVER, Server

__all__ = ["make_app"]

_AGENT_ROUTES: Final = (
    running.routes,
    processes.routes,
    environment.routes,
    files.routes,
    agent.routes,
    openapi.agent_routes,
    absent.agent_routes,
)
"""Those first that are asked most: the router tries them in this order."""


def _below(prefix: str, tables: Iterable[web.RouteTableDef]) -> Iterator[web.RouteDef]:
    for table in tables:
        for route in table:
            if isinstance(route, web.RouteDef):
                yield web.RouteDef(route.method, f"{prefix}{route.path}", route.handler, route.kwargs)


def make_app(server: Server) -> web.Application:
    """Return the application that serves `server`."""
    app = web.Application(middlewares=[turn_errors_into_replies, authenticate], client_max_size=MAX_BODY)
    app[SERVER] = server
    app.add_routes(_below(f"{AGENT_PREFIX}{{sandbox_id}}", _AGENT_ROUTES))
    app.add_routes(control.routes)
    app.add_routes(openapi.routes)
    app.add_routes(absent.routes)
    app.on_response_prepare.append(name_request)
    return app
