"""What becomes of jobs that the server tells of late, twice, or not at all."""

from __future__ import annotations

import asyncio
import gc

import pytest

from asyncsandbox import (
    EndReason,
    JobInfo,
    JobLostError,
    JobNotFinishedError,
    JobRemovedError,
    JobState,
    NotFoundError,
    Sandbox,
    SandboxClosedError,
    as_completed,
    wait_all,
)
from asyncsandbox.protocol import ProcessRow, Reply
from asyncsandbox.testing import FakeClient, FakeServer


async def test_a_job_missing_from_two_good_lists_is_lost(stock: FakeServer) -> None:
    """One list may be wrong, two that began after the start may not. It is neither success nor failure."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        await job.refresh()
        waiting = asyncio.ensure_future(job.wait())
        await stock.clock.advance(1)
        stock.drop(job.process_id)
        looks = stock.looks()
        result = await stock.clock.run(waiting)
        assert stock.looks() == looks + 2
        assert (result.state, result.end_reason, result.exit_code) == (JobState.LOST, EndReason.LOST, None)
        assert not result.ok
        with pytest.raises(JobLostError, match="no longer lists it"):
            result.check()


async def test_one_list_that_lacks_a_job_loses_nothing(stock: FakeServer) -> None:
    """A job that is back in the next list is as it was, and starts counting anew."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        waiting = asyncio.ensure_future(job.wait())
        for _ in range(3):
            empty = Reply(status=200, body=b'{"processes": [], "count": 0}')
            looks = stock.looks()
            stock.failures.append(empty)
            while stock.looks() < looks + 2:
                await stock.clock.advance(0.05)
        assert not waiting.done()
        stock.finish(job.process_id)
        assert (await stock.clock.run(waiting)).ok


async def test_a_list_asked_for_before_the_start_was_acknowledged_loses_nothing(stock: FakeServer) -> None:
    """Such a list could not have held the job."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        first = await sandbox.run_code_background("pass")
        waiting = asyncio.ensure_future(first.wait())
        gate = stock.gates["/execute/processes"] = asyncio.Event()
        await stock.clock.advance(1)
        late = [await sandbox.run_code_background("pass") for _ in range(2)]
        gate.set()
        stock.drop(late[0].process_id)
        result = asyncio.ensure_future(late[0].wait())
        looks = stock.looks()
        await stock.clock.run(result)
        assert stock.looks() > looks + 2  # no list had it ever: it may be late
        assert late[0].state is JobState.LOST
        waiting.cancel()


async def test_with_a_cursor_a_missing_job_is_found_out_too(server: FakeServer, sandbox: Sandbox) -> None:
    """A list of changes says nothing of what is missing; one whole list and a second one do."""
    job = await sandbox.run_code_background("pass")
    server.drop(job.process_id)
    assert (await server.clock.run(job.wait())).state is JobState.LOST


async def test_a_dead_cursor_leads_to_a_whole_list(server: FakeServer, sandbox: Sandbox) -> None:
    """410 is no error of the job's, and costs one more request."""
    job = await sandbox.run_code_background("pass")
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(1)
    server.expire_cursors()
    server.finish(job.process_id, stdout=b"there")
    assert (await server.clock.run(waiting)).stdout == "there"


async def test_only_changes_are_asked_for_once_there_is_a_cursor(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The first look is whole, the others are not."""
    job = await sandbox.run_code_background("pass")
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(1)
    server.finish(job.process_id)
    await server.clock.run(waiting)
    looks = [request for request in server.requests if request.path == "/execute/processes"]
    assert "since" not in looks[0].params
    assert all("since" in look.params for look in looks[1:])
    assert len(looks) > 2


async def test_an_end_that_overtakes_the_answer_to_the_start_is_not_missed(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The look tells of a job that nobody here knows yet, and will not tell again."""
    other = await sandbox.run_code_background("pass")
    watching = asyncio.ensure_future(other.wait())
    await server.clock.advance(1)
    gate = server.gates["/execute/background"] = asyncio.Event()
    starting = asyncio.ensure_future(sandbox.run_code_background("pass", name="fast"))
    await server.clock.settle()
    (fast,) = set(server.sandboxes[sandbox.id]) - {other.process_id}
    server.finish(fast, stdout=b"quick")
    await server.clock.advance(10)  # looks tell of the end, long before the start is answered
    gate.set()
    job = await starting
    assert (await server.clock.run(job.wait())).stdout == "quick"
    watching.cancel()


async def test_a_start_that_is_answered_with_an_ended_job_is_done(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A repeated start gives the record as it is by now, which may be the end."""
    row = {
        "process_id": "bg_9",
        "status": "completed",
        "exit_code": 0,
        "completed_at": "2026-01-02T03:04:05Z",
        "stdout": "x",
        "stderr": "",
    }
    job = await sandbox.run_code_background("pass")
    server.failures.append(Reply(status=200, body=str(row).replace("'", '"').encode()))
    job = await sandbox.run_code_background("pass")
    assert job.done
    assert job.result().stdout == "x"


async def test_a_sandbox_that_is_gone_loses_its_jobs_at_once(server: FakeServer, sandbox: Sandbox) -> None:
    """The first look that finds no sandbox settles it."""
    jobs = await sandbox.start_all(["pass", "pass"])
    server.sandboxes.clear()
    results = await server.clock.run(wait_all(jobs))
    assert {result.state for result in results} == {JobState.LOST}
    assert server.looks() == 1
    with pytest.raises(SandboxClosedError, match="gone from the server"):
        await sandbox.run_code("pass")


async def test_on_a_stock_server_a_404_is_confirmed_before_jobs_are_lost(stock: FakeServer) -> None:
    """The agent's 404 alone may be a proxy's; the control plane decides."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        stock.failures.append(Reply(status=404, body=b"not found"))
        stock.finish(job.process_id)
        assert (await stock.clock.run(job.wait())).ok
        other = await sandbox.run_code_background("pass")
        stock.sandboxes.clear()
        stock.failures.append(Reply(status=404, body=b"not found"))
        assert (await stock.clock.run(other.wait())).state is JobState.LOST


async def test_ending_the_sandbox_here_loses_its_jobs_for_waiters(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Whoever waits elsewhere in the program is told."""
    job = await sandbox.run_code_background("pass")
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(1)
    await sandbox.kill()
    await sandbox.kill()
    assert (await waiting).state is JobState.LOST
    assert sandbox.closed
    with pytest.raises(SandboxClosedError, match="it was ended here"):
        await sandbox.files.read("a.txt")


async def test_closing_the_client_ends_every_wait(server: FakeServer) -> None:
    """No wait outlives the client that would have to look."""
    client = FakeClient(server)
    sandbox = await client.create_sandbox()
    job = await sandbox.run_code_background("pass")
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(1)
    await client.aclose()
    await client.aclose()
    assert (await waiting).state is JobState.LOST
    assert server.closed
    assert not server.sandboxes


async def test_a_job_removed_while_waited_for_says_so(server: FakeServer, sandbox: Sandbox) -> None:
    """One wait raises; among many it is a result, so that the others' results are not lost."""
    job, other = await sandbox.start_all(["pass", "pass"])
    waits = [asyncio.ensure_future(job.wait()), asyncio.ensure_future(wait_all([job, other]))]
    await server.clock.advance(1)
    remover = FakeClient(server)
    server.finish(job.process_id)
    await remover.connect(sandbox.id)
    await remover.job(job.ref).remove()
    await remover.aclose()
    server.finish(other.process_id)
    with pytest.raises(JobRemovedError, match="was removed"):
        await server.clock.run(waits[0])
    removed, ended = await server.clock.run(waits[1])  # type: ignore[misc]
    assert removed.state is JobState.LOST
    assert ended.ok
    with pytest.raises(JobRemovedError):
        job.result()


async def test_reattached_job_that_ended_before_is_found(server: FakeServer, sandbox: Sandbox) -> None:
    """Its end lies before the cursor, so the next look is whole again."""
    first = await sandbox.run_code_background("pass", name="n")
    second = await sandbox.run_code_background("pass")
    server.finish(first.process_id, stdout=b"1")
    server.finish(second.process_id, stdout=b"2")
    process_id = second.process_id
    await server.clock.run(first.wait())
    del second
    gc.collect()
    again = sandbox.job(process_id)
    assert again.name is None
    assert (await server.clock.run(again.wait())).stdout == "2"


async def test_reattached_job_that_never_was(server: FakeServer, sandbox: Sandbox) -> None:
    """Waiting loses it promptly; asking says not found."""
    ghost = sandbox.job("bg_never")
    with pytest.raises(NotFoundError, match="bg_never"):
        await ghost.refresh()
    with pytest.raises(JobNotFinishedError, match="bg_never"):
        ghost.result()
    assert (await server.clock.run(ghost.wait())).state is JobState.LOST
    with pytest.raises(NotFoundError):
        await sandbox.kill_process("bg_never")


async def test_large_output_is_fetched_and_cut_to_the_limit(server: FakeServer) -> None:
    """A row that lacks output costs reads; the result keeps the tail and says that it is one."""
    async with FakeClient(server, result_limit=10) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        server.finish(job.process_id, stdout=b"0123456789abc", stderr=b"short")
        result = await server.clock.run(job.wait())
        assert result.stdout_bytes == b"3456789abc"
        assert (result.stdout_truncated, result.stderr_truncated) == (True, False)


async def test_output_that_cannot_be_read_is_told_in_the_result(stock: FakeServer) -> None:
    """A wait never hangs on output: a server without a way to read it gives a result without it."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        bare = {
            "process_id": job.process_id,
            "status": "completed",
            "exit_code": 0,
            "end_time": "2026-01-02T03:04:05Z",
        }
        body = str({"processes": [bare]}).replace("'", '"').encode()
        stock.failures.append(Reply(status=200, body=body))
        result = await stock.clock.run(job.wait())
        assert result.ok
        assert result.stdout == ""
        assert result.output_error is not None
        assert "the server lists no output" in result.output_error


async def test_a_final_state_is_never_taken_back(server: FakeServer, sandbox: Sandbox) -> None:
    """A late answer that says running does not revive a job that has ended."""
    job = await sandbox.run_code_background("pass")
    server.finish(job.process_id)
    await server.clock.run(job.wait())
    job._cell.see(ProcessRow(info=JobInfo(process_id=job.process_id)))
    assert job.state is JobState.COMPLETED


async def test_as_completed_brings_jobs_of_a_lost_sandbox_too(server: FakeServer, sandbox: Sandbox) -> None:
    """Lost is an end like any other: the loop does not wait for ever."""
    jobs = await sandbox.start_all(["pass"] * 3)
    server.sandboxes.clear()

    async def states() -> list[JobState]:
        return [job.state async for job in as_completed(jobs)]

    assert await server.clock.run(states()) == [JobState.LOST] * 3


async def test_a_stock_list_may_lag_behind_its_starts(stock: FakeServer) -> None:
    """A job that it does not show yet is not lost."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        hidden = stock.sandboxes[sandbox.id].pop(job.process_id)
        waiting = asyncio.ensure_future(job.wait())
        await stock.clock.advance(1.5)
        assert stock.looks() > 3
        stock.sandboxes[sandbox.id][job.process_id] = hidden
        stock.finish(job.process_id, stdout=b"x")
        assert (await stock.clock.run(waiting)).ok
