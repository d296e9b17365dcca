"""Real servers as processes of their own, and a plain HTTP client that knows the contract's paths only."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import psutil
import pytest

from asyncsandbox.server.openapi import document

KEY = "a-key-for-tests"

_TCP_PROGRAM = """
import json, sys
from pathlib import Path

options = json.loads(sys.argv[1])
for library in options.pop("without", ()):
    sys.modules[library] = None

from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.main import run
from asyncsandbox.server.rates import parse_rates

if "rate_limit" in options:
    options["rates"] = parse_rates(options.pop("rate_limit"))
where = {"host": options.pop("host", "127.0.0.1"), "port": options.pop("port", 0)}
config = ServerConfig(state_dir=Path(options.pop("state_dir")), **options)
try:
    run(config, **where, on_ready=lambda url: print(json.dumps({"ready": True, "url": url}), flush=True))
except OSError as exc:
    print(json.dumps({"ready": False, "error": str(exc)}), flush=True)
    sys.exit(1)
"""


class ServerProcess:
    """A server, and what it said when it was ready."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        assert popen.stdout is not None
        self.said: dict[str, Any] = json.loads(popen.stdout.readline())

    @property
    def directory(self) -> Path:
        """The private directory of an embedded server."""
        return Path(self.said["socket"]).parent

    def descendants(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.popen.pid).children(recursive=True)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> int:
        """Ask it to stop, and wait."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        return self.popen.wait(timeout=50)


def _spawn(arguments: list[str], *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=stdin, stdout=subprocess.PIPE, start_new_session=True
    )


def start_embedded(**orders: Any) -> ServerProcess:
    """Start a server the way a client does."""
    popen = _spawn(["-m", "asyncsandbox.server"], stdin=subprocess.PIPE)
    line = {"api_key": KEY, "client_pid": os.getpid(), "isolation": "none", **orders}
    assert popen.stdin is not None
    popen.stdin.write(json.dumps(line).encode() + b"\n")
    popen.stdin.flush()
    return ServerProcess(popen)


def start_tcp(state_dir: Path, **options: Any) -> ServerProcess:
    """Start a server the way the command line does."""
    line = {"api_key": KEY, "isolation": "none", "state_dir": str(state_dir), **options}
    return ServerProcess(_spawn(["-c", _TCP_PROGRAM, json.dumps(line)]))


_DOCUMENT = document()


@functools.cache
def _operation(method: str, path: str) -> dict[str, Any] | None:
    """Find what the server's document says of a method on a path; None where it does not know either."""
    parts = path.split("/")
    for pattern, operations in _DOCUMENT["paths"].items():
        names = pattern.split("/")
        fits = len(names) == len(parts) and all(
            name[:1] == "{" or name == part for name, part in zip(names, parts, strict=True)
        )
        if fits and method.lower() in operations:
            return operations[method.lower()]
    return None


@functools.lru_cache(maxsize=1000)
def _validator(method: str, path: str, status: int) -> Any:
    operation = _operation(method, path)
    if operation is None:
        assert status in (404, 405), f"{method} {path} answers {status} and is in no document"
        return None
    assert str(status) in operation["responses"], (
        f"{method} {path} answers {status}, which is documented nowhere"
    )
    content = operation["responses"][str(status)].get("content", {})
    if "application/json" not in content:
        return None
    schema = {**content["application/json"]["schema"], "components": _DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True)


def _check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Fail unless an answer of the server is as its own document says."""
    validator = _validator(method, path, status)
    for error in [] if validator is None else validator.iter_errors(body):
        pytest.fail(f"{method} {path} {status} at {error.instance_path}: {error.message}")


class Box:
    """One sandbox, seen through HTTP."""

    def __init__(self, api: Api, body: dict[str, Any]) -> None:
        self.api = api
        self.id: str = body["id"]
        self.token: str = body["auth_token"]
        self.body = body

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Call the agent; returns status and body."""
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return await self.api.call(method, f"/vm/{self.id}{path}", headers=headers, **options)

    async def ok(self, method: str, path: str, **options: Any) -> Any:
        """Call the agent and insist on success; returns the body."""
        status, body = await self.call(method, path, **options)
        assert status == 200, (status, body)
        return body

    async def start(self, code: str, *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Start code in the background."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.ok("POST", "/execute/background", json={"code": code, **fields}, headers=headers)

    async def row(self, job: dict[str, Any] | str) -> dict[str, Any]:
        """The record of a job."""
        process_id = job if isinstance(job, str) else job["process_id"]
        return await self.ok("GET", f"/execute/processes/{process_id}")

    async def until(
        self, job: dict[str, Any], what: Callable[[dict[str, Any]], bool], *, seconds: float = 50
    ) -> dict[str, Any]:
        """Wait until a job's record fulfils a condition."""
        async with asyncio.timeout(seconds):
            row = await self.row(job)
            while not what(row):
                await asyncio.sleep(0.02)
                row = await self.row(job)
            return row

    async def end(self, job: dict[str, Any], *, seconds: float = 50) -> dict[str, Any]:
        """Wait for a job's end; returns its record."""
        return await self.until(job, lambda row: row["status"] not in ("queued", "running"), seconds=seconds)

    async def running(self, job: dict[str, Any]) -> dict[str, Any]:
        """Wait until a job runs."""
        return await self.until(job, lambda row: row["status"] == "running")

    async def printed(self, job: dict[str, Any], text: str) -> None:
        """Wait until a job has printed something."""
        await self.until(job, lambda row: text in row.get("stdout", ""))

    async def output(self, job: dict[str, Any], **query: Any) -> tuple[bytes, dict[str, str]]:
        """Bytes of one stream, and the headers beside them."""
        path = f"/vm/{self.id}/execute/processes/{job['process_id']}/output"
        headers = {"Authorization": f"Bearer {self.token}"}
        query = {name: str(value) for name, value in query.items()}
        async with self.api.session.get(self.api.base + path, params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            return await response.read(), dict(response.headers)

    async def kill(self, job: dict[str, Any]) -> dict[str, Any]:
        """End a job."""
        return await self.ok("DELETE", "/execute/kill", params={"process_id": job["process_id"]})


class Api:
    """One server, seen through HTTP."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Make a request; returns status and body, which are as the server's document says."""
        headers = {"X-API-Key": KEY} if not path.startswith("/vm/") else {}
        headers |= options.pop("headers", {})
        async with self.session.request(method, self.base + path, headers=headers, **options) as response:
            is_json = response.content_type == "application/json"
            body = await response.json() if is_json else await response.read()
            _check_answer(method, path.partition("?")[0], response.status, body)
            return response.status, body

    async def ok(self, method: str, path: str, **options: Any) -> Any:
        """Make a request and insist on success; returns the body."""
        status, body = await self.call(method, path, **options)
        assert 200 <= status < 300, (status, body)
        return body

    async def create(self, **fields: Any) -> Box:
        """Make a sandbox."""
        body = {"template_name": "code-interpreter", **fields}
        return Box(self, await self.ok("POST", "/v1/sandboxes", json=body))


@contextlib.asynccontextmanager
async def connect(server: ServerProcess) -> AsyncIterator[Api]:
    """Speak to a server."""
    socket = server.said.get("socket")
    connector = aiohttp.UnixConnector(socket, limit=100) if socket else aiohttp.TCPConnector(limit=100)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Api(session, server.said.get("url", "http://localhost"))


class Servers:
    """Starts servers and ends them with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[ServerProcess] = []

    def embedded(self, **orders: Any) -> ServerProcess:
        """Start a server the way a client does."""
        return self._keep(start_embedded(**orders))

    def tcp(self, name: str = "state", **options: Any) -> ServerProcess:
        """Start a server the way the command line does, on a state directory by that name."""
        return self._keep(start_tcp(self.directory / name, **options))

    def connect(self, server: ServerProcess) -> contextlib.AbstractAsyncContextManager[Api]:
        """Speak to a server."""
        return connect(server)

    def stop(self) -> None:
        """End all of them."""
        for server in self._started:
            server.stop()

    def _keep(self, server: ServerProcess) -> ServerProcess:
        self._started.append(server)
        return server


async def _until(condition: Callable[[], Any], *, seconds: float = 50) -> None:
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.02)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait until a condition holds; one that never does fails the test."""
    return _until


@pytest.fixture
def check_answer() -> Callable[[str, str, int, Any], None]:
    """Compare an answer with the server's document; every `Api.call` does so too."""
    return _check_answer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[ServerProcess]:
    """One embedded server for all tests that do not harm it."""
    server = start_embedded()
    yield server
    assert server.stop() == 0


@pytest.fixture
async def api(shared_server: ServerProcess) -> AsyncIterator[Api]:
    """Speak to the shared server."""
    async with connect(shared_server) as api:
        yield api


@pytest.fixture
async def box(api: Api) -> AsyncIterator[Box]:
    """A sandbox of the test's own."""
    box = await api.create()
    yield box
    await api.call("DELETE", f"/v1/sandboxes/{box.id}")


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Servers of the test's own."""
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        servers = Servers(Path(directory))
        try:
            yield servers
        finally:
            servers.stop()
