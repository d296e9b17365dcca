"""Jobs whose end is posted here: verified, once, early, late, or never."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from asyncsandbox import (
    Client,
    ClientStateError,
    InvalidRequestError,
    JobState,
    Sandbox,
    as_completed,
    wait_all,
)
from asyncsandbox.protocol import Reply, Request, async_path, get, json_object, sign
from asyncsandbox.testing import FakeClient, FakeClock, FakeServer
from asyncsandbox.webhooks import WebhookReceiver

pytestmark = pytest.mark.timeout(120)


class StockServer(FakeServer):
    """A server that answers ``/execute/async`` with an execution id alone.

    Attributes:
        lists: whether such runs are in its list, under a process id that nobody was told.
    """

    def __init__(self, *, lists: bool = False) -> None:
        super().__init__(features={})
        self.lists = lists

    def _agent(self, request: Request, sandbox_id: str) -> Reply:
        if request.path != "/execute/async":
            return super()._agent(request, sandbox_id)
        row = json_object(self._start(request, sandbox_id))
        if not self.lists:
            self.drop(row["process_id"])
        body = {"execution_id": row["execution_id"], "status": "queued", "callback_url": "…"}
        return Reply(status=200, body=json.dumps(body).encode(), url=self.url)


class Poster:
    """Posts callbacks as a server does, or not quite."""

    def __init__(self, session: aiohttp.ClientSession, receiver: WebhookReceiver) -> None:
        self.session = session
        self.receiver = receiver

    async def post(
        self,
        url: str,
        body: Mapping[str, Any] | bytes,
        *,
        secret: str | None = None,
        at: float | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Post; returns status and answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        stamp = str(int(time.time() if at is None else at))
        sent = {
            "X-HopX-Timestamp": stamp,
            "X-HopX-Signature": sign(secret or self.receiver.secret, stamp, raw),
            **(headers or {}),
        }
        kept = {name: value for name, value in sent.items() if value is not None}
        async with self.session.post(url, data=raw, headers=kept) as response:
            return response.status, await response.json()


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    """A receiver that listens."""
    async with WebhookReceiver().listen() as receiver:
        yield receiver


@pytest.fixture
async def poster(receiver: WebhookReceiver) -> AsyncIterator[Poster]:
    """What posts to it."""
    async with aiohttp.ClientSession() as session:
        yield Poster(session, receiver)


@pytest.fixture
def reserve_port() -> Iterator[Callable[[], int]]:
    """Return ports that nobody else gets during the test: held without listening, which refuses connections."""
    with contextlib.ExitStack() as held:

        def reserve() -> int:
            port = held.enter_context(socket.socket())
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", 0))
            return int(port.getsockname()[1])

        yield reserve


def _asked(server: FakeServer) -> dict[str, Any]:
    """The body of the last start that calls back."""
    starts = [request.json for request in server.requests if request.path == "/execute/async"]
    body: dict[str, Any] = starts[-1]
    return body


def _ended(**fields: Any) -> dict[str, Any]:
    return {"status": "completed", "exit_code": 0, "stdout": "out\n", "stderr": "", **fields}


# --- with a real server ------------------------------------------------------------------------------------


@pytest.fixture
async def sandbox(receiver: WebhookReceiver) -> AsyncIterator[Sandbox]:
    """A sandbox of an embedded server, whose client's time stands still: no look is ever due."""
    async with (
        Client(isolation="none", webhook=receiver, clock=FakeClock()) as client,
        client.create_sandbox() as sandbox,
    ):
        yield sandbox


async def test_jobs_end_by_their_callbacks_alone(sandbox: Sandbox) -> None:
    """The same helpers, all kinds of ends, and not one look at the list."""
    good = await sandbox.run_code_async("import os; print(os.environ['A'], end='')", env={"A": "yes"})
    bad = await sandbox.run_code_async("raise SystemExit(3)")
    slow = await sandbox.run_code_async("import time; time.sleep(600)", timeout=0.2)
    results = {job.process_id: job.result() async for job in as_completed([good, bad, slow])}
    assert (results[good.process_id].stdout, results[good.process_id].ok) == ("yes", True)
    assert (results[bad.process_id].state, results[bad.process_id].exit_code) == (JobState.FAILED, 3)
    assert results[slow.process_id].state is JobState.TIMED_OUT
    assert results[good.process_id].duration is not None
    assert (good.info.timeout, slow.info.timeout) == (3600.0, 0.2)
    assert sandbox._owner.stats.looks == 0  # type: ignore[attr-defined]


async def test_many_callbacks_each_to_its_job(sandbox: Sandbox) -> None:
    """No result goes astray, and the receiver forgets what has ended."""
    jobs = await asyncio.gather(*(sandbox.run_code_async(f"print({n} * {n})") for n in range(30)))
    assert [int(result.stdout) for result in await wait_all(jobs)] == [n * n for n in range(30)]
    receiver = sandbox._owner.webhook
    assert "expecting=0" in repr(receiver)


async def test_a_killed_job_is_killed(sandbox: Sandbox) -> None:
    """The wire says failed; the handle knows better."""
    job = await sandbox.run_code_async("import time; time.sleep(600)")
    await job.kill()
    assert job.result().state is JobState.KILLED


async def test_a_longer_result_than_a_callback_holds_is_fetched(receiver: WebhookReceiver) -> None:
    """A callback has the last 64 KiB; a client that wants more asks for it."""
    async with (
        Client(isolation="none", webhook=receiver, result_limit=200_000, clock=FakeClock()) as client,
        client.create_sandbox() as sandbox,
    ):
        job = await sandbox.run_code_async("print('a' * 150_000 + 'z', end='')")
        result = await job.wait()
        assert (len(result.stdout_bytes), result.stdout_truncated) == (150_001, False)
        few = await (await sandbox.run_code_async("print('b' * 300_000, end='')")).wait()
        assert (len(few.stdout_bytes), few.stdout_truncated) == (200_000, True)


async def test_a_receiver_that_is_down_at_first_is_told_later(reserve_port: Callable[[], int]) -> None:
    """The server tries again until somebody listens."""
    port = reserve_port()
    receiver = WebhookReceiver(public_url=f"http://127.0.0.1:{port}")
    async with (
        Client(isolation="none", webhook=receiver, clock=FakeClock()) as client,
        client.create_sandbox() as sandbox,
    ):
        job = await sandbox.run_code_async("print('late')")
        execution_id = f"exec_{job.process_id.partition('_')[2]}"
        async with asyncio.timeout(50):
            told: dict[str, Any] = {"attempts": 0}
            while not told["attempts"]:
                await asyncio.sleep(0.02)
                told = json_object(await sandbox._agent.call(get(async_path(execution_id)), what="asking"))
        assert told["state"] == "pending"
        assert not job.done
        async with receiver.listen(port=port):
            assert (await job.wait()).stdout == "late\n"


async def test_a_receiver_works_inside_an_application_of_the_user(reserve_port: Callable[[], int]) -> None:
    """Mounted below a path, beside other routes."""
    port = reserve_port()
    receiver = WebhookReceiver(public_url=f"http://127.0.0.1:{port}/hooks")
    app = web.Application()
    app.add_subapp("/hooks/", receiver.app())
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with (
            Client(isolation="none", webhook=receiver, clock=FakeClock()) as client,
            client.create_sandbox() as sandbox,
        ):
            assert (await (await sandbox.run_code_async("print('in')")).wait()).stdout == "in\n"
    finally:
        await runner.cleanup()


# --- what is posted ----------------------------------------------------------------------------------------


async def test_only_a_verified_callback_counts(
    server: FakeServer, receiver: WebhookReceiver, poster: Poster
) -> None:
    """Another secret, an old or a future stamp, no signature, another body: 401, and the job goes on."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        url = _asked(server)["callback_url"]
        assert _asked(server)["callback_signature_secret"] == receiver.secret
        body = _ended()
        stale = time.time() - 10_000
        for options, code in (
            ({"secret": "another"}, "INVALID_SIGNATURE"),
            ({"at": stale}, "STALE_TIMESTAMP"),
            ({"at": time.time() + 10_000}, "STALE_TIMESTAMP"),
            ({"headers": {"X-HopX-Timestamp": str(int(time.time()) - 1)}}, "INVALID_SIGNATURE"),
            ({"headers": {"X-HopX-Signature": None}}, "MISSING_SIGNATURE"),
            ({"headers": {"X-HopX-Timestamp": None}}, "MISSING_SIGNATURE"),
        ):
            status, answer = await poster.post(url, body, **options)  # type: ignore[arg-type]
            assert (status, answer["code"]) == (401, code)
        assert not job.done
        assert await poster.post(url, body) == (200, {"received": True, "expected": True})
        assert job.result().stdout == "out\n"


async def test_a_second_delivery_changes_nothing(
    server: FakeServer, receiver: WebhookReceiver, poster: Poster
) -> None:
    """It is accepted, so that nobody tries again, and dropped; so is one for nobody."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        url = _asked(server)["callback_url"]
        await poster.post(url, _ended())
        before = job.result()
        assert await poster.post(url, _ended(exit_code=1)) == (
            200,
            {"received": True, "expected": False},
        )
        assert job.result() is before
        status, answer = await poster.post(f"{receiver.public_url}/nobody", _ended())
        assert (status, answer["expected"]) == (200, False)


async def test_a_callback_for_another_run_ends_nothing(
    server: FakeServer, receiver: WebhookReceiver, poster: Poster
) -> None:
    """A server that knows the secret, but mixes up its runs, does not mix up the jobs: looking settles them."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        url = _asked(server)["callback_url"]
        status, _ = await poster.post(url, _ended(execution_id="exec_other", stdout="wrong"))
        assert status == 200
        assert not job.done
        server.finish(job.process_id, stdout=b"right")
        began = server.clock.now()
        assert (await server.clock.run(job.wait())).stdout == "right"
        assert server.clock.now() - began < 1


@pytest.mark.parametrize("raw", [b"", b"no json", b"[]", b"\xff", b"[" * 100_000])
async def test_a_signed_body_that_is_no_object_is_400(
    server: FakeServer, receiver: WebhookReceiver, poster: Poster, raw: bytes
) -> None:
    """And the job still expects its callback."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        url = _asked(server)["callback_url"]
        assert (await poster.post(url, raw))[0] == 400
        await poster.post(url, _ended())
        assert job.done


async def test_a_large_body_is_refused_before_it_is_read(poster: Poster) -> None:
    """With and without a length that says so; and only POST is answered."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a" * 600
        yield b"b" * 600

    async with WebhookReceiver(max_body=1000).listen() as small:
        url = f"{small.public_url}/token"
        assert (await poster.post(url, b"a" * 1001))[0] == 413
        async with poster.session.post(url, data=chunks()) as response:
            assert response.status == 413
        assert (await poster.post(url, b"a" * 1000))[0] == 401
        async with poster.session.get(url) as response:
            assert response.status == 405


async def test_a_callback_may_come_before_the_answer_to_the_start(
    server: FakeServer, receiver: WebhookReceiver, poster: Poster
) -> None:
    """It is kept until the job has its handle."""
    async with FakeClient(server, webhook=receiver) as client:
        sandbox = await client.create_sandbox()
        gate = server.gates["/execute/async"] = asyncio.Event()
        starting = asyncio.ensure_future(sandbox.run_code_async("pass"))
        await server.clock.settle()
        assert not starting.done()
        url = _asked(server)["callback_url"]
        body = {"status": "failed", "exit_code": 7, "stdout": "first", "stderr": ""}
        assert (await poster.post(url, body))[1]["expected"]
        await poster.post(url, {"status": "completed", "stdout": "second"})
        gate.set()
        job = await starting
        assert (job.result().exit_code, job.result().stdout) == (7, "first")


async def test_a_start_that_failed_expects_nothing(server: FakeServer, receiver: WebhookReceiver) -> None:
    """Nor does a handle that nobody holds any more."""
    async with FakeClient(server, webhook=receiver) as client:
        sandbox = await client.create_sandbox()
        server.failures.append(Reply(status=400, body=b"{}"))
        with pytest.raises(InvalidRequestError):
            await sandbox.run_code_async("pass")
        assert "expecting=0" in repr(receiver)
        job = await sandbox.run_code_async("pass")
        assert "expecting=1" in repr(receiver)
        assert not job.done
        del job
        await server.clock.settle()
        gc.collect()
        assert "expecting=0" in repr(receiver)


# --- when it is not posted ---------------------------------------------------------------------------------


async def test_a_lost_callback_hangs_no_wait(server: FakeServer, receiver: WebhookReceiver) -> None:
    """The list is looked at, but seldom."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        waiting = asyncio.ensure_future(job.wait())
        await server.clock.advance(29)
        assert server.looks() == 0
        await server.clock.advance(61)
        assert server.looks() == 3
        server.finish(job.process_id, stdout=b"looked up")
        assert (await server.clock.run(waiting)).stdout == "looked up"
        assert server.looks() == 4


async def test_short_waits_do_not_put_off_the_look_for_ever(
    server: FakeServer, receiver: WebhookReceiver
) -> None:
    """Whoever waits a second each minute hears of a lost callback too."""
    async with FakeClient(server, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        server.finish(job.process_id)
        for _ in range(3):
            waiting = asyncio.ensure_future(job.wait())
            await server.clock.advance(1)
            waiting.cancel()
            await server.clock.advance(59)
        assert job.done
        assert server.looks() == 1


async def test_other_jobs_are_looked_at_as_ever(server: FakeServer, receiver: WebhookReceiver) -> None:
    """A job that does not call back is not slowed down by one that does, started before or after it."""
    async with FakeClient(server, webhook=receiver) as client:
        sandbox = await client.create_sandbox()
        calling = await sandbox.run_code_async("pass")
        first = asyncio.ensure_future(calling.wait())
        await server.clock.advance(1)
        assert server.looks() == 0
        polled = await sandbox.run_code_background("pass")
        second = asyncio.ensure_future(polled.wait())
        await server.clock.advance(1)
        assert server.looks() > 2
        server.finish(polled.process_id)
        began = server.clock.now()
        await server.clock.run(second)
        assert server.clock.now() - began < 3
        looks = server.looks()
        await server.clock.advance(20)
        assert server.looks() <= looks + 1
        first.cancel()


async def test_on_a_stock_server_absence_means_nothing(receiver: WebhookReceiver, poster: Poster) -> None:
    """Its list does not have such runs; the callback ends them, an hour later too."""
    stock = StockServer()
    async with FakeClient(stock, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        assert job.process_id.startswith("exec_")
        waiting = asyncio.ensure_future(job.wait())
        await stock.clock.advance(3600)
        assert stock.looks() > 10
        assert not job.done
        body = _ended(execution_id=job.process_id, execution_time=2.5, timestamp="2026-01-02T03:04:05Z")
        await poster.post(_asked(stock)["callback_url"], body)
        result = await waiting
        assert (result.process_id, result.stdout, result.duration) == (job.process_id, "out\n", 2.5)
        assert result.output_error is None


async def test_on_a_stock_server_a_gone_sandbox_loses_the_job(receiver: WebhookReceiver) -> None:
    """Nobody will ever call back."""
    stock = StockServer()
    async with FakeClient(stock, webhook=receiver) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_async("pass")
        del stock.sandboxes[sandbox.id]
        assert (await stock.clock.run(job.wait())).state is JobState.LOST


async def test_a_stock_server_that_lists_such_runs_is_believed(receiver: WebhookReceiver) -> None:
    """Under a process id that nobody was told, and the execution id that everybody knows."""
    stock = StockServer(lists=True)
    async with FakeClient(stock, webhook=receiver) as client:
        job = await (await client.create_sandbox()).run_code_async("pass")
        (process_id,) = (key for jobs in stock.sandboxes.values() for key in jobs)
        assert process_id != job.process_id
        stock.finish(process_id, stdout=b"listed")
        result = await stock.clock.run(job.wait())
        assert (result.stdout, result.process_id) == ("listed", job.process_id)


# --- without a receiver ------------------------------------------------------------------------------------


async def test_a_url_of_ones_own_goes_out_as_it_is(server: FakeServer, client: FakeClient) -> None:
    """The contract's fields and time-out; the handle is looked up like any other."""
    sandbox = await client.create_sandbox()
    job = await sandbox.run_code_async(
        "print(1)",
        callback_url="https://example.com/hook",
        callback_headers={"A": "b"},
        callback_signature_secret="s",
        language="bash",
        env={"K": "v"},
        working_dir="/workspace",
    )
    assert _asked(server) == {
        "code": "print(1)",
        "language": "bash",
        "timeout": 3600,
        "env": {"K": "v"},
        "workdir": "/workspace",
        "working_dir": "/workspace",
        "callback_url": "https://example.com/hook",
        "callback_headers": {"A": "b"},
        "callback_signature_secret": "s",
    }
    server.finish(job.process_id, stdout=b"1\n")
    assert (await server.clock.run(job.wait())).stdout == "1\n"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "callback_url= is missing"),
        ({"callback_url": "/hook"}, "absolute"),
        ({"callback_url": "https://example.com/", "callback_headers": {"A": 1}}, "callback_headers"),
        ({"callback_url": "https://example.com/", "callback_signature_secret": ""}, "secret"),
    ],
)
async def test_what_cannot_be_called_back_is_refused_here(
    server: FakeServer, client: FakeClient, options: dict[str, Any], match: str
) -> None:
    """Before anything is sent."""
    sandbox = await client.create_sandbox()
    with pytest.raises(InvalidRequestError, match=match):
        await sandbox.run_code_async("pass", **options)
    assert not any(request.path == "/execute/async" for request in server.requests)


async def test_a_receiver_has_to_be_one_and_to_have_a_url(server: FakeServer) -> None:
    """The message says what to do."""
    with pytest.raises(InvalidRequestError, match="WebhookReceiver"):
        FakeClient(server, webhook="https://example.com/hooks")
    async with FakeClient(server, webhook=WebhookReceiver()) as client:
        sandbox = await client.create_sandbox()
        with pytest.raises(ClientStateError, match="listen"):
            await sandbox.run_code_async("pass")
        with pytest.raises(InvalidRequestError, match="goes with callback_url="):
            await sandbox.run_code_async("pass", callback_signature_secret="s")
    with pytest.raises(InvalidRequestError, match="public_url="):
        async with WebhookReceiver().listen(host="0.0.0.0"):
            pass
