"""What a sandbox's agent says about itself (contract 2.1, 2.11)."""

from __future__ import annotations

import asyncio
import platform
import re
import time

from aiohttp import hdrs, web

from asyncsandbox import _version, protocol
from asyncsandbox.server import extras, machine
from asyncsandbox.server.handling import AGENT_PREFIX, sandbox_of, server_of
from asyncsandbox.server.machine import encode_usage

__all__ = ["routes"]

_AGENT = "asyncsandbox"

_BELOW = f"{AGENT_PREFIX}{{sandbox_id}}"

routes = web.RouteTableDef()


def _uptime(request: web.Request) -> float:
    return time.time() - server_of(request).started_at


def _features(request: web.Request) -> dict[str, object]:
    return {
        "code_execution": True,
        "file_operations": True,
        "terminal_access": True,
        "websocket_streaming": True,
        "rich_output": True,
        "background_jobs": True,
        "ipython_kernel": False,
        "system_metrics": extras.is_installed("psutil"),
        "languages": server_of(request).engine.languages(),
        "asyncsandbox": dict(protocol.FEATURES),
    }


def _endpoints(request: web.Request) -> dict[str, str]:
    """Return ``{name: methods and path}`` of the agent, the type that both SDKs give it."""
    methods: dict[str, set[str]] = {}
    for route in request.app.router.routes():
        path = "" if route.resource is None else route.resource.canonical
        if path.startswith(_BELOW) and route.method != hdrs.METH_HEAD:
            methods.setdefault(path.removeprefix(_BELOW), set()).add(route.method)
    return {_name_of(path): f"{', '.join(sorted(words))} {path}" for path, words in sorted(methods.items())}


def _name_of(path: str) -> str:
    return "_".join(re.findall(r"\w+", path)) or "root"


@routes.get("/")
@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """Say that the sandbox is there, and what it can do."""
    return web.json_response(
        {
            "status": "healthy",
            "agent": _AGENT,
            "version": _version.__version__,
            "uptime": f"{_uptime(request):.3f}s",
            "uptime_seconds": _uptime(request),
            "vm_id": sandbox_of(request).id,
            "instance": server_of(request).ledger.instance,
            "features": _features(request),
            "active_streams": server_of(request).streams[sandbox_of(request).id],
            "timestamp": protocol.timestamp(time.time()),
        }
    )


@routes.get("/ping")
async def ping(_request: web.Request) -> web.Response:
    """Answer."""
    return web.json_response({"message": "pong"})


@routes.get("/info")
async def info(request: web.Request) -> web.Response:
    """Describe the machine, in both spellings of the contract."""
    uname = platform.uname()
    ip, port = request.url.host or "", str(request.url.port or "")
    started = protocol.timestamp(server_of(request).started_at)
    return web.json_response(
        {
            "agent": _AGENT,
            "version": _version.__version__,
            "agent_version": _version.__version__,
            "vm_id": sandbox_of(request).id,
            "ip": ip,
            "vm_ip": ip,
            "port": port,
            "vm_port": port,
            "platform": f"{uname.system.lower()}/{uname.machine}",
            "os": uname.system.lower(),
            "arch": uname.machine,
            "start_time": started,
            "uptime": _uptime(request),
            "uptime_seconds": _uptime(request),
            "endpoints": _endpoints(request),
            "features": _features(request),
        }
    )


@routes.get("/system")
async def system(request: web.Request) -> web.Response:
    """Describe the machine and how busy it is, in the words of the documentation and of the SDKs' types."""
    extras.need("psutil", distribution="psutil", what="the state of the machine")
    server, sandbox = server_of(request), sandbox_of(request)
    usage = await asyncio.to_thread(server.machine.usage)
    release, model = await asyncio.to_thread(lambda: (machine.os_release(), machine.cpu_model()))
    features = _features(request)
    return web.json_response(
        {
            **encode_usage(usage),
            "uptime": usage.uptime,
            "os": {**release, "timezone": time.strftime("%Z")},
            "hardware": {
                "cpu_cores": usage.cores,
                "cpu_model": model,
                "memory_mb": server.resources["memory_mb"],
                "disk_mb": server.resources["disk_mb"],
            },
            "network": {"ip": request.url.host, "internet_access": sandbox.internet_access},
            "environment": {"template": sandbox.template, "languages": features["languages"]},
            "capabilities": sorted(name for name, there in features.items() if there is True),
            "timestamp": protocol.timestamp(time.time()),
        }
    )


@routes.get("/cache/stats")
async def cache_stats(_request: web.Request) -> web.Response:
    """There is no cache."""
    empty = {"size": 0, "max_size": 0, "total_hits": 0, "ttl": 0}
    return web.json_response({"cache": empty, "timestamp": protocol.timestamp(time.time())})


@routes.post("/cache/clear")
async def cache_clear(_request: web.Request) -> web.Response:
    """There is no cache."""
    return web.json_response({"message": "there is no cache", "entries_removed": 0})


@routes.get("/jupyter/sessions")
async def jupyter_sessions(_request: web.Request) -> web.Response:
    """There are none."""
    return web.json_response({"sessions": []})
