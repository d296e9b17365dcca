"""Numbers about a sandbox and about the server (contract 2.1), and the middleware that counts requests."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from typing import Final

from aiohttp import hdrs, web

from asyncsandbox import protocol
from asyncsandbox.models import JobState
from asyncsandbox.server import exposition, extras
from asyncsandbox.server.handling import Handler, sandbox_of, server_of
from asyncsandbox.server.machine import encode_usage

__all__ = ["control_routes", "count_requests", "routes"]

_MILLISECONDS: Final = 1000.0

_UNKNOWN: Final = "other"
"""The label of what nobody foresaw: a client cannot fill the server's memory by inventing paths or methods."""

routes = web.RouteTableDef()
control_routes = web.RouteTableDef()


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count an answered request and how long it took. Comes before every other middleware."""
    began = time.perf_counter()
    response = await handler(request)
    resource = request.match_info.route.resource
    server_of(request).tally.note(
        request.method if request.method in hdrs.METH_ALL else _UNKNOWN,
        _UNKNOWN if resource is None else resource.canonical,
        response.status,
        time.perf_counter() - began,
    )
    return response


@routes.get("/metrics")
@routes.get("/metrics/snapshot")
async def snapshot(request: web.Request) -> web.Response:
    """Count what this sandbox did, in the names of both SDKs' types. `system` needs psutil.

    Requests, errors and executions are counted from the server's start on. `avg_duration_ms` is the mean of
    all executions and jobs that ran here since then, `p95_duration_ms` is about the latest 256 of them.
    """
    server, sandbox = server_of(request), sandbox_of(request)
    jobs = server.ledger.jobs.of_sandbox(sandbox.id)
    running = sum(job.info.state is JobState.RUNNING for job in jobs)
    runs = server.jobs.tally.of_sandbox(sandbox.id)
    requests, errors = server.requests[sandbox.id], server.errors[sandbox.id]
    body = {
        "uptime_seconds": time.time() - server.started_at,
        "total_requests": requests,
        "requests_total": requests,
        "total_errors": errors,
        "error_count": errors,
        "active_executions": running,
        "total_executions": runs.accepted,
        "avg_duration_ms": runs.average * _MILLISECONDS,
        "p95_duration_ms": runs.p95 * _MILLISECONDS,
        "process": {"count": len(jobs), "running": running, "pid": os.getpid()},
        "cache": {"size": 0, "hits": 0, "misses": 0, "hit_rate": 0.0},
        "timestamp": protocol.timestamp(time.time()),
    }
    if extras.is_installed("psutil"):
        body["system"] = encode_usage(await asyncio.to_thread(server.machine.usage))
    return web.json_response(body)


@routes.get("/metrics/prometheus")
async def sandbox_text(request: web.Request) -> web.Response:
    """Tell Prometheus of this sandbox."""
    await _need_prometheus()
    return _answer(exposition.describe_sandbox(server_of(request), sandbox_of(request)))


@control_routes.get("/metrics/prometheus")
async def server_text(request: web.Request) -> web.Response:
    """Tell Prometheus of the whole server (ours). Needs the API key, which Prometheus sends as a bearer token."""
    await _need_prometheus()
    return _answer(exposition.describe_server(server_of(request)))


async def _need_prometheus() -> None:
    extras.need("prometheus_client", distribution="prometheus-client", what="this text for Prometheus")
    await asyncio.to_thread(importlib.import_module, "prometheus_client")  # a disk to read, the first time


def _answer(text: bytes) -> web.Response:
    return web.Response(body=text, headers={"Content-Type": exposition.CONTENT_TYPE})
