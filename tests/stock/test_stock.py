"""The client at full quality on a server that has the published contract and nothing else."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from asyncsandbox import (
    Client,
    EndReason,
    Job,
    JobSpec,
    JobState,
    PollPolicy,
    Sandbox,
    as_completed,
    wait_all,
)

from .stockserver import StockServer  # noqa: TID252 - it lies beside its tests, which are no package to install

_QUICK = PollPolicy(floor=0.02, cap=0.2)


@pytest.fixture(params=[True, False], ids=["lists output", "lists none"])
async def stock(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StockServer]:
    """A stock server that puts output in its list, and one that does not."""
    server = StockServer(tmp_path, lists_output=request.param)
    runner = await server.start()
    yield server
    keys = server.keys()
    await server.stop(runner)
    server.clean(keys)
    assert server.violations == []


@pytest.fixture
async def client(stock: StockServer) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(stock.url, api_key="k", poll=_QUICK) as client:
        yield client


@pytest.fixture
async def sandbox(client: Client) -> Sandbox:
    """A sandbox of it."""
    return await client.create_sandbox()


async def _until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(50):
        while not await check():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("language", "code", "stdout"),
    [
        ("python", "import sys; print(sys.argv[1:], input())", "['a', 'b c'] in\n"),
        ("bash", 'read line; echo "[$1] [$2] $line"', "[a] [b c] in\n"),
        pytest.param(
            "javascript",
            "console.log(process.argv.slice(2), require('fs').readFileSync(0).toString().trim())",
            "[ 'a', 'b c' ] in\n",
            marks=[
                pytest.mark.node,
                pytest.mark.skipif(not shutil.which("node"), reason="Node.js is missing"),
            ],
        ),
        pytest.param(
            "go",
            'package main\nimport ("fmt"; "os"; "bufio")\nfunc main() { l, _ := bufio.NewReader(os.Stdin)'
            '.ReadString(10); fmt.Print(os.Args[1:], " ", l) }',
            "[a b c] in\n",
            marks=[pytest.mark.go, pytest.mark.skipif(not shutil.which("go"), reason="Go is missing")],
        ),
    ],
)
async def test_every_language_with_input(sandbox: Sandbox, language: str, code: str, stdout: str) -> None:
    """Arguments and input get there, output comes back, and the record speaks of the program."""
    job = await sandbox.run_code_background(code, language=language, args=["a", "b c"], stdin="in\n")
    result = await job.wait()
    assert (result.stdout, result.stderr, result.exit_code) == (stdout, "", 0)
    assert job.info.language == language


@pytest.mark.parametrize("code", [1, 3, 126, 200])
async def test_exit_codes(sandbox: Sandbox, code: int) -> None:
    """The program's own, the odd ones too."""
    job = await sandbox.run_code_background(f"import sys; print('x', file=sys.stderr); sys.exit({code})")
    result = await job.wait()
    assert (result.state, result.end_reason, result.exit_code) == (JobState.FAILED, EndReason.EXIT, code)
    assert (result.stdout, result.stderr) == ("", "x\n")


@pytest.mark.parametrize("number", [9, 11, 15])
async def test_signals(sandbox: Sandbox, number: int) -> None:
    """A death by signal has no exit code."""
    job = await sandbox.run_code_background(f"echo before; kill -{number} $$", language="bash")
    result = await job.wait()
    assert (result.state, result.end_reason) == (JobState.FAILED, EndReason.SIGNAL)
    assert (result.exit_code, result.signal, result.stdout) == (None, number, "before\n")


async def test_bytes_that_are_no_text(sandbox: Sandbox) -> None:
    """They come back as they were written."""
    job = await sandbox.run_code_background("import sys; sys.stdout.buffer.write(bytes(range(256)))")
    assert (await job.wait()).stdout_bytes == bytes(range(256))


async def test_much_output_is_kept_by_its_ends(sandbox: Sandbox) -> None:
    """The result has the tail; the rest is read by offset, and the gap is skipped."""
    job = await sandbox.run_code_background("print('ab' * 8_000_000)\nprint('end')")
    result = await job.wait()
    assert result.stdout_truncated
    assert result.stdout.endswith("abab\nend\n")
    size = 16_000_005
    begin = await job.output("stdout", 0, 10)
    assert (begin.data, begin.next_offset, begin.eof) == (b"ababababab", 10, False)
    half = 5 * 1024 * 1024
    edge = await job.output("stdout", half - 4, 100)
    assert (edge.data, edge.next_offset) == (b"abab", size - half)
    assert (await job.output("stdout", half + 100, 2)).offset == size - half
    last = await job.output("stdout", -4, 100)
    assert (last.data, last.next_offset, last.eof) == (b"end\n", size, True)
    await job.remove()
    assert (await job.output("stdout", 0, 10)).data == b""


async def test_a_list_that_cuts_output_without_a_word_is_not_believed(
    stock: StockServer, sandbox: Sandbox
) -> None:
    """More than a little is read from where it is kept."""
    stock.most_listed = 4_096
    job = await sandbox.run_code_background("print('x' * 9_999)")
    assert (await job.wait()).stdout == "x" * 9_999 + "\n"


async def test_files_in_and_out(sandbox: Sandbox) -> None:
    """A job with files has a directory of its own."""
    code = "open('out.txt', 'w').write(open('in/data').read() * 2)"
    job = await sandbox.run_code_background(code, files={"in/data": b"ab"}, collect=["*.txt"])
    assert (await job.wait()).files == {"out.txt": b"abab"}


async def test_time_is_up(sandbox: Sandbox) -> None:
    """A stock server only says that it failed; what was printed is there."""
    job = await sandbox.run_code_background("print('begun')\nwhile True: pass", timeout=2)
    result = await job.wait()
    assert (result.state, result.end_reason) == (JobState.TIMED_OUT, EndReason.TIMEOUT)
    assert result.stdout == "begun\n"


@pytest.mark.parametrize("older", [False, True])
async def test_kill(stock: StockServer, sandbox: Sandbox, *, older: bool) -> None:
    """Confirmed, by whichever call the server knows, with the output so far; the program dies too."""
    stock.older = older
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    job = await sandbox.run_code_background(code)

    async def printed() -> bool:
        return bool((await job.output()).data)

    await _until(printed)
    await job.kill()
    result = job.result()
    assert (result.state, result.end_reason, result.exit_code) == (JobState.KILLED, EndReason.KILLED, None)

    async def gone() -> bool:
        return not Path(f"/proc/{int(result.stdout)}").exists()  # noqa: ASYNC240

    await _until(gone)


async def test_follow(sandbox: Sandbox) -> None:
    """Output comes while the job runs."""
    code = "import time, pathlib\nprint('one', flush=True)\nwhile not pathlib.Path('go').exists(): time.sleep(.01)"
    job = await sandbox.run_code_background(f"{code}\nprint('two')")
    seen = b""
    async for event in job.follow():
        if not seen:
            await sandbox.commands.run("touch go")
        seen += event.data
    assert seen == b"one\ntwo\n"


async def test_another_client_finds_the_output(stock: StockServer, sandbox: Sandbox) -> None:
    """The key is in the name on the wire; a handle made of an id alone reads all of it."""
    job = await sandbox.run_code_background("print('x' * 30_000)", name="mine")
    async with Client(stock.url, api_key="k", poll=_QUICK) as other:
        again = other.job(job.ref)
        result = await again.wait()
        assert (result.stdout, again.name) == ("x" * 30_000 + "\n", "mine")


async def test_commands(sandbox: Sandbox) -> None:
    """A background command has output, too."""
    job = await sandbox.commands.run_background("echo out; echo err >&2; exit 4")
    result = await job.wait()
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 4)


async def test_a_tool_that_is_missing(stock: StockServer, sandbox: Sandbox) -> None:
    """It failed, has no exit code, and says why."""
    job = await sandbox.run_code_background("1", language="javascript", env={"PATH": "/nowhere"})
    result = await job.wait()
    assert (result.state, result.exit_code) == (JobState.FAILED, None)
    assert "'node' is not on the PATH" in result.stderr


async def test_a_hundred_jobs_each_right_each_once_and_nothing_left(
    stock: StockServer, client: Client, sandbox: Sandbox
) -> None:
    """One start a job; where the server lists output nothing else; the files are deleted in one call."""
    specs = [JobSpec(f"echo $(({n} * {n}))", language="bash", metadata=n) for n in range(100)]
    jobs = await sandbox.start_all(specs)
    seen: dict[object, str] = {}
    async for job in as_completed(jobs):
        assert job.spec is not None
        seen[job.spec.metadata] = job.result().stdout
    assert seen == {n: f"{n * n}\n" for n in range(100)}
    assert stock.jobs_made == stock.calls["POST /vm/{sandbox}/execute/background"] == 100
    reads = stock.calls["GET /vm/{sandbox}/files/download"]
    assert reads == (0 if stock.lists_output else 100)

    async def clean() -> bool:
        return not stock.kept()

    await _until(clean)
    assert stock.calls["POST /vm/{sandbox}/commands/run"] <= 5


@pytest.mark.parametrize(
    "fault", ["lost", "refused", "slow", "500", "500 after", "401", "header", "body", "nested"]
)
async def test_one_job_for_one_start_whatever_happens_to_it(
    stock: StockServer, sandbox: Sandbox, fault: str
) -> None:
    """Its answer is lost, it never arrives, it is refused: in the end there is one job, and it is ours."""
    stock.faults = [fault] if fault == "401" else [fault, fault]
    jobs = await asyncio.gather(*(sandbox.run_code_background(f"print({n})") for n in range(4)))
    assert [result.stdout for result in await wait_all(jobs)] == ["0\n", "1\n", "2\n", "3\n"]
    assert stock.jobs_made == 4


async def test_a_job_that_its_server_forgot(stock: StockServer, sandbox: Sandbox) -> None:
    """What it left is its last word; one that left nothing is lost."""
    finished = await sandbox.run_code_background("print('done')")
    await _until(lambda: _ended(stock, finished))
    await stock.forget(finished.process_id)
    assert (await finished.wait()).stdout == "done\n"
    sleeper = await sandbox.run_code_background("import time; time.sleep(600)")
    stock.sandboxes[sandbox.id][sleeper.process_id].process.kill()
    await stock.forget(sleeper.process_id)
    result = await sleeper.wait()
    assert (result.state, result.exit_code) == (JobState.LOST, None)


async def _ended(stock: StockServer, job: Job) -> bool:
    return any(job.process_id in jobs and jobs[job.process_id].ended for jobs in stock.sandboxes.values())


async def test_closing_the_client_ends_what_it_made(stock: StockServer) -> None:
    """A stock sandbox without a life of its own would live on; one that was connected to stays, and is clean."""
    async with Client(stock.url, api_key="k", poll=_QUICK) as owner:
        kept = await owner.create_sandbox()
        async with Client(stock.url, api_key="k", poll=_QUICK) as guest:
            await (await guest.create_sandbox()).run_code_background("import time; time.sleep(600)")
            visited = await guest.connect(kept.id)
            await (await visited.run_code_background("print(1)")).wait()
        assert set(stock.sandboxes) == {kept.id}
        assert stock.kept() == []
    assert stock.sandboxes == {}
