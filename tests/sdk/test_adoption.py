"""Starts in doubt, on a server without idempotency keys: one job for one call, whatever the network does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncsandbox import ConnectError, JobState, RequestTimeoutError, Sandbox, ServerError, wait_all
from asyncsandbox.protocol import Reply
from asyncsandbox.testing import FakeClient, FakeServer


def _broken(*, sent: bool = True) -> ConnectError:
    return ConnectError("broke", method="POST", url="http://fake", sent=sent)


def _late() -> RequestTimeoutError:
    return RequestTimeoutError("late", timeout=30.0, method="POST", url="http://fake")


async def _start(stock: FakeServer, sandbox: Sandbox, **options: Any) -> Any:
    return await stock.clock.run(sandbox.run_code_background("pass", **options))


def _starts(stock: FakeServer) -> list[Any]:
    return [request for request in stock.requests if request.path.endswith("/background")]


@pytest.mark.parametrize(
    "loss", [_broken(), _late(), Reply(status=500), Reply(status=502), Reply(status=503)]
)
async def test_a_start_whose_answer_was_lost_is_adopted(stock: FakeServer, loss: Exception | Reply) -> None:
    """The job is there: the list shows it, and it is not started again."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        await _start(stock, sandbox, name="other")
        stock.losses.append(loss)
        job = await _start(stock, sandbox, name="build")
        assert len(_starts(stock)) == len(stock.sandboxes[sandbox.id]) == 2
        assert (job.name, job.info.name) == ("build", "build")
        stock.finish(job.process_id, stdout=b"42\n")
        assert (await stock.clock.run(job.wait())).stdout == "42\n"


@pytest.mark.parametrize("failure", [_broken(), _broken(sent=False), Reply(status=500), Reply(status=502)])
async def test_a_start_that_never_arrived_is_sent_again(
    stock: FakeServer, failure: Exception | Reply
) -> None:
    """Good lists go on lacking it: there is one job in the end."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        await _start(stock, sandbox)
        stock.failures.append(failure)
        job = await _start(stock, sandbox)
        assert len(stock.sandboxes[sandbox.id]) == 2
        names = {request.json["name"] for request in _starts(stock)}
        assert len(names) == 2  # the second try has the first one's key
        stock.finish(job.process_id)
        await stock.clock.run(job.wait())


async def test_a_server_that_was_silent_for_long_is_not_asked_again(stock: FakeServer) -> None:
    """It may still be at it. If a job comes of it after all, it is ended: nobody has a handle."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        other = await _start(stock, sandbox)
        stock.failures.append(_late())
        with pytest.raises(RequestTimeoutError):
            await _start(stock, sandbox)
        assert len(_starts(stock)) == 2
        # What the server then makes of the request that it kept all the time.
        await stock.send(_starts(stock)[1], base=f"http://fake/vm/{sandbox.id}", headers={}, timeout=1.0)
        waiting = asyncio.ensure_future(other.wait())
        await stock.clock.advance(5.0)
        ends = {job.info.state for key, job in stock.sandboxes[sandbox.id].items() if key != other.process_id}
        assert ends == {JobState.KILLED}
        stock.finish(other.process_id)
        assert (await stock.clock.run(waiting)).ok


async def test_a_twin_that_comes_late_is_ended(stock: FakeServer) -> None:
    """A start that was sent again after good lists lacked it has one job, though the first arrives too."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        stock.failures.extend([Reply(status=200, body=b'{"status": "healthy"}'), _broken()])
        job = await _start(stock, sandbox)
        await stock.send(_starts(stock)[0], base=f"http://fake/vm/{sandbox.id}", headers={}, timeout=1.0)
        assert len(stock.sandboxes[sandbox.id]) == 2
        waiting = asyncio.ensure_future(job.wait())
        await stock.clock.advance(5.0)
        running = [row for row in stock.sandboxes[sandbox.id].values() if not row.info.finished]
        assert [row.info.process_id for row in running] == [job.process_id]
        stock.finish(job.process_id)
        assert (await stock.clock.run(waiting)).ok


async def test_a_server_that_lists_no_names_is_not_asked_again(stock: FakeServer) -> None:
    """Any of the jobs that it lists may be the one: a second would be worse than an error."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        real = stock._row

        def nameless(job: Any) -> dict[str, Any]:
            return {**real(job), "name": None}

        stock._row = nameless  # type: ignore[method-assign]
        first = await _start(stock, sandbox, name="build")
        assert first.name == "build"
        stock.losses.append(_broken())
        with pytest.raises(ConnectError):
            await _start(stock, sandbox)
        assert len(_starts(stock)) == len(stock.sandboxes[sandbox.id]) == 2
        stock.finish(first.process_id, stdout=b"x")
        assert (await stock.clock.run(first.wait())).name == "build"


async def test_without_one_good_list_nothing_is_sent_again(stock: FakeServer) -> None:
    """Nothing is known then; the error is the caller's to decide upon."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        await _start(stock, sandbox)
        stock.broken = _broken()
        with pytest.raises(ConnectError):
            await _start(stock, sandbox)
        stock.broken = None
        assert len(_starts(stock)) == 2


async def test_a_server_that_always_fails_is_given_up(stock: FakeServer) -> None:
    """Three tries, and the error says what the server said."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        await _start(stock, sandbox)
        real = stock._start
        stock._start = lambda *_: Reply(status=500, body=b'{"message": "no room"}')  # type: ignore[method-assign]
        with pytest.raises(ServerError, match="no room"):
            await _start(stock, sandbox)
        stock._start = real  # type: ignore[method-assign]
        assert len(_starts(stock)) == 4
        assert len(stock.sandboxes[sandbox.id]) == 1


async def test_a_hundred_starts_in_doubt_share_their_looks(stock: FakeServer) -> None:
    """One list tells of all of them."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        await _start(stock, sandbox)
        looks = stock.looks()
        stock.losses.extend(_broken() for _ in range(100))

        async def start() -> list[Any]:
            return await sandbox.start_all(["pass"] * 100, max_in_flight=100)

        jobs = await stock.clock.run(start())
        assert len({job.process_id for job in jobs}) == 100
        assert len(stock.sandboxes[sandbox.id]) == 101
        assert stock.looks() - looks <= 10


async def test_names_of_jobs_are_the_users_own(stock: FakeServer) -> None:
    """The key on the wire is stripped wherever a name is read."""
    async with FakeClient(stock) as client:
        sandbox = await client.create_sandbox()
        named = await _start(stock, sandbox, name="a~b")
        plain = await _start(stock, sandbox)
        assert {request.json["name"].count("~") for request in _starts(stock)} == {1, 2}
        assert (named.name, plain.name) == ("a~b", None)
        assert [info.name for info in await sandbox.list_processes()] == ["a~b", None]
        for job in (named, plain):
            stock.finish(job.process_id)
        assert [result.name for result in await stock.clock.run(wait_all([named, plain]))] == ["a~b", None]
