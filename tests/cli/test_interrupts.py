"""Ctrl-C and SIGTERM: what a command started is stopped, what it only looked at goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_stops_its_job(
    program: Any, sleeper: Any, alive: Callable[[int], bool], number: int, status: int
) -> None:
    """The job is gone when the command is, and the command says so."""
    running = program.start("run", sleeper.code())
    (pid,) = sleeper.pids()
    running.signal(number)
    done = running.end()
    assert done.status == status
    assert "interrupted; stopping 1 job in sandbox" in done.err
    assert "stopped 1 job\n" in done.err
    assert "Traceback" not in done.err
    assert not alive(pid)


def test_an_interrupted_run_of_many_tells_what_became_of_each(
    program: Any, sleeper: Any, alive: Callable[[int], bool]
) -> None:
    """What had ended is told as it ended, the rest as killed."""
    running = program.start("run", "--json", "print('done')", sleeper.code(), sleeper.code())
    assert '"completed"' in running.line()
    pids = sleeper.pids()
    running.signal(signal.SIGINT)
    done = running.end()
    assert [(found["state"], found["end_reason"]) for found in done.objects] == [("killed", "killed")] * 2
    assert "stopped 2 jobs\n" in done.err
    assert done.status == 130
    assert not any(map(alive, pids))


def test_a_second_interrupt_ends_at_once_and_leaves_nothing(
    program: Any,
    sleeper: Any,
    alive: Callable[[int], bool],
    until: Callable[[Callable[[], object]], None],
) -> None:
    """A job that ignores being asked is not waited for; the embedded server still takes it along."""
    stubborn = sleeper.code(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    running = program.start("run", stubborn)
    (pid,) = sleeper.pids()
    running.signal(signal.SIGINT)
    assert running.popen.stderr.readline().startswith(b"asyncsandbox: interrupted")
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.status == 130
    assert "ended at once" in done.err
    until(lambda: not alive(pid))


def test_a_reader_that_is_slow_does_not_hold_up_an_interrupt(
    program: Any, sleeper: Any, alive: Callable[[int], bool]
) -> None:
    """With its output stuck in a full pipe, the command still hears Ctrl-C."""
    running = program.start("run", sleeper.code(then="print('y' * 1000)"))
    (pid,) = sleeper.pids()
    running.signal(signal.SIGINT)
    assert running.popen.wait(50) == 130
    assert not alive(pid)


def test_an_interrupted_run_in_a_sandbox_of_others_stops_only_its_own_job(
    served: Any, sleeper: Any, alive: Callable[[int], bool]
) -> None:
    """What else runs in the sandbox goes on, and so does the sandbox."""
    sandbox = served("sandbox", "create").out.strip()
    other = served("run", "--background", "--sandbox", sandbox, sleeper.code()).out.strip()
    running = served.start("run", "--sandbox", sandbox, sleeper.code())
    theirs, ours = sleeper.pids()
    running.signal(signal.SIGINT)
    assert running.end().status == 130
    assert not alive(ours)
    assert alive(theirs)
    assert served("kill", other).status == 0


def test_an_interrupted_run_on_a_server_ends_the_sandbox_it_made(served: Any, sleeper: Any) -> None:
    """Nothing of a run in the foreground stays on the server."""
    before = served("sandbox", "list", "--json").objects
    running = served.start("run", sleeper.code())
    sleeper.pids()
    assert len(served("sandbox", "list", "--json").objects) == len(before) + 1
    running.signal(signal.SIGINT)
    assert running.end().status == 130
    assert served("sandbox", "list", "--json").objects == before


def test_interrupting_those_who_look_leaves_the_job_alone(
    served: Any, sleeper: Any, alive: Callable[[int], bool]
) -> None:
    """`logs -f` and `wait` end; what they looked at goes on."""
    job = served("run", "--background", sleeper.code(before="print('hello', flush=True)")).out.strip()
    (pid,) = sleeper.pids()
    following = served.start("logs", "-f", job)
    assert following.line() == "hello"
    following.signal(signal.SIGINT)
    assert following.end().status == 130
    assert alive(pid)
    assert served("kill", job).status == 0
    assert not alive(pid)


def test_an_interrupted_wait_says_that_jobs_go_on(served: Any, sleeper: Any) -> None:
    """The line counts them, once the first of them has ended."""
    refs = served("run", "--background", sleeper.code(), "print(1)").words
    waiting = served.start("wait", *refs)
    assert waiting.line() == f"{refs[1]} completed 0"
    waiting.signal(signal.SIGINT)
    done = waiting.end()
    assert (done.status, done.err) == (130, "asyncsandbox: interrupted; 1 of 2 jobs go on\n")
    assert served("kill", refs[0]).status == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_ends_all_jobs(
    program: Any, sleeper: Any, alive: Callable[[int], bool], number: int
) -> None:
    """Stopping is what a server is asked to do in the end: status 0, and no job is left."""
    server = program.start("serve", "--port", "0", "--state-dir", "state", ASYNCSANDBOX_API_KEY="k")
    url = server.line().removeprefix("export ASYNCSANDBOX_URL=")
    client = program.at(ASYNCSANDBOX_URL=url, ASYNCSANDBOX_API_KEY="k")
    assert client("run", "--background", sleeper.code()).status == 0
    (pid,) = sleeper.pids()
    server.signal(number)
    done = server.end()
    assert done.status == 0
    assert done.err.endswith("asyncsandbox: stopped; all jobs have ended\n")
    assert not alive(pid)
