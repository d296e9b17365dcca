"""Published operations that this server does not have: refused at once, in words that say why.

With 404 and never 501: the official clients send again whatever was answered with a 5xx (contract 2.11, 4.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from asyncsandbox.server import refusals

__all__ = ["agent_routes", "routes"]

_DESKTOP = "a sandbox of this server has no desktop: there is no screen to look at, and no mouse or keyboard"
_UPDATE = (
    "the agent is part of this server and is not updated by itself; install another version of asyncsandbox"
)
_STREAM = (
    "this stream is not there, as its messages are described nowhere; use /execute/stream or /commands/stream"
)
_BUILD = (
    "this server builds no templates; its operator offers Python environments with --template NAME=PATH, "
    "and GET /v1/templates lists them"
)

routes = web.RouteTableDef()
agent_routes = web.RouteTableDef()


def _refusal(message: str, code: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def refuse(_request: web.Request) -> web.Response:
        raise refusals.not_found(message, code=code)

    return refuse


for _path, _message, _code in (
    ("/desktop/{rest:.+}", _DESKTOP, "DESKTOP_NOT_AVAILABLE"),
    ("/update/{rest:.+}", _UPDATE, "RESOURCE_NOT_FOUND"),
    ("/stream", _STREAM, "RESOURCE_NOT_FOUND"),
    ("/stream/ipython", _STREAM, "RESOURCE_NOT_FOUND"),
):
    agent_routes.route("*", _path)(_refusal(_message, _code))

for _method, _path in (
    ("POST", "/v1/templates/build"),
    ("GET", "/v1/templates/build/{build_id}/status"),
    ("GET", "/v1/templates/build/{build_id}/logs"),
    ("POST", "/v1/templates/files/upload-link"),
):
    routes.route(_method, _path)(_refusal(_BUILD, "RESOURCE_NOT_FOUND"))
