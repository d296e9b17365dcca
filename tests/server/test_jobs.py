"""Truths about jobs, through HTTP, with real processes."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest


def _alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_a_job_that_exits_with_0_completed(box: Any) -> None:
    """Its output, code and times are in its record."""
    started = await box.start("print(6 * 7)", name="answer")
    assert started["name"] == "answer"
    row = await box.end(started)
    assert (row["status"], row["exit_code"], row["end_reason"]) == ("completed", 0, "exit")
    assert (row["stdout"], row["stderr"], row["stdout_complete"]) == ("42\n", "", True)
    assert row["queued_at"] <= row["started_at"] <= row["end_time"]
    assert row["duration"] >= 0


async def test_another_exit_code_is_a_failure(box: Any) -> None:
    """The code is the one that the program gave."""
    row = await box.end(await box.start("import sys; sys.exit(7)"))
    assert (row["status"], row["exit_code"], row["signal"], row["end_reason"]) == ("failed", 7, None, "exit")


async def test_a_signal_is_a_failure_without_an_exit_code(box: Any) -> None:
    """Nobody returned a code, so none is told."""
    row = await box.end(await box.start("import os; os.kill(os.getpid(), 9)"))
    assert (row["status"], row["exit_code"], row["signal"]) == ("failed", None, signal.SIGKILL)
    assert row["end_reason"] == "signal"


async def test_a_job_that_runs_too_long_is_timed_out(box: Any) -> None:
    """On the wire that is a failure with a flag; what it had printed is there."""
    row = await box.end(await box.start("print('begun')\nwhile True: pass", timeout=0.5))
    assert (row["status"], row["timed_out"], row["end_reason"]) == ("failed", True, "timeout")
    assert row["stdout"] == "begun\n"
    assert row["timeout"] == 0.5


async def test_an_exception_in_the_code_shows_in_stderr(box: Any) -> None:
    """A traceback is output like any other."""
    row = await box.end(await box.start("raise ValueError('no good')"))
    assert row["status"] == "failed"
    assert row["exit_code"] == 1
    assert "ValueError: no good" in row["stderr"]


@pytest.mark.parametrize("form", ["query", "body", "post-query", "post-path", "delete-path", "processes"])
async def test_every_form_of_kill_ends_the_job(box: Any, form: str) -> None:
    """The answer comes when the end is confirmed, with the whole record."""
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    process_id = job["process_id"]
    row = await {
        "query": lambda: box.ok("DELETE", "/execute/kill", params={"process_id": process_id}),
        "body": lambda: box.ok("DELETE", "/execute/kill", json={"process_id": process_id}),
        "post-query": lambda: box.ok("POST", "/execute/kill", params={"process_id": process_id}),
        "post-path": lambda: box.ok("POST", f"/execute/kill/{process_id}"),
        "delete-path": lambda: box.ok("DELETE", f"/execute/kill/{process_id}"),
        "processes": lambda: box.ok("POST", f"/processes/{process_id}/kill"),
    }[form]()
    assert (row["status"], row["end_reason"], row["stdout"]) == ("killed", "killed", "up\n")
    assert not _alive(row["pid"])
    again = await box.kill(job)
    assert again["status"] == "killed"
    assert again["message"] == "had ended already"


async def test_kill_ends_what_ignores_sigterm_and_what_left_the_session(box: Any, tmp_path: Path) -> None:
    """The whole tree is gone when the answer comes."""
    pids = tmp_path / "pids"
    child = (
        "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(pids)!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    )
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not __import__('os').path.exists({str(pids)!r}): time.sleep(0.01)\n"
        "print('up'); time.sleep(600)"
    )
    job = await box.start(code)
    await box.printed(job, "up")
    row = await box.kill(job)
    assert (row["status"], row["signal"]) == ("killed", signal.SIGKILL)
    assert [pid for pid in map(int, pids.read_text().split()) if _alive(pid)] == []


async def test_children_that_outlive_a_job_are_ended_with_it(box: Any, tmp_path: Path) -> None:
    """A job is over when the last of its processes is gone."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"while not os.path.exists({str(pid)!r}) or not os.path.getsize({str(pid)!r}): time.sleep(0.01)\n"
        "print('leaving')"
    )
    row = await box.end(await box.start(code))
    assert row["status"] == "completed"
    assert not _alive(int(pid.read_text()))


async def test_killing_a_finished_job_changes_nothing(box: Any) -> None:
    """A final state never changes."""
    job = await box.start("print('done')")
    await box.end(job)
    row = await box.kill(job)
    assert (row["status"], row["exit_code"]) == ("completed", 0)


async def test_killing_what_is_not_there(box: Any) -> None:
    """An unknown id is 404 with the contract's code; no id at all is 400."""
    status, body = await box.call("DELETE", "/execute/kill", params={"process_id": "bg_nothing"})
    assert (status, body["code"]) == (404, "PROCESS_NOT_FOUND")
    assert "bg_nothing" in body["message"]
    status, body = await box.call("DELETE", "/execute/kill")
    assert (status, body["code"]) == (400, "MISSING_PARAMETER")


async def test_stdin_args_and_files_reach_the_job(box: Any) -> None:
    """What was sent is what the program finds, in a directory of its own."""
    code = (
        "import sys, pathlib\n"
        "import helper\n"
        "print(sys.argv[1:], sys.stdin.buffer.read(), helper.x, pathlib.Path('deep/er.bin').read_bytes())"
    )
    job = await box.start(
        code,
        args=["a b", "-c"],
        stdin_base64=_b64(b"\xff\x00in"),
        files={"helper.py": _b64(b"x = 5"), "deep/er.bin": _b64(b"\x00\x01")},
        own_directory=True,
    )
    row = await box.end(job)
    assert row["stdout"] == "['a b', '-c'] b'\\xff\\x00in' 5 b'\\x00\\x01'\n"
    assert row["working_dir"] == f"/workspace/.jobs/{job['process_id']}"


async def test_an_own_directory_can_be_collected_and_goes_with_the_record(box: Any) -> None:
    """It outlives the job, and is empty at its start but for the program."""
    job = await box.start(
        "import os; print(os.listdir()); open('result', 'w').write('r')", own_directory=True
    )
    row = await box.end(job)
    assert row["stdout"] == f"['{job['process_id']}.py']\n"
    where = row["working_dir"]
    read = await box.ok("GET", "/files/read", params={"path": f"{where}/result"})
    assert read["content"] == "r"
    await box.ok("DELETE", f"/execute/processes/{job['process_id']}")
    assert not (await box.ok("GET", "/files/exists", params={"path": where}))["exists"]


async def test_no_stdin_is_end_of_file(box: Any) -> None:
    """A job that reads does not hang."""
    row = await box.end(await box.start("import sys; print(repr(sys.stdin.read()))"))
    assert row["stdout"] == "''\n"


async def test_jobs_share_the_workspace_and_import_from_it(box: Any) -> None:
    """What one job writes another may import."""
    await box.end(await box.start("open('shared.py', 'w').write('value = 3')"))
    row = await box.end(await box.start("import shared; print(shared.value)"))
    assert row["stdout"] == "3\n"


async def test_the_working_directory_is_made_and_confined(box: Any) -> None:
    """Either spelling works; one that leads outside, or is a file, is refused."""
    row = await box.end(await box.start("import os; print(os.getcwd())", working_dir="a/b"))
    assert row["stdout"].endswith("/workspace/a/b\n")
    assert row["working_dir"] == "/workspace/a/b"
    row = await box.end(await box.start("import os; print(os.getcwd())", workdir="/tmp/c"))
    assert row["stdout"].endswith("/tmp/c\n")
    status, body = await box.call("POST", "/execute/background", json={"code": "1", "workdir": "/etc"})
    assert (status, body["code"]) == (403, "FORBIDDEN")
    await box.ok("POST", "/files/write", json={"path": "plain", "content": ""})
    status, body = await box.call("POST", "/execute/background", json={"code": "1", "workdir": "plain"})
    assert status == 400
    assert "plain" in body["message"]


async def test_the_environment_is_clean_and_layered(box: Any) -> None:
    """Nothing of the server's is there; the request's values win over the sandbox's."""
    await box.ok("PUT", "/env", json={"env_vars": {"A": "sandbox", "B": "sandbox"}})
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    row = await box.end(await box.start(code, env={"B": "job"}))
    env = json.loads(row["stdout"])
    assert (env["A"], env["B"]) == ("sandbox", "job")
    assert env["ASYNCSANDBOX_SANDBOX_ID"] == box.id
    assert env["ASYNCSANDBOX_JOB_ID"] == row["process_id"]
    assert env["HOME"].endswith("/home")
    assert env["PATH"].startswith(str(Path(sys.executable).parent))
    known = {"A", "B", "PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PYTHONPATH"}
    assert {name for name in env if not name.startswith("ASYNCSANDBOX_")} <= known


async def test_the_template_s_packages_are_found(box: Any) -> None:
    """The default template is the environment that runs the server, as ``python`` on the path too."""
    row = await box.end(await box.start("import aiohttp, sys; print(sys.prefix)"))
    assert row["stdout"].strip() == sys.prefix
    body = await box.ok(
        "POST", "/commands/run", json={"command": "python -c 'import sys; print(sys.prefix)'"}
    )
    assert body["stdout"].strip() == sys.prefix


async def test_bash_runs_with_its_arguments(box: Any) -> None:
    """Aliases name the same language."""
    for language in ("bash", "sh", "shell", "BASH"):
        row = await box.end(await box.start('echo "$1"; exit 3', language=language, args=["x y"]))
        assert (row["stdout"], row["exit_code"], row["language"]) == ("x y\n", 3, "bash")


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
async def test_javascript_runs_with_its_arguments(box: Any) -> None:
    """Aliases name the same language."""
    for language in ("javascript", "js", "node", "nodejs"):
        code = "console.log(process.argv.slice(2)); process.exit(4)"
        row = await box.end(await box.start(code, language=language, args=["x y"]))
        assert (row["stdout"], row["exit_code"], row["language"]) == ("[ 'x y' ]\n", 4, "javascript")


async def test_output_of_any_bytes_comes_back_as_it_was(box: Any) -> None:
    """What is no UTF-8 is in the base64 twin, and in the output call."""
    job = await box.start("import sys; sys.stdout.buffer.write(bytes(range(256)))")
    row = await box.end(job)
    assert base64.b64decode(row["stdout_base64"]) == bytes(range(256))
    data, headers = await box.output(job)
    assert data == bytes(range(256))
    assert headers["X-Output-Eof"] == "true"


async def test_output_is_read_by_offset(box: Any) -> None:
    """Pieces join to the whole, and the end can be asked for."""
    job = await box.start("print('0123456789' * 10000, end='')")
    row = await box.end(job)
    assert row["stdout_size"] == 100_000
    assert "stdout" not in row
    data, offset = b"", 0
    while True:
        piece, headers = await box.output(job, offset=offset, limit=30_000)
        assert int(headers["X-Output-Offset"]) == offset
        data += piece
        offset = int(headers["X-Output-Next-Offset"])
        if headers["X-Output-Eof"] == "true":
            break
    assert data == b"0123456789" * 10_000
    tail, headers = await box.output(job, offset=-5)
    assert (tail, headers["X-Output-Offset"]) == (b"56789", "99995")
    beyond, headers = await box.output(job, offset=10**9)
    assert (beyond, headers["X-Output-Eof"]) == (b"", "true")


async def test_small_output_is_read_by_offset_too(box: Any) -> None:
    """Where output lies makes no difference to who reads it."""
    job = await box.start("import sys; print('out'); print('err', file=sys.stderr)")
    await box.end(job)
    piece, headers = await box.output(job, offset=1, limit=2)
    assert (piece, headers["X-Output-Next-Offset"], headers["X-Output-Eof"]) == (b"ut", "3", "false")
    tail, _headers = await box.output(job, stream="stderr", offset=-3)
    assert tail == b"rr\n"


async def test_output_of_a_running_job_is_there_and_has_no_end(box: Any) -> None:
    """End of file is said only when nothing can follow."""
    job = await box.start("import time; print('first'); time.sleep(600)")
    await box.printed(job, "first")
    data, headers = await box.output(job)
    assert (data, headers["X-Output-Eof"]) == (b"first\n", "false")
    row = await box.row(job)
    assert (row["stdout_size"], row["stdout_complete"]) == (6, True)
    await box.kill(job)
    _data, headers = await box.output(job, offset=6)
    assert headers["X-Output-Eof"] == "true"


@pytest.mark.parametrize(
    ("query", "says"),
    [({"stream": "stdin"}, "stdin"), ({"offset": "x"}, "offset"), ({"limit": "1.5"}, "limit")],
)
async def test_a_senseless_output_request_is_refused(box: Any, query: dict[str, str], says: str) -> None:
    """The message names the field."""
    job = await box.start("pass")
    status, body = await box.call("GET", f"/execute/processes/{job['process_id']}/output", params=query)
    assert status == 400
    assert says in body["message"]


async def test_a_flood_keeps_head_and_tail(box: Any, shared_server: Any) -> None:
    """200 MB leave a bounded file, true sizes, and a server that has not grown by them."""
    line = b"%015d\n"
    code = (
        "import sys\n"
        "for block in range(200):\n"
        "    start = block * 65536\n"
        "    sys.stdout.buffer.write(b''.join(b'%015d\\n' % n for n in range(start, start + 65536)))"
    )
    size = 200 * 65536 * 16
    job = await box.start(code)
    row = await box.end(job)
    assert (row["status"], row["stdout_size"], row["stdout_truncated"]) == ("completed", size, True)
    head, _headers = await box.output(job, limit=32)
    assert head == line % 0 + line % 1
    tail, headers = await box.output(job, offset=-16)
    assert tail == line % (200 * 65536 - 1)
    assert headers["X-Output-Eof"] == "true"
    middle, headers = await box.output(job, offset=size // 2, limit=16)
    assert int(headers["X-Output-Offset"]) > size // 2
    first = int(headers["X-Output-Offset"])
    assert middle == (line % (first // 16))[first % 16 :] + (line % (first // 16 + 1))[: first % 16]
    assert psutil.Process(shared_server.popen.pid).memory_info().rss < 150 * 1024 * 1024


async def test_output_that_was_closed_early_is_not_the_end(box: Any, tmp_path: Path) -> None:
    """A job ends when its process does."""
    flag = tmp_path / "go"
    code = (
        "import os, time\nprint('x')\nos.close(1); os.close(2)\n"
        f"while not os.path.exists({str(flag)!r}): time.sleep(0.01)"
    )
    job = await box.start(code)
    await box.printed(job, "x")
    assert (await box.row(job))["status"] == "running"
    flag.touch()
    row = await box.end(job)
    assert row["status"] == "completed"


async def test_jobs_that_wait_for_each_other_finish(box: Any) -> None:
    """Many more than there are cores, and the first waits for the last."""
    count = 40
    code = (
        "import os, sys, time\n"
        "me, last = int(sys.argv[1]), int(sys.argv[2])\n"
        "if me == last: open('go', 'w').close()\n"
        "while not os.path.exists('go'): time.sleep(0.02)\n"
        "print(me)"
    )
    jobs = [await box.start(code, args=[str(n), str(count - 1)]) for n in range(count)]
    rows = [await box.end(job) for job in jobs]
    assert [row["stdout"] for row in rows] == [f"{n}\n" for n in range(count)]


async def test_jobs_that_wait_for_each_other_by_spinning_finish(servers: Any) -> None:
    """Nobody leaves the core, so one more is started when nothing moves."""
    server = servers.tcp(slots=2)
    async with servers.connect(server) as api:
        box = await api.create()
        code = (
            "import os, sys\n"
            "if sys.argv[1] == '2': open('go', 'w').close()\n"
            "while not os.path.exists('go'): pass"
        )
        jobs = [await box.start(code, args=[str(n)]) for n in range(3)]
        assert [(await box.end(job))["status"] for job in jobs] == ["completed"] * 3


async def test_max_running_is_a_hard_limit(servers: Any) -> None:
    """What waits says queued, and a queued job that is killed never starts."""
    server = servers.tcp(max_running=1)
    async with servers.connect(server) as api:
        box = await api.create()
        first = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(first, "up")
        second = await box.start("open('ran', 'w').close()")
        third = await box.start("print('third')")
        assert (await box.row(second))["status"] == "queued"
        row = await box.kill(second)
        assert (row["status"], row["started_at"], row["exit_code"]) == ("killed", None, None)
        assert (await box.row(third))["status"] == "queued"
        await box.kill(first)
        assert (await box.end(third))["stdout"] == "third\n"
        assert not (await box.ok("GET", "/files/exists", params={"path": "ran"}))["exists"]


async def test_a_dead_supervisor_loses_what_it_ran_and_nothing_else(box: Any, shared_server: Any) -> None:
    """Lost is neither success nor failure by its own fault; the next job gets a new supervisor."""
    job = await box.start("import time; print('seen'); time.sleep(600)")
    await box.printed(job, "seen")
    pid = (await box.row(job))["pid"]
    parent = psutil.Process(pid).parent()
    assert parent is not None
    assert parent.pid != shared_server.popen.pid
    parent.kill()
    row = await box.end(job)
    assert (row["status"], row["end_reason"], row["exit_code"]) == ("failed", "lost", None)
    assert row["stdout"] == "seen\n"
    after = await box.end(await box.start("print('again')"))
    assert after["stdout"] == "again\n"
    assert not _alive(pid)


async def test_a_job_that_cannot_be_started_says_why(box: Any) -> None:
    """A background command without a program fails; nobody invents an exit code."""
    job = await box.ok("POST", "/commands/background", json={"command": "no-such-program", "args": []})
    row = await box.end(job)
    assert (row["status"], row["exit_code"], row["started_at"]) == ("failed", None, None)
    assert "no-such-program" in row["stderr"]


async def test_scripts_and_input_do_not_stay(box: Any, shared_server: Any) -> None:
    """What was written for a job is gone once it has ended."""
    await box.end(await box.start("print(1)", stdin_base64=_b64(b"in")))
    scripts = shared_server.directory / "sandboxes" / box.id / "scripts"
    assert list(scripts.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"code": None}, "code"),
        ({"code": ""}, "empty"),
        ({"code": 5}, "code"),
        ({"language": "cobol"}, "python, javascript, bash, go"),
        ({"language": 5}, "language"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "10"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": 1e300}, "timeout"),
        ({"timeout": 10**400}, "timeout"),
        ({"working_dir": "\ud800"}, "working_dir"),
        ({"working_dir": "a" * 300}, "a" * 300),
        ({"files": {"a" * 300: ""}}, "files: " + "a" * 300),
        ({"env": {"A": 1}}, "env"),
        ({"env": {"A=B": "1"}}, "A=B"),
        ({"env": ["A"]}, "env"),
        ({"name": 5}, "name"),
        ({"args": "abc"}, "args"),
        ({"args": [1]}, "args"),
        ({"args": ["a\0"]}, "args"),
        ({"files": {"a": "%%%"}}, "files['a']"),
        ({"files": {"a": 1}}, "files['a']"),
        ({"files": [1]}, "files"),
        ({"stdin_base64": "%"}, "stdin_base64"),
        ({"own_directory": "yes"}, "own_directory"),
        ({"working_dir": 5}, "working_dir"),
        ({"working_dir": ""}, "path"),
    ],
)
async def test_a_senseless_start_is_refused(box: Any, fields: dict[str, Any], says: str) -> None:
    """The message names the field, and nothing was started."""
    status, body = await box.call("POST", "/execute/background", json={"code": "pass", **fields})
    assert status == 400, body
    assert says in body["message"]
    assert body["error"] == body["message"]
    assert (await box.ok("GET", "/execute/processes"))["processes"] == []


async def test_a_missing_toolchain_is_named(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is missing and what there is."""
    monkeypatch.setenv("PATH", "/usr/bin/nowhere")
    async with servers.connect(servers.tcp()) as api:
        box = await api.create()
        status, body = await box.call("POST", "/execute/background", json={"code": "1", "language": "js"})
        assert status == 400
        assert "node" in body["message"]
        assert "python" in body["message"]
        assert (await box.end(await box.start("print(1)")))["stdout"] == "1\n"


async def test_files_that_lead_outside_are_refused(box: Any) -> None:
    """Nothing is written above the job's directory but in the sandbox."""
    files = {"../../../../escaped": _b64(b"x")}
    status, body = await box.call("POST", "/execute/background", json={"code": "1", "files": files})
    assert (status, body["code"]) == (403, "FORBIDDEN")


async def test_many_jobs_at_once_each_have_their_own_result(box: Any) -> None:
    """Three hundred starts at once, none lost, none mixed up."""
    starts = await asyncio.gather(*(box.start(f"print({n} ** 2)") for n in range(300)))
    wanted = {job["process_id"]: f"{n**2}\n" for n, job in enumerate(starts)}
    assert len(wanted) == 300
    cursor = None
    async with asyncio.timeout(55):
        while wanted:
            query = {} if cursor is None else {"since": cursor}
            listed = await box.ok("GET", "/execute/processes", params=query)
            cursor = listed["cursor"]
            for row in listed["processes"]:
                if row["status"] == "completed":
                    assert wanted.pop(row["process_id"]) == row["stdout"]
            await asyncio.sleep(0.02)
