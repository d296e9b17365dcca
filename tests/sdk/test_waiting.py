"""The semantics of `wait`, `wait_all` and `as_completed`, on virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from asyncsandbox import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    ClientStateError,
    ConnectError,
    InvalidRequestError,
    Job,
    JobFailedError,
    JobKilledError,
    JobState,
    PollPolicy,
    Sandbox,
    ServerUnreachableError,
    WaitTimeoutError,
    as_completed,
    wait,
    wait_all,
)
from asyncsandbox.testing import FakeClient, FakeServer


async def start(sandbox: Sandbox, count: int) -> list[Job]:
    """Start so many jobs."""
    return await sandbox.start_all(f"print({n})" for n in range(count))


def others() -> set[asyncio.Task[object]]:
    """Return the tasks that are neither the test's own nor finished."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.fixture(params=[None, {}], ids=["ours", "stock"])
def server(request: pytest.FixtureRequest) -> FakeServer:
    """Return a server with all extensions, and one that has only the published contract."""
    return FakeServer(features=request.param)


async def test_wait_on_nothing_returns_at_once(server: FakeServer) -> None:
    """Empty input is done, and asks nobody."""
    assert await wait([]) == ((), ())
    assert await wait_all([]) == []
    assert [job async for job in as_completed([])] == []
    assert not server.requests


async def test_wait_returns_tuples_in_input_order_with_duplicates_once(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Neither the order of the ends nor repetition changes the order of the answer."""
    first, second, third = await start(sandbox, 3)
    server.finish(third.process_id)
    server.finish(first.process_id)
    done, pending = await server.clock.run(wait([third, second, first, third], timeout=1))
    assert done == (third, first)
    assert pending == (second,)


@pytest.mark.parametrize(("when", "ended", "expected"), [(FIRST_COMPLETED, 1, 1), (2, 3, 3), (5, 4, 4)])
async def test_wait_returns_all_that_is_done_not_only_what_was_asked_for(
    server: FakeServer, sandbox: Sandbox, when: str | int, ended: int, expected: int
) -> None:
    """More may have ended than `return_when` asks for; more than there are means all."""
    jobs = await start(sandbox, 4)
    for job in jobs[:ended]:
        server.finish(job.process_id)
    done, pending = await server.clock.run(wait(jobs, return_when=when))  # type: ignore[arg-type]
    assert len(done) == expected
    assert len(pending) == 4 - expected


async def test_wait_first_exception_returns_at_the_first_failure_only(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A job that completes does not end the wait, one that fails does."""
    good, bad, slow = await start(sandbox, 3)
    waiting = asyncio.ensure_future(wait([good, bad, slow], return_when=FIRST_EXCEPTION))
    await server.clock.advance(1)
    server.finish(good.process_id)
    await server.clock.advance(5)
    assert not waiting.done()
    server.finish(bad.process_id, exit_code=1)
    await server.clock.advance(5)
    assert await waiting == ((good, bad), (slow,))


async def test_wait_first_exception_sees_a_failure_from_before(server: FakeServer, sandbox: Sandbox) -> None:
    """A failure that is known when the wait begins ends it."""
    bad, slow = await start(sandbox, 2)
    server.finish(bad.process_id, exit_code=1)
    await server.clock.run(bad.wait())
    assert await server.clock.run(wait([slow, bad], return_when=FIRST_EXCEPTION)) == ((bad,), (slow,))


@pytest.mark.parametrize("when", ["SOME", 0, -1, True, None])
async def test_wait_refuses_an_impossible_return_when(sandbox: Sandbox, when: object) -> None:
    """The message names the value."""
    with pytest.raises(InvalidRequestError, match="return_when must be"):
        await wait([], return_when=when)  # type: ignore[arg-type]


async def test_wait_refuses_what_is_no_job_and_negative_time(sandbox: Sandbox) -> None:
    """Mistakes of the caller are told as such."""
    with pytest.raises(InvalidRequestError, match="not str"):
        await wait(["bg_1"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="timeout must be 0 seconds or more"):
        await wait([], timeout=-1)
    with pytest.raises(InvalidRequestError, match="timeout must be 0"):
        await wait_all([], timeout="5")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="timeout must be 0"):
        as_completed([], timeout=float("nan"))


async def test_wait_time_out_keeps_what_is_done(server: FakeServer, sandbox: Sandbox) -> None:
    """Nothing is raised, nothing killed, nothing thrown away."""
    jobs = await start(sandbox, 3)
    server.finish(jobs[0].process_id)
    began = server.clock.now()
    done, pending = await server.clock.run(wait(jobs, timeout=7))
    assert server.clock.now() == began + 7
    assert (done, pending) == ((jobs[0],), tuple(jobs[1:]))
    assert {job.state for job in pending} == {JobState.RUNNING}


async def test_wait_with_no_time_is_exactly_one_fresh_look(server: FakeServer, sandbox: Sandbox) -> None:
    """`timeout=0` asks each sandbox once, now, and brings the results of what has ended."""
    jobs = await start(sandbox, 2)
    server.finish(jobs[1].process_id, stdout=b"x")
    assert await wait(jobs, timeout=0) == ((jobs[1],), (jobs[0],))
    assert server.looks() == 1
    assert jobs[1].result().stdout == "x"
    await server.clock.advance(60)
    assert server.looks() == 1


async def test_a_fresh_look_does_not_settle_for_one_that_is_under_way(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A look that began before the call may have missed what happened since."""
    (job,) = await start(sandbox, 1)
    gate = server.gates["/execute/processes"] = asyncio.Event()
    waiting = asyncio.ensure_future(job.wait())
    await server.clock.advance(1)
    assert server.looks() == 1
    looking = asyncio.ensure_future(wait([job], timeout=0))
    await server.clock.settle()
    server.finish(job.process_id)
    gate.set()
    assert await server.clock.run(looking) == ((job,), ())
    await server.clock.run(waiting)


async def test_wait_all_gives_results_in_input_order_failures_included(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """A failed job is data; a duplicate's result comes twice."""
    first, second = await start(sandbox, 2)
    server.finish(second.process_id, stdout=b"b")
    server.finish(first.process_id, exit_code=3, stderr=b"no")
    results = await server.clock.run(wait_all([first, second, first]))
    assert [result.process_id for result in results] == [
        first.process_id,
        second.process_id,
        first.process_id,
    ]
    assert [result.ok for result in results] == [False, True, False]
    assert results[0].exit_code == 3


async def test_wait_all_raise_collects_every_failure(server: FakeServer, sandbox: Sandbox) -> None:
    """All have ended before the group is raised."""
    jobs = await start(sandbox, 3)
    server.finish(jobs[0].process_id, exit_code=1)
    server.finish(jobs[1].process_id)
    server.finish(jobs[2].process_id, state=JobState.KILLED)
    with pytest.raises(ExceptionGroup, match="2 of 3 jobs did not complete") as caught:
        await server.clock.run(wait_all(jobs, errors="raise"))
    assert [type(error) for error in caught.value.exceptions] == [JobFailedError, JobKilledError]


async def test_wait_all_first_kills_the_rest_when_asked(server: FakeServer, sandbox: Sandbox) -> None:
    """The first failure is raised once the kill of the others is confirmed."""
    bad, slow = await start(sandbox, 2)
    server.finish(bad.process_id, exit_code=1)
    with pytest.raises(JobFailedError, match=bad.process_id):
        await server.clock.run(wait_all([slow, bad], errors="first", kill=True))
    assert slow.state is JobState.KILLED
    assert slow.result().state is JobState.KILLED


async def test_wait_all_first_leaves_the_rest_alone_otherwise(server: FakeServer, sandbox: Sandbox) -> None:
    """Without `kill` the others go on."""
    bad, slow = await start(sandbox, 2)
    server.finish(bad.process_id, exit_code=1)
    with pytest.raises(JobFailedError):
        await server.clock.run(wait_all([slow, bad], errors="first"))
    assert slow.state is JobState.RUNNING


async def test_wait_all_refuses_an_unknown_errors_word(sandbox: Sandbox) -> None:
    """The words are listed in the message."""
    with pytest.raises(InvalidRequestError, match="'return', 'raise' or 'first'"):
        await wait_all([], errors="ignore")  # type: ignore[arg-type]


async def test_wait_all_time_out_carries_both_halves(server: FakeServer, sandbox: Sandbox) -> None:
    """The error is a TimeoutError too, and says which job it waited for."""
    first, second = await start(sandbox, 2)
    server.finish(second.process_id)
    with pytest.raises(TimeoutError, match=first.process_id) as caught:
        await server.clock.run(wait_all([first, second], timeout=2))
    assert isinstance(caught.value, WaitTimeoutError)
    assert caught.value.done == (second,)
    assert caught.value.pending == (first,)
    server.finish(first.process_id)
    assert (await server.clock.run(first.wait())).ok


async def test_as_completed_yields_the_same_handles_by_time_of_end(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """Each once, whatever the order of input, of one answer's rows, and of duplicates."""
    first, second, third = await start(sandbox, 3)
    for job in (third, first, second):
        await server.clock.advance(0.001)
        server.finish(job.process_id)

    async def collect() -> list[Job]:
        return [job async for job in as_completed([first, second, third, first])]

    seen = await server.clock.run(collect())
    assert [id(job) for job in seen] == [id(third), id(first), id(second)]


async def test_as_completed_takes_more_jobs_while_it_goes(server: FakeServer, sandbox: Sandbox) -> None:
    """`add` extends the iteration; what was handed out is not handed out again."""
    first, second = await start(sandbox, 2)
    server.finish(first.process_id)
    iterator = as_completed([first])
    assert await server.clock.run(anext(iterator)) is first
    iterator.add(second)
    iterator.add(first)
    assert iterator.pending == (second,)
    server.finish(second.process_id)
    assert await server.clock.run(anext(iterator)) is second
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


async def test_as_completed_batches_hands_out_all_that_is_ready(server: FakeServer, sandbox: Sandbox) -> None:
    """A batch holds everything that one look told of."""
    jobs = await start(sandbox, 5)
    for job in jobs[:3]:
        server.finish(job.process_id)
    batches = as_completed(jobs).batches()
    assert await server.clock.run(anext(batches)) == jobs[:3]
    for job in jobs[3:]:
        server.finish(job.process_id)
    assert await server.clock.run(anext(batches)) == jobs[3:]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_as_completed_hands_out_what_is_ready_before_it_times_out(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """The deadline counts from the call; ends that are known come first even after it."""
    first, second, slow = await start(sandbox, 3)
    iterator = as_completed([first, second, slow], timeout=5)
    server.finish(first.process_id)
    server.finish(second.process_id)
    assert await server.clock.run(anext(iterator)) is first
    await server.clock.advance(60)
    assert await anext(iterator) is second
    with pytest.raises(WaitTimeoutError) as caught:
        await anext(iterator)
    assert caught.value.pending == (slow,)


async def test_leaving_as_completed_early_leaves_nothing_behind(server: FakeServer, sandbox: Sandbox) -> None:
    """No request, no task and no job notices, also while the iterator is still referenced."""
    jobs = await start(sandbox, 10)
    server.finish(jobs[0].process_id)
    iterator = as_completed(jobs)

    async def first_only() -> None:
        async for _ in iterator:
            break

    before = others()
    await server.clock.run(first_only())
    looks = server.looks()
    await server.clock.advance(600)
    assert server.looks() == looks
    assert others() == before
    assert {job.state for job in jobs[1:]} == {JobState.RUNNING}
    assert len(iterator.pending) == 9


async def test_as_completed_as_a_context_manager_ends_with_its_block(
    server: FakeServer, sandbox: Sandbox
) -> None:
    """After the block the iteration is over."""
    jobs = await start(sandbox, 2)
    server.finish(jobs[0].process_id)
    async with as_completed(jobs) as ended:
        assert await server.clock.run(anext(ended)) is jobs[0]
    with pytest.raises(StopAsyncIteration):
        await anext(ended)


async def test_as_completed_keeps_no_result_that_it_handed_out(server: FakeServer, sandbox: Sandbox) -> None:
    """A long iteration must not hold on to what the caller has dropped."""
    jobs = await start(sandbox, 1)
    server.finish(jobs[0].process_id)
    iterator = as_completed(jobs)
    job = await server.clock.run(anext(iterator))
    watched = weakref.ref(job)
    jobs.clear()
    del job
    gc.collect()
    assert watched() is None


async def test_a_thousand_waiters_cost_what_one_costs(server: FakeServer, sandbox: Sandbox) -> None:
    """One look a tick tells of all jobs of a sandbox, however many wait for each."""
    jobs = await start(sandbox, 1_000)
    waits = [asyncio.ensure_future(job.wait()) for job in jobs]
    waits.append(asyncio.ensure_future(wait_all(jobs)))  # type: ignore[arg-type]
    await server.clock.advance(10)
    looks = server.looks()
    for job in jobs:
        server.finish(job.process_id)
    await server.clock.run(asyncio.gather(*waits))
    assert server.looks() - looks == 1
    assert looks < 20


async def test_nobody_waits_means_no_request(server: FakeServer, sandbox: Sandbox) -> None:
    """Handles alone ask nothing."""
    jobs = await start(sandbox, 3)
    asked = len(server.requests)
    await server.clock.advance(3_600)
    assert len(server.requests) == asked
    assert jobs[0].state is JobState.RUNNING


async def test_one_waiter_leaving_disturbs_no_other(server: FakeServer, sandbox: Sandbox) -> None:
    """Neither cancellation nor a time-out of one wait ends the look that others share."""
    (job,) = await start(sandbox, 1)
    gate = server.gates["/execute/processes"] = asyncio.Event()
    leaver = asyncio.ensure_future(job.wait())
    impatient = asyncio.ensure_future(job.wait(timeout=1))
    stayer = asyncio.ensure_future(job.wait())
    await server.clock.advance(0.5)
    assert server.looks() == 1
    leaver.cancel()
    with pytest.raises(WaitTimeoutError):
        await server.clock.run(impatient)
    server.finish(job.process_id)
    gate.set()
    # The look that was under way had its answer before the job ended; the next one tells.
    assert (await server.clock.run(stayer)).ok
    assert leaver.cancelled()
    assert server.looks() == 2


async def test_cancelling_the_last_waiter_stops_the_looking(server: FakeServer, sandbox: Sandbox) -> None:
    """The watcher goes with who made it look."""
    jobs = await start(sandbox, 3)
    before = others()
    waiting = asyncio.ensure_future(wait_all(jobs))
    await server.clock.advance(3)
    waiting.cancel()
    await server.clock.settle()
    looks = server.looks()
    await server.clock.advance(60)
    assert server.looks() == looks
    assert others() == before


async def test_repeated_short_waits_leave_no_trace_in_the_job(server: FakeServer, sandbox: Sandbox) -> None:
    """A waiter that is gone is gone from the jobs too, or slices of waiting would pile up."""
    (job,) = await start(sandbox, 1)
    for _ in range(20):
        await server.clock.run(wait([job], timeout=0.01))
    assert job._cell._waiters == ()


async def test_jobs_of_several_clients_and_sandboxes_in_one_call(server: FakeServer) -> None:
    """One call takes them all; a look a sandbox and tick."""
    async with FakeClient(server) as one, FakeClient(server) as other:
        boxes = [await one.create_sandbox(), await one.create_sandbox(), await other.create_sandbox()]
        jobs = [job for box in boxes for job in await start(box, 2)]
        for job in jobs:
            server.finish(job.process_id, stdout=job.process_id.encode())
        results = await server.clock.run(wait_all(jobs))
        assert [result.stdout for result in results] == [job.process_id for job in jobs]
        assert server.looks() == 3


async def test_handles_to_the_same_job_are_one_job(server: FakeServer, sandbox: Sandbox) -> None:
    """Equal, of one hash, counted once, and finished together."""
    (job,) = await start(sandbox, 1)
    again = sandbox.job(job.process_id)
    assert again == job
    assert len({job, again}) == 1
    server.finish(job.process_id, stdout=b"x")
    done, _ = await server.clock.run(wait([again, job]))
    assert len(done) == 1
    assert job.result() is again.result()


async def test_errors_of_the_look_fail_no_job_and_end_no_wait(server: FakeServer, sandbox: Sandbox) -> None:
    """A broken connection and a 500 are retried; the job ends as it did."""
    (job,) = await start(sandbox, 1)
    waiting = asyncio.ensure_future(job.wait())
    server.broken = ConnectError("no way", method="GET", url="http://fake")
    await server.clock.advance(30)
    assert not waiting.done()
    server.broken = None
    server.finish(job.process_id)
    assert (await server.clock.run(waiting)).ok


async def test_unreachable_server_ends_waits_with_what_is_done(server: FakeServer) -> None:
    """After `unreachable_after` of nothing but errors: `wait` says pending, `wait_all` and `job.wait` raise."""
    broken = FakeServer(url="http://broken")
    async with FakeClient(server) as good, FakeClient(broken, poll=PollPolicy(unreachable_after=20)) as bad:
        here, there = await good.create_sandbox(), await bad.create_sandbox()
        (near,), (far,) = await start(here, 1), await start(there, 1)
        broken.clock = server.clock
        bad.watcher.clock = server.clock
        broken.broken = ConnectError("no way", method="GET", url="http://fake")
        waits = [
            asyncio.ensure_future(wait([near, far])),
            asyncio.ensure_future(wait_all([near, far])),
            asyncio.ensure_future(far.wait()),
        ]
        await server.clock.advance(25)
        assert [task.done() for task in waits] == [False, False, True]
        server.finish(near.process_id)
        await server.clock.advance(25)
        assert await waits[0] == ((near,), (far,))
        with pytest.raises(ServerUnreachableError, match="cannot be reached") as caught:
            await waits[1]
        assert caught.value.done == (near,)
        assert caught.value.pending == (far,)
        with pytest.raises(ConnectionError):
            await waits[2]
        broken.broken = None


async def test_as_completed_goes_on_after_unreachable(server: FakeServer) -> None:
    """It raises once the others are out; the next step waits once more."""
    async with FakeClient(server, poll=PollPolicy(unreachable_after=20)) as client:
        sandbox = await client.create_sandbox()
        first, second = await start(sandbox, 2)
        server.finish(first.process_id)
        iterator = as_completed([first, second])
        assert await server.clock.run(anext(iterator)) is first
        server.broken = ConnectError("no way", method="GET", url="http://fake")
        began = server.clock.now()
        with pytest.raises(ServerUnreachableError) as caught:
            await server.clock.run(anext(iterator))
        assert server.clock.now() - began >= 20
        assert caught.value.pending == (second,)
        with pytest.raises(ServerUnreachableError):
            await server.clock.run(anext(iterator))
        assert server.clock.now() - began >= 40
        server.broken = None
        server.finish(second.process_id)
        assert await server.clock.run(anext(iterator)) is second


async def test_never_unreachable_when_the_policy_says_so(server: FakeServer) -> None:
    """`unreachable_after=None` waits for ever."""
    async with FakeClient(server, poll=PollPolicy(unreachable_after=None)) as client:
        (job,) = await start(await client.create_sandbox(), 1)
        server.broken = ConnectError("no way", method="GET", url="http://fake")
        waiting = asyncio.ensure_future(job.wait())
        await server.clock.advance(600)
        assert not waiting.done()
        server.broken = None
        server.finish(job.process_id)
        await server.clock.run(waiting)


async def test_another_event_loop_is_refused_by_name(server: FakeServer, sandbox: Sandbox) -> None:
    """A handle that reaches a wait in another loop raises at once instead of hanging."""
    (job,) = await start(sandbox, 1)

    def elsewhere() -> None:
        with pytest.raises(ClientStateError, match="another event loop"):
            asyncio.run(wait_all([job]))

    await asyncio.to_thread(elsewhere)


async def test_constants_are_their_names() -> None:
    """They read well in logs, as asyncio's do."""
    assert (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION) == (
        "ALL_COMPLETED",
        "FIRST_COMPLETED",
        "FIRST_EXCEPTION",
    )


async def test_what_is_no_iterable_of_jobs_is_refused() -> None:
    """In words, by each of the helpers."""
    for call in (wait, wait_all):
        with pytest.raises(InvalidRequestError, match="an iterable of jobs, not NoneType"):
            await call(None)  # type: ignore[arg-type, operator]
    with pytest.raises(InvalidRequestError, match="only jobs can be waited for, not str"):
        as_completed("job")  # type: ignore[arg-type]
