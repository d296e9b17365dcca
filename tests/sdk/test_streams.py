"""Streams, terminals and watched files: on a real embedded server, and on a scripted stock one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from asyncsandbox import (
    APIError,
    AsyncSandboxError,
    AuthenticationError,
    Client,
    ClientStateError,
    ConnectError,
    FileChange,
    InvalidRequestError,
    JobSpec,
    JobState,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RunStream,
    Sandbox,
    SandboxClosedError,
    ServerError,
    StreamOutput,
    StreamResult,
)
from asyncsandbox.testing import FakeClient, FakeServer

pytestmark = pytest.mark.timeout(120)

PATIENCE = 50


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run on asyncio; one loop for the module, as the client belongs to one."""
    return "asyncio"


@pytest.fixture(scope="module")
async def embedded() -> AsyncIterator[Client]:
    """Return a client with an embedded server."""
    async with Client(isolation="none") as client:
        yield client


@pytest.fixture
async def box(embedded: Client) -> AsyncIterator[Sandbox]:
    """Return a sandbox on the embedded server."""
    async with embedded.create_sandbox() as sandbox:
        yield sandbox


async def collect(stream: RunStream) -> tuple[str, str, StreamResult]:
    """Read a stream to its end."""
    texts = {"stdout": "", "stderr": ""}
    last = None
    async for event in stream:
        assert last is None, "something came after the result"
        if isinstance(event, StreamOutput):
            texts[event.stream] += event.text
        else:
            last = event
    assert last is not None
    assert stream.result is last
    return texts["stdout"], texts["stderr"], last


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.02)


# --- runs, on the embedded server ---------------------------------------------------------------------------


async def test_code_is_read_as_it_writes_and_its_end_comes_last(box: Sandbox) -> None:
    """With or without `async with`; a run that fails raises nothing."""
    code = "import os, sys; print('ä', os.environ['A']); sys.stderr.write('e'); sys.exit(3)"
    async with box.run_code_stream(code, env={"A": "1"}) as stream:
        stdout, stderr, result = await collect(stream)
    assert (stdout, stderr) == ("ä 1\n", "e")
    assert (result.success, result.exit_code, result.signal, result.state) == (
        False,
        3,
        None,
        JobState.FAILED,
    )
    assert result.execution_time is not None
    assert (result.timeout, result.truncated) == (60.0, False)
    _stdout, _stderr, result = await collect(box.run_code_stream(JobSpec("print(1)", timeout=7)))
    assert (result.success, result.exit_code, result.state) == (True, 0, JobState.COMPLETED)
    assert result.timeout == 7


async def test_commands_stream_too(box: Sandbox) -> None:
    """A line for the shell, or a program with its arguments."""
    stdout, stderr, result = await collect(box.commands.stream("echo $A; pwd >&2", env={"A": "b c"}))
    assert stdout == "b c\n"
    assert stderr.endswith("/workspace\n")
    assert result.success
    stdout, _stderr, _result = await collect(box.commands.stream("echo", args=["$A", "b"], timeout=20))
    assert stdout == "$A b\n"


async def test_output_is_here_before_the_run_goes_on(box: Sandbox) -> None:
    """The run waits for a file that is only written once its output was seen."""
    code = "import os, time\nprint('ready')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('gone')"
    seen = []
    async for event in box.run_code_stream(code):
        if isinstance(event, StreamOutput):
            assert event.at is not None
            seen.append(event.text)
            await box.files.write("go", "")
    assert "".join(seen) == "ready\ngone\n"


async def test_what_is_not_read_is_not_held_here(box: Sandbox) -> None:
    """Fifty megabytes wait elsewhere while nobody reads, and come whole when somebody does."""
    size = 50_000_000
    code = f"import sys\nfor n in range({size // 100}): sys.stdout.write('%099d\\n' % n)"
    own = psutil.Process()
    async with box.run_code_stream(code) as stream:
        first = await anext(stream)
        assert isinstance(first, StreamOutput)
        before = own.memory_info().rss
        for _ in range(20):  # the server works on, the stream does not
            assert (await box.run_code("print(1)")).ok
        assert own.memory_info().rss - before < size // 4
        length, position = len(first.text), first.text
        async for event in stream:
            if isinstance(event, StreamOutput):
                length += len(event.text)
                position = (position + event.text)[-100:]
    assert length == size
    assert position == f"{size // 100 - 1:099d}\n"
    assert stream.result is not None
    assert stream.result.truncated is False


async def test_a_run_over_its_time_is_a_result(box: Sandbox) -> None:
    """As with `run_code`."""
    stdout, _stderr, result = await collect(
        box.run_code_stream("import time; print('up'); time.sleep(600)", timeout=1)
    )
    assert stdout == "up\n"
    assert (result.success, result.exit_code, result.state) == (False, None, JobState.TIMED_OUT)


async def test_death_by_a_signal_has_no_exit_code(box: Sandbox) -> None:
    """No code is invented."""
    _stdout, _stderr, result = await collect(box.commands.stream("kill -9 $$"))
    assert (result.exit_code, result.signal, result.state) == (None, 9, JobState.FAILED)


async def test_what_cannot_run_raises_an_error_of_the_tree(box: Sandbox) -> None:
    """Before anything is sent where that is known, else as the server says."""
    with pytest.raises(InvalidRequestError, match="run_code_stream takes no stdin"):
        box.run_code_stream(JobSpec("x", stdin="y"))
    with pytest.raises(InvalidRequestError):
        box.run_code_stream("")
    with pytest.raises(InvalidRequestError):
        box.commands.stream(" ")
    with pytest.raises(PermissionDeniedError, match=f"{box.id}.*FORBIDDEN.*/etc"):
        await collect(box.run_code_stream("x", working_dir="/etc"))
    stream = box.commands.stream("/no/such/program", args=[])
    with pytest.raises(InvalidRequestError, match="/no/such/program"):
        await collect(stream)
    assert [event async for event in stream] == []


CHATTER = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: print('x' * 1000); time.sleep(0.001)"


async def pid_of(stream: RunStream) -> int:
    """Return the number that a run writes first."""
    text = ""
    while "\n" not in text:
        event = await anext(stream)
        assert isinstance(event, StreamOutput)
        text += event.text
    return int(text.splitlines()[0])


@pytest.mark.parametrize("way", ["block", "aclose", "letting go", "cancellation"])
async def test_leaving_early_ends_the_run(box: Sandbox, way: str) -> None:
    """However it is left, and though it writes on."""
    pids: list[int] = []
    if way == "block":
        async with box.run_code_stream(CHATTER) as stream:
            pids.append(await pid_of(stream))
    elif way == "aclose":
        stream = box.run_code_stream(CHATTER)
        pids.append(await pid_of(stream))
        await stream.aclose()
        await stream.aclose()
        assert [event async for event in stream] == []
    elif way == "letting go":
        async for event in box.run_code_stream(CHATTER):
            assert isinstance(event, StreamOutput)
            pids.append(int(event.text.split()[0]))
            break
        del event
        gc.collect()
    else:

        async def read() -> None:
            async with box.run_code_stream(CHATTER) as stream:
                pids.append(await pid_of(stream))
                async for _event in stream:
                    pass

        task = asyncio.create_task(read())
        await until(lambda: bool(pids))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not psutil.pid_exists(pids[0]))


async def test_a_wait_for_the_next_event_can_be_given_up(box: Sandbox) -> None:
    """Nothing is lost by it."""
    code = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('late')"
    async with box.run_code_stream(code) as stream:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        await box.files.write("go", "")
        stdout, _stderr, result = await collect(stream)
    assert (stdout, result.success) == ("late\n", True)


async def test_many_streams_run_beside_ordinary_requests(box: Sandbox) -> None:
    """They take no place that requests need."""
    code = "import os, time\nprint('up', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.05)"
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(box.run_code_stream(code)) for _ in range(80)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        await box.files.write("go", "")
        ends = await asyncio.gather(*(collect(stream) for stream in streams))
    assert all(result.success for _stdout, _stderr, result in ends)


async def test_the_end_of_the_sandbox_is_told(embedded: Client) -> None:
    """A run that is killed with its sandbox says so; a new stream says that the sandbox is gone."""
    async with embedded.create_sandbox() as sandbox:
        other = await embedded.connect(sandbox.id)
        async with sandbox.run_code_stream("import time; print(1); time.sleep(600)") as stream:
            assert isinstance(await anext(stream), StreamOutput)
            watch = sandbox.files.watch()
            await watch.__aenter__()
            await other.kill()
            _stdout, _stderr, result = await collect(stream)
            assert (result.success, result.state) == (False, JobState.KILLED)
            with pytest.raises(AsyncSandboxError):
                await anext(watch)
        with pytest.raises(SandboxClosedError):
            await collect(sandbox.run_code_stream("print(1)"))


async def test_a_client_that_closes_ends_its_streams() -> None:
    """Whoever reads one is told, by an error."""
    async with Client(isolation="none") as client, client.create_sandbox() as sandbox:
        stream = sandbox.run_code_stream("import time; print(1); time.sleep(600)")
        assert isinstance(await anext(stream), StreamOutput)
        reading = asyncio.ensure_future(anext(stream))
        await client.aclose()
        with pytest.raises(ConnectError):
            await reading


async def test_the_server_in_memory_says_that_it_has_no_streams() -> None:
    """Not a crash somewhere inside."""
    async with FakeClient(FakeServer()) as client:
        sandbox = await client.create_sandbox()
        with pytest.raises(ServerError, match="WebSockets"):
            await anext(sandbox.run_code_stream("print(1)"))


# --- terminals and watched files, on the embedded server ----------------------------------------------------


async def test_a_terminal_shows_takes_and_ends(box: Sandbox) -> None:
    """Its size is as asked for, follows, and its shell's exit code is here at the end."""
    async with box.terminal(cols=99, rows=33) as terminal:
        await terminal.send("stty size; echo $((6 * 7))-made\n")
        shown = ""
        async for text in terminal:
            shown += text
            if "42-made\r\n" in shown:
                break
        assert "33 99\r\n" in shown
        assert terminal.exit_code is None
        await terminal.resize(120, 40)
        await terminal.send("stty size; sleep 600\n")
        async for text in terminal:
            shown += text
            if "40 120\r\n" in shown:
                break
        await terminal.send("\x03")
        await terminal.send("exit 7\n")
        async for text in terminal:
            shown += text
        assert terminal.exit_code == 7
        with pytest.raises(ClientStateError, match="ended"):
            await terminal.send("x")
    assert repr(terminal) == f"<Terminal of {box.id!r} exit_code=7>"


async def test_leaving_a_terminal_ends_its_shell_and_what_runs_in_it(box: Sandbox) -> None:
    """In the background, too."""
    async with box.terminal() as terminal:
        await terminal.send("sleep 600 & echo pids $$ $! .\n")
        shown = ""
        while (found := re.search(r"pids (\d+) (\d+) \.", shown)) is None:
            shown += await anext(terminal)
    await until(lambda: not any(psutil.pid_exists(int(pid)) for pid in found.groups()))


async def test_a_terminal_refuses_what_makes_no_sense(box: Sandbox) -> None:
    """Sizes that none has, text that is none, use before it was entered."""
    for size in ({"cols": 0}, {"rows": 10_001}, {"cols": "80"}, {"rows": True}):
        with pytest.raises(InvalidRequestError, match="from 1 to 10000"):
            box.terminal(**size)  # type: ignore[arg-type]
    terminal = box.terminal()
    with pytest.raises(ClientStateError, match="async with"):
        await terminal.send("x")
    with pytest.raises(ClientStateError, match="async with"):
        await anext(terminal)
    async with terminal:
        with pytest.raises(InvalidRequestError):
            await terminal.send(b"x")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError):
            await terminal.resize(0, 1)


async def test_changes_of_files_are_told_once_the_watch_was_entered(box: Sandbox) -> None:
    """From the first one on."""
    async with box.files.watch("/workspace") as watch:
        await box.files.write("a.txt", "x")
        async for change in watch:
            if (change.path, change.event) == ("/workspace/a.txt", "created"):
                break
        assert isinstance(change, FileChange)
        assert change.at is not None
        await box.files.remove("a.txt")
        async for change in watch:
            if (change.path, change.event) == ("/workspace/a.txt", "deleted"):
                break
    assert [change async for change in watch] == []


async def test_what_cannot_be_watched_is_refused_at_once(box: Sandbox) -> None:
    """On entering."""
    with pytest.raises(NotFoundError, match="none"):
        await box.files.watch("/workspace/none").__aenter__()
    with pytest.raises(PermissionDeniedError, match="/etc"):
        await anext(box.files.watch("/etc"))
    with pytest.raises(InvalidRequestError):
        box.files.watch("")


# --- a stock server that does as it is told -----------------------------------------------------------------

Script = Callable[[web.WebSocketResponse], Awaitable[None]]


class Stock:
    """A server of the published contract whose WebSockets follow a script.

    Attributes:
        script: what a WebSocket does, once it is open.
        refusals: statuses that the next upgrades are answered with.
        tokens: bearer tokens that came with upgrades.
        said: first frames that came, with the path that they came to.
    """

    def __init__(self) -> None:
        self.script: Script | None = None
        self.refusals: list[int] = []
        self.tokens: list[str] = []
        self.said: list[tuple[str, Any]] = []
        self.url = ""
        self._tokens = 0

    async def sandbox(self, request: web.Request) -> web.Response:
        """Answer ``GET /v1/sandboxes/{id}``."""
        host = f"{self.url}/vm/{request.match_info['id']}"
        return web.json_response({"id": request.match_info["id"], "status": "running", "public_host": host})

    async def refresh(self, _request: web.Request) -> web.Response:
        """Answer a token refresh."""
        self._tokens += 1
        body = {"auth_token": f"token-{self._tokens}", "token_expires_at": "2100-01-01T00:00:00Z"}
        return web.json_response(body)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer an upgrade, or refuse it."""
        if "Upgrade" not in request.headers:
            return web.json_response({"error": "no upgrade", "code": "INVALID_REQUEST"}, status=400)
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.refusals:
            return web.Response(status=self.refusals.pop(0))
        response = web.WebSocketResponse()
        await response.prepare(request)
        self.said.append((request.path, await response.receive_json()))
        assert self.script is not None
        await self.script(response)
        return response

    def sends(self, *frames: Any, close: int | None = 1000, then_read: bool = False) -> None:
        """Let WebSockets send frames, then close with a code; None = drop the connection."""

        async def script(response: web.WebSocketResponse) -> None:
            for frame in frames:
                await response.send_str(frame if isinstance(frame, str) else json.dumps(frame))
            if then_read:
                while (await response.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            elif close is None:
                assert response._req is not None
                assert response._req.transport is not None
                response._req.transport.abort()
            else:
                await response.close(code=close)

        self.script = script


@pytest.fixture
async def stock() -> AsyncIterator[Stock]:
    """Return a stock server that listens."""
    stock = Stock()
    app = web.Application()
    app.router.add_get("/v1/sandboxes/{id}", stock.sandbox)
    app.router.add_post("/v1/sandboxes/{id}/token/refresh", stock.refresh)
    for path in ("/execute/stream", "/commands/stream", "/files/watch", "/terminal"):
        app.router.add_get(f"/vm/{{id}}{path}", stock.stream)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stock.url = "http://{}:{}".format(*runner.addresses[0][:2])
    yield stock
    await runner.cleanup()


@pytest.fixture
async def rented(stock: Stock) -> AsyncIterator[Sandbox]:
    """Return a sandbox on the stock server."""
    async with Client(stock.url, api_key="k") as client:
        yield await client.connect("s-1")


OUT = {"type": "stdout", "data": "x", "timestamp": "2026-01-02T03:04:05Z"}
RESULT = {"type": "result", "exit_code": 0, "execution_time": 0.5, "timestamp": "2026-01-02T03:04:05Z"}
DONE = {"type": "complete", "success": True}


async def test_only_frames_of_the_contract_are_sent_below_public_host(stock: Stock, rented: Sandbox) -> None:
    """Its path is kept; the token goes along."""
    stock.sends(OUT, RESULT, DONE)
    stdout, _stderr, result = await collect(rented.run_code_stream("print(1)", env={"A": "1"}, timeout=9))
    assert (stdout, result.success, result.exit_code) == ("x", True, 0)
    assert (result.execution_time, result.state) == (0.5, JobState.COMPLETED)
    expected = {"type": "execute", "code": "print(1)", "language": "python", "timeout": 9, "env": {"A": "1"}}
    assert stock.said == [("/vm/s-1/execute/stream", expected)]
    assert stock.tokens == ["Bearer token-1"]
    await collect(rented.commands.stream("ls"))
    path, frame = stock.said[-1]
    assert path == "/vm/s-1/commands/stream"
    assert (frame["type"], frame["command"], frame["args"]) == ("execute", "bash", ["-c", "ls"])


@pytest.mark.parametrize(
    ("frames", "close", "expected"),
    [
        ((OUT, DONE), 1000, (True, None, JobState.COMPLETED)),
        ((OUT, {"type": "complete", "success": False}), 1000, (False, None, JobState.FAILED)),
        ((OUT, RESULT), 1000, (True, 0, JobState.COMPLETED)),
        ((OUT, RESULT), None, (True, 0, JobState.COMPLETED)),
        ((OUT, {**RESULT, "exit_code": 2}, DONE), 1000, (False, 2, JobState.FAILED)),
        (
            (OUT, "", " ", "no json", "[]", {"type": "news"}, RESULT, DONE),
            1000,
            (True, 0, JobState.COMPLETED),
        ),
        ((OUT, {"type": "error", "code": "EXECUTION_TIMEOUT"}), 1000, (False, None, JobState.TIMED_OUT)),
    ],
)
async def test_a_stream_ends_however_the_server_ends_it(
    stock: Stock, rented: Sandbox, frames: tuple[Any, ...], close: int | None, expected: tuple[Any, ...]
) -> None:
    """By `complete`, by a close after the result, and with frames in between that are none."""
    stock.sends(*frames, close=close)
    stdout, _stderr, result = await collect(rented.run_code_stream("x"))
    assert stdout == "x"
    assert (result.success, result.exit_code, result.state) == expected


@pytest.mark.parametrize("close", [None, 1000, 1001, 1011])
async def test_an_end_before_the_result_is_an_error(stock: Stock, rented: Sandbox, close: int | None) -> None:
    """A connection that is lost, or closed too early, never looks like success."""
    stock.sends(OUT, close=close)
    stream = rented.run_code_stream("x")
    events = []
    with pytest.raises(ConnectError, match="s-1"):
        async for event in stream:
            events.append(event)  # noqa: PERF401 - what came before the error counts
    assert len(events) == 1
    assert stream.result is None
    assert [event async for event in stream] == []


async def test_after_complete_the_server_may_stay_open(stock: Stock, rented: Sandbox) -> None:
    """The stream has ended; it is the client that hangs up."""
    stock.sends(OUT, RESULT, DONE, then_read=True)
    _stdout, _stderr, result = await collect(rented.run_code_stream("x"))
    assert result.success


@pytest.mark.parametrize(
    ("code", "cls", "status"),
    [
        ("FORBIDDEN", PermissionDeniedError, 403),
        ("INVALID_REQUEST", InvalidRequestError, 400),
        ("INTERNAL_ERROR", ServerError, 500),
        ("WHATEVER", APIError, None),
    ],
)
async def test_an_error_frame_is_an_error_of_the_tree(
    stock: Stock, rented: Sandbox, code: str, cls: type[APIError], status: int | None
) -> None:
    """By its code, with its words."""
    stock.sends(OUT, {"type": "error", "error": "the words", "code": code}, DONE)
    with pytest.raises(cls, match=r"s-1.*the words") as caught:
        await collect(rented.run_code_stream("x"))
    assert (caught.value.code, caught.value.status) == (code, status)
    assert type(caught.value) is cls


async def test_a_refused_token_is_renewed_once(stock: Stock, rented: Sandbox) -> None:
    """And then it works; a second refusal is told."""
    stock.sends(OUT, RESULT, DONE)
    stock.refusals = [401]
    await collect(rented.run_code_stream("x"))
    assert stock.tokens == ["Bearer token-1", "Bearer token-2"]
    stock.refusals = [401, 401]
    with pytest.raises(AuthenticationError):
        await collect(rented.run_code_stream("x"))


async def test_an_upgrade_is_tried_again_where_a_look_would_be(stock: Stock, rented: Sandbox) -> None:
    """Nothing was started yet. What will not get better is told at once."""
    stock.sends(OUT, RESULT, DONE)
    stock.refusals = [503]
    await collect(rented.run_code_stream("x"))
    assert len(stock.tokens) == 2
    stock.refusals = [404]
    with pytest.raises(NotFoundError):
        await collect(rented.run_code_stream("x"))
    stock.refusals = [200]
    with pytest.raises(ProtocolError, match="no WebSocket"):
        await collect(rented.run_code_stream("x"))


async def test_a_terminal_of_a_stock_server(stock: Stock, rented: Sandbox) -> None:
    """Its size is the first frame; it ends by `exit`, by a close, and not in silence."""
    shown = {"type": "output", "data": "x"}
    stock.sends(shown, "", {"type": "exit", "code": 3}, then_read=True)
    async with rented.terminal(cols=90, rows=20) as terminal:
        assert [text async for text in terminal] == ["x"]
        assert terminal.exit_code == 3
    assert stock.said == [("/vm/s-1/terminal", {"type": "resize", "cols": 90, "rows": 20})]
    stock.sends(shown, close=1000)
    async with rented.terminal() as terminal:
        assert [text async for text in terminal] == ["x"]
        assert terminal.exit_code is None
    stock.sends(shown, close=None)
    async with rented.terminal() as terminal:
        with pytest.raises(ConnectError):
            assert [text async for text in terminal] == ["x"]
    stock.sends({"type": "error", "error": "no shell", "code": "INTERNAL_ERROR"})
    async with rented.terminal() as terminal:
        with pytest.raises(ServerError, match="no shell"):
            await anext(terminal)


async def test_a_watch_on_a_stock_server(stock: Stock, rented: Sandbox) -> None:
    """Events that this version does not know pass through; a frame that comes early is not lost."""
    change = {"type": "change", "path": "/workspace/a", "event": "moved", "timestamp": "2026-01-02T03:04:05Z"}
    stock.sends(change, {"type": "change"}, change, then_read=True)
    async with rented.files.watch("/workspace") as watch:
        expected = FileChange(path="/workspace/a", event="moved", at=1767323045.0)
        assert [await anext(watch), await anext(watch)] == [expected, expected]
    assert stock.said == [("/vm/s-1/files/watch", {"action": "watch", "path": "/workspace"})]
    stock.sends(close=None)
    with pytest.raises(ConnectError):
        async with rented.files.watch() as watch:
            await anext(watch)
