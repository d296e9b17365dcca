"""How servers begin and end: the embedded one with its client, the served one on its state directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from asyncsandbox.server.nest import make_nest

_CLIENT = """
import json, os, subprocess, sys, time
server = subprocess.Popen(
    [sys.executable, "-m", "asyncsandbox.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    start_new_session=True)
orders = {"api_key": sys.argv[1], "client_pid": os.getpid(), "isolation": "none", "state_parent": sys.argv[2]}
server.stdin.write(json.dumps(orders).encode() + b"\\n")
server.stdin.flush()
said = json.loads(server.stdout.readline())
said["pid"] = server.pid
if len(sys.argv) > 3:  # a stray copy of the pipe, which outlives the client
    copy = subprocess.Popen(["sleep", "600"], pass_fds=[server.stdin.fileno()], start_new_session=True)
    said["copy"] = copy.pid
print(json.dumps(said), flush=True)
time.sleep(600)
"""


def _alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Client:
    """A client's process with an embedded server, and that server as fixtures know servers."""

    def __init__(self, parent: Path, *more: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, "a-key-for-tests", str(parent), *more], stdout=subprocess.PIPE
        )
        assert self.popen.stdout is not None
        self.said: dict[str, Any] = json.loads(self.popen.stdout.readline())

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


# --- the embedded server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("stray copy of the pipe",)])
async def test_nothing_is_left_when_the_client_is_killed(
    servers: Any, until: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """No server, no supervisor, no job, no socket, no directory."""
    client = _Client(servers.directory, *more)
    async with servers.connect(client) as api:
        box = await api.create()
        code = (
            "import subprocess, time; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
        )
        job = await box.start(f"{code}\ntime.sleep(600)")
        await box.until(job, lambda row: row.get("stdout", "").strip())
        pids = [process.pid for process in psutil.Process(client.said["pid"]).children(recursive=True)]
    assert len(pids) == 3
    client.kill()
    await until(lambda: not any(_alive(pid) for pid in [client.said["pid"], *pids]))
    await until(lambda: not Path(client.said["socket"]).parent.exists())
    if more:
        os.kill(client.said["copy"], signal.SIGKILL)


async def test_the_embedded_server_ends_with_its_pipe(servers: Any, until: Any) -> None:
    """Closing it is the order to stop."""
    server = servers.embedded()
    pids = []
    async with servers.connect(server) as api:
        box = await api.create()
        job = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(job, "up")
        pids = [process.pid for process in server.descendants()]
    server.popen.stdin.close()
    assert server.popen.wait(timeout=50) == 0
    assert not any(_alive(pid) for pid in pids)
    assert not server.directory.exists()


async def test_the_embedded_server_ignores_ctrl_c_and_obeys_sigterm(servers: Any) -> None:
    """Ctrl-C is the client's business, which may have jobs to see to."""
    server = servers.embedded()
    server.popen.send_signal(signal.SIGINT)
    async with servers.connect(server) as api:
        assert (await api.ok("GET", "/health"))["status"] == "healthy"
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(timeout=50) == 0
    assert not server.directory.exists()


def test_what_a_killed_server_left_is_swept_by_the_next(servers: Any) -> None:
    """And what a living one has is not."""
    parent = servers.directory
    dead, living = servers.embedded(state_parent=str(parent)), servers.embedded(state_parent=str(parent))
    assert dead.directory.parent == living.directory.parent
    dead.kill()
    assert dead.directory.exists()
    third = servers.embedded(state_parent=str(parent))
    assert not dead.directory.exists()
    assert living.directory.exists()
    assert third.directory.exists()
    assert third.said["instance"] != living.said["instance"]


def test_the_directory_is_private(servers: Any) -> None:
    """Nobody else on the machine reaches the socket."""
    directory = servers.embedded().directory
    for place in (directory, directory.parent):
        assert place.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_can_write_is_refused(servers: Any) -> None:
    """With a sentence that says what to do."""
    family = servers.directory / f"asyncsandbox-{os.getuid()}"
    family.mkdir()
    family.chmod(0o777)
    server = servers.embedded(state_parent=str(servers.directory))
    assert server.said["ready"] is False
    assert str(family) in server.said["error"]
    assert server.popen.wait() == 1


def test_a_long_parent_does_not_make_the_socket_s_path_too_long(tmp_path: Path) -> None:
    """Unix sockets have short names; the nest is made elsewhere then."""
    parent = tmp_path / ("x" * 100)
    parent.mkdir()
    with make_nest(str(parent)) as nest:
        assert len(nest.socket) <= 100
        assert nest.directory.is_dir()
    assert not nest.directory.exists()


@pytest.mark.parametrize("line", [b"", b"\n", b"[]\n", b'{"no": "key"}\n', b'{"api_key": 5}\n'])
def test_without_orders_the_embedded_server_says_who_starts_it(line: bytes) -> None:
    """One JSON line, exit status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncsandbox.server"],
        input=line,
        capture_output=True,
        check=False,
        timeout=50,
    )
    said = json.loads(done.stdout)
    assert (said["ready"], done.returncode) == (False, 1)
    assert "started by a client" in said["error"]


def test_a_client_that_is_gone_already_ends_the_server(servers: Any) -> None:
    """Its number may be another's by now, so being no child of it counts as well."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, 1):
        server = servers.embedded(client_pid=pid)
        assert server.popen.wait(timeout=50) == 0


# --- the served one -----------------------------------------------------------------------------------------


async def test_a_restart_after_a_crash_goes_on_with_the_truth(servers: Any, until: Any) -> None:
    """What ran is lost with its output, what was queued runs, and everything else is as it was."""
    first = servers.tcp(max_running=1)
    async with servers.connect(first) as api:
        box = await api.create(env_vars={"V": "kept"})
        await box.ok("POST", "/files/write", json={"path": "f", "content": "kept"})
        done = await box.start("print('done')", key="k-done")
        await box.end(done)
        cursor = (await box.ok("GET", "/execute/processes"))["cursor"]
        lost = await box.start("import time; print('seen'); time.sleep(600)", key="k-lost")
        await box.printed(lost, "seen")
        queued = await box.start("import os; print(os.environ['V'], open('f').read())", key="k-queued")
        removed = await box.start("print('never')")
        await box.kill(removed)
        await box.ok("DELETE", f"/execute/processes/{removed['process_id']}")
        pids = [process.pid for process in first.descendants()]
    first.kill()
    await until(lambda: not any(_alive(pid) for pid in pids))
    second = servers.tcp(max_running=1)
    async with servers.connect(second) as api:
        box.api = api
        row = await box.row(lost)
        assert (row["status"], row["end_reason"], row["exit_code"]) == ("failed", "lost", None)
        assert (row["stdout"], row["stdout_size"]) == ("seen\n", 5)
        assert (await box.end(queued))["stdout"] == "kept kept\n"
        row = await box.row(done)
        assert (row["status"], row["stdout"]) == ("completed", "done\n")
        news = await box.ok("GET", "/execute/processes", params={"since": cursor})
        assert {row["process_id"] for row in news["processes"]} == {lost["process_id"], queued["process_id"]}
        assert news["removed"] == [removed["process_id"]]
        assert (await box.start("print('done')", key="k-done"))["process_id"] == done["process_id"]
        assert (await api.ok("GET", f"/v1/sandboxes/{box.id}"))["status"] == "running"


async def test_an_orderly_stop_is_a_restart_too(servers: Any) -> None:
    """Paused and expired sandboxes are so afterwards."""
    first = servers.tcp()
    async with servers.connect(first) as api:
        paused = await api.create()
        await api.ok("POST", f"/v1/sandboxes/{paused.id}/pause")
        expiring = await api.create(timeout_seconds=3600)
        running = await api.create()
        job = await running.start("import time; print('up'); time.sleep(600)")
        await running.printed(job, "up")
        await api.ok("PUT", f"/v1/sandboxes/{expiring.id}/timeout", json={"timeout_seconds": 3600})
    assert first.stop() == 0
    second = servers.tcp()
    async with servers.connect(second) as api:
        assert (await api.ok("GET", f"/v1/sandboxes/{paused.id}"))["status"] == "paused"
        paused.api = api
        status, body = await paused.call("POST", "/execute/background", json={"code": "1"})
        assert (status, body["code"]) == (409, "SANDBOX_PAUSED")
        assert (await api.ok("GET", f"/v1/sandboxes/{expiring.id}"))["timeout_seconds"] == 3600
        running.api = api
        assert (await running.row(job))["end_reason"] == "lost"
        assert (await running.end(await running.start("print('new')")))["stdout"] == "new\n"


async def test_a_sandbox_whose_time_ran_out_meanwhile_ends_at_the_start(servers: Any, until: Any) -> None:
    """It does not get its time again."""
    first = servers.tcp()
    async with servers.connect(first) as api:
        box = await api.create(timeout_seconds=1)
    first.kill()
    second = servers.tcp()
    async with servers.connect(second) as api:

        async def gone() -> bool:
            return (await api.call("GET", f"/v1/sandboxes/{box.id}"))[0] == 404

        await until(gone)
        await until(lambda: list((servers.directory / "state" / "sandboxes").iterdir()) == [])


def test_a_state_directory_has_one_server_at_a_time(servers: Any) -> None:
    """The second says which directory and what to do."""
    servers.tcp()
    second = servers.tcp()
    assert second.said["ready"] is False
    assert str(servers.directory / "state") in second.said["error"]
    assert "--state-dir" in second.said["error"]


def test_a_state_directory_that_cannot_be_made_is_named(servers: Any) -> None:
    """Not a traceback."""
    (servers.directory / "state").write_text("a file")
    said = servers.tcp().said
    assert said["ready"] is False
    assert str(servers.directory / "state") in said["error"]


def test_a_port_that_is_taken_is_named(servers: Any) -> None:
    """With the way out."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        said = servers.tcp(port=port).said
    assert said["ready"] is False
    assert str(port) in said["error"]
    assert "--port" in said["error"]


async def test_the_public_url_is_what_clients_are_told(servers: Any) -> None:
    """Else it is what they themselves called the server."""
    server = servers.tcp(public_url="https://jobs.example/base/")
    async with servers.connect(server) as api:
        box = await api.create()
        assert box.body["public_host"] == f"https://jobs.example/base/vm/{box.id}"
    async with servers.connect(servers.tcp("other")) as api:
        box = await api.create()
        assert box.body["public_host"] == f"{api.base}/vm/{box.id}"


async def test_ctrl_c_stops_a_served_instance(servers: Any) -> None:
    """It is in the foreground of somebody's terminal, and its jobs end with it."""
    server = servers.tcp()
    async with servers.connect(server) as api:
        box = await api.create()
        job = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(job, "up")
        pid = (await box.row(job))["pid"]
        hanging = asyncio.create_task(
            box.call("POST", "/execute", json={"code": "import time; time.sleep(600)"})
        )
        await asyncio.sleep(0)
        server.popen.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(server.popen.wait, 50) == 0
        with pytest.raises(aiohttp.ClientError):
            await hanging
    assert not _alive(pid)
