"""Background jobs of a sandbox: list, look at, read, kill, remove (contract 2.4, 2.5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.models import StreamName
from asyncsandbox.server import extras, machine, refusals
from asyncsandbox.server.handling import describe, find_job, json_body, number, sandbox_of, server_of
from asyncsandbox.server.jobtable import CursorExpired, Delta
from asyncsandbox.server.machine import ProcessSample
from asyncsandbox.server.outputs import SMALL_OUTPUT
from asyncsandbox.server.records import JobKind, JobRecord
from asyncsandbox.server.state import Server

__all__ = ["routes"]

_OUTPUT_BUDGET: Final = 4 * 1024 * 1024
"""Bytes of output that one list holds."""

_DELTA_ROWS: Final = 1_000

_READ_LIMIT: Final = 1024 * 1024

_MEBIBYTE: Final = 1024 * 1024

_STREAMS: Final[dict[str, StreamName]] = {"stdout": "stdout", "stderr": "stderr"}

routes = web.RouteTableDef()


def _rows(server: Server, records: Sequence[JobRecord]) -> list[dict[str, Any]]:
    """Return rows in the order of `records`; the newest have their output in them while the budget lasts."""
    outputs = server.outputs.small(reversed(records), budget=_OUTPUT_BUDGET)
    rows = (outputs[record.process_id] for record in records)
    return [protocol.encode_process(shown.info, stdout=pair[0], stderr=pair[1]) for shown, pair in rows]


@routes.get("/execute/processes")
async def list_jobs(request: web.Request) -> web.Response:
    """List every background job, or with ``since`` (ours) what changed after that cursor."""
    server = server_of(request)
    server.ledger.commit()
    since = request.query.get("since")
    body = _whole_list(request) if since is None else _changes(request, since)
    return web.json_response(
        {**body, "count": len(body["processes"]), "timestamp": protocol.timestamp(time.time())}
    )


def _cursor(server: Server, seq: int) -> str:
    return f"{server.ledger.instance}.{seq}"


def _whole_list(request: web.Request) -> dict[str, Any]:
    server = server_of(request)
    jobs = server.ledger.jobs.of_sandbox(sandbox_of(request).id)
    listed = [record for record in jobs if record.kind is not JobKind.EXECUTION]
    return {"processes": _rows(server, listed), "cursor": _cursor(server, server.ledger.jobs.next_seq - 1)}


def _changes(request: web.Request, since: str) -> dict[str, Any]:
    server = server_of(request)
    instance, _, number_text = since.partition(".")
    if instance != server.ledger.instance or not number_text.isdecimal():
        raise _expired(since)
    try:
        delta = server.ledger.jobs.since(sandbox_of(request).id, int(number_text), limit=_DELTA_ROWS)
    except CursorExpired:
        raise _expired(since) from None
    rows, delta = _changed_rows(server, delta)
    return {
        "processes": rows,
        "removed": list(delta.removed),
        "more": delta.more,
        "cursor": _cursor(server, delta.seq),
    }


def _expired(cursor: str) -> Exception:
    return refusals.gone(
        f"the cursor {cursor!r} is not, or no longer, known here; list without since", code="CURSOR_EXPIRED"
    )


def _changed_rows(server: Server, delta: Delta) -> tuple[list[dict[str, Any]], Delta]:
    """Return a delta's rows, each finished one with its small output; shortened where that is too much."""
    finished = [record for record in delta.records if record.finished]
    outputs = server.outputs.small(finished, budget=len(finished) * 2 * SMALL_OUTPUT)
    rows: list[dict[str, Any]] = []
    size = 0
    for record in delta.records:
        shown, pair = outputs.get(record.process_id, (record, (None, None)))
        size += sum(len(data) for data in pair if data is not None)
        if size > _OUTPUT_BUDGET and rows:
            told = delta.records[len(rows) - 1].seq
            return rows, Delta(records=delta.records[: len(rows)], removed=(), seq=told, more=True)
        rows.append(protocol.encode_process(shown.info, stdout=pair[0], stderr=pair[1]))
    return rows, delta


@routes.get("/execute/processes/{process_id}")
async def get_job(request: web.Request) -> web.Response:
    """Describe one job (ours)."""
    record = find_job(request, request.match_info["process_id"])
    return web.json_response(describe(server_of(request), record))


@routes.delete("/execute/processes/{process_id}")
async def remove_job(request: web.Request) -> web.Response:
    """Remove a finished job: record, output, its own directory (ours)."""
    record = find_job(request, request.match_info["process_id"])
    await server_of(request).jobs.remove(record)
    return web.json_response({"process_id": record.process_id, "removed": True})


@routes.get("/execute/processes/{process_id}/output")
async def read_output(request: web.Request) -> web.Response:
    """Return bytes of one stream from an offset; headers say where to go on (ours)."""
    word = request.query.get("stream", "stdout")
    stream = _STREAMS.get(word)
    if stream is None:
        raise refusals.invalid(f"stream must be stdout or stderr, not {word!r}")
    offset = number(request, "offset", default=0)
    limit = min(max(number(request, "limit", default=_READ_LIMIT), 0), _READ_LIMIT)
    record = find_job(request, request.match_info["process_id"])
    outputs = server_of(request).outputs
    piece = outputs.read(record, stream, offset=offset, limit=limit)
    headers = {
        protocol.OFFSET_HEADER: str(piece.offset),
        protocol.NEXT_OFFSET_HEADER: str(piece.next_offset),
        protocol.EOF_HEADER: "true" if piece.eof else "false",
    }
    return web.Response(body=piece.data, headers=headers, content_type="application/octet-stream")


@routes.delete("/execute/kill")
@routes.post("/execute/kill")
async def kill_by_parameter(request: web.Request) -> web.Response:
    """End the job that the query (O) or the body (D) names."""
    given = request.query.get("process_id")
    if given is None:
        named = (await json_body(request, required=False)).get("process_id")
        given = named if isinstance(named, str) else None
    return await _kill(request, given)


@routes.delete("/execute/kill/{process_id}")
@routes.post("/execute/kill/{process_id}")
@routes.post("/processes/{process_id}/kill")
async def kill_by_path(request: web.Request) -> web.Response:
    """End the job that the path names (D0 and the SDKs)."""
    return await _kill(request, request.match_info["process_id"])


async def _kill(request: web.Request, process_id: str | None) -> web.Response:
    server = server_of(request)
    record = find_job(request, process_id)
    message = "had ended already" if record.finished else "ended"
    record = await server.jobs.kill(record.process_id)
    return web.json_response({**describe(server, record), "message": message})


@routes.get("/processes")
async def list_processes(request: web.Request) -> web.Response:
    """List the operating system's processes of this sandbox (2.1), then its background jobs (2b).

    Background jobs stand there because the Python SDK looks for them there. They are those rows that have a
    `process_id`; without psutil they are all rows.
    """
    server = server_of(request)
    rows = await _system_rows(server, sandbox_of(request).id)
    server.ledger.commit()
    rows += _whole_list(request)["processes"]
    return web.json_response(
        {"processes": rows, "count": len(rows), "timestamp": protocol.timestamp(time.time())}
    )


async def _system_rows(server: Server, sandbox_id: str) -> list[dict[str, Any]]:
    top = server.engine.top_process(sandbox_id)
    if top is None or not extras.is_installed("psutil"):
        return []
    return [_system_row(sample) for sample in await asyncio.to_thread(machine.processes_below, top)]


def _system_row(sample: ProcessSample) -> dict[str, Any]:
    started = protocol.timestamp(sample.started_at)
    return {
        "pid": sample.pid,
        "ppid": sample.parent,
        "name": sample.name,
        "command": sample.command,
        "user": sample.user,
        "status": sample.status,
        "cpu_percent": sample.cpu_percent,
        "memory_mb": round(sample.memory_bytes / _MEBIBYTE, 2),
        "memory_bytes": sample.memory_bytes,
        "memory_percent": sample.memory_percent,
        "threads": sample.threads,
        "start_time": started,
        "started_at": started,
    }
