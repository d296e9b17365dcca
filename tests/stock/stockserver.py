"""A server that has the published contract and nothing else, with real processes, and faults on request.

A stand-in for the hosted service, which cannot run here. It is strict: a field, parameter or header that no
published document has is refused and noted in `violations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

_SUFFIXES = {"python": ".py", "javascript": ".js", "bash": ".sh", "go": ".go"}
_CODE_FIELDS = {"code", "language", "timeout", "env", "name", "workdir", "working_dir"}
_COMMAND_FIELDS = {"command", "args", "timeout", "env", "name", "workdir", "working_dir"}
_CREATE_FIELDS = {"template_name", "template_id", "region", "timeout_seconds", "internet_access", "env_vars"}
_HINTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "header": ({"Retry-After": "0.2"}, {}),
    "body": ({}, {"retry_after": 0.2}),
    "nested": ({}, {"details": {"retry_after_seconds": 0.2}}),
}


def _time(moment: float | None) -> str | None:
    return None if moment is None else dt.datetime.fromtimestamp(moment, dt.UTC).isoformat()


class Job:
    """One background process."""

    def __init__(self, process_id: str, process: asyncio.subprocess.Process, body: dict[str, Any]) -> None:
        self.id = process_id
        self.process = process
        self.body = body
        self.started = time.time()
        self.ended: float | None = None
        self.status = "running"
        self.output = {"stdout": b"", "stderr": b""}
        self.watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout(self.body.get("timeout", 300)):
                out, err = await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            out, err = await self.process.communicate()
            self.status = "failed"
        self.output = {"stdout": out, "stderr": err}
        self.ended = time.time()
        if self.status == "running":
            self.status = "completed" if self.process.returncode == 0 else "failed"

    def row(self, *, most: int | None) -> dict[str, Any]:
        """The row of the list, as the OpenAPI file has it, with up to `most` bytes of output as documented."""
        row: dict[str, Any] = {
            "process_id": self.id,
            "execution_id": f"exec_{self.id}",
            "name": self.body.get("name"),
            "language": self.body.get("language", ""),
            "status": self.status,
            "start_time": _time(self.started),
            "end_time": _time(self.ended),
            "duration": None if self.ended is None else self.ended - self.started,
            "exit_code": None if self.ended is None else self.process.returncode,
            "pid": self.process.pid,
        }
        if most is not None:
            row |= {name: data[:most].decode(errors="replace") for name, data in self.output.items()}
        return row


class StockServer:
    """See the module.

    Attributes:
        lists_output: whether rows have output in them.
        faults: what to do instead of the next answers to a start: "lost", "refused", "500", "401", "slow",
            "header", "body" or "nested" (429 with that hint).
        most_listed: bytes of a stream that a row has in it at most.
        older: whether only ``POST /execute/kill/{id}`` kills.
        violations: what no published document has.
        calls: how often each route was asked.
    """

    def __init__(self, place: Path, *, lists_output: bool) -> None:
        self.place = place
        self.lists_output = lists_output
        self.faults: list[str] = []
        self.most_listed = 1_000_000
        self.older = False
        self.violations: list[str] = []
        self.calls: Counter[str] = Counter()
        self.sandboxes: dict[str, dict[str, Job]] = {}
        self.jobs_made = 0
        self._tokens: dict[str, str] = {}
        self._ids = itertools.count(1)
        self.url = ""

    async def start(self) -> web.AppRunner:
        """Listen on a free port of this machine."""
        app = web.Application(middlewares=[self._guard], client_max_size=2**28)
        agent = "/vm/{sandbox}"
        app.add_routes(
            [
                web.get("/health", self._health),
                web.post("/v1/sandboxes", self._create),
                web.get("/v1/sandboxes/{sandbox}", self._get),
                web.delete("/v1/sandboxes/{sandbox}", self._delete),
                web.post("/v1/sandboxes/{sandbox}/token/refresh", self._refresh),
                web.get(f"{agent}/health", self._health),
                web.post(f"{agent}/execute/background", self._start_code),
                web.post(f"{agent}/commands/background", self._start_command),
                web.post(f"{agent}/commands/run", self._run_command),
                web.get(f"{agent}/execute/processes", self._list),
                web.delete(f"{agent}/execute/kill", self._kill),
                web.post(f"{agent}/execute/kill/{{process}}", self._kill),
                web.get(f"{agent}/files/download", self._download),
                web.get(f"{agent}/files/list", self._list_files),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def stop(self, runner: web.AppRunner) -> None:
        """End everything."""
        for sandbox in tuple(self.sandboxes):
            await self._end(sandbox)
        await runner.cleanup()

    async def forget(self, process_id: str) -> None:
        """Lose the record of a job, as a server does whose agent was restarted."""
        for jobs in self.sandboxes.values():
            if process_id in jobs:
                await jobs.pop(process_id).watcher

    # --- what is asked --------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        route = request.match_info.route.resource
        self.calls[f"{request.method} {route.canonical if route else request.path}"] += 1
        if "Idempotency-Key" in request.headers:
            self.violations.append("the header Idempotency-Key")
        if request.path.startswith("/vm/") and not request.path.endswith("/health"):
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if self._tokens.get(token) != request.match_info.get("sandbox"):
                return self._refuse(401, "INVALID_TOKEN", "wrong token")
        return await handler(request)

    def _refuse(self, status: int, code: str, text: str, **more: Any) -> web.Response:
        return web.json_response({"error": text, "code": code, **more}, status=status)

    async def _body(self, request: web.Request, fields: set[str]) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        if odd := set(body) - fields:
            self.violations.append(f"{request.path}: {sorted(odd)}")
        return body

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy", "features": {"background_jobs": True}})

    # --- control plane --------------------------------------------------------------------------------------

    def _token(self, sandbox: str) -> dict[str, str]:
        token = f"tok-{next(self._ids)}"
        self._tokens[token] = sandbox
        return {"auth_token": token, "token_expires_at": _time(time.time() + 86_400) or ""}

    def _describe(self, sandbox: str) -> dict[str, Any]:
        return {"id": sandbox, "status": "running", "public_host": f"{self.url}/vm/{sandbox}"}

    async def _create(self, request: web.Request) -> web.Response:
        await self._body(request, _CREATE_FIELDS)
        sandbox = f"17{next(self._ids)}x"
        self.sandboxes[sandbox] = {}
        (self.place / sandbox).mkdir()
        return web.json_response({**self._describe(sandbox), **self._token(sandbox)}, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        sandbox = request.match_info["sandbox"]
        if sandbox not in self.sandboxes:
            return self._refuse(404, "RESOURCE_NOT_FOUND", "no such sandbox")
        return web.json_response(self._describe(sandbox))

    async def _refresh(self, request: web.Request) -> web.Response:
        return web.json_response(self._token(request.match_info["sandbox"]))

    async def _delete(self, request: web.Request) -> web.Response:
        await self._end(request.match_info["sandbox"])
        return web.json_response({"id": request.match_info["sandbox"], "status": "deleted"})

    async def _end(self, sandbox: str) -> None:
        for job in self.sandboxes.pop(sandbox, {}).values():
            with contextlib.suppress(ProcessLookupError):
                job.process.kill()
            await job.watcher

    # --- agent ----------------------------------------------------------------------------------------------

    def _workspace(self, request: web.Request) -> Path:
        return self.place / request.match_info["sandbox"]

    def _real(self, request: web.Request, path: str) -> Path:
        """Where a path of the sandbox is: ``/workspace`` is its own, ``/tmp`` this machine's."""
        if path.startswith("/workspace"):
            return self._workspace(request) / path.removeprefix("/workspace").lstrip("/")
        return Path(path)

    async def _start_code(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, _CODE_FIELDS)
        language = body.get("language", "python")
        script = self.place / f"job-{next(self._ids)}{_SUFFIXES[language]}"
        script.write_text(body["code"])
        tool = {"python": sys.executable, "javascript": "node", "bash": "bash"}[language]
        return await self._begin(request, body, [tool, str(script)], "bg")

    async def _start_command(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request, _COMMAND_FIELDS)
        return await self._begin(request, body, [body["command"], *body.get("args", [])], "cmd")

    async def _begin(
        self, request: web.Request, body: dict[str, Any], argv: list[str], prefix: str
    ) -> web.StreamResponse:
        fault = self.faults.pop(0) if self.faults else ""
        if fault in _HINTS:
            headers, more = _HINTS[fault]
            response = self._refuse(429, "RATE_LIMIT_EXCEEDED", "slow down", **more)
            response.headers.update(headers)
            return response
        if fault == "401":
            self._tokens.clear()
            return self._refuse(401, "TOKEN_EXPIRED", "expired")
        if fault == "500":
            return self._refuse(500, "INTERNAL_ERROR", "not started")
        if fault == "refused":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "slow":
            await asyncio.sleep(0.5)
        job = await self._spawn(request, body, argv, prefix)
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
        if fault == "500 after":
            return self._refuse(500, "INTERNAL_ERROR", "started, but nobody knows")
        return web.json_response(
            {
                "process_id": job.id,
                "execution_id": f"exec_{job.id}",
                "status": "running",
                "message": "started",
            }
        )

    async def _spawn(self, request: web.Request, body: dict[str, Any], argv: list[str], prefix: str) -> Job:
        cwd = self._real(request, body.get("workdir", "/workspace"))
        cwd.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={"PATH": os.environ["PATH"], **body.get("env", {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.jobs_made += 1
        job = Job(f"{prefix}_{next(self._ids)}", process, body)
        self.sandboxes[request.match_info["sandbox"]][job.id] = job
        return job

    async def _run_command(self, request: web.Request) -> web.Response:
        body = await self._body(request, _COMMAND_FIELDS)
        process = await asyncio.create_subprocess_exec(
            body["command"],
            *body.get("args", []),
            cwd=self._workspace(request),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return web.json_response(
            {"stdout": out.decode(), "stderr": err.decode(), "exit_code": process.returncode, "success": True}
        )

    async def _list(self, request: web.Request) -> web.Response:
        if request.query:
            self.violations.append(f"the query {dict(request.query)}")
        jobs = self.sandboxes[request.match_info["sandbox"]].values()
        most = self.most_listed if self.lists_output else None
        rows = [job.row(most=most) for job in jobs]
        return web.json_response({"processes": rows, "count": len(rows), "timestamp": _time(time.time())})

    async def _kill(self, request: web.Request) -> web.Response:
        if self.older and request.method == "DELETE":
            return web.Response(status=405)
        process_id = request.match_info.get("process") or request.query.get("process_id", "")
        job = self.sandboxes[request.match_info["sandbox"]].get(process_id)
        if job is None or job.ended is not None:
            return self._refuse(404, "PROCESS_NOT_FOUND", "unknown or finished")
        job.status = "killed"
        job.process.send_signal(signal.SIGKILL)
        return web.json_response({"process_id": process_id, "status": "killed", "message": "terminated"})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        path = self._real(request, request.query["path"])
        if not path.is_file():
            return self._refuse(404, "FILE_NOT_FOUND", "no such file")
        return web.Response(body=path.read_bytes(), content_type="application/octet-stream")

    async def _list_files(self, request: web.Request) -> web.Response:
        path = self._real(request, request.query["path"])
        if not path.is_dir():
            return self._refuse(404, "FILE_NOT_FOUND", "no such directory")
        rows = [
            {
                "name": entry.name,
                "path": f"{request.query['path']}/{entry.name}",
                "size": entry.stat().st_size,
                "is_directory": entry.is_dir(),
                "permissions": "-rw-r--r--",
                "modified_time": _time(entry.stat().st_mtime),
            }
            for entry in path.iterdir()
        ]
        return web.json_response({"files": rows, "path": request.query["path"], "count": len(rows)})

    def keys(self) -> set[str]:
        """The keys of all starts that are still known."""
        jobs = [job for jobs in self.sandboxes.values() for job in jobs.values()]
        return {str(job.body.get("name")).rpartition("~")[2] for job in jobs}

    def kept(self) -> list[str]:
        """The keys of those that have left files."""
        return [key for key in self.keys() if Path("/tmp/.asyncsandbox", key).exists()]

    def clean(self, keys: set[str]) -> None:
        """Delete what jobs left on this machine."""
        for key in keys:
            shutil.rmtree(Path("/tmp/.asyncsandbox", key), ignore_errors=True)
