"""What the server answers, as an OpenAPI 3.1 document: ``GET /openapi.json``, no key needed.

One table of operations for each area, beside the handlers of the same name; an operation that is added there
is added here. Tests compare the table with the router both ways, and every answer that they see with its
schema.
"""

from __future__ import annotations

from aiohttp import web

from asyncsandbox.server.handling import sandbox_of
from asyncsandbox.server.openapi.document import (
    AGENT_OPERATIONS,
    CONTROL_OPERATIONS,
    agent_document,
    document,
    placed,
)

__all__ = [
    "AGENT_OPERATIONS",
    "CONTROL_OPERATIONS",
    "agent_document",
    "agent_routes",
    "document",
    "placed",
    "routes",
]

routes = web.RouteTableDef()
agent_routes = web.RouteTableDef()


@routes.get("/openapi.json")
async def describe_server(_request: web.Request) -> web.Response:
    """Return the document of the whole server."""
    return web.json_response(document())


@agent_routes.get("/openapi.json")
async def describe_agent(request: web.Request) -> web.Response:
    """Return the document of this sandbox's agent, in the contract's own paths."""
    return web.json_response(agent_document(sandbox_of(request).id))
