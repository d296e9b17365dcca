"""Running code and commands, in the background or while somebody waits (contract 2.2, 2.3, 2.7)."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import attrs
from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.models import DEFAULT_TIMEOUT, EndReason, JobState, StreamName
from asyncsandbox.server import refusals, richresults, wire
from asyncsandbox.server.engine import Order
from asyncsandbox.server.handling import describe, json_body, key_of, refuse, sandbox_of, server_of
from asyncsandbox.server.keys import body_digest
from asyncsandbox.server.records import JobKind, JobRecord

__all__ = ["routes"]

_EXECUTE_TIMEOUT: Final = 60.0
_COMMAND_TIMEOUT: Final = 30.0

_PRESENCE_SECONDS: Final = 0.25
"""How often to look whether whoever asked for an execution is still there; nobody tells the handler."""

routes = web.RouteTableDef()


@routes.post(protocol.BACKGROUND)
async def start_code(request: web.Request) -> web.Response:
    """Start code in the background; answered as soon as the start cannot be forgotten any more."""
    body = await json_body(request)
    return await _start(request, body, wire.decode_code(body, timeout=DEFAULT_TIMEOUT), JobKind.CODE)


@routes.post("/commands/background")
async def start_command(request: web.Request) -> web.Response:
    """Start a command in the background."""
    body = await json_body(request)
    return await _start(request, body, wire.decode_command(body, timeout=DEFAULT_TIMEOUT), JobKind.COMMAND)


async def _start(request: web.Request, body: dict[str, Any], order: Order, kind: JobKind) -> web.Response:
    server = server_of(request)
    key = key_of(request)
    digest = "" if key is None else body_digest({"": request.path, **body})
    record = await server.jobs.start(sandbox_of(request), order, kind=kind, key=key, digest=digest)
    if record.finished:  # already, or since the key came first: the answer is all that anybody need ask for
        server.ledger.commit()  # an end is told only once it is on disk, and its output is found there
        row = describe(server, record)
    else:
        row = protocol.encode_process(record.info, stdout=None, stderr=None)
    message = f"Background process started: {record.process_id}"
    return web.json_response({**row, "message": message, "timestamp": protocol.timestamp(time.time())})


@routes.post("/execute")
async def execute(request: web.Request) -> web.Response:
    """Run code and answer with what came of it; of Python also with what a notebook would show."""
    order = wire.decode_code(await json_body(request), timeout=_EXECUTE_TIMEOUT)
    return await _execute(request, attrs.evolve(order, rich=True))


@routes.post("/commands/run")
async def run_command(request: web.Request) -> web.Response:
    """Run a command and answer with what came of it. A failing one is 200: a 5xx would run it again."""
    order = wire.decode_command(await json_body(request), timeout=_COMMAND_TIMEOUT)
    return await _execute(request, order)


async def _execute(request: web.Request, order: Order) -> web.Response:
    server = server_of(request)
    record = await server.jobs.start(sandbox_of(request), order, kind=JobKind.EXECUTION)
    record = await _wait_while_present(request, record)
    try:
        return await _answer(request, record)
    finally:
        if server.ledger.jobs.get(record.process_id) is not None:
            await server.jobs.remove(record)


async def _wait_while_present(request: web.Request, record: JobRecord) -> JobRecord:
    """Wait for the end; end the job when whoever asked for it has hung up."""
    jobs = server_of(request).jobs
    ended = asyncio.ensure_future(jobs.ended(record.process_id))
    try:
        while not ended.done():
            await asyncio.wait([ended], timeout=_PRESENCE_SECONDS)
            if not ended.done() and (request.transport is None or request.transport.is_closing()):
                await jobs.kill(record.process_id)
        return ended.result()
    finally:
        ended.cancel()


async def _text(request: web.Request, record: JobRecord, stream: StreamName) -> str:
    """Return what is kept of a stream; off the event loop, as it may be megabytes from the disk."""
    outputs = server_of(request).outputs
    if outputs.is_spooled(record, stream):
        return (await asyncio.to_thread(outputs.whole, record, stream)).decode(errors="replace")
    return outputs.whole(record, stream).decode(errors="replace")


async def _answer(request: web.Request, record: JobRecord) -> web.Response:
    info = record.info
    stdout = await _text(request, record, "stdout")
    stderr = await _text(request, record, "stderr")
    if info.state is JobState.TIMED_OUT:
        details = {"stdout": stdout, "stderr": stderr, "execution_time": info.duration}
        message = f"the execution ran longer than its time-out of {info.timeout:g} s and was ended"
        return refuse(request, 408, code="EXECUTION_TIMEOUT", message=message, details=details)
    if info.started_at is None and info.end_reason is EndReason.UNKNOWN:
        raise refusals.invalid(f"it could not be started: {stderr.strip()}", code="INVALID_REQUEST")
    # What a shell or subprocess would show of a signal; `signal` says it without a code that nobody returned.
    exit_code = -info.signal if info.signal is not None else info.exit_code
    return web.json_response(
        {
            "success": info.state is JobState.COMPLETED,
            "stdout": stdout,
            "stderr": stderr,
            "stdout_truncated": info.stdout_truncated,
            "stderr_truncated": info.stderr_truncated,
            "exit_code": exit_code,
            "signal": info.signal,
            "end_reason": info.end_reason,
            "execution_time": info.duration or 0.0,
            "language": info.language,
            "command": info.command,
            "pid": info.pid,
            "timestamp": protocol.timestamp(time.time()),
            **await _rich(request, record),
        }
    )


async def _rich(request: web.Request, record: JobRecord) -> dict[str, Any]:
    if record.info.language != "python":
        return {}
    path = server_of(request).engine.rich_path(record.sandbox_id, record.process_id)
    return await asyncio.to_thread(richresults.read, path)
