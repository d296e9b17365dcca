"""The whole thing: a client, its embedded server, and real processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from asyncsandbox import (
    Client,
    ClientStateError,
    ConflictError,
    EmbeddedServerError,
    EndReason,
    InvalidRequestError,
    JobKilledError,
    JobSpec,
    JobState,
    JobTimedOutError,
    NotFoundError,
    PermissionDeniedError,
    Sandbox,
    SandboxClosedError,
    StartError,
    as_completed,
    wait_all,
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run on asyncio; one loop for the module, as the client belongs to one."""
    return "asyncio"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[Client]:
    """Return a client with an embedded server."""
    async with Client(isolation="none") as client:
        yield client


@pytest.fixture
async def sandbox(client: Client) -> AsyncIterator[Sandbox]:
    """Return a sandbox for one test."""
    async with client.create_sandbox() as sandbox:
        yield sandbox


async def test_the_example_of_the_design(sandbox: Sandbox) -> None:
    """Start, wait, read."""
    job = await sandbox.run_code_background("print(6 * 7)", name="answer", timeout=300, env={"A": "1"})
    result = await job.wait()
    assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("42\n", "", 0, True)
    assert (result.state, result.end_reason, result.name) == (JobState.COMPLETED, EndReason.EXIT, "answer")
    assert result.queued_at is not None
    assert result.started_at is not None
    assert result.ended_at is not None
    assert result.queued_at <= result.started_at <= result.ended_at
    assert result.duration == result.ended_at - result.started_at


async def test_a_thousand_jobs_each_right_and_each_once(client: Client, sandbox: Sandbox) -> None:
    """One start request a job, one look a tick for all of them, every result the job's own."""
    before = client.stats
    specs = [JobSpec(f"echo $(({n} * {n}))", language="bash", metadata=n) for n in range(1_000)]
    jobs = await sandbox.start_all(specs)
    seen = {}
    async for job in as_completed(jobs):
        assert job.spec is not None
        seen[job.spec.metadata] = job.result().stdout
    assert seen == {n: f"{n * n}\n" for n in range(1_000)}
    after = client.stats
    assert after.requests - before.requests - (after.looks - before.looks) == 1_000
    assert len(await sandbox.list_processes()) == 1_000


@pytest.mark.parametrize(
    ("language", "code", "stdout"),
    [
        ("python", "import sys; print(sys.argv[1:], sys.stdin.read())", "['a', 'b c'] in\n"),
        ("bash", 'echo "[$1] [$2] $(cat)"', "[a] [b c] in\n"),
        pytest.param(
            "javascript",
            "console.log(process.argv.slice(2), require('fs').readFileSync(0).toString())",
            "[ 'a', 'b c' ] in\n",
            marks=[
                pytest.mark.node,
                pytest.mark.skipif(not shutil.which("node"), reason="Node.js is missing"),
            ],
        ),
        pytest.param(
            "go",
            'package main\nimport ("fmt"; "io"; "os")\n'
            "func main() { b, _ := io.ReadAll(os.Stdin); fmt.Println(os.Args[1:], string(b)) }",
            "[a b c] in\n",
            marks=[pytest.mark.go, pytest.mark.skipif(not shutil.which("go"), reason="Go is missing")],
        ),
    ],
    ids=["python", "bash", "javascript", "go"],
)
async def test_languages_take_arguments_and_input(
    sandbox: Sandbox, language: str, code: str, stdout: str
) -> None:
    """Each runs as its own tool would run a file."""
    job = await sandbox.run_code_background(code, language=language, args=("a", "b c"), stdin="in")
    assert (await job.wait()).check().stdout == stdout


async def test_a_missing_toolchain_and_an_unknown_language_are_told(sandbox: Sandbox) -> None:
    """The message names the language and what there is."""
    with pytest.raises(InvalidRequestError, match=r"cobol.*python"):
        await sandbox.run_code_background("x", language="cobol")
    with pytest.raises(StartError, match="cobol") as caught:
        await sandbox.start_all(["print(1)", JobSpec("x", language="cobol"), "print(2)"])
    assert list(caught.value.failed) == [1]
    assert [result.stdout for result in await wait_all(caught.value.started)] == ["1\n", "2\n"]
    if not shutil.which("go"):
        with pytest.raises(InvalidRequestError, match="go"):
            await sandbox.run_code_background("package main", language="go")


async def test_environment_is_clean_and_layered(client: Client) -> None:
    """Nothing of ours gets in; the job's own variables win over the sandbox's."""
    os.environ["ASYNCSANDBOX_TEST_LEAK"] = "leak"
    try:
        async with client.create_sandbox(env={"A": "sandbox", "B": "sandbox"}) as sandbox:
            await sandbox.env.update({"C": "later"})
            code = "import os, json; print(json.dumps(dict(os.environ)))"
            job = await sandbox.run_code_background(code, env={"A": "job"})
            seen = json.loads((await job.wait()).check().stdout)
            assert (seen["A"], seen["B"], seen["C"]) == ("job", "sandbox", "later")
            assert not [name for name in seen if "LEAK" in name or "KEY" in name or "TOKEN" in name]
            await sandbox.env.delete("B")
            assert await sandbox.env.get("B") is None
            await sandbox.env.set_all({"ONLY": "1"})
            assert await sandbox.env.get_all() == {"ONLY": "1"}
            await sandbox.env.set("TWO", "2")
            await sandbox.env.clear()
            assert await sandbox.env.get_all() == {}
            with pytest.raises(InvalidRequestError, match="strings"):
                await sandbox.env.set("A", 1)  # type: ignore[arg-type]
    finally:
        del os.environ["ASYNCSANDBOX_TEST_LEAK"]


async def test_files_go_in_and_come_back_per_job(sandbox: Sandbox) -> None:
    """Many jobs with files of the same names do not meet."""
    code = "import helper; open('out.txt', 'w').write(helper.NAME + open('in.txt').read())"
    specs = [
        JobSpec(code, files={"in.txt": f"{n}".encode(), "helper.py": f"NAME = 'h{n}-'"}, collect=["out.txt"])
        for n in range(8)
    ]
    results = await wait_all(await sandbox.start_all(specs))
    assert [dict(result.check().files) for result in results] == [
        {"out.txt": f"h{n}-{n}".encode()} for n in range(8)
    ]


async def test_a_pipe_among_the_files_holds_nobody_up(sandbox: Sandbox) -> None:
    """A FIFO is no file: it is refused by name, and what else was to be collected comes."""
    code = "import os; os.mkfifo('p.txt'); open('q.txt', 'w').write('q')"
    result = await (await sandbox.run_code_background(code, collect="*.txt")).wait()
    assert dict(result.check().files) == {"q.txt": b"q"}
    assert result.output_error is not None
    assert "'p.txt' is a pipe" in result.output_error
    await (await sandbox.run_code_background("import os; os.mkfifo('fifo')")).wait()
    with pytest.raises(InvalidRequestError, match="'fifo' is a pipe"):
        await sandbox.files.read("fifo")
    with pytest.raises(InvalidRequestError, match="'fifo' is a pipe"):
        await sandbox.files.write("fifo", "x")


async def test_a_job_that_asks_to_be_traced_ends_alone(sandbox: Sandbox) -> None:
    """Its supervisor becomes its tracer by that; neither it nor another job may suffer."""
    other = await sandbox.run_code_background(
        "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)"
    )
    code = "import ctypes, os; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 15)"
    traced = await (await sandbox.run_code_background(code, timeout=20)).wait()
    assert (traced.state, traced.signal) == (JobState.FAILED, signal.SIGTERM)
    await sandbox.files.write("go", "")
    assert (await other.wait()).ok


async def test_files_of_a_job_never_meet_its_program(sandbox: Sandbox) -> None:
    """Whatever a file is called; and the program is not among what comes back."""
    code = "print(open('main.py').read())"
    result = await (await sandbox.run_code_background(code, files={"main.py": "mine"}, collect="*")).wait()
    assert result.check().stdout == "mine\n"
    assert dict(result.files) == {"main.py": b"mine"}


async def test_a_run_whose_sandbox_is_ended_says_so(client: Client) -> None:
    """It is neither a failure of its own nor a success."""
    async with client.create_sandbox() as sandbox:
        running = asyncio.ensure_future(sandbox.run_code("open('here', 'w'); import time; time.sleep(600)"))
        while not await sandbox.files.exists("here"):
            await asyncio.sleep(0.02)
        await sandbox.kill()
        assert (await running).state in (JobState.KILLED, JobState.LOST)


async def test_the_files_of_a_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    """Write, read, list, copy, remove; the jobs see them in their working directory."""
    files = sandbox.files
    await files.write("dir/a.txt", "text é")
    await files.write("/workspace/b.bin", b"\xff\x00\xfe")
    assert await files.read("/workspace/dir/a.txt") == "text é"
    assert await files.read_bytes("b.bin") == b"\xff\x00\xfe"
    assert {info.name: info.is_dir for info in await files.list()} == {"dir": True, "b.bin": False}
    assert await files.exists("dir")
    assert not await files.exists("nothing")
    await files.mkdir("x/y")
    local = tmp_path / "local.txt"
    local.write_bytes(b"up")
    await files.upload(local, "x/y/up.txt")
    await files.download("x/y/up.txt", tmp_path / "down.txt")
    assert (tmp_path / "down.txt").read_bytes() == b"up"
    job = await sandbox.run_code_background("print(open('dir/a.txt').read())")
    assert (await job.wait()).check().stdout == "text é\n"
    await files.remove("x")
    assert not await files.exists("x/y/up.txt")
    with pytest.raises(NotFoundError, match=r"gone\.txt"):
        await files.read("gone.txt")
    with pytest.raises(PermissionDeniedError):
        await files.read("/etc/passwd")
    with pytest.raises(PermissionDeniedError):
        await files.read("../../../etc/passwd")


async def test_working_dir_is_where_the_job_runs(sandbox: Sandbox) -> None:
    """It is made when it is not there; the job's modules are found in it."""
    await sandbox.files.write("pkg/mod.py", "X = 5")
    job = await sandbox.run_code_background(
        "import mod, os; print(mod.X, os.getcwd())", working_dir="/workspace/pkg"
    )
    assert (await job.wait()).check().stdout.startswith("5 ")


@pytest.mark.parametrize(
    ("code", "state", "reason", "exit_code", "signum"),
    [
        ("raise SystemExit(3)", JobState.FAILED, EndReason.EXIT, 3, None),
        ("import os; os.abort()", JobState.FAILED, EndReason.SIGNAL, None, signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 9)", JobState.FAILED, EndReason.SIGNAL, None, signal.SIGKILL),
        ("1/0", JobState.FAILED, EndReason.EXIT, 1, None),
        ("import os; os.close(1); os.close(2)", JobState.COMPLETED, EndReason.EXIT, 0, None),
    ],
)
async def test_ends_are_told_as_they_were(
    sandbox: Sandbox, code: str, state: JobState, reason: EndReason, exit_code: int | None, signum: int | None
) -> None:
    """Exit codes and signals as the kernel gave them; none is made up."""
    result = await (await sandbox.run_code_background(code)).wait()
    assert (result.state, result.end_reason, result.exit_code, result.signal) == (
        state,
        reason,
        exit_code,
        signum,
    )


async def test_time_out_ends_the_whole_tree_and_keeps_what_was_printed(sandbox: Sandbox) -> None:
    """A child that left the session and ignores SIGTERM ends too."""
    code = textwrap.dedent("""
        import os, signal, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                print(os.getpid(), flush=True)
                time.sleep(600)
            os._exit(0)
        time.sleep(600)
    """)
    job = await sandbox.run_code_background(code, timeout=1.5)
    result = await job.wait()
    assert (result.state, result.end_reason) == (JobState.TIMED_OUT, EndReason.TIMEOUT)
    assert not psutil.pid_exists(int(result.stdout))
    with pytest.raises(JobTimedOutError, match=r"its time-out of 1\.5 s"):
        result.check()


async def test_kill_is_confirmed_and_final(sandbox: Sandbox) -> None:
    """When it returns nothing of the job is left, and what it printed is there."""
    job = await sandbox.run_code_background("import os, time; print(os.getpid()); time.sleep(600)")
    async for event in job.follow():
        pid = int(event.text)
        break
    assert psutil.pid_exists(pid)
    await job.kill()
    assert not psutil.pid_exists(pid)
    result = job.result()
    assert (result.state, int(result.stdout)) == (JobState.KILLED, pid)
    with pytest.raises(JobKilledError):
        result.check()
    await sandbox.kill_process(job.process_id)


async def test_jobs_that_wait_for_each_other_finish(sandbox: Sandbox) -> None:
    """Sleepers hold back nobody: all wait for a file that the last one writes."""
    waiter = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"
    jobs = await sandbox.start_all([waiter] * 40 + ["open('go', 'w')"], timeout=90)
    assert all(result.ok for result in await wait_all(jobs))


async def test_output_that_is_no_text_and_much_of_it(sandbox: Sandbox) -> None:
    """Bytes are bytes; a result has the tail and says so, the rest is read by offset, and the middle is gone."""
    total = 24 * 1024 * 1024
    code = (
        f"import sys\nfor n in range({total} // 1024): sys.stdout.buffer.write(b'%08d' % n + b'\\xff' * 1016)"
    )
    job = await sandbox.run_code_background(code)
    result = await job.wait()
    assert result.ok
    assert result.stdout_truncated
    assert result.stdout_bytes[-1024:] == b"%08d" % (total // 1024 - 1) + b"\xff" * 1016
    assert len(result.stdout_bytes) == 64 * 1024
    assert job.info.stdout_size == total
    head = await job.output("stdout", 0, 1024)
    assert head.data == b"00000000" + b"\xff" * 1016
    after_cut = await job.output("stdout", total // 2, 1024)
    assert after_cut.offset > total // 2
    at = (-after_cut.offset) % 1024
    assert after_cut.data[at : at + 8] == b"%08d" % ((after_cut.offset + at) // 1024)
    followed = 0
    async for event in job.follow():
        followed += len(event.data)
    assert followed == 10 * 1024 * 1024


async def test_follow_sees_output_while_the_job_runs(sandbox: Sandbox) -> None:
    """The job goes on only after its first line was seen."""
    code = (
        "import os, time\nprint('ready')\nwhile not os.path.exists('seen'): time.sleep(0.05)\nprint('done')"
    )
    job = await sandbox.run_code_background(code)
    text = ""
    async for event in job.follow():
        text += event.text
        if text == "ready\n":
            await sandbox.files.write("seen", "")
    assert text == "ready\ndone\n"
    assert (await job.wait()).ok


async def test_run_code_shows_what_a_notebook_would(sandbox: Sandbox) -> None:
    """The last value and its pictures; nothing of it where there is nothing to show."""
    code = "class A:\n    _repr_png_ = lambda self: b'png'\n    __repr__ = lambda self: 'P'\nA()"
    shown = (await sandbox.run_code(code)).check()
    assert (shown.result, shown.png, list(shown.figures), shown.stdout) == ("P", b"png", [b"png"], "")
    plain = (await sandbox.run_code("print(1)")).check()
    assert (plain.result, plain.png, plain.html, plain.json, plain.dataframe) == (
        None,
        None,
        None,
        None,
        None,
    )


async def test_run_code_and_commands(sandbox: Sandbox) -> None:
    """What fails, or runs too long, is a result."""
    assert (await sandbox.run_code("print(1)")).check().stdout == "1\n"
    failed = await sandbox.run_code("import sys; print(2); sys.exit(4)")
    assert (failed.exit_code, failed.ok, failed.stdout) == (4, False, "2\n")
    late = await sandbox.run_code("import time; print(3); time.sleep(600)", timeout=1)
    assert (late.state, late.stdout, late.exit_code) == (JobState.TIMED_OUT, "3\n", None)
    killed = await sandbox.commands.run("kill -9 $$")
    assert (killed.signal, killed.exit_code, killed.state) == (signal.SIGKILL, None, JobState.FAILED)
    assert (await sandbox.commands.run("printf", args=["%s|", "a b", "c"])).stdout == "a b|c|"
    assert (await sandbox.commands.run("echo $X", env={"X": "x"})).stdout == "x\n"
    with pytest.raises(InvalidRequestError, match="empty"):
        await sandbox.commands.run(" ")
    with pytest.raises(InvalidRequestError, match="stdin"):
        await sandbox.run_code(JobSpec("pass", stdin="x"))
    assert await sandbox.list_processes() == []


async def test_background_commands_are_jobs(sandbox: Sandbox) -> None:
    """Listed, named, waited for like any other."""
    job = await sandbox.commands.run_background("echo one; exit 7", name="cmd")
    result = await job.wait()
    assert (result.stdout, result.exit_code, result.name) == ("one\n", 7, "cmd")
    (listed,) = await sandbox.list_processes()
    assert listed.process_id == job.process_id
    await job.remove()
    assert await sandbox.list_processes() == []


async def test_a_running_job_is_not_removed(sandbox: Sandbox) -> None:
    """The message says what to do first."""
    job = await sandbox.run_code_background("import time; time.sleep(600)")
    with pytest.raises(ConflictError, match=job.process_id):
        await job.remove()


async def test_paused_sandboxes_rest(sandbox: Sandbox) -> None:
    """While paused nothing moves, and the time-out stands still."""
    code = "import time\nfor n in range(10**6):\n    open('tick', 'w').write(str(n)); time.sleep(0.01)"
    job = await sandbox.run_code_background(code, timeout=60)
    while not await sandbox.files.exists("tick"):
        await asyncio.sleep(0.02)
    await sandbox.pause()
    assert (await sandbox.refresh()).status == "paused"
    with pytest.raises(ConflictError, match="paused"):
        await sandbox.run_code_background("pass")
    await sandbox.resume()
    assert (await sandbox.refresh()).status == "running"
    await job.kill()


async def test_a_sandbox_with_a_life_of_its_own_ends_by_itself(client: Client) -> None:
    """Its jobs are lost for whoever waits; its handle says what happened."""
    sandbox = await client.create_sandbox(timeout_seconds=1)
    job = await sandbox.run_code_background("import time; time.sleep(600)")
    assert (await job.wait()).state is JobState.LOST
    with pytest.raises(SandboxClosedError, match=sandbox.id):
        await sandbox.run_code("pass")


async def test_templates(client: Client) -> None:
    """There is at least one; an unknown one is refused by name."""
    templates = await client.list_templates()
    assert "code-interpreter" in {template.name for template in templates}
    assert await client.get_template("code-interpreter") in templates
    assert (await client.get_template(templates[0].id)).name == templates[0].name
    with pytest.raises(NotFoundError, match="no-such"):
        await client.get_template("no-such")
    with pytest.raises((InvalidRequestError, NotFoundError), match="no-such"):
        await client.create_sandbox("no-such")


async def test_what_the_agent_says_of_itself(sandbox: Sandbox) -> None:
    """Its counts; and no job passes for a process of the operating system."""
    await (await sandbox.run_code_background("pass")).wait()
    metrics = await sandbox.metrics()
    assert (metrics.executions, metrics.running, metrics.errors) == (1, 0, 0)
    assert metrics.requests is not None
    assert metrics.requests >= 2
    assert all(process.pid > 0 for process in await sandbox.system_processes())


async def test_another_handle_to_the_same_job(client: Client, sandbox: Sandbox) -> None:
    """By reference, through a connection that ends nothing when it is left."""
    job = await sandbox.run_code_background("print('x')", name="n")
    async with client.connect(sandbox.id) as again:
        assert (await again.job(job.process_id).wait()).stdout == "x\n"
    assert (await client.job(job.ref)).stdout == "x\n"
    assert sandbox.id in {info.id for info in await client.list_sandboxes()}


async def test_a_group_left_by_an_error_leaves_no_process(sandbox: Sandbox) -> None:
    """When the block is left its processes are gone."""
    pids = []
    with pytest.raises(RuntimeError, match="mine"):
        async with sandbox.job_group() as group:
            jobs = await group.start_all(["import os, time; print(os.getpid()); time.sleep(600)"] * 4)
            for job in jobs:
                async for event in job.follow():
                    pids.append(int(event.text))
                    break
            raise RuntimeError("mine")
    assert len(pids) == 4
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


async def test_isolation_must_be_asked_for_until_it_is_there() -> None:
    """The error names the cause and the way out."""
    async with Client() as client:
        with pytest.raises(InvalidRequestError, match=r"isolation='none'"):
            await client.create_sandbox()


async def test_the_short_form_has_a_client_of_its_own() -> None:
    """It closes with the sandbox, in either use."""
    async with Sandbox.create(isolation="none") as sandbox:
        assert (await sandbox.run_code("print(1)")).stdout == "1\n"
    with pytest.raises((SandboxClosedError, ClientStateError)):
        await sandbox.run_code("pass")
    sandbox = await Sandbox.create(isolation="none", env={"A": "b"})
    assert (await sandbox.commands.run("echo $A")).stdout == "b\n"
    await sandbox.kill()


async def test_an_embedded_server_that_dies_loses_its_jobs_and_says_so() -> None:
    """No wait hangs, and what follows names the cause."""
    client = Client(isolation="none")
    sandbox = await client.create_sandbox()
    job = await sandbox.run_code_background("import time; time.sleep(600)")
    waiting = asyncio.ensure_future(job.wait())
    await asyncio.sleep(0)
    assert client._embedded is not None
    os.kill(client._embedded.pid, signal.SIGKILL)
    assert (await waiting).state is JobState.LOST
    with pytest.raises(EmbeddedServerError, match="signal 9"):
        await client.create_sandbox()
    await client.aclose()


async def test_a_client_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL of the program: no server, no job, no socket, no directory is left."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio
            from asyncsandbox import Client

            async def main():
                async with Client(isolation="none") as client, client.create_sandbox() as sandbox:
                    jobs = await sandbox.start_all(["import os, time; print(os.getpid()); time.sleep(600)"] * 3)
                    pids = []
                    for job in jobs:
                        async for event in job.follow():
                            pids.append(event.text.strip())
                            break
                    print(client._embedded.pid, client._embedded.socket, *pids, flush=True)
                    await asyncio.sleep(600)

            asyncio.run(main())
        """)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    server, socket, *jobs = (await process.stdout.readline()).decode().split()
    process.kill()
    await process.wait()
    assert len(jobs) == 3
    deadline = asyncio.get_running_loop().time() + 30
    left = [int(pid) for pid in (server, *jobs)]
    while left or Path(socket).parent.exists():
        left = [pid for pid in left if psutil.pid_exists(pid)]
        assert asyncio.get_running_loop().time() < deadline, (left, socket)
        await asyncio.sleep(0.05)
