"""Job handles and groups, on virtual time."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from asyncsandbox import (
    ClientStateError,
    ConflictError,
    ConnectError,
    InvalidRequestError,
    JobFailedError,
    JobNotFinishedError,
    JobRef,
    JobSpec,
    JobState,
    NotFoundError,
    OutputEvent,
    RequestTimeoutError,
    Sandbox,
    StartError,
    WaitTimeoutError,
)
from asyncsandbox.protocol import Reply
from asyncsandbox.testing import FakeClient, FakeServer


async def test_the_handle_says_what_is_known_without_asking(server: FakeServer, sandbox: Sandbox) -> None:
    """Properties are the last seen state; `repr` shows it."""
    job = await sandbox.run_code_background("pass", name="answer", timeout=7)
    assert (job.name, job.state, job.done) == ("answer", JobState.RUNNING, False)
    assert job.info.timeout == 7
    assert repr(job) == f"<Job {job.process_id!r} name='answer' running sandbox={sandbox.id!r}>"
    assert job != "job"
    with pytest.raises(JobNotFinishedError, match=r"running.*await job.wait"):
        job.result()


async def test_awaiting_a_job_is_waiting_for_it(server: FakeServer, sandbox: Sandbox) -> None:
    """`await job` gives the result, also again and again."""
    job = await sandbox.run_code_background("pass")
    server.finish(job.process_id, stdout=b"1")

    async def result() -> str:
        return (await job).stdout

    assert await server.clock.run(result()) == "1"
    assert (await job) is job.result()


async def test_wait_times_out_without_touching_the_job(server: FakeServer, sandbox: Sandbox) -> None:
    """The message names the job, the time and the ways on."""
    job = await sandbox.run_code_background("pass")
    with pytest.raises(WaitTimeoutError, match=rf"{job.process_id}.*running after 3 s.*job.kill"):
        await server.clock.run(job.wait(timeout=3))
    assert not any(request.path == "/execute/kill" for request in server.requests)


async def test_wait_with_no_time_looks_once(server: FakeServer, sandbox: Sandbox) -> None:
    """`timeout=0` asks; a job that has ended is told."""
    job = await sandbox.run_code_background("pass")
    with pytest.raises(WaitTimeoutError):
        await job.wait(timeout=0)
    server.finish(job.process_id)
    assert (await job.wait(timeout=0)).ok
    assert server.looks() == 2


async def test_a_reference_pickles_and_leads_back(server: FakeServer, sandbox: Sandbox) -> None:
    """Another client of the same server finds the job by its reference."""
    job = await sandbox.run_code_background("pass", name="n")
    ref = pickle.loads(pickle.dumps(job.ref))
    assert ref == JobRef(server="http://fake", sandbox_id=sandbox.id, process_id=job.process_id)
    async with FakeClient(server) as other:
        again = other.job(ref)
        assert again == job
        await again.refresh()
        assert again.name == "n"
    with pytest.raises(InvalidRequestError, match="belongs to the server http://else"):
        FakeClient(server).job(JobRef(server="http://else", sandbox_id="a", process_id="b"))


@pytest.mark.parametrize("features", [None, {}])
async def test_kill_returns_when_the_end_is_here(features: dict[str, int] | None) -> None:
    """On our server the reply has it, on a stock one the list is asked."""
    server = FakeServer(features=features)
    async with FakeClient(server) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        await server.clock.run(job.kill())
        assert job.result().state is JobState.KILLED
        await job.kill()


async def test_kill_of_a_finished_job_tells_how_it_ended(server: FakeServer, sandbox: Sandbox) -> None:
    """`killed` never overwrites an end that came first."""
    job = await sandbox.run_code_background("pass")
    server.finish(job.process_id, exit_code=5)
    await server.clock.run(job.kill())
    assert job.result().exit_code == 5


async def test_kill_that_meets_404_settles_what_became_of_the_job(stock: FakeServer) -> None:
    """Contract 2b: some servers say 404 of a finished job."""
    async with FakeClient(stock) as client:
        job = await (await client.create_sandbox()).run_code_background("pass")
        stock.finish(job.process_id)
        stock.failures.append(Reply(status=404, body=b'{"error": "already finished"}'))
        await stock.clock.run(job.kill())
        assert job.result().ok


async def test_kill_that_is_never_confirmed_is_an_error(stock: FakeServer) -> None:
    """No call hangs because a server says killed and lists running."""
    async with FakeClient(stock) as client:
        job = await (await client.create_sandbox()).run_code_background("pass")
        stock.failures.append(Reply(status=200, body=b'{"status": "killed"}'))
        with pytest.raises(RequestTimeoutError, match="still lists it as running"):
            await stock.clock.run(job.kill())


@pytest.mark.parametrize("features", [None, {}])
async def test_refresh_asks_now(features: dict[str, int] | None) -> None:
    """By the record where there is one, else by the list."""
    server = FakeServer(features=features)
    async with FakeClient(server) as client:
        sandbox = await client.create_sandbox()
        job = await sandbox.run_code_background("pass")
        server.finish(job.process_id, stdout=b"42\n")
        assert (await job.refresh()).state is JobState.COMPLETED
        assert job.done
        server.drop(job.process_id)
        with pytest.raises(NotFoundError):
            await sandbox.job("bg_x").refresh()


async def test_output_reads_from_an_offset(server: FakeServer, sandbox: Sandbox) -> None:
    """Bytes, where they start, where to go on, and whether that was all."""
    job = await sandbox.run_code_background("pass")
    server.finish(job.process_id, stdout=b"hello", stderr=b"oops")
    chunk = await job.output("stdout", offset=1, limit=3)
    assert (chunk.data, chunk.offset, chunk.next_offset, chunk.eof) == (b"ell", 1, 4, False)
    assert (await job.output("stderr")).eof
    with pytest.raises(InvalidRequestError, match="'stdout' or 'stderr'"):
        await job.output("stdin")  # type: ignore[arg-type]


async def test_follow_yields_both_streams_to_the_end(server: FakeServer, sandbox: Sandbox) -> None:
    """It goes on while the job runs and stops after the last byte."""
    job = await sandbox.run_code_background("pass")
    record = server._find(job.process_id)
    record.stdout = b"one "

    async def follow() -> list[OutputEvent]:
        return [event async for event in job.follow()]

    following = asyncio.ensure_future(follow())
    await server.clock.advance(5)
    server.finish(job.process_id, stdout=b"one two", stderr=b"err")
    events = await server.clock.run(following)
    assert [(event.stream, event.text, event.offset) for event in events] == [
        ("stdout", "one ", 0),
        ("stdout", "two", 4),
        ("stderr", "err", 0),
    ]


async def test_remove_takes_the_record_away(server: FakeServer, sandbox: Sandbox) -> None:
    """Twice is fine, the result stays in the handle."""
    job = await sandbox.run_code_background("pass")
    server.finish(job.process_id, stdout=b"x")
    await server.clock.run(job.wait())
    await job.remove()
    await job.remove()
    assert job.result().stdout == "x"
    assert await sandbox.list_processes() == []


async def test_remove_of_a_running_job_is_refused(server: FakeServer, sandbox: Sandbox) -> None:
    """The server's 409 is a ConflictError."""
    job = await sandbox.run_code_background("pass")
    server.failures.append(Reply(status=409, body=b'{"error": "still running", "code": "CONFLICT"}'))
    with pytest.raises(ConflictError, match="still running"):
        await job.remove()


async def test_collected_files_come_with_the_result(server: FakeServer, sandbox: Sandbox) -> None:
    """Patterns match part by part below the working directory, which the request asks to be private."""
    job = await sandbox.run_code_background("pass", collect=["*.txt", "out/**/*.csv"])
    assert server._find(job.process_id).body["own_directory"] is True
    server.finish(job.process_id)
    directory = {
        "/workspace": [("a.txt", False), ("b.bin", False), ("out", True)],
        "/workspace/out": [("c.csv", False), ("deep", True), ("d.txt", False)],
        "/workspace/out/deep": [("e.csv", False)],
    }

    async def answer() -> None:
        waiting = asyncio.ensure_future(job.wait())
        while not waiting.done():
            await server.clock.advance(0.1)

    original = server._agent

    def agent(request, sandbox_id):  # type: ignore[no-untyped-def]
        if request.path == "/files/list":
            rows = [
                {"name": n, "path": n, "size": 1, "is_dir": d} for n, d in directory[request.params["path"]]
            ]
            return Reply(
                status=200,
                body=str({"files": rows}).replace("'", '"').replace("T", "t").replace("F", "f").encode(),
            )
        if request.path == "/files/download":
            return Reply(status=200, body=request.params["path"].encode())
        return original(request, sandbox_id)

    server._agent = agent  # type: ignore[method-assign]
    await answer()
    assert dict(job.result().files) == {
        "a.txt": b"/workspace/a.txt",
        "out/c.csv": b"/workspace/out/c.csv",
        "out/deep/e.csv": b"/workspace/out/deep/e.csv",
    }


async def test_list_processes_gives_records(server: FakeServer, sandbox: Sandbox) -> None:
    """All jobs, finished ones included, as values."""
    first = await sandbox.run_code_background("pass", name="a")
    second = await sandbox.run_code_background("pass", name="b")
    server.finish(first.process_id)
    listed = {info.name: info.state for info in await sandbox.list_processes()}
    assert listed == {"a": JobState.COMPLETED, "b": JobState.RUNNING}
    await server.clock.run(sandbox.kill_process(second.process_id))
    assert (await second.refresh()).state is JobState.KILLED


# --- starting -----------------------------------------------------------------------------------------------


async def test_start_all_awaited_gives_handles_in_input_order(server: FakeServer, sandbox: Sandbox) -> None:
    """Strings and specs, from a generator; defaults fill what a spec leaves open."""
    specs = [JobSpec("a", timeout=1, env={"X": "1"}), "b", JobSpec("c", metadata={"k": 1})]
    jobs = await sandbox.start_all((spec for spec in specs), timeout=9, env={"X": "0", "Y": "2"})
    bodies = [server._find(job.process_id).body for job in jobs]
    assert [body["code"] for body in bodies] == ["a", "b", "c"]
    assert [body["timeout"] for body in bodies] == [1, 9, 9]
    assert bodies[0]["env"] == {"X": "1", "Y": "2"}
    assert jobs[2].spec is not None
    assert jobs[2].spec.metadata == {"k": 1}


async def test_start_all_sends_each_start_once_with_a_key_of_its_own(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """One request a job, and no two share a key."""
    await sandbox.start_all(["pass"] * 20)
    starts = [request for request in server.requests if request.path == "/execute/background"]
    assert len(starts) == 20
    assert len({request.headers["Idempotency-Key"] for request in starts}) == 20


async def test_a_lost_reply_to_a_start_is_repeated_with_the_same_key(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The server has the job already: one job, not two."""
    await sandbox.run_code_background("pass")
    real = server.send
    lost = iter([True])

    async def lossy(request, **options):  # type: ignore[no-untyped-def]
        reply = await real(request, **options)
        if request.path == "/execute/background" and next(lost, False):
            raise ConnectError("reply lost", method="POST", url="http://fake")
        return reply

    server.send = lossy  # type: ignore[method-assign]
    job = await server.clock.run(sandbox.run_code_background("pass"))
    assert set(server.sandboxes[sandbox.id]) == {job.process_id, "bg_" + str(int(job.process_id[3:]) - 1)}


async def test_start_all_bounds_requests_in_flight(server: FakeServer, sandbox: Sandbox) -> None:
    """Input is read only as there is room."""
    gate = server.gates["/execute/background"] = asyncio.Event()
    read: list[int] = []

    def endless():  # type: ignore[no-untyped-def]
        for n in range(100):
            read.append(n)
            yield "pass"

    starting = asyncio.ensure_future(sandbox.start_all(endless(), max_in_flight=5))
    await server.clock.settle()
    assert len(read) == 5
    gate.set()
    assert len(await server.clock.run(starting)) == 100


async def test_start_all_iterated_takes_endless_input(server: FakeServer, sandbox: Sandbox) -> None:
    """Handles come as they are accepted; a slow consumer slows the reading of an async input."""
    read: list[int] = []

    async def endless():  # type: ignore[no-untyped-def]
        n = 0
        while True:
            read.append(n)
            yield f"print({n})"
            n += 1

    starts = aiter(sandbox.start_all(endless(), max_in_flight=3))
    seen = [await anext(starts) for _ in range(10)]
    assert len(seen) == 10
    assert len(read) <= 10 + 3
    await server.clock.run(starts.aclose())
    states = {info.process_id: info.state for info in await sandbox.list_processes()}
    handed_out = {job.process_id for job in seen}
    assert {states[key] for key in handed_out} == {JobState.RUNNING}
    assert all(state is JobState.KILLED for key, state in states.items() if key not in handed_out)


async def test_dropping_the_iterator_kills_what_was_not_handed_out(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A `break` leaves no job without a handle."""
    kept = []
    async for job in sandbox.start_all(["pass"] * 50, max_in_flight=10):
        kept.append(job.process_id)
        break
    await server.clock.advance(10)
    running = [info.process_id for info in await sandbox.list_processes() if not info.finished]
    assert running == kept


async def test_refused_items_are_told_after_the_others_are_settled(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """`failed` has them by index, `started` the handles of the rest, in input order."""
    with pytest.raises(
        StartError, match="2 jobs were not accepted, the first of them number 1: code is empty"
    ) as caught:
        await sandbox.start_all(["a", " ", "b", 7, "c"])  # type: ignore[list-item]
    assert sorted(caught.value.failed) == [1, 3]
    assert [job.spec.code for job in caught.value.started if job.spec] == ["a", "b", "c"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert [type(item) for item in again.started] == [JobRef] * 3


async def test_refused_items_are_told_at_the_end_of_an_iteration(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Everything accepted is handed out first."""
    starts = aiter(sandbox.start_all(["a", "", "b"]))
    seen = [await anext(starts), await anext(starts)]
    assert [job.state for job in seen] == [JobState.RUNNING] * 2
    with pytest.raises(StartError) as caught:
        await anext(starts)
    assert list(caught.value.failed) == [1]
    with pytest.raises(StopAsyncIteration):
        await anext(starts)


async def test_hopeless_errors_stop_the_reading(server: FakeServer, sandbox: Sandbox) -> None:
    """A thousand starts are not tried when the server is gone."""
    await sandbox.run_code_background("pass")
    server.broken = ConnectError("down", method="POST", url="http://fake", sent=False)
    with pytest.raises(StartError, match="the rest of the input was not tried") as caught:
        await server.clock.run(sandbox.start_all(["pass"] * 1_000, max_in_flight=4))
    assert len(caught.value.failed) == 4
    server.broken = None


async def test_start_all_cancelled_kills_what_it_started(server: FakeServer, sandbox: Sandbox) -> None:
    """Also a start whose answer had not come."""
    jobs = asyncio.ensure_future(_start_slowly(server, sandbox))
    await server.clock.settle()
    jobs.cancel()
    await server.clock.advance(1)
    server.gates.clear()
    with pytest.raises(asyncio.CancelledError):
        await server.clock.run(jobs)
    await server.clock.advance(60)
    assert {info.state for info in await sandbox.list_processes()} == {JobState.KILLED}
    assert len(await sandbox.list_processes()) == 4


async def _start_slowly(server: FakeServer, sandbox: Sandbox) -> None:
    async def specs():  # type: ignore[no-untyped-def]
        yield "pass"
        yield "pass"
        yield "pass"
        server.gates["/execute/background"] = asyncio.Event()
        server.gates["/execute/background"].set()
        yield "pass"
        await asyncio.Event().wait()

    await sandbox.start_all(specs(), max_in_flight=8)


async def test_a_single_start_cancelled_before_its_answer_is_killed(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Nothing runs without a handle."""
    gate = server.gates["/execute/background"] = asyncio.Event()
    starting = asyncio.ensure_future(sandbox.run_code_background("pass"))
    await server.clock.settle()
    assert len(server.sandboxes[sandbox.id]) == 1
    starting.cancel()
    await server.clock.settle()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await server.clock.run(starting)
    assert {info.state for info in await sandbox.list_processes()} == {JobState.KILLED}


async def test_start_all_refuses_impossible_arguments(sandbox: Sandbox) -> None:
    """At the call, not at the first start."""
    with pytest.raises(InvalidRequestError, match="max_in_flight"):
        sandbox.start_all([], max_in_flight=0)
    with pytest.raises(InvalidRequestError, match="one str"):
        sandbox.start_all("print(1)")
    with pytest.raises(InvalidRequestError, match="timeout must be more than 0"):
        sandbox.start_all([], timeout=-1)
    used = sandbox.start_all([])
    assert await used == []
    with pytest.raises(ClientStateError, match="used already"):
        await used


# --- groups -------------------------------------------------------------------------------------------------


async def test_leaving_a_group_normally_waits_for_all(server: FakeServer, sandbox: Sandbox) -> None:
    """A failed job is data and ends no other."""

    async def program() -> list[bool]:
        async with sandbox.job_group() as group:
            first = await group.run_code_background("pass")
            await group.start_all(["pass", "pass"])
            group.add(first)
            asyncio.get_running_loop().call_soon(server.finish, first.process_id)
            for job in group.jobs[1:]:
                server.finish(job.process_id, exit_code=1)
        return [job.result().ok for job in group.jobs]

    assert await server.clock.run(program()) == [True, False, False]


async def test_leaving_a_group_by_an_error_kills_its_jobs(server: FakeServer, sandbox: Sandbox) -> None:
    """The error goes on, the jobs do not."""

    async def program() -> None:
        async with sandbox.job_group() as group:
            await group.start_all(["pass"] * 3)
            raise JobFailedError("mine", process_id="x")

    with pytest.raises(JobFailedError, match="mine"):
        await server.clock.run(program())
    assert {info.state for info in await sandbox.list_processes()} == {JobState.KILLED}


async def test_cancelling_a_group_twice_stops_the_waiting_not_the_clean_up(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The kills are the client's business once they have begun."""

    async def program() -> None:
        async with sandbox.job_group() as group:
            await group.start_all(["pass"] * 3)
            await asyncio.Event().wait()

    gate = server.gates["/execute/kill"] = asyncio.Event()
    running = asyncio.ensure_future(program())
    await server.clock.settle()
    running.cancel()
    await server.clock.settle()
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.clock.run(running)
    gate.set()
    await server.clock.advance(10)
    assert {info.state for info in await sandbox.list_processes()} == {JobState.KILLED}


async def test_a_clients_group_spans_sandboxes(server: FakeServer, client: FakeClient) -> None:
    """It needs to be told where each job goes."""
    one, two = await client.create_sandbox(), await client.create_sandbox()

    async def program() -> list[str]:
        async with client.job_group() as group:
            await group.run_code_background("pass", sandbox=one)
            await group.start_all(["pass"], sandbox=two)
            with pytest.raises(ClientStateError, match="sandbox="):
                await group.run_code_background("pass")
            for job in group.jobs:
                server.finish(job.process_id)
        with pytest.raises(ClientStateError, match="not open"):
            group.add(group.jobs[0])
        return [job.sandbox.id for job in group.jobs]

    assert await server.clock.run(program()) == [one.id, two.id]
