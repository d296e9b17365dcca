"""Callbacks: what is posted, how it is signed, and how hard the server tries (contract 2.6)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from blockbuster import BlockBuster

from asyncsandbox import Client, protocol
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.server.deliveries import RECORD_LIFE, Callback, Delivery, DeliveryState
from asyncsandbox.server.jobtable import Ending
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.records import JobKind, Launch
from asyncsandbox.server.store import Store
from asyncsandbox.server.webhooks import Answer, DeliveryPolicy, Webhooks
from asyncsandbox.testing import FakeClock
from asyncsandbox.webhooks import WebhookReceiver

pytestmark = pytest.mark.timeout(120)

_KEY = "a-key-for-tests"
_SECRET = "a secret of the receiver"
_FAST = {"callback_floor": 0.01, "callback_cap": 0.05}


class Receiver:
    """A web server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.answers: deque[web.Response] = deque()
        self.arrived = asyncio.Event()
        self.url = ""

    async def _take(self, request: web.Request) -> web.Response:
        self.posts.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        self.arrived.set()
        return self.answers.popleft() if self.answers else web.json_response({})

    @contextlib.asynccontextmanager
    async def listen(self, port: int = 0) -> AsyncIterator[Receiver]:
        """Listen for as long as the block lasts."""
        app = web.Application()
        app.router.add_post("/hook", self._take)
        app.router.add_get("/hook", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
            yield self
        finally:
            await runner.cleanup()

    async def first(self, count: int = 1) -> tuple[dict[str, str], dict[str, Any]]:
        """Wait for so many posts; return the headers and the body of the last of them."""
        async with asyncio.timeout(50):
            while len(self.posts) < count:
                self.arrived.clear()
                await self.arrived.wait()
        headers, body = self.posts[count - 1]
        return headers, json.loads(body)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    async with Receiver().listen() as receiver:
        yield receiver


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


async def _run(box: Any, code: str, url: str, **fields: Any) -> dict[str, Any]:
    body = {"code": code, "callback_url": url, **fields}
    answer: dict[str, Any] = await box.ok("POST", "/execute/async", json=body)
    return answer


async def _settled(box: Any, started: dict[str, Any], until: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}

    async def is_settled() -> bool:
        told.update(await box.ok("GET", f"/execute/async/{started['execution_id']}"))
        return told["state"] in ("delivered", "given_up")

    await until(is_settled)
    return told


# --- the whole way -----------------------------------------------------------------------------------------


async def test_a_run_calls_back_signed(box: Any, receiver: Receiver, until: Any) -> None:
    """The contract's fields and headers, the caller's own headers, and a signature over time and body."""
    before = int(time.time())
    started = await _run(
        box,
        "import sys; print('out'); print('err', file=sys.stderr)",
        receiver.url,
        callback_headers={"X-Mine": "yes", "content-type": "text/plain"},
        callback_signature_secret=_SECRET,
    )
    assert started["callback_url"] == receiver.url
    assert started["status"] in ("queued", "running")
    headers, body = await receiver.first()
    assert body["execution_id"] == started["execution_id"]
    assert body["process_id"] == started["process_id"]
    assert (body["status"], body["success"], body["exit_code"], body["error"]) == ("completed", True, 0, None)
    assert (body["stdout"], body["stderr"]) == ("out\n", "err\n")
    assert body["execution_time"] > 0
    assert body["timestamp"].endswith("Z")
    assert (headers["x-mine"], headers["content-type"]) == ("yes", "application/json")
    stamp = headers["x-hopx-timestamp"]
    assert before <= int(stamp) <= time.time()
    expected = hmac.new(_SECRET.encode(), stamp.encode() + receiver.posts[0][1], hashlib.sha256).hexdigest()
    assert headers["x-hopx-signature"] == f"sha256={expected}"
    told = await _settled(box, started, until)
    assert (told["state"], told["attempts"], told["last_status"]) == ("delivered", 1, 200)
    assert told["delivery_id"] == headers["x-hopx-delivery"]
    assert told["delivered_at"] is not None
    assert _SECRET not in json.dumps(told)


async def test_no_secret_no_signature(box: Any, receiver: Receiver) -> None:
    """Nobody can pretend one through the headers of the callback either."""
    await _run(box, "pass", receiver.url, callback_headers={"X-HopX-Signature": "sha256=0"})
    headers, _ = await receiver.first()
    assert "x-hopx-signature" not in headers
    assert "x-hopx-timestamp" in headers


async def test_nothing_of_the_server_goes_along(box: Any, receiver: Receiver) -> None:
    """No key, no token, no cookie."""
    receiver.answers.append(web.Response(status=500, headers={"Set-Cookie": "a=b"}))
    await _run(box, "pass", receiver.url)
    headers, _ = await receiver.first(2)
    assert not {"authorization", "x-api-key", "cookie", "proxy-authorization"} & headers.keys()


@pytest.mark.parametrize(
    ("code", "fields", "status", "error"),
    [
        ("raise SystemExit(3)", {}, "failed", "it ended with exit code 3"),
        (
            "import time; time.sleep(600)",
            {"timeout": 0.2},
            "timeout",
            "it ran longer than its time-out of 0.2 s",
        ),
    ],
)
async def test_how_it_ended_is_one_of_three_words(
    box: Any, receiver: Receiver, code: str, fields: dict[str, Any], status: str, error: str
) -> None:
    """completed, failed and timeout are all that the contract knows."""
    await _run(box, code, receiver.url, **fields)
    _, body = await receiver.first()
    assert (body["status"], body["success"], body["error"]) == (status, False, error)


async def test_it_is_a_background_job_like_any_other(box: Any, receiver: Receiver) -> None:
    """Listed, with the contract's time-out, and it can be killed, which is told as failed."""
    started = await _run(box, "import time; print('up'); time.sleep(600)", receiver.url)
    rows = (await box.ok("GET", "/execute/processes"))["processes"]
    assert [row["execution_id"] for row in rows] == [started["execution_id"]]
    assert rows[0]["timeout"] == 3600
    await box.printed(started, "up")
    await box.kill(started)
    _, body = await receiver.first()
    assert (body["status"], body["end_reason"], body["stdout"]) == ("failed", "killed", "up\n")


async def test_long_output_comes_as_its_end(box: Any, receiver: Receiver) -> None:
    """64 KiB of each stream, and a flag that says so."""
    await _run(box, "print('a' * 200_000 + 'z', end='')", receiver.url)
    _, body = await receiver.first()
    assert body["stdout"] == "a" * (64 * 1024 - 1) + "z"
    assert (body["stdout_truncated"], body["stdout_size"], body["stderr_truncated"]) == (True, 200_001, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "callback_url"),
        ({"callback_url": 7}, "callback_url"),
        ({"callback_url": "/hook"}, "callback_url"),
        ({"callback_url": "ftp://127.0.0.1/"}, "callback_url"),
        ({"callback_url": "http:///hook"}, "callback_url"),
        ({"callback_url": "http://127.0.0.1:99999/"}, "callback_url"),
        ({"callback_url": "http://127.0.0.1/\r\nX: y"}, "callback_url"),
        ({"callback_url": "http://127.0.0.1/", "callback_headers": ["a"]}, "callback_headers"),
        ({"callback_url": "http://127.0.0.1/", "callback_headers": {"A": 1}}, "callback_headers"),
        ({"callback_url": "http://127.0.0.1/", "callback_headers": {"A": "b\r\nC: d"}}, "'A'"),
        ({"callback_url": "http://127.0.0.1/", "callback_headers": {"Host": "b"}}, "'Host'"),
        ({"callback_url": "http://127.0.0.1/", "callback_headers": {"A": "b" * 20_000}}, "callback_headers"),
        ({"callback_url": "http://127.0.0.1/", "callback_signature_secret": ""}, "secret"),
    ],
)
async def test_what_cannot_be_called_back_is_refused(box: Any, fields: dict[str, Any], named: str) -> None:
    """400, the field is named, and nothing is started."""
    status, body = await box.call("POST", "/execute/async", json={"code": "pass", **fields})
    assert status == 400, body
    assert named in body["message"]
    assert (await box.ok("GET", "/execute/processes"))["processes"] == []


async def test_the_same_key_starts_and_tells_once(box: Any, receiver: Receiver, until: Any) -> None:
    """A repeated request gets the same run; the end is told once."""
    body = {"code": "print(1)", "callback_url": receiver.url}
    answers = [
        await box.ok("POST", "/execute/async", json=body, headers={"Idempotency-Key": "k"}) for _ in range(3)
    ]
    assert len({answer["execution_id"] for answer in answers}) == 1
    await _settled(box, answers[0], until)
    assert len(receiver.posts) == 1


async def test_a_delivery_is_told_to_its_sandbox_alone(api: Any, box: Any, receiver: Receiver) -> None:
    """An execution of another sandbox is unknown, as is one that never was."""
    started = await _run(box, "pass", receiver.url)
    other = await api.create()
    for where, execution_id in ((other, started["execution_id"]), (box, "exec_none")):
        status, _ = await where.call("GET", f"/execute/async/{execution_id}")
        assert status == 404


async def test_a_receiver_that_is_down_at_first_hears_later(
    servers: Any, until: Any, reserve_port: Callable[[], int]
) -> None:
    """Refused connections and refusals are tried again; the same delivery, the same body, a new stamp."""
    port = reserve_port()
    url = f"http://127.0.0.1:{port}/hook"
    server = servers.tcp(**_FAST)
    async with servers.connect(server) as api:
        box = await api.create()
        started = await _run(box, "print('late')", url, callback_signature_secret=_SECRET)

        async def tried() -> bool:
            told = await box.ok("GET", f"/execute/async/{started['execution_id']}")
            return bool(told["attempts"] >= 2)

        await until(tried)
        told = await box.ok("GET", f"/execute/async/{started['execution_id']}")
        assert told["state"] == "pending"
        assert "annot connect" in told["last_error"]
        receiver = Receiver()
        receiver.answers.extend(
            [web.Response(status=503), web.Response(status=302, headers={"Location": "/hook"})]
        )
        async with receiver.listen(port):
            told = await _settled(box, started, until)
    assert told["state"] == "delivered"
    assert told["attempts"] >= 5
    assert len(receiver.posts) == 3
    assert len({headers["x-hopx-delivery"] for headers, _ in receiver.posts}) == 1
    assert len({body for _, body in receiver.posts}) == 1
    assert json.loads(receiver.posts[0][1])["stdout"] == "late\n"


async def test_a_restart_loses_no_callback(
    servers: Any, receiver: Receiver, reserve_port: Callable[[], int]
) -> None:
    """What was pending is delivered by the next server, what ran is told as failed, what was told is not again."""
    port = reserve_port()
    down = f"http://127.0.0.1:{port}/hook"
    server = servers.tcp(**_FAST)
    async with servers.connect(server) as api:
        box = await api.create()
        told = await _run(box, "print('told')", receiver.url)
        await receiver.first()
        pending = await _run(box, "print('pending')", down, callback_signature_secret=_SECRET)
        await box.end(pending)
        running = await _run(box, "import time; print('up'); time.sleep(600)", down)
        await box.printed(running, "up")
        async with asyncio.timeout(50):
            while (await box.ok("GET", f"/execute/async/{told['execution_id']}"))["state"] != "delivered":
                await asyncio.sleep(0.02)
    server.kill()
    late = Receiver()
    async with late.listen(port):
        servers.tcp(**_FAST)
        await late.first(2)
    bodies = {json.loads(body)["execution_id"]: json.loads(body) for _, body in late.posts}
    assert bodies[pending["execution_id"]]["stdout"] == "pending\n"
    lost = bodies[running["execution_id"]]
    assert (lost["status"], lost["end_reason"], lost["stdout"]) == ("failed", "lost", "up\n")
    assert len(receiver.posts) == 1


async def test_a_deleted_sandbox_still_tells(servers: Any, reserve_port: Callable[[], int]) -> None:
    """What ended before is delivered, and what the deletion killed is told as failed."""
    port = reserve_port()
    down = f"http://127.0.0.1:{port}/hook"
    server = servers.tcp(**_FAST)
    async with servers.connect(server) as api:
        box = await api.create()
        ended = await _run(box, "print('done')", down)
        await box.end(ended)
        killed = await _run(box, "import time; print('up'); time.sleep(600)", down)
        await box.printed(killed, "up")
        await api.ok("DELETE", f"/v1/sandboxes/{box.id}")
        receiver = Receiver()
        async with receiver.listen(port):
            await receiver.first(2)
    bodies = {json.loads(body)["execution_id"]: json.loads(body) for _, body in receiver.posts}
    assert bodies[ended["execution_id"]]["stdout"] == "done\n"
    assert bodies[killed["execution_id"]]["status"] == "failed"
    assert bodies[killed["execution_id"]]["end_reason"] == "killed"
    assert bodies[killed["execution_id"]]["stdout"] == "up\n"


async def test_a_client_hears_of_its_job_through_a_restart(
    servers: Any, until: Any, reserve_port: Callable[[], int]
) -> None:
    """The receiver is down and the server dies meanwhile; the waiting client asks neither of them."""
    port, hooks = reserve_port(), reserve_port()
    server = servers.tcp(port=port, **_FAST)
    receiver = WebhookReceiver(public_url=f"http://127.0.0.1:{hooks}")
    async with Client(server.said["url"], api_key=_KEY, webhook=receiver, clock=FakeClock()) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_async("print('through it all')")
        path = protocol.async_path(protocol.execution_id(job.process_id))

        async def tried() -> bool:
            reply = await sandbox._agent.call(protocol.get(path), what="asking")
            return bool(protocol.json_object(reply)["attempts"])

        await until(tried)
        server.kill()
        servers.tcp(port=port, **_FAST)
        async with receiver.listen(port=hooks):
            result = await job.wait()
        assert (result.stdout, result.ok, client.stats.looks) == ("through it all\n", True, 0)


# --- on virtual time ---------------------------------------------------------------------------------------


class FakePoster:
    """Answers as it is told, and notes when it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.posts: list[tuple[float, str, Mapping[str, str], bytes]] = []
        self.answers: deque[Answer | Exception] = deque()
        self.otherwise: Answer | Exception = Answer(status=200)
        self.gate: asyncio.Event | None = None
        self.at_once = 0
        self.most: dict[str, int] = {}
        self.closed = False

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Note the call and answer it."""
        assert timeout == 10.0
        self.posts.append((self.clock.now(), url, headers, body))
        self.at_once += 1
        self.most[url] = self.most.get(url, 0) + 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            answer = self.answers.popleft() if self.answers else self.otherwise
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.at_once -= 1

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True


class _NoOutput:
    def read(self, *_args: Any, **_options: Any) -> Any:
        raise OSError("no disk")


class Bench:
    """A ledger with jobs, and the deliverer on virtual time without randomness: every draw is the upper bound."""

    def __init__(self, path: Path, **policy: float) -> None:
        self.path = path
        self.clock = FakeClock()
        self.poster = FakePoster(self.clock)
        self.policy = DeliveryPolicy(**policy)  # type: ignore[arg-type]
        self.open()

    def open(self) -> None:
        """Open the ledger and go on with what is in it."""
        self.ledger = Ledger(Store(self.path))
        self.webhooks = Webhooks(
            self.ledger,
            _NoOutput(),  # type: ignore[arg-type]
            policy=self.policy,
            poster=self.poster,
            clock=self.clock,
            wall=self.clock.now,
            uniform=lambda _low, high: high,
        )
        self.webhooks.recover()

    async def close(self) -> None:
        """Stop as a server does."""
        await self.webhooks.close()
        self.ledger.close()

    def add(self, name: str = "bg_1", url: str = "http://receiver/hook", secret: str | None = None) -> str:
        """Take in a job that calls back; returns its execution id."""
        info = JobInfo(process_id=name, sandbox_id="s", timeout=1.0, state=JobState.QUEUED)
        launch = Launch(argv=["a"], env={}, cwd="/")
        self.ledger.jobs.add(info, kind=JobKind.CODE, launch=launch)
        callback = Callback(url=url, secret=secret)
        return self.ledger.deliveries.expect(name, "s", callback).execution_id

    def end(self, name: str = "bg_1", *, tell: bool = True) -> None:
        """Let it end."""
        ending = Ending(state=JobState.COMPLETED, reason=EndReason.EXIT, at=self.clock.now(), exit_code=0)
        record = self.ledger.jobs.finish(name, ending)
        self.ledger.commit()
        if tell:
            assert record is not None
            self.webhooks.job_ended(record)

    def told(self, execution_id: str) -> Delivery:
        """What is known of a callback."""
        entry = self.ledger.deliveries.get(execution_id)
        assert entry is not None
        return entry

    def times(self) -> list[float]:
        """When posts were made, in seconds from the first."""
        return [round(at - self.poster.posts[0][0], 3) for at, *_ in self.poster.posts]


@pytest.fixture(autouse=True)
def records_may_block(no_blocking: BlockBuster) -> None:
    """Allow what the server does on purpose: it writes its records in its event loop."""
    for name, function in no_blocking.functions.items():
        if name.startswith("sqlite3"):
            function.deactivate()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench with the usual policy."""
    bench = Bench(tmp_path / "records")
    yield bench
    await bench.close()


async def test_gaps_grow_to_a_cap_and_end_after_a_day(bench: Bench) -> None:
    """Half a second doubles up to a minute; the last try is at the end of 24 hours, and then no more."""
    bench.poster.otherwise = Answer(status=500)
    execution_id = bench.add()
    bench.end()
    await bench.clock.advance(300)
    assert bench.times()[:9] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 123.5]
    assert bench.told(execution_id).state is DeliveryState.PENDING
    await bench.clock.advance(2 * 24 * 3600)
    assert bench.times()[-1] == 24 * 3600
    told = bench.told(execution_id)
    assert (told.state, told.last_status) == (DeliveryState.GIVEN_UP, 500)
    assert told.attempts == len(bench.poster.posts)
    assert bench.ledger.callback_body(execution_id) is None


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=199),
        Answer(status=300),
        Answer(status=404),
        TimeoutError(),
        ConnectionResetError("reset"),
        aiohttp.ServerDisconnectedError(),
        ValueError("http://secret.example/"),
        RuntimeError("a mistake of ours"),
    ],
)
async def test_whatever_is_no_success_is_tried_again(bench: Bench, trouble: Answer | Exception) -> None:
    """Only 2xx is delivered; what went wrong is on record, without the URL."""
    bench.poster.answers.append(trouble)
    execution_id = bench.add(url="http://secret.example/token")
    bench.end()
    await bench.clock.settle()
    told = bench.told(execution_id)
    assert (told.state, told.attempts) == (DeliveryState.PENDING, 1)
    assert told.last_error
    assert "secret" not in told.last_error
    await bench.clock.advance(1)
    assert bench.told(execution_id).state is DeliveryState.DELIVERED
    assert bench.told(execution_id).attempts == 2


async def test_gone_is_the_end_of_it(bench: Bench) -> None:
    """410 says that nobody wants to know."""
    bench.poster.otherwise = Answer(status=410)
    execution_id = bench.add()
    bench.end()
    await bench.clock.advance(1000)
    assert len(bench.poster.posts) == 1
    assert bench.told(execution_id).state is DeliveryState.GIVEN_UP


async def test_retry_after_is_obeyed(bench: Bench) -> None:
    """A receiver's wish wins over the backoff, and is only exceeded."""
    bench.poster.answers.append(Answer(status=429, retry_after=90.0))
    bench.add()
    bench.end()
    await bench.clock.advance(200)
    assert bench.times() == [0, 90.5]


async def test_every_try_is_signed_anew(bench: Bench) -> None:
    """A receiver that checks the age takes late tries too; what is told and its id stay the same."""
    bench.poster.otherwise = Answer(status=500)
    bench.add(secret=_SECRET)
    bench.end()
    await bench.clock.advance(70)
    headers = [post[2] for post in bench.poster.posts]
    assert len({one["X-HopX-Timestamp"] for one in headers}) > 3
    assert len({one["X-HopX-Delivery"] for one in headers}) == 1
    for _, _, one, body in bench.poster.posts:
        text = one["X-HopX-Timestamp"].encode() + body
        assert (
            one["X-HopX-Signature"]
            == f"sha256={hmac.new(_SECRET.encode(), text, hashlib.sha256).hexdigest()}"
        )


async def test_a_slow_receiver_holds_up_no_other(tmp_path: Path) -> None:
    """Tries are bounded, in all and for each host and port; nobody is forgotten."""
    bench = Bench(tmp_path / "records", in_flight=5, per_target=3)
    bench.poster.gate = asyncio.Event()
    ids = []
    for number in range(20):
        host = "slow" if number < 15 else "other"
        ids.append(bench.add(f"bg_{number}", f"http://{host}/hook"))
        bench.end(f"bg_{number}")
    await bench.clock.settle()
    assert bench.poster.at_once == 5
    assert bench.poster.most == {"http://slow/hook": 3, "http://other/hook": 2}
    bench.poster.gate.set()
    await bench.clock.settle()
    assert {bench.told(one).state for one in ids} == {DeliveryState.DELIVERED}
    await bench.close()


async def test_what_was_pending_goes_on_after_a_restart(bench: Bench) -> None:
    """The record, its attempts and its body survive; an interrupted try is made again."""
    bench.poster.otherwise = Answer(status=500)
    first = bench.add("bg_1")
    bench.end("bg_1")
    await bench.clock.advance(2)
    before = bench.told(first)
    bench.poster.gate = asyncio.Event()
    second = bench.add("bg_2")
    bench.end("bg_2")
    await bench.clock.settle()
    assert bench.poster.at_once == 1
    bodies = [post[3] for post in bench.poster.posts]
    await bench.close()
    assert bench.poster.closed
    bench.poster.gate = None
    bench.poster.otherwise = Answer(status=204)
    made = len(bench.poster.posts)
    bench.open()
    assert bench.told(first) == before
    await bench.clock.advance(10)
    assert {bench.told(one).state for one in (first, second)} == {DeliveryState.DELIVERED}
    assert {post[3] for post in bench.poster.posts[made:]} == set(bodies)


async def test_an_end_that_was_not_told_before_a_crash_is_told_after_it(bench: Bench) -> None:
    """The end was on disk and the callback was not; a job without a record is told as lost."""
    ended, vanished = bench.add("bg_1"), bench.add("bg_2")
    bench.ledger.jobs.withdraw("bg_2")
    bench.end("bg_1", tell=False)
    await bench.close()
    bench.open()
    await bench.clock.settle()
    statuses = {
        json.loads(post[3])["execution_id"]: json.loads(post[3])["status"] for post in bench.poster.posts
    }
    assert statuses == {ended: "completed", vanished: "failed"}


async def test_output_that_cannot_be_read_holds_up_nothing(bench: Bench) -> None:
    """The end is told, and that its output is missing."""
    bench.add()
    bench.end()
    await bench.clock.settle()
    body = json.loads(bench.poster.posts[0][3])
    assert (body["status"], body["stdout"]) == ("completed", "")
    assert "could not be read" in body["output_error"]


async def test_an_end_is_told_once_however_often_it_is_heard(bench: Bench) -> None:
    """The state of a delivery only goes forward."""
    bench.add()
    bench.end()
    await bench.clock.settle()
    bench.end()
    await bench.clock.settle()
    assert len(bench.poster.posts) == 1


async def test_records_of_deliveries_are_kept_for_a_day(bench: Bench) -> None:
    """Then they go, from the disk too; their secrets go at once."""
    old = bench.add("bg_1", secret=_SECRET)
    bench.end("bg_1")
    await bench.clock.settle()
    assert bench.told(old).callback.secret is None
    await bench.clock.advance(RECORD_LIFE + 1)
    new = bench.add("bg_2")
    bench.end("bg_2")
    await bench.clock.settle()
    assert bench.ledger.deliveries.get(old) is None
    bench.ledger.commit()
    store = Store(bench.path)
    left = [entry.execution_id for entry in store.load().deliveries]
    store.close()
    assert left == [new]


def test_nothing_shows_a_secret() -> None:
    """Neither URL nor headers nor secret are in a `repr`."""
    callback = Callback(url="http://hidden/", headers={"A": "hidden"}, secret="hidden")
    assert "hidden" not in repr(callback)
