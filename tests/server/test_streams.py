"""WebSockets of the agent, through a plain client: output as it is written, terminals, watched files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest

PATIENCE = 50


class Stream:
    """A WebSocket of a sandbox, and what came through it."""

    def __init__(self, response: aiohttp.ClientWebSocketResponse) -> None:
        self.response = response
        self.frames: list[dict[str, Any]] = []

    async def say(self, **frame: Any) -> None:
        """Send a frame."""
        await self.response.send_json(frame)

    async def next(self) -> dict[str, Any] | None:
        """Return the next frame; None at the end."""
        async with asyncio.timeout(PATIENCE):
            message = await self.response.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        frame: dict[str, Any] = json.loads(message.data)
        self.frames.append(frame)
        return frame

    async def end(self) -> list[dict[str, Any]]:
        """Return all frames up to the end."""
        while await self.next() is not None:
            pass
        return self.frames

    async def until(self, text: str) -> None:
        """Read until what was shown or written holds `text`."""
        while text not in self.text():
            assert await self.next() is not None, f"it ended without {text!r}: {self.frames}"

    def text(self, *types: str) -> str:
        """Return what was written to streams, or shown by a terminal."""
        types = types or ("stdout", "output")
        return "".join(frame["data"] for frame in self.frames if frame["type"] in types)

    def types(self) -> list[str]:
        """Return the types of frames that carry no output."""
        return [frame["type"] for frame in self.frames if "data" not in frame]


@asynccontextmanager
async def opened(box: Any, url: str, /, *, root: bool = False, **first: Any) -> AsyncIterator[Stream]:
    """Open a WebSocket of a sandbox and say something first."""
    base = box.api.base if root else f"{box.api.base}/vm/{box.id}"
    headers = {"Authorization": f"Bearer {box.token}"}
    async with box.api.session.ws_connect(base + url, headers=headers, max_msg_size=0) as response:
        stream = Stream(response)
        if first:
            await stream.say(**first)
        yield stream


async def ran(box: Any, url: str, /, **first: Any) -> Stream:
    """Run something to its end."""
    async with opened(box, url, **first) as stream:
        await stream.end()
        return stream


async def active(box: Any) -> int:
    """Return how many streams the agent counts."""
    return int((await box.ok("GET", "/health"))["active_streams"])


# --- runs ---------------------------------------------------------------------------------------------------


async def test_code_tells_its_output_then_its_result_then_that_it_is_complete(box: Any) -> None:
    """The frames of the contract, each with its time, and then the server closes."""
    code = "import os, sys; print(os.environ['A'], os.getcwd()); sys.stderr.write('e'); sys.exit(3)"
    stream = await ran(
        box, "/execute/stream", type="execute", code=code, language="python", timeout=50, env={"A": "1"}
    )
    assert stream.text("stdout").startswith("1 ")
    assert stream.text("stdout").endswith("/workspace\n")
    assert stream.text("stderr") == "e"
    assert stream.types() == ["result", "complete"]
    result, complete = stream.frames[-2:]
    assert (result["exit_code"], result["end_reason"], result["truncated"]) == (3, "exit", False)
    assert result["execution_time"] > 0
    assert complete == {"type": "complete", "success": False}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", frame["timestamp"]) for frame in stream.frames[:-1])
    assert stream.response.close_code == 1000


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ({"command": "echo $0 | tail -c3; echo b"}, "sh\nb\n"),
        ({"type": "execute", "command": "printf", "args": ["%s-", "a b", "c"]}, "a b-c-"),
        ({"type": "command", "command": "pwd", "workdir": "/tmp/deep"}, "/tmp/deep\n"),
    ],
)
async def test_commands_stream_as_code_does(box: Any, first: dict[str, Any], shown: str) -> None:
    """By a shell without `args`, directly with them."""
    stream = await ran(box, "/commands/stream", **first)
    assert stream.text("stdout").endswith(shown)
    assert stream.types() == ["result", "complete"]
    assert stream.frames[-1]["success"] is True


async def test_output_comes_while_the_run_goes_on(box: Any) -> None:
    """Each line is here before the next is written: the run waits for a file that only we make."""
    code = """
import os, time
for n in range(3):
    print("line", n, flush=True)
    while not os.path.exists(f"go{n}"):
        time.sleep(0.01)
"""
    async with opened(box, "/execute/stream", code=code) as stream:
        for n in range(3):
            await stream.until(f"line {n}\n")
            assert stream.types() == []
            await box.ok("POST", "/files/write", json={"path": f"go{n}", "content": ""})
        await stream.end()
    assert stream.text() == "line 0\nline 1\nline 2\n"


async def test_a_burst_is_complete_and_in_order_in_few_frames(box: Any) -> None:
    """Five thousand lines to each stream, not five thousand frames."""
    code = "import sys\nfor n in range(5000):\n    print(n)\n    print(-n, file=sys.stderr)"
    stream = await ran(box, "/execute/stream", code=code)
    assert stream.text("stdout") == "".join(f"{n}\n" for n in range(5000))
    assert stream.text("stderr") == "".join(f"{-n}\n" for n in range(5000))
    assert stream.frames[-1]["success"] is True
    assert len(stream.frames) < 5000


async def test_a_slow_reader_gets_all_and_the_run_waits_for_it(servers: Any) -> None:
    """Far more than is kept of a job's output comes whole, and neither memory nor disk holds it meanwhile."""
    server = servers.tcp(output_limit=1024 * 1024)
    async with servers.connect(server) as api:
        box = await api.create()
        size = 40_000_000
        code = f"""
import sys
for n in range({size // 100}):
    sys.stdout.write("%099d\\n" % n)
open("done", "w").close()
"""
        before = psutil.Process(server.popen.pid).memory_info().rss
        async with opened(box, "/execute/stream", code=code) as stream:
            await stream.until("\n")
            # It does not read on: what the run can get rid of is bounded, so it cannot have come to its end
            # however long it is given. Other work of the same server goes on meanwhile.
            for n in range(20):
                assert (await box.ok("POST", "/execute", json={"code": f"print({n})"}))["stdout"] == f"{n}\n"
            assert (await box.ok("GET", "/files/exists", params={"path": "done"}))["exists"] is False
            spooled = sum(file.stat().st_size for file in servers.directory.rglob("run_*.stdout"))
            assert 0 < spooled <= 1024 * 1024
            assert psutil.Process(server.popen.pid).memory_info().rss - before < size // 2
            await stream.end()
        text = stream.text("stdout")
        assert len(text) == size
        assert text == "".join(f"{n:099d}\n" for n in range(size // 100))
        result, complete = stream.frames[-2:]
        assert (result["truncated"], complete["success"]) == (False, True)


async def test_clients_that_offer_compression_get_it(box: Any) -> None:
    """The JavaScript SDK loses plain frames that reach it together."""
    base, headers = f"{box.api.base}/vm/{box.id}", {"Authorization": f"Bearer {box.token}"}
    url = base + "/execute/stream"
    async with box.api.session.ws_connect(url, headers=headers, compress=15) as response:
        assert response.compress == 15
        stream = Stream(response)
        await stream.say(code="print('x' * 1_000_000)")
        await stream.end()
    assert stream.text() == "x" * 1_000_000 + "\n"
    assert stream.types() == ["result", "complete"]


async def test_characters_cut_apart_come_whole_and_bytes_that_are_none_become_marks(box: Any) -> None:
    """A character whose bytes are written one by one is told once it is whole."""
    code = r"""
import os, time
for byte in "ä€😀".encode():
    os.write(1, bytes([byte]))
    time.sleep(0.02)
os.write(1, b"\xff|\x00|\xe2\x82")
"""
    stream = await ran(box, "/execute/stream", code=code)
    assert stream.text("stdout") == "ä€😀\ufffd|\x00|\ufffd"


async def test_a_run_over_its_time_tells_what_it_wrote_and_how_it_ended(box: Any) -> None:
    """An error frame for whoever looks for one, then the frames that end every run."""
    stream = await ran(box, "/execute/stream", code="import time; print('up'); time.sleep(600)", timeout=1)
    assert stream.text("stdout") == "up\n"
    assert stream.types() == ["error", "result", "complete"]
    error, result, complete = stream.frames[-3:]
    assert (error["code"], error["status"]) == ("EXECUTION_TIMEOUT", 408)
    assert "1 s" in error["error"]
    assert (result["timed_out"], result["end_reason"], complete["success"]) == (True, "timeout", False)


@pytest.mark.parametrize(
    ("path", "first", "code", "words"),
    [
        ("/execute/stream", {"type": "execute"}, "MISSING_PARAMETER", "code is missing"),
        ("/execute/stream", {"code": "x", "language": "cobol"}, "INVALID_REQUEST", "cobol"),
        ("/execute/stream", {"code": "x", "workdir": "/etc"}, "FORBIDDEN", "/etc"),
        ("/execute/stream", {"type": "input", "data": "x"}, "INVALID_REQUEST", "'input'"),
        ("/commands/stream", {"command": "/no/such", "args": []}, "INVALID_REQUEST", "/no/such"),
    ],
)
async def test_what_cannot_run_is_refused_in_a_frame(
    box: Any, path: str, first: dict[str, Any], code: str, words: str
) -> None:
    """Then comes the one frame that ends the official clients' loops, and the close."""
    stream = await ran(box, path, **first)
    assert stream.types() == ["error", "complete"]
    error = next(frame for frame in stream.frames if frame["type"] == "error")
    assert error["code"] == code
    assert words in error["error"]
    assert stream.frames[-1]["success"] is False


async def test_blank_and_broken_frames_are_skipped(box: Any) -> None:
    """The first good one counts."""
    async with opened(box, "/execute/stream") as stream:
        for text in ("", "  ", "no json", "[1]"):
            await stream.response.send_str(text)
        await stream.say(type="execute", code="print(1)")
        await stream.end()
    assert stream.text() == "1\n"


@pytest.mark.parametrize("politely", [True, False])
async def test_hanging_up_ends_the_run_with_all_its_processes(box: Any, until: Any, politely: bool) -> None:
    """By a close, or by a connection that is gone; processes that left their session included."""
    code = """
import os, subprocess, time
child = subprocess.Popen(["setsid", "sleep", "600"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
    async with opened(box, "/execute/stream", code=code) as stream:
        await stream.until("\n")
        pids = [int(pid) for pid in stream.text().split()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert await active(box) == 1
        if not politely:
            stream.response._response.connection.transport.abort()
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))

    async def quiet() -> bool:
        return await active(box) == 0

    await until(quiet)


async def test_hanging_up_ends_a_run_whose_output_nobody_reads(box: Any, until: Any) -> None:
    """The server notices although it is waiting for the client to read."""
    code = "import os, sys\nprint(os.getpid())\nwhile True: sys.stdout.write('x' * 65536)"
    async with opened(box, "/execute/stream", code=code) as stream:
        await stream.until("\n")
        pid = int(stream.text().split()[0])
        stream.response._response.connection.transport.abort()
    await until(lambda: not psutil.pid_exists(pid))


async def test_a_streamed_run_leaves_nothing_behind(servers: Any, until: Any) -> None:
    """It is listed nowhere, and its files are gone."""
    server = servers.tcp()
    async with servers.connect(server) as api:
        box = await api.create()
        async with opened(box, "/execute/stream", code="print('x' * 100_000)") as stream:
            await stream.end()
        assert (await box.ok("GET", "/execute/processes"))["processes"] == []
        await until(lambda: not list(servers.directory.rglob("run_*")))


async def test_a_paused_sandbox_refuses_a_stream(box: Any) -> None:
    """As it refuses every start."""
    await box.api.ok("POST", f"/v1/sandboxes/{box.id}/pause")
    stream = await ran(box, "/execute/stream", code="print(1)")
    assert [frame.get("code") for frame in stream.frames] == ["SANDBOX_PAUSED", None]


# --- who is meant -------------------------------------------------------------------------------------------


async def test_at_the_root_the_token_says_which_sandbox_is_meant(api: Any, box: Any) -> None:
    """Official clients drop the path of `public_host`; both forms reach the same sandbox."""
    other = await api.create()
    for each, word in ((box, "one"), (other, "two")):
        await each.ok("POST", "/files/write", json={"path": "who", "content": word})
    for root in (True, False):
        for each, word in ((box, "one"), (other, "two")):
            async with opened(each, "/commands/stream", root=root, command="cat who") as stream:
                await stream.end()
            assert stream.text() == word
            async with opened(each, "/execute/stream", root=root, code="print(open('who').read())") as stream:
                await stream.end()
            assert stream.text() == f"{word}\n"
    async with opened(other, "/terminal", root=True) as stream:
        await stream.say(type="input", data="cat who; exit\n")
        await stream.end()
    assert "two" in stream.text()
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


@pytest.mark.parametrize("path", ["/execute/stream", "/commands/stream", "/files/watch", "/terminal"])
@pytest.mark.parametrize("where", ["", "/vm/{id}"])
async def test_a_stream_needs_the_right_token(api: Any, box: Any, path: str, where: str) -> None:
    """Refused as an ordinary request, before anything is upgraded; a plain request is refused too."""
    url = api.base + where.format(id=box.id) + path
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "a-key-for-tests"}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await api.session.ws_connect(url, headers=headers)
        assert caught.value.status == 401
    status, body = await api.call("GET", where.format(id=box.id) + path)
    assert (status, body["code"], body["error"]) == (401, "INVALID_TOKEN", body["message"])
    headers = {"Authorization": f"Bearer {box.token}"}
    status, _body = await api.call("GET", where.format(id=box.id) + path, headers=headers)
    assert status == 400


async def test_another_sandboxes_token_opens_nothing(api: Any, box: Any) -> None:
    """Below a sandbox's own path its own token is asked for."""
    other = await api.create()
    other.id, right = box.id, other.id
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with opened(other, "/execute/stream", code="print(1)"):
            pass
    assert caught.value.status == 401
    await api.ok("DELETE", f"/v1/sandboxes/{right}")


async def test_health_says_that_there_are_streams(box: Any) -> None:
    """Both flags, and how many are open."""
    features = (await box.ok("GET", "/health"))["features"]
    assert (features["terminal_access"], features["websocket_streaming"]) == (True, True)
    assert await active(box) == 0


# --- terminals ----------------------------------------------------------------------------------------------


async def test_a_terminal_is_a_real_one(box: Any) -> None:
    """It has a name, a size that follows, a type, and job control."""
    async with opened(box, "/terminal", type="resize", cols=100, rows=30) as stream:
        await stream.say(type="input", data="tty; stty size; echo t=$TERM; echo $((6 * 7))-made\n")
        await stream.until("42-made\r\n")
        assert re.search(r"/dev/pts/\d+\r\n30 100\r\nt=xterm-256color\r\n", stream.text())
        await stream.say(type="resize", cols=132, rows=43)
        await stream.say(type="input", data="stty size; set -o | grep monitor; echo $((6 * 8))-made\n")
        await stream.until("48-made\r\n")
        assert "43 132\r\n" in stream.text()
        assert re.search(r"monitor\s+on", stream.text())
        await stream.say(type="input", data="exit 7\n")
        await stream.end()
    assert stream.frames[-1] == {"type": "exit", "code": 7}
    assert stream.types() == ["exit"]
    assert stream.response.close_code == 1000


async def test_control_c_interrupts_what_runs_in_the_foreground(box: Any) -> None:
    """And not the shell."""
    async with opened(box, "/terminal", type="input", data="echo $((6 * 7))-up; sleep 600\n") as stream:
        await stream.until("42-up\r\n")
        await stream.say(type="input", data="\x03")
        await stream.say(type="input", data="echo status $?\n")
        await stream.until("status 130\r\n")
        await stream.say(type="input", data="\x04")
        await stream.end()
    assert stream.frames[-1]["type"] == "exit"


async def test_more_than_a_terminal_holds_can_be_typed(box: Any) -> None:
    """A program that reads slowly holds the client back; nothing is dropped."""
    lines = "".join(f"line {n}\n" for n in range(60_000))
    async with opened(box, "/terminal", type="input", data="stty -echo; echo $((6 * 7))-up\n") as stream:
        await stream.until("42-up\r\n")
        await stream.say(type="input", data="sleep 0.3; wc; echo $((6 * 8))-done\n")
        await stream.say(type="input", data=lines)
        await stream.say(type="input", data="\x04")
        await stream.until("48-done\r\n")
    assert re.search(rf"\b60000\s+120000\s+{len(lines)}\b", stream.text())


async def test_what_makes_no_sense_to_a_terminal_is_skipped(box: Any) -> None:
    """Sizes that no terminal has, text that is none, words that it does not know."""
    async with opened(box, "/terminal") as stream:
        await stream.say(type="resize", cols=0, rows=-1)
        await stream.say(type="resize", cols="wide", rows=10**9)
        await stream.say(type="input", data=5)
        await stream.say(type="dance")
        await stream.response.send_str("no json")
        await stream.say(type="input", data="stty size; exit\n")
        await stream.end()
    assert "24 80\r\n" in stream.text()


async def test_hanging_up_ends_a_terminal_with_all_its_processes(box: Any, until: Any) -> None:
    """Those in the background, and those that ignore the hang-up or left the session, too."""
    command = "nohup sleep 600 >/dev/null 2>&1 & a=$!; setsid sleep 600 & b=$!; echo pids $$ $a $b .\n"
    async with opened(box, "/terminal", type="input", data=command) as stream:
        while (found := re.search(r"pids (\d+) (\d+) (\d+) \.", stream.text())) is None:
            assert await stream.next() is not None
        pids = [int(pid) for pid in found.groups()]
    await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


async def test_a_terminal_ends_with_its_sandbox(api: Any) -> None:
    """The exit frame says by which signal."""
    box = await api.create()
    async with opened(box, "/terminal", type="input", data="echo $((6 * 7))-up\n") as stream:
        await stream.until("42-up")
        await api.ok("DELETE", f"/v1/sandboxes/{box.id}")
        await stream.end()
    assert stream.types() == ["exit"]


# --- watched files ------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(box: Any, path: str = "/workspace", *, root: bool = False) -> AsyncIterator[Stream]:
    """Watch a path. The server answers a ping after it has acted on the frame before it."""
    base = box.api.base if root else f"{box.api.base}/vm/{box.id}"
    headers = {"Authorization": f"Bearer {box.token}"}
    async with box.api.session.ws_connect(base + "/files/watch", headers=headers, autoping=False) as response:
        stream = Stream(response)
        await stream.say(action="watch", path=path)
        await response.ping()
        async with asyncio.timeout(PATIENCE):
            assert (await response.receive()).type is aiohttp.WSMsgType.PONG
        yield stream


async def change(stream: Stream, path: str, event: str) -> None:
    """Read until that change is told of."""
    told = [(frame["path"], frame["event"]) for frame in stream.frames]
    while (path, event) not in told:
        frame = await stream.next()
        assert frame is not None
        assert frame["type"] == "change"
        assert frame["timestamp"].endswith("Z")
        told.append((frame["path"], frame["event"]))


@pytest.mark.parametrize("root", [True, False])
async def test_changes_of_files_are_told_by_the_paths_that_clients_write(box: Any, root: bool) -> None:
    """Made, changed, deleted; in directories that are made meanwhile, too."""
    async with watched(box, root=root) as stream:
        await box.ok("POST", "/files/write", json={"path": "/workspace/a.txt", "content": "x"})
        await change(stream, "/workspace/a.txt", "created")
        await box.ok("POST", "/files/write", json={"path": "/workspace/a.txt", "content": "xy"})
        await change(stream, "/workspace/a.txt", "modified")
        await box.ok("DELETE", "/files/remove", params={"path": "/workspace/a.txt"})
        await change(stream, "/workspace/a.txt", "deleted")
        await box.ok("POST", "/execute", json={"code": "import os; os.makedirs('d/e'); open('d/e/f', 'w')"})
        await change(stream, "/workspace/d", "created")
        await change(stream, "/workspace/d/e/f", "created")
        await box.ok("POST", "/execute", json={"code": "open('d/e/f', 'w').write('more')"})
        await change(stream, "/workspace/d/e/f", "modified")
        await box.ok("POST", "/execute", json={"code": "import os; os.rename('d', 'g')"})
        await change(stream, "/workspace/d", "deleted")
        await change(stream, "/workspace/g/e/f", "created")
        await box.ok("DELETE", "/files/remove", params={"path": "/workspace/g/e/f"})
        await change(stream, "/workspace/g/e/f", "deleted")


async def test_one_file_or_the_other_root_can_be_watched(box: Any) -> None:
    """Only what is asked for is told of."""
    await box.ok("POST", "/files/write", json={"path": "/workspace/one", "content": "x"})
    async with watched(box, "/workspace/one") as stream, watched(box, "/tmp") as other:
        await box.ok("POST", "/files/write", json={"path": "/workspace/two", "content": "x"})
        await box.ok("POST", "/files/write", json={"path": "/tmp/three", "content": "x"})
        await box.ok("POST", "/files/write", json={"path": "/workspace/one", "content": "xy"})
        await change(stream, "/workspace/one", "modified")
        await change(other, "/tmp/three", "created")
        assert {frame["path"] for frame in stream.frames} == {"/workspace/one"}
        assert {frame["path"] for frame in other.frames} == {"/tmp/three"}


async def test_nothing_outside_the_sandbox_is_told_of(box: Any, tmp_path: Any) -> None:
    """Links below the watched directory lead nowhere, be they there or made later."""
    (tmp_path / "inner").mkdir()
    code = "import os; os.makedirs({0!r}); os.symlink({1!r}, '{0}/link')"
    await box.ok("POST", "/execute", json={"code": code.format("d", str(tmp_path))})
    async with watched(box) as stream:
        await box.ok("POST", "/execute", json={"code": code.format("e", str(tmp_path))})
        await change(stream, "/workspace/e/link", "created")
        (tmp_path / "secret").write_text("x")
        (tmp_path / "inner" / "secret").write_text("x")
        await box.ok("POST", "/files/write", json={"path": "after", "content": "x"})
        await change(stream, "/workspace/after", "created")
    assert not [frame for frame in stream.frames if "secret" in frame["path"]]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"action": "watch", "path": "/etc"}, "FORBIDDEN"),
        ({"action": "watch", "path": "../.."}, "FORBIDDEN"),
        ({"action": "watch", "path": "/workspace/none"}, "FILE_NOT_FOUND"),
        ({"action": "watch", "path": ""}, "INVALID_PATH"),
        ({"action": "watch", "path": 5}, "INVALID_PATH"),
        ({"action": "dance", "path": "/workspace"}, "INVALID_REQUEST"),
    ],
)
async def test_what_cannot_be_watched_is_refused_in_a_frame(
    box: Any, first: dict[str, Any], code: str
) -> None:
    """Outside, missing, or nonsense."""
    stream = await ran(box, "/files/watch", **first)
    assert [(frame["type"], frame["code"]) for frame in stream.frames] == [("error", code)]


async def test_without_its_library_watching_says_what_to_install(
    servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ordinary refusal; all the rest works."""
    conftest = sys.modules[type(servers).__module__]
    blocked = f"import sys; sys.modules['watchfiles'] = None\n{conftest._TCP_PROGRAM}"
    monkeypatch.setattr(conftest, "_TCP_PROGRAM", blocked)
    async with servers.connect(servers.tcp()) as api:
        box = await api.create()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with watched(box):
                pass
        assert caught.value.status == 501
        status, body = await box.call("GET", "/files/watch")
        assert (status, body["code"]) == (501, "NOT_IMPLEMENTED")
        assert "asyncsandbox[local]" in body["error"]
        assert (await ran(box, "/execute/stream", code="print(1)")).text() == "1\n"


async def test_a_watch_ends_with_its_sandbox(api: Any) -> None:
    """It is told why."""
    box = await api.create()
    async with watched(box) as stream:
        await api.ok("DELETE", f"/v1/sandboxes/{box.id}")
        await stream.end()
    assert stream.frames[-1]["code"] == "SANDBOX_NOT_FOUND"


async def test_many_watches_at_once_do_not_wait_for_each_other(box: Any) -> None:
    """More than any pool of threads has."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watched(box)) for _ in range(60)]
        await box.ok("POST", "/files/write", json={"path": "x", "content": "x"})
        await asyncio.gather(*(change(stream, "/workspace/x", "created") for stream in streams))


# --- the server's end ---------------------------------------------------------------------------------------


async def test_the_server_closes_every_stream_when_it_stops(servers: Any, until: Any) -> None:
    """Going away, it says, and ends what ran; nobody is left waiting, and it stops well."""
    server = servers.tcp()
    async with servers.connect(server) as api:
        box = await api.create()
        async with (
            opened(
                box, "/execute/stream", code="import os, time; print(os.getpid()); time.sleep(600)"
            ) as run,
            opened(box, "/terminal", type="input", data="echo $((6 * 7))-up\n") as shell,
            watched(box) as watch,
        ):
            await run.until("\n")
            await shell.until("42-up")
            assert await active(box) == 3
            os.kill(server.popen.pid, 15)
            for stream in (run, shell, watch):
                await stream.end()
                assert stream.response.close_code == 1001
        assert await asyncio.to_thread(server.popen.wait, PATIENCE) == 0
        assert not psutil.pid_exists(int(run.text()))
