"""The public API as a type checker sees it. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import assert_type

from asyncsandbox import (
    FIRST_COMPLETED,
    AsCompleted,
    Client,
    ClientStats,
    EndReason,
    ExecutionResult,
    FileChange,
    FileInfo,
    FileWatch,
    Job,
    JobError,
    JobFailedError,
    JobInfo,
    JobRef,
    JobResult,
    JobSpec,
    JobState,
    OutputChunk,
    OutputEvent,
    PollPolicy,
    RunStream,
    Sandbox,
    SandboxInfo,
    SandboxMetrics,
    StartError,
    StreamOutput,
    StreamResult,
    SystemProcess,
    Terminal,
    WaitTimeoutError,
    as_completed,
    wait,
    wait_all,
)
from asyncsandbox.webhooks import WebhookReceiver


async def clients() -> None:
    """A client with every option, its sandboxes and its figures."""
    client = Client(
        "http://127.0.0.1:8080",
        api_key="k",
        poll=PollPolicy(cap=1.0),
        isolation="none",
        templates={"a": "/b"},
    )
    async with client as entered:
        assert_type(entered, Client)
        assert_type(
            await entered.create_sandbox("code-interpreter", timeout_seconds=60, env={"A": "1"}), Sandbox
        )
        async with entered.create_sandbox() as sandbox, entered.connect(sandbox.id) as connected:
            assert_type(sandbox, Sandbox)
            assert_type(connected.info, SandboxInfo | None)
        assert_type(await entered.list_sandboxes(), list[SandboxInfo])
        _ = assert_type(entered.job(JobRef(server="embedded", sandbox_id="s", process_id="p")), Job)
        assert_type(entered.stats, ClientStats)
    async with WebhookReceiver(secret="s").listen(port=0) as receiver, Client(webhook=receiver):
        assert_type(receiver, WebhookReceiver)
    async with Sandbox.create(isolation="none") as own:
        assert_type(own, Sandbox)


async def starting(sandbox: Sandbox) -> list[Job]:
    """One job, many jobs, and both forms of `start_all`."""
    assert_type(await sandbox.run_code("print(1)", language="python", timeout=1), ExecutionResult)
    _ = assert_type(await sandbox.run_code_async("print(1)", callback_url="https://example.com/"), Job)
    job = await sandbox.run_code_background(
        "print(1)",
        language="python",
        timeout=5,
        env={"A": "1"},
        name="one",
        working_dir="/workspace",
        stdin=b"x",
        args=("a",),
        files={"a.txt": b"x", "b.txt": "y"},
        collect=["*.png"],
    )
    _ = assert_type(job, Job)
    jobs = await sandbox.start_all(f"print({n})" for n in range(3))
    assert_type(jobs, list[Job])

    async def endless() -> AsyncIterator[JobSpec]:
        yield JobSpec("print(1)", metadata=object())

    async for accepted in sandbox.start_all(endless(), max_in_flight=4, timeout=1.5):
        _ = assert_type(accepted, Job)
    return jobs


async def handles(job: Job) -> None:
    """What a handle gives."""
    assert_type(await job, JobResult)
    assert_type(await job.wait(timeout=1), JobResult)
    assert_type(job.result().check().stdout, str)
    assert_type(job.state, JobState)
    assert_type(await job.refresh(), JobInfo)
    assert_type(await job.output("stderr", offset=10, limit=100), OutputChunk)
    async for event in job.follow():
        assert_type(event, OutputEvent)
    assert_type(job.ref, JobRef)
    assert_type(job.result().end_reason, EndReason | None)
    assert_type(job.result().duration, float | None)
    assert_type(job.result().files, Mapping[str, bytes])
    await job.kill()
    await job.remove()


async def waiting(jobs: list[Job]) -> None:
    """Every way to wait for many."""
    done, pending = await wait(jobs, return_when=FIRST_COMPLETED, timeout=1)
    assert_type(done, tuple[Job, ...])
    assert_type(pending, tuple[Job, ...])
    assert_type(await wait(jobs, return_when=2), tuple[tuple[Job, ...], tuple[Job, ...]])
    assert_type(await wait_all(jobs, errors="first", kill=True), list[JobResult])
    async with as_completed(jobs, timeout=5) as ended:
        assert_type(ended, AsCompleted)
        async for job in ended:
            _ = assert_type(job, Job)
        async for batch in ended.batches():
            assert_type(batch, list[Job])


async def groups(client: Client, sandbox: Sandbox) -> None:
    """Groups of one sandbox and of many."""
    async with sandbox.job_group() as group:
        _ = assert_type(await group.run_code_background("print(1)", name="a"), Job)
        assert_type(await group.start_all(["print(1)"]), list[Job])
    async with client.job_group() as wide:
        _ = assert_type(await wide.run_code_background("print(1)", sandbox=sandbox), Job)


async def resources(sandbox: Sandbox) -> None:
    """Files, environment and commands of a sandbox."""
    await sandbox.files.write("a.txt", b"x")
    assert_type(await sandbox.files.read("a.txt"), str)
    assert_type(await sandbox.files.read_bytes("a.txt"), bytes)
    assert_type(await sandbox.files.list(), list[FileInfo])
    assert_type(await sandbox.env.get_all(), dict[str, str])
    assert_type(await sandbox.commands.run("ls"), ExecutionResult)
    _ = assert_type(await sandbox.commands.run_background("ls", args=["-l"]), Job)
    assert_type(await sandbox.list_processes(), list[JobInfo])
    assert_type(await sandbox.get_info(), SandboxInfo)
    assert_type(await sandbox.get_agent_metrics(), SandboxMetrics)
    assert_type(await sandbox.list_system_processes(), list[SystemProcess])


def takes_timeout_error(error: TimeoutError) -> None:
    """Stand for code that knows nothing of this package."""
    raise error


async def streams(sandbox: Sandbox) -> None:
    """Runs read as they write, a shell, changes of files."""
    async with sandbox.run_code_stream("print(1)", timeout=5) as stream:
        assert_type(stream, RunStream)
        async for event in stream:
            assert_type(event, StreamOutput | StreamResult)
    assert_type(stream.result, StreamResult | None)
    _ = assert_type(sandbox.commands.stream("ls", args=["-l"]), RunStream)
    async with sandbox.terminal(cols=100, rows=30) as terminal:
        assert_type(terminal, Terminal)
        await terminal.send("ls")
        assert_type(await anext(terminal), str)
        assert_type(terminal.exit_code, int | None)
    async with sandbox.files.watch("/workspace") as watch:
        assert_type(watch, FileWatch)
        assert_type(await anext(watch), FileChange)


async def errors(jobs: list[Job]) -> None:
    """What errors carry, and the builtins that catch them."""
    try:
        await wait_all(jobs, timeout=1, errors="raise")
    except WaitTimeoutError as late:
        takes_timeout_error(late)
        assert_type(late.timeout, float)
    except JobFailedError as failed:
        assert_type(failed.exit_code, int | None)
        assert_type(failed.stderr_tail, str)
    except JobError as other:
        assert_type(other.process_id, str)
    except StartError as refused:
        assert_type(dict(refused.failed), dict[int, Exception])
