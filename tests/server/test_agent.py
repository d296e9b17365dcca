"""The agent beside its jobs: listing, idempotency, executions, commands, environment, information."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer
from blockbuster import BlockBuster

from asyncsandbox.models import EndReason
from asyncsandbox.server.app import make_app
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.launcher import LaunchEnd, StreamEnd
from asyncsandbox.server.records import JobRecord
from asyncsandbox.server.state import Server

# --- listing ------------------------------------------------------------------------------------------------


async def test_the_list_has_every_job_in_the_order_of_its_start(box: Any) -> None:
    """Code and commands, each with its small output; executions are nobody else's business."""
    first = await box.start("print('one')", name="n")
    command = await box.ok("POST", "/commands/background", json={"command": "echo two", "name": "c"})
    await box.ok("POST", "/execute", json={"code": "print('hidden')"})
    await box.end(first)
    await box.end(command)
    body = await box.ok("GET", "/execute/processes")
    assert body["count"] == 2
    rows = body["processes"]
    assert [(row["name"], row["stdout"]) for row in rows] == [("n", "one\n"), ("c", "two\n")]
    assert rows[0]["process_id"].startswith("bg_")
    assert (rows[1]["process_id"][:4], rows[1]["command"], rows[1]["language"]) == ("cmd_", "echo two", "")
    also = [row for row in (await box.ok("GET", "/processes"))["processes"] if "process_id" in row]
    assert [row["process_id"] for row in also] == [row["process_id"] for row in rows]


async def test_since_tells_changes_ends_with_output_and_removals(box: Any) -> None:
    """Following the cursor is enough to know everything."""
    cursor = (await box.ok("GET", "/execute/processes"))["cursor"]
    empty = await box.ok("GET", "/execute/processes", params={"since": cursor})
    assert (empty["processes"], empty["removed"], empty["more"]) == ([], [], False)
    job = await box.start("print('out')")
    await box.end(job)
    news = await box.ok("GET", "/execute/processes", params={"since": empty["cursor"]})
    assert [row["stdout"] for row in news["processes"]] == ["out\n"]
    await box.ok("DELETE", f"/execute/processes/{job['process_id']}")
    last = await box.ok("GET", "/execute/processes", params={"since": news["cursor"]})
    assert (last["processes"], last["removed"]) == ([], [job["process_id"]])
    assert (await box.ok("GET", "/execute/processes", params={"since": last["cursor"]}))["removed"] == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "x.1", "{instance}.", "{instance}.x", "{instance}.-1", "{instance}.99999999"]
)
async def test_an_unknown_cursor_has_expired(box: Any, cursor: str) -> None:
    """The client lists anew."""
    instance = (await box.ok("GET", "/health"))["instance"]
    status, body = await box.call(
        "GET", "/execute/processes", params={"since": cursor.format(instance=instance)}
    )
    assert (status, body["code"]) == (410, "CURSOR_EXPIRED")


async def test_a_list_with_much_output_comes_in_pieces(box: Any) -> None:
    """With a cursor nothing is left out, only put off; the whole list leaves the oldest output out."""
    cursor = (await box.ok("GET", "/execute/processes"))["cursor"]
    code = "import sys; sys.stdout.write('x' * 16384); sys.stderr.write('y' * 16384)"
    jobs = [await box.start(code) for _ in range(130)]
    for job in jobs:
        await box.end(job)
    seen: list[str] = []
    pieces = 0
    more = True
    while more:
        news = await box.ok("GET", "/execute/processes", params={"since": cursor})
        cursor, more = news["cursor"], news["more"]
        assert all(len(row["stdout"]) == 16384 for row in news["processes"])
        seen += [row["process_id"] for row in news["processes"]]
        pieces += 1
    assert sorted(seen) == sorted(job["process_id"] for job in jobs)
    assert pieces == 2
    rows = (await box.ok("GET", "/execute/processes"))["processes"]
    assert len(rows) == 130
    assert "stdout" not in rows[0]
    assert len(rows[-1]["stdout"]) == 16384


async def test_a_record_is_removed_only_when_its_job_has_ended(box: Any) -> None:
    """And then it is unknown, as is its output."""
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    path = f"/execute/processes/{job['process_id']}"
    status, body = await box.call("DELETE", path)
    assert (status, body["code"]) == (409, "CONFLICT")
    assert job["process_id"] in body["message"]
    await box.kill(job)
    assert (await box.ok("DELETE", path))["removed"] is True
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/output")):
        status, body = await box.call(method, where)
        assert (status, body["code"]) == (404, "PROCESS_NOT_FOUND")
        assert "removed" in body["message"]


async def test_a_job_is_known_in_its_own_sandbox_only(box: Any, api: Any) -> None:
    """Another sandbox neither sees nor ends it."""
    job = await box.start("pass")
    other = await api.create()
    status, _body = await other.call("GET", f"/execute/processes/{job['process_id']}")
    assert status == 404
    status, _body = await other.call("POST", f"/execute/kill/{job['process_id']}")
    assert status == 404
    assert (await other.ok("GET", "/execute/processes"))["processes"] == []
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


# --- idempotency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 400_000])
async def test_a_start_is_done_once_for_each_key(box: Any, padding: int) -> None:
    """However many requests come at once, and whether its inputs are small or written by a thread."""
    code = f"open('runs', 'a').write('x'); print('said')\n#{'p' * padding}"
    answers = await asyncio.gather(*(box.start(code, key="k-1") for _ in range(8)))
    assert len({answer["process_id"] for answer in answers}) == 1
    await box.end(answers[0])
    again = await box.start(code, key="k-1")
    assert (again["process_id"], again["status"]) == (answers[0]["process_id"], "completed")
    assert (again["stdout"], again["stderr"], again["stdout_complete"]) == ("said\n", "", True)
    assert (await box.ok("GET", "/files/read", params={"path": "runs"}))["content"] == "x"
    assert len((await box.ok("GET", "/execute/processes"))["processes"]) == 1


async def test_a_start_that_ends_before_its_answer_is_answered_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_blocking: BlockBuster
) -> None:
    """Though the end came so late that no commit has it yet."""
    no_blocking.deactivate()  # the server runs in this loop here; in production it has one of its own
    server = Server.make(ServerConfig(state_dir=tmp_path, api_key="k", isolation="none"))
    start = server.jobs.start

    async def start_and_end(*args: Any, **options: Any) -> JobRecord:
        process_id = (await start(*args, **options)).process_id
        said = StreamEnd(size=3, inline=b"42\n")
        end = LaunchEnd(
            process_id=process_id,
            exit_code=0,
            signal=None,
            reason=EndReason.EXIT,
            ended_at=time.time(),
            stdout=said,
        )
        server.jobs.over(end)
        record = server.ledger.jobs.get(process_id)
        assert record is not None
        return record

    monkeypatch.setattr(server.jobs, "start", start_and_end)
    async with TestClient(TestServer(make_app(server))) as client:
        key = {"X-API-Key": "k"}
        created = await client.post("/v1/sandboxes", headers=key, json={"template_name": "base"})
        box = await created.json()
        token = {"Authorization": f"Bearer {box['auth_token']}"}
        answer = await client.post(
            f"/vm/{box['id']}/execute/background", headers=token, json={"code": "print(42)"}
        )
        row = await answer.json()
    await server.close()
    assert (row["status"], row["stdout"], row["stdout_complete"]) == ("completed", "42\n", True)


async def test_a_key_for_another_body_or_a_removed_job_is_refused(box: Any, api: Any) -> None:
    """Other body: 409; other call: 409; removed: 410; another sandbox: its own business."""
    job = await box.start("print(1)", key="k")
    headers = {"Idempotency-Key": "k"}
    status, body = await box.call("POST", "/execute/background", json={"code": "print(2)"}, headers=headers)
    assert (status, body["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    status, body = await box.call("POST", "/commands/background", json={"command": "ls"}, headers=headers)
    assert (status, body["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    await box.end(job)
    await box.ok("DELETE", f"/execute/processes/{job['process_id']}")
    status, body = await box.call("POST", "/execute/background", json={"code": "print(1)"}, headers=headers)
    assert (status, body["code"]) == (410, "GONE")
    other = await api.create()
    assert (await other.start("print(2)", key="k"))["process_id"] != job["process_id"]
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


# --- executions and commands --------------------------------------------------------------------------------


async def test_an_execution_answers_with_what_came_of_it(box: Any) -> None:
    """Success, failure and signal are all 200."""
    body = await box.ok("POST", "/execute", json={"code": "import sys; print(1); print(2, file=sys.stderr)"})
    assert (body["success"], body["stdout"], body["stderr"], body["exit_code"]) == (True, "1\n", "2\n", 0)
    assert body["language"] == "python"
    assert isinstance(body["execution_time"], float)
    body = await box.ok("POST", "/execute", json={"code": "raise SystemExit(3)"})
    assert (body["success"], body["exit_code"]) == (False, 3)
    body = await box.ok("POST", "/execute", json={"code": "import os; os.kill(os.getpid(), 15)"})
    assert (body["success"], body["exit_code"], body["signal"]) == (False, -15, 15)


async def test_an_execution_that_is_too_slow_is_408_with_its_output(box: Any) -> None:
    """In the contract's words."""
    code = "print('so far'); import time; time.sleep(600)"
    status, body = await box.call("POST", "/execute", json={"code": code, "timeout": 0.5})
    assert (status, body["code"], body["details"]["stdout"]) == (408, "EXECUTION_TIMEOUT", "so far\n")
    assert "0.5" in body["message"]


async def test_an_execution_gives_all_its_output_and_leaves_nothing(box: Any, shared_server: Any) -> None:
    """More than any list would hold, and no file stays."""
    body = await box.ok("POST", "/execute", json={"code": "print('z' * 3_000_000, end='')"})
    assert body["stdout"] == "z" * 3_000_000
    place = shared_server.directory / "sandboxes" / box.id
    assert [*(place / "spool").iterdir(), *(place / "scripts").iterdir()] == []


async def test_an_execution_ends_when_nobody_waits_for_it(
    box: Any, shared_server: Any, tmp_path: Path, until: Any
) -> None:
    """Whoever hangs up takes it along."""
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    connector = aiohttp.UnixConnector(shared_server.said["socket"])
    async with aiohttp.ClientSession(connector=connector) as session:
        headers = {"Authorization": f"Bearer {box.token}"}
        url = f"http://localhost/vm/{box.id}/execute"
        request = asyncio.create_task(session.post(url, json={"code": code}, headers=headers))
        await until(lambda: pid.exists() and pid.read_text())
        request.cancel()
        await asyncio.wait([request])
    await until(lambda: not psutil.pid_exists(int(pid.read_text())))


async def test_an_execution_does_not_queue_behind_a_sandbox_s_jobs(servers: Any, until: Any) -> None:
    """Somebody waits for it."""
    async with servers.connect(servers.tcp(max_running=1)) as api:
        box = await api.create()
        first = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(first, "up")
        jobs = [await box.start("import time; time.sleep(600)") for _ in range(3)]
        answer = asyncio.create_task(box.ok("POST", "/execute", json={"code": "print('in between')"}))

        async def queued() -> bool:
            return (await box.ok("GET", "/metrics"))["total_executions"] == 5

        await until(queued)
        await box.kill(first)
        await box.until(jobs[0], lambda row: row["status"] == "running")
        await box.kill(jobs[0])
        assert (await answer)["stdout"] == "in between\n"
        assert (await box.row(jobs[2]))["status"] == "queued"


async def test_commands_run_by_a_shell_or_directly(box: Any) -> None:
    """Without arguments the text goes to a shell; a failing one is 200 all the same."""
    body = await box.ok("POST", "/commands/run", json={"command": "echo $((6*7)); exit 5"})
    assert (body["stdout"], body["exit_code"], body["success"]) == ("42\n", 5, False)
    assert body["command"] == "echo $((6*7)); exit 5"
    body = await box.ok("POST", "/commands/run", json={"command": "echo", "args": ["$HOME", "a b"]})
    assert (body["stdout"], body["exit_code"]) == ("$HOME a b\n", 0)
    body = await box.ok(
        "POST",
        "/commands/run",
        json={"command": "pwd; echo $V", "workdir": "/workspace/w", "env": {"V": "v"}},
    )
    assert body["stdout"].endswith("/workspace/w\nv\n")


async def test_a_background_command_is_a_job_like_any_other(box: Any) -> None:
    """The official client digs its id out of the message."""
    job = await box.ok("POST", "/commands/background", json={"command": "sleep 600", "timeout": 1000})
    assert job["message"] == f"Background process started: {job['process_id']}"
    await box.running(job)
    assert (await box.kill(job))["status"] == "killed"


async def test_a_job_can_be_killed_by_its_pid_from_inside(box: Any) -> None:
    """The pid on the wire is the one that commands in the sandbox see."""
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    pid = (await box.row(job))["pid"]
    body = await box.ok("POST", "/commands/run", json={"command": "bash", "args": ["-c", f"kill {pid}"]})
    assert body["exit_code"] == 0
    row = await box.end(job)
    assert (row["status"], row["signal"]) == ("failed", 15)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "command"),
        ({"command": " "}, "command"),
        ({"command": 5}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": "ls", "args": "x"}, "args"),
        ({"command": "ls", "timeout": -1}, "timeout"),
        ({"command": "ls", "env": {"A": None}}, "env"),
        ({"command": "no-such-program", "args": []}, "no-such-program"),
    ],
)
async def test_a_senseless_command_is_refused(box: Any, fields: dict[str, Any], says: str) -> None:
    """400, never 5xx: that would make official clients run it again."""
    status, body = await box.call("POST", "/commands/run", json=fields)
    assert status == 400
    assert says in body["message"]


# --- environment --------------------------------------------------------------------------------------------


async def test_the_environment_is_read_replaced_merged_and_cleared(box: Any) -> None:
    """Each call answers with what is then there, values unmasked."""
    assert (await box.ok("PUT", "/env", json={"env_vars": {"A_TOKEN": "1"}}))["env_vars"] == {"A_TOKEN": "1"}
    merged = await box.ok("PATCH", "/env", json={"env_vars": {"B": "2"}, "merge": True})
    assert merged["env_vars"] == {"A_TOKEN": "1", "B": "2"}
    assert (await box.ok("GET", "/env"))["count"] == 2
    assert (await box.ok("PUT", "/env", json={"env_vars": {"C": "3"}}))["env_vars"] == {"C": "3"}
    assert (await box.ok("DELETE", "/env"))["env_vars"] == {}
    for method in ("PUT", "PATCH"):
        status, body = await box.call(method, "/env", json={"env_vars": {"A": 1}})
        assert status == 400
        assert "env" in body["message"]


async def test_the_environment_reaches_later_jobs_only(box: Any) -> None:
    """A queued job has the one of its own start."""
    job = await box.start("import os, time; print(os.environ.get('V'))", env={})
    await box.ok("PUT", "/env", json={"env_vars": {"V": "later"}})
    assert (await box.end(job))["stdout"] == "None\n"
    assert (await box.end(await box.start("import os; print(os.environ['V'])")))["stdout"] == "later\n"


# --- information --------------------------------------------------------------------------------------------


async def test_the_agent_tells_about_itself(box: Any) -> None:
    """Without a token on these paths."""
    health = await box.ok("GET", "/health", headers={"Authorization": ""})
    assert (health["status"], health["vm_id"]) == ("healthy", box.id)
    assert "python" in health["features"]["languages"]
    assert health["features"]["asyncsandbox"]["output"] == 1
    assert (await box.ok("GET", "/ping", headers={"Authorization": ""})) == {"message": "pong"}
    info = await box.ok("GET", "/info", headers={"Authorization": ""})
    assert info["vm_id"] == box.id
    assert info["agent_version"] == info["version"]
    assert (await box.ok("GET", "/"))["agent"] == "asyncsandbox"


async def test_the_agent_counts(box: Any) -> None:
    """Requests, refusals and jobs of this sandbox."""
    await box.end(await box.start("pass"))
    await box.call("GET", "/files/read", params={"path": "nothing"})
    for path in ("/metrics", "/metrics/snapshot"):
        body = await box.ok("GET", path)
        assert (body["total_executions"], body["active_executions"], body["total_errors"]) == (1, 0, 1)
        assert body["total_requests"] >= 3
    assert (await box.ok("GET", "/cache/stats"))["cache"]["size"] == 0
    assert (await box.ok("POST", "/cache/clear"))["entries_removed"] == 0
    assert (await box.ok("GET", "/jupyter/sessions")) == {"sessions": []}


async def test_a_body_that_is_not_encoded_as_it_says_is_refused(box: Any) -> None:
    """The mistake is the sender's: a sentence, and no 5xx that would make it send again."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    status, body = await box.call("POST", "/execute", data=b'{"code": "1"}', headers=headers)
    assert (status, body["code"]) == (400, "INVALID_JSON")


async def test_what_is_not_there_is_no_expired_sandbox(box: Any) -> None:
    """The JavaScript SDK takes a 404 that says "sandbox" and "not found" for the end of the sandbox."""
    for method, path in (
        ("GET", "/files/read?path=/workspace/sandbox.txt"),
        ("DELETE", "/execute/kill?process_id=bg_sandbox"),
    ):
        status, body = await box.call(method, path)
        assert status == 404
        assert "not found" not in body["message"].lower()
