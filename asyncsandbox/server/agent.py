"""What a sandbox's agent says about itself (contract 2.1, 2.11)."""

from __future__ import annotations

import os
import platform
import time

from aiohttp import web

from asyncsandbox import _version, protocol
from asyncsandbox.models import JobState
from asyncsandbox.server.handling import sandbox_of, server_of

__all__ = ["routes"]

_AGENT = "asyncsandbox"

routes = web.RouteTableDef()


def _uptime(request: web.Request) -> float:
    return time.time() - server_of(request).started_at


def _features(request: web.Request) -> dict[str, object]:
    return {
        "code_execution": True,
        "file_operations": True,
        "terminal_access": False,
        "websocket_streaming": False,
        "rich_output": True,
        "background_jobs": True,
        "ipython_kernel": False,
        "system_metrics": False,
        "languages": server_of(request).engine.languages(),
        "asyncsandbox": dict(protocol.FEATURES),
    }


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
            "vm_id": sandbox_of(request).id,
            "instance": server_of(request).ledger.instance,
            "features": _features(request),
            "active_streams": 0,
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
    ip, _, port = request.host.rpartition(":")
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
            "endpoints": sorted(
                {route.resource.canonical for route in request.app.router.routes() if route.resource}
            ),
            "features": _features(request),
        }
    )


@routes.get("/metrics")
@routes.get("/metrics/snapshot")
async def metrics(request: web.Request) -> web.Response:
    """Count what this sandbox did, in the names of both SDKs' types."""
    server, sandbox_id = server_of(request), sandbox_of(request).id
    jobs = server.ledger.jobs.of_sandbox(sandbox_id)
    running = sum(job.info.state is JobState.RUNNING for job in jobs)
    requests, errors = server.requests[sandbox_id], server.errors[sandbox_id]
    return web.json_response(
        {
            "uptime_seconds": _uptime(request),
            "total_requests": requests,
            "requests_total": requests,
            "total_errors": errors,
            "error_count": errors,
            "active_executions": running,
            "total_executions": len(jobs),
            "process": {"count": len(jobs), "running": running, "pid": os.getpid()},
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
