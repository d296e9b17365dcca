"""Requests against a real HTTP server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from asyncsandbox import (
    APIError,
    AuthenticationError,
    Client,
    ClientStateError,
    ConflictError,
    ConnectError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    SandboxClosedError,
    ServerError,
    protocol,
)
from asyncsandbox.testing import FakeClock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Scripted:
    """A server whose next answers a test decides. What is not scripted is answered as the contract says."""

    def __init__(self) -> None:
        self.script: list[Handler] = []
        self.seen: list[web.Request] = []
        self.url = ""
        self.tokens = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer by script, else by the contract."""
        self.seen.append(request)
        await request.read()
        if self.script and request.path not in ("/health", "/vm/s-1/health"):
            return await self.script.pop(0)(request)
        return self.plain(request)

    def plain(self, request: web.Request) -> web.Response:  # noqa: PLR0911 - a table of answers
        """Answer as a healthy server does."""
        match request.method, request.path:
            case _, "/health" | "/vm/s-1/health":
                return web.json_response(
                    {"status": "healthy", "features": {"asyncsandbox": dict(protocol.FEATURES)}}
                )
            case "POST", "/v1/sandboxes":
                return web.json_response(self.sandbox(), status=201)
            case "POST", "/v1/sandboxes/s-1/token/refresh":
                self.tokens += 1
                return web.json_response(
                    {"auth_token": f"t-{self.tokens}", "token_expires_at": "2099-01-01T00:00:00Z"}
                )
            case "GET", "/v1/sandboxes":
                return web.json_response({"data": [self.sandbox()], "has_more": False})
            case _, "/v1/sandboxes/s-1":
                return web.json_response(self.sandbox())
            case _, "/vm/s-1/env":
                return web.json_response({"env_vars": {"authorization": request.headers["Authorization"]}})
            case _:
                return web.json_response({"error": "no such thing", "code": "RESOURCE_NOT_FOUND"}, status=404)

    def sandbox(self) -> dict[str, object]:
        """Describe the one sandbox."""
        return {"id": "s-1", "status": "running", "public_host": f"{self.url}/vm/s-1"}


@contextlib.asynccontextmanager
async def serve(scripted: Scripted) -> AsyncIterator[None]:
    """Run the server on a free port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    scripted.url = f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Return a server that is up."""
    server = Scripted()
    async with serve(server):
        yield server


@pytest.fixture
async def clock() -> FakeClock:
    """Return virtual time, for the pauses between tries."""
    return FakeClock()


@pytest.fixture
async def client(scripted: Scripted, clock: FakeClock) -> AsyncIterator[Client]:
    """Return a client whose pauses pass at once."""
    async with Client(scripted.url, api_key="the-key", clock=clock, request_timeout=20) as client:
        pusher = asyncio.ensure_future(_push(clock))
        try:
            yield client
        finally:
            pusher.cancel()


async def _push(clock: FakeClock) -> None:
    """Let virtual time pass as fast as anybody waits for it."""
    while True:
        await asyncio.sleep(0.001)
        await clock.advance(1)


def answer(status: int, body: object = None, **headers: str) -> Handler:
    """Answer so."""

    async def handle(_request: web.Request) -> web.Response:
        return web.json_response(
            body or {},
            status=status,
            headers={key.replace("_", "-"): value for key, value in headers.items()},
        )

    return handle


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection without a word."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def cut_short(request: web.Request) -> web.StreamResponse:
    """Promise more than comes."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"data":')
    assert request.transport is not None
    request.transport.close()
    return response


async def babble(_request: web.Request) -> web.Response:
    """Answer 200 with something that is no JSON."""
    return web.Response(text="<html>proxy error</html>")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (418, APIError),
        (422, InvalidRequestError),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        {"error": "because", "code": "CODE", "request_id": "r-7"},
        {"error": {"message": "because", "code": "CODE", "request_id": "r-7"}},
        {"message": "because", "code": "CODE", "request_id": "r-7"},
    ],
)
async def test_refusals_become_errors_of_the_tree(
    scripted: Scripted, client: Client, status: int, error: type[APIError], body: dict[str, object]
) -> None:
    """Every shape of body (contract 1.7) gives class, status, code, text and request id, after one request."""
    scripted.script = [answer(status, body)]
    with pytest.raises(
        error, match=rf"listing sandboxes: the server answered {status} CODE: because"
    ) as caught:
        await client.list_sandboxes()
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, "CODE", "r-7")
    assert client.stats.requests == 1


@pytest.mark.parametrize(
    "fault",
    [500, 502, 503, 504, hang_up, cut_short],
    ids=lambda fault: getattr(fault, "__name__", str(fault)),
)
async def test_passing_faults_are_retried_where_that_is_safe(
    scripted: Scripted, client: Client, fault: Handler | int
) -> None:
    """A GET is repeated until it works."""
    scripted.script = [answer(fault) if isinstance(fault, int) else fault] * 2
    assert [info.id for info in await client.list_sandboxes()] == ["s-1"]
    assert client.stats.retries >= 1  # aiohttp itself repeats a GET on a connection that it reused


async def test_lasting_failure_is_told_after_four_tries(scripted: Scripted, client: Client) -> None:
    """The error is the last one."""
    scripted.script = [answer(500, {"error": f"no {n}"}) for n in range(9)]
    with pytest.raises(ServerError, match="no 3"):
        await client.list_sandboxes()
    assert client.stats.requests == 4


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, {"Retry_After": "7"}),
        ({"retry_after": 7}, {}),
        ({"error": {"message": "slow", "details": {"retry_after_seconds": 7}}}, {}),
        ({"error": "slow", "message": "slow", "details": {"retry_after_seconds": 7}}, {}),
    ],
)
async def test_429_is_repeated_when_the_server_says(
    scripted: Scripted, client: Client, clock: FakeClock, body: dict[str, object], headers: dict[str, str]
) -> None:
    """All three places of the hint are read, and the wait is at least as long. A refused start did not start."""
    sandbox = await client.create_sandbox()
    await sandbox._agent.headers()
    sandbox._agent._features = {}
    scripted.script = [answer(429, body, **headers), answer(200, {"process_id": "bg_1", "status": "running"})]
    began = clock.now()
    job = await sandbox.run_code_background("pass")
    assert job.process_id == "bg_1"
    assert clock.now() - began >= 7


async def test_429_for_ever_is_told_in_the_end(scripted: Scripted, client: Client) -> None:
    """Patience has an end, and the error says how long the server wanted."""
    scripted.script = [answer(429, {"retry_after": 50}) for _ in range(9)]
    with pytest.raises(RateLimitError) as caught:
        await client.list_sandboxes()
    assert caught.value.retry_after == 50
    assert client.stats.requests == 3


async def test_a_server_that_is_down_is_told_with_its_address(clock: FakeClock) -> None:
    """Connection refused: a few tries, then an error that is a ConnectionError too."""
    async with Client("http://127.0.0.1:9", api_key="k", clock=clock) as client:
        pusher = asyncio.ensure_future(_push(clock))
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9.*cannot connect") as caught:
            await client.create_sandbox()
        pusher.cancel()
    assert isinstance(caught.value, ConnectError)
    assert caught.value.sent is False


async def test_a_slow_server_is_told_with_the_time(scripted: Scripted) -> None:
    """The time-out is the request's, and the error a TimeoutError too."""
    release = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await release.wait()
        return web.json_response({})

    async with Client(scripted.url, api_key="k", request_timeout=0.05) as client:
        scripted.script = [slow] * 9
        with pytest.raises(TimeoutError, match=r"no reply within 0.05 s") as caught:
            await client.list_sandboxes()
        release.set()
    assert isinstance(caught.value, RequestTimeoutError)


async def test_what_is_no_json_is_a_protocol_error(scripted: Scripted, client: Client) -> None:
    """The message shows where and how the reply began."""
    scripted.script = [babble]
    with pytest.raises(ProtocolError, match=r"proxy error") as caught:
        await client.list_sandboxes()
    assert caught.value.url.endswith("/v1/sandboxes")


async def test_redirects_are_not_followed(scripted: Scripted, client: Client) -> None:
    """They would carry the key elsewhere."""
    scripted.script = [answer(302, {}, Location="http://127.0.0.1:9/")]
    with pytest.raises(ProtocolError, match="redirect"):
        await client.list_sandboxes()


async def test_the_key_goes_to_the_control_plane_and_the_token_to_the_agent(
    scripted: Scripted, client: Client
) -> None:
    """Neither goes to the other."""
    sandbox = await client.create_sandbox()
    await sandbox.env.get_all()
    control = [request for request in scripted.seen if request.path.startswith("/v1")]
    agent = [request for request in scripted.seen if request.path.startswith("/vm")]
    assert {request.headers.get("X-API-Key") for request in control} == {"the-key"}
    assert {request.headers.get("X-API-Key") for request in agent} == {None}
    assert {request.headers.get("Authorization") for request in agent} == {"Bearer t-1"}


async def test_one_refresh_serves_all_who_met_the_same_401(scripted: Scripted, client: Client) -> None:
    """Fifty calls, one token refused, one refresh."""
    sandbox = await client.create_sandbox()
    await sandbox.env.get_all()
    assert scripted.tokens == 1

    plain = scripted.plain

    def patched(request: web.Request) -> web.Response:
        if request.path == "/vm/s-1/env" and request.headers["Authorization"] == "Bearer t-1":
            return web.json_response({"error": "expired", "code": "INVALID_TOKEN"}, status=401)
        return plain(request)

    scripted.plain = patched  # type: ignore[method-assign]
    answers = await asyncio.gather(*(sandbox.env.get_all() for _ in range(50)))
    assert {item["authorization"] for item in answers} == {"Bearer t-2"}
    assert scripted.tokens == 2


async def test_a_token_that_stays_refused_is_an_authentication_error(
    scripted: Scripted, client: Client
) -> None:
    """One refresh, one more try, then the truth."""
    sandbox = await client.create_sandbox()
    await sandbox._agent.headers()
    scripted.script = [
        answer(401, {"error": "no"}),
        scripted_plain(scripted),
        answer(401, {"error": "still no"}),
    ]
    with pytest.raises(AuthenticationError, match="still no"):
        await sandbox.env.get_all()


def scripted_plain(scripted: Scripted) -> Handler:
    """Answer as if nothing were scripted."""

    async def handle(request: web.Request) -> web.Response:
        return scripted.plain(request)

    return handle


async def test_fifty_first_calls_look_the_sandbox_up_once(scripted: Scripted, client: Client) -> None:
    """Contract 4.1, weakness 3: no stampede."""
    sandbox = await client.connect("s-1")
    scripted.seen.clear()
    await asyncio.gather(*(sandbox.env.get_all() for _ in range(50)))
    paths = [request.path for request in scripted.seen if request.path != "/vm/s-1/env"]
    assert paths == ["/v1/sandboxes/s-1/token/refresh"]


async def test_requests_in_flight_are_bounded(scripted: Scripted) -> None:
    """More callers than room wait their turn."""
    flying, most = 0, 0
    gate = asyncio.Event()

    async def count(request: web.Request) -> web.Response:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        if flying == 3:
            gate.set()
        await gate.wait()
        await asyncio.sleep(0)
        flying -= 1
        return scripted.plain(request)

    async with Client(scripted.url, api_key="k", max_requests=3) as client:
        scripted.script = [count] * 20
        await asyncio.gather(*(client.list_sandboxes() for _ in range(20)))
    assert most == 3


async def test_paths_and_queries_arrive_as_they_were_given(scripted: Scripted, client: Client) -> None:
    """Names that need escaping are escaped once (contract 2.10 tells of clients that do not)."""
    sandbox = await client.create_sandbox()
    odd = "a b&c+d%20é#?.txt"
    await sandbox._agent.headers()
    scripted.script = [answer(200, {"exists": True})]
    assert await sandbox.files.exists(odd)
    assert scripted.seen[-1].query["path"] == odd


async def test_a_sandbox_that_the_server_does_not_know_is_closed(scripted: Scripted, client: Client) -> None:
    """Connecting says so, by id."""
    with pytest.raises(NotFoundError, match="'s-9'"):
        await client.connect("s-9")
    sandbox = await client.create_sandbox()
    await sandbox._agent.headers()
    scripted.script = [answer(404, {"error": "gone", "code": "SANDBOX_NOT_FOUND"})]
    with pytest.raises(SandboxClosedError, match=r"'s-1'.*gone from the server"):
        await sandbox.env.get_all()
    asked = len(scripted.seen)
    with pytest.raises(SandboxClosedError):
        await sandbox.env.get_all()
    assert len(scripted.seen) == asked


async def test_pages_are_followed_and_never_for_ever(scripted: Scripted, client: Client) -> None:
    """A server that says has_more without bringing anything new does not loop us (contract 1.6)."""
    first = {"data": [{"id": "a"}], "has_more": True, "next_cursor": "c1"}
    again = {"data": [{"id": "a"}], "has_more": True, "next_cursor": "c2"}
    scripted.script = [answer(200, first), answer(200, {**first, "data": [{"id": "b"}]}), answer(200, again)]
    assert [info.id for info in await client.list_sandboxes()] == ["a", "b"]
    scripted.script = [answer(200, first), answer(200, again)]
    assert [info.id for info in await client.list_sandboxes()] == ["a"]


async def test_a_closed_client_refuses(scripted: Scripted) -> None:
    """Closing twice is fine, using afterwards is not."""
    client = Client(scripted.url, api_key="k")
    await client.list_sandboxes()
    await client.aclose()
    await client.aclose()
    with pytest.raises(ClientStateError, match="closed"):
        await client.list_sandboxes()
    assert repr(client).startswith("<Client closed http://127.0.0.1")


async def test_a_forgotten_client_warns(scripted: Scripted) -> None:
    """It says which, and what to do."""
    client = Client(scripted.url, api_key="k")
    await client.list_sandboxes()
    with pytest.warns(ResourceWarning, match=r"never closed; use `async with` or aclose"):
        client.__del__()
    await client.aclose()


async def test_secrets_are_in_no_repr(scripted: Scripted) -> None:
    """Neither key nor token shows up where logs would have it."""
    async with Client(scripted.url, api_key="very-secret") as client:
        sandbox = await client.create_sandbox()
        await sandbox.env.get_all()
        shown = f"{client!r} {sandbox!r} {client._endpoint!r} {sandbox._agent._grant!r}"
        assert "very-secret" not in shown
        assert "t-1" not in shown
