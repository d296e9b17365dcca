"""What is left when a client, a sandbox or a group comes to its end: nothing, whatever was under way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from asyncsandbox import (
    Client,
    ClientStateError,
    ConnectError,
    Job,
    JobState,
    Sandbox,
    SandboxClosedError,
)
from asyncsandbox.agent import Agent
from asyncsandbox.testing import FakeClient, FakeServer
from asyncsandbox.tracking import Board

_PATIENCE = 30.0


def running(server: FakeServer) -> set[str]:
    """Return the ids of the jobs that run on the server."""
    return {key for jobs in server.sandboxes.values() for key, job in jobs.items() if not job.info.finished}


def alive(kind: type) -> int:
    """Return how many objects of `kind` there are."""
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


def asked(server: FakeServer, method: str, path: str) -> int:
    """Return how many requests of `method` went to a path that begins with `path`."""
    return sum(request.method == method and request.path.startswith(path) for request in server.requests)


# --- closing a client -------------------------------------------------------------------------------------


async def test_a_wait_ends_when_the_client_closes_while_files_are_fetched(server: FakeServer) -> None:
    """The job has ended and only its files are missing: the wait says so instead of waiting for ever."""
    client = FakeClient(server)
    sandbox = await client.create_sandbox()
    job = await sandbox.run_code_background("pass", collect=["*"])
    server.finish(job.process_id, stdout=b"done")
    server.gates["/files/list"] = asyncio.Event()
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(5)
    assert not waiting.done()
    await client.aclose()
    result = await server.clock.run(waiting)
    assert (result.state, result.stdout) == (JobState.COMPLETED, "done")
    assert result.output_error is not None


async def test_closing_ends_a_sandbox_that_is_being_made(server: FakeServer) -> None:
    """The request may be past recall, so what it makes is ended; nobody is told of a cancellation."""
    client = FakeClient(server)
    await client.list_sandboxes()
    gate = server.gates["/v1/sandboxes"] = asyncio.Event()

    async def make() -> Sandbox:
        return await client.create_sandbox()

    making = asyncio.ensure_future(make())
    await server.clock.settle()
    assert server.sandboxes
    closing = asyncio.ensure_future(client.aclose())
    await server.clock.settle()
    gate.set()
    await server.clock.run(closing)
    assert not server.sandboxes
    (outcome,) = await asyncio.gather(making, return_exceptions=True)
    assert isinstance(outcome, ClientStateError) or (isinstance(outcome, Sandbox) and outcome.closed)


async def test_closing_settles_a_start_in_a_sandbox_of_somebody_else(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Closing does not end that sandbox, so a job that nobody was handed must not go on in it."""
    other = FakeClient(server)
    connected = await other.connect(sandbox.id)
    await connected.list_processes()
    gate = server.gates["/execute/background"] = asyncio.Event()
    starting = asyncio.ensure_future(connected.run_code_background("pass"))
    await server.clock.settle()
    assert running(server)
    closing = asyncio.ensure_future(other.aclose())
    await server.clock.settle()
    gate.set()
    await server.clock.run(closing)
    (outcome,) = await asyncio.gather(starting, return_exceptions=True)
    assert isinstance(outcome, Job | ClientStateError)
    assert running(server) == ({outcome.process_id} if isinstance(outcome, Job) else set())


async def test_requests_that_wait_for_their_turn_are_not_sent_after_closing() -> None:
    """They fail by name, and no connection is made that nobody would close."""
    arrived, release = asyncio.Event(), asyncio.Event()
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        arrived.set()
        await release.wait()
        return web.json_response({"data": []})

    async with serving(answer) as url:
        client = Client(url, api_key="k", max_requests=1)
        listing = [asyncio.ensure_future(client.list_sandboxes()) for _ in range(3)]
        async with asyncio.timeout(_PATIENCE):
            await arrived.wait()
            await client.aclose()
            release.set()
            outcomes = await asyncio.gather(*listing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ClientStateError] * 3
    assert paths == ["/v1/sandboxes"]


async def test_a_client_that_closed_tells_every_later_call(server: FakeServer) -> None:
    """Calls on its handles raise at once; closing once more is fine."""
    client = FakeClient(server)
    sandbox = await client.create_sandbox()
    job = await sandbox.run_code_background("pass")
    await client.aclose()
    sent = len(server.requests)
    with pytest.raises(ClientStateError, match="closed"):
        await client.list_sandboxes()
    with pytest.raises(SandboxClosedError):
        await sandbox.run_code_background("pass")
    assert (await server.clock.run(job.wait())).state is JobState.LOST
    await client.aclose()
    assert len(server.requests) == sent


# --- ending a sandbox -------------------------------------------------------------------------------------


async def test_a_sandbox_that_could_not_be_ended_is_not_called_ended(
    server: FakeServer, client: FakeClient, sandbox: Sandbox
) -> None:
    """The error reaches the caller, the handle goes on, and ending it again asks again."""
    job = await sandbox.run_code_background("pass")
    server.broken = ConnectError("no way", method="DELETE", url="http://fake")
    with pytest.raises(ConnectError, match="no way"):
        await server.clock.run(sandbox.kill())
    assert not sandbox.closed
    assert job.state is JobState.RUNNING
    assert "sandboxes=1" in repr(client)
    server.broken = None
    await sandbox.kill()
    assert not server.sandboxes
    assert sandbox.closed
    assert job.state is JobState.LOST


async def test_a_sandbox_is_ended_by_one_request_however_often_it_is_asked(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Once the end is confirmed there is nothing more to ask."""
    await sandbox.kill()
    await sandbox.kill()
    assert asked(server, "DELETE", "/v1/sandboxes/") == 1


async def test_a_long_lived_client_keeps_nothing_of_sandboxes_that_are_gone(server: FakeServer) -> None:
    """Neither of those that it visited and dropped, nor of its own that expired."""
    agents, boards = alive(Agent), alive(Board)
    async with FakeClient(server) as owner, FakeClient(server) as visitor:
        for _ in range(20):
            await visit_a_sandbox_that_expires(server, owner, visitor)
        assert "sandboxes=0" in repr(owner)
        assert alive(Agent) <= agents
        assert alive(Board) <= boards


async def visit_a_sandbox_that_expires(server: FakeServer, owner: FakeClient, visitor: FakeClient) -> None:
    """Run a job in a sandbox of another client, and let the sandbox go."""
    sandbox = await owner.create_sandbox()
    visited = await visitor.connect(sandbox.id)
    job = await visited.run_code_background("pass")
    server.finish(job.process_id)
    await server.clock.run(job.wait())
    del server.sandboxes[sandbox.id]
    with pytest.raises(SandboxClosedError):
        await sandbox.list_processes()


async def test_kills_do_not_queue_behind_runs() -> None:
    """However many runs are waited for, a job and a sandbox can be ended."""
    killed, full, release = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.path))
        if request.path == "/execute":
            if seen.count(("POST", "/execute")) == 4:
                full.set()
            await release.wait()
        if request.path == "/execute/kill":
            killed.set()
            row = {"process_id": "bg_1", "status": "killed", "end_time": "2026-01-02T03:04:05Z"}
            return web.json_response({**row, "stdout": "", "stderr": ""})
        host = f"http://{request.host}"
        return web.json_response({"id": "s-1", "status": "running", "public_host": host, "auth_token": "t"})

    async with serving(answer) as url:
        client = Client(url, api_key="k")
        client._lanes["hold"] = 4
        sandbox = await client.create_sandbox()
        runs = [asyncio.ensure_future(sandbox.run_code("pass")) for _ in range(4)]
        async with asyncio.timeout(_PATIENCE):
            await full.wait()
            killing = asyncio.ensure_future(sandbox.job("bg_1").kill())
            await killed.wait()
            await sandbox.kill()
            assert ("DELETE", "/v1/sandboxes/s-1") in seen
            release.set()
            await asyncio.gather(killing, *runs, return_exceptions=True)
            await client.aclose()


@contextlib.asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve on a port of this machine while the block runs."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# --- leaving a group --------------------------------------------------------------------------------------


async def test_a_start_that_is_under_way_when_its_group_is_left_by_an_error_is_killed(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Its answer comes too late to be one of the group's jobs, and whoever started it is told."""
    gate = server.gates["/execute/background"] = asyncio.Event()
    with pytest.raises(KeyError):
        async with sandbox.job_group() as group:
            starting = asyncio.ensure_future(group.run_code_background("pass"))
            await server.clock.settle()
            raise KeyError
    gate.set()
    with pytest.raises(ClientStateError, match="group"):
        await server.clock.run(starting)
    assert running(server) == set()


async def test_many_starts_under_way_when_their_group_is_left_by_an_error_are_killed(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The same for `start_all`, whose other starts were not even sent."""
    gate = server.gates["/execute/background"] = asyncio.Event()
    with pytest.raises(KeyError):
        async with sandbox.job_group() as group:
            starting = asyncio.ensure_future(group.start_all(["pass"] * 5, max_in_flight=2))
            await server.clock.settle()
            raise KeyError
    gate.set()
    with pytest.raises(ClientStateError, match="group"):
        await server.clock.run(starting)
    assert running(server) == set()


async def test_a_group_waits_also_for_jobs_that_come_while_it_waits(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A job that another task adds after the block's last line is waited for, not killed."""
    jobs: list[Job] = []

    async def body() -> None:
        async with sandbox.job_group() as group:
            jobs.append(await group.run_code_background("1"))
            adding.append(asyncio.ensure_future(add(group.run_code_background)))

    async def add(start: Callable[[str], Awaitable[Job]]) -> None:
        await server.clock.settle()
        jobs.append(await start("2"))

    adding: list[asyncio.Future[None]] = []
    leaving = asyncio.ensure_future(body())
    await server.clock.advance(3)
    first, second = jobs
    server.finish(first.process_id)
    await server.clock.advance(60)
    assert not leaving.done()
    server.finish(second.process_id)
    await server.clock.run(leaving)
    assert second.result().ok
    assert adding[0].done()


# --- embedded servers -------------------------------------------------------------------------------------


def servers() -> list[psutil.Process]:
    """Return the embedded servers that are children of this process."""
    return [child for child in psutil.Process().children() if is_server(child)]


def is_server(process: psutil.Process) -> bool:
    """Return whether a child is an embedded server that still lives."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(
            "asyncsandbox" in part and "server" in part for part in process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def before() -> Iterator[set[int]]:
    """Return the servers that were there before the test, and end what it left."""
    pids = {server.pid for server in servers()}
    yield pids
    for server in servers():
        if server.pid not in pids:
            server.terminate()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, and fail if it never does."""
    async with asyncio.timeout(_PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_entering_a_client_that_is_cancelled_leaves_no_server(before: set[int]) -> None:
    """The child is there already, and not yet ready: it goes with whoever wanted it."""

    async def program() -> None:
        async with Client("embedded", isolation="none"):
            await asyncio.Event().wait()

    entering = asyncio.ensure_future(program())
    await until(lambda: {server.pid for server in servers()} > before)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await until(lambda: {server.pid for server in servers()} <= before)


async def test_a_sandbox_with_its_own_client_that_is_gone_takes_its_server_along(before: set[int]) -> None:
    """Expired or deleted meanwhile: leaving the block still closes what the block opened."""
    async with Sandbox.create(base_url="embedded", isolation="none") as sandbox:
        await sandbox._owner.control.delete(sandbox.id)
        with pytest.raises(SandboxClosedError, match="gone"):
            await sandbox.list_processes()
    await until(lambda: {server.pid for server in servers()} <= before)


async def test_leaving_a_sandbox_with_its_own_client_by_cancellation_takes_its_server_along(
    before: set[int],
) -> None:
    """The cancellation hits the clean-up itself."""
    inside = asyncio.Event()

    async def program() -> None:
        async with Sandbox.create(base_url="embedded", isolation="none"):
            inside.set()

    leaving = asyncio.ensure_future(program())
    async with asyncio.timeout(_PATIENCE):
        await inside.wait()
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    await until(lambda: {server.pid for server in servers()} <= before)


async def test_what_else_prints_in_the_server_does_not_keep_the_client_waiting(
    before: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of somebody's `sitecustomize` is not the server's introduction."""
    (tmp_path / "sitecustomize.py").write_text("print('hello from sitecustomize', flush=True)\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)
    async with (
        asyncio.timeout(_PATIENCE),
        Client("embedded", isolation="none") as client,
        client.create_sandbox() as sandbox,
    ):
        assert (await sandbox.run_code("print(6 * 7)")).stdout == "42\n"


async def test_modules_in_the_working_directory_are_not_the_servers(
    before: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may run anywhere: what lies there must not run with the server's rights."""
    trap = textwrap.dedent("""\
        import pathlib
        pathlib.Path(__file__).with_name("was-imported").touch()
        raise SystemExit("not the standard library")
        """)
    (tmp_path / "selectors.py").write_text(trap)
    (tmp_path / "queue.py").write_text(trap)
    monkeypatch.chdir(tmp_path)
    async with asyncio.timeout(_PATIENCE), Client("embedded", isolation="none") as client:
        assert await client.list_sandboxes() == []
    assert not (tmp_path / "was-imported").exists()
