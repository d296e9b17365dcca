"""The launcher in the server's event loop, with a supervisor started as in production."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from asyncsandbox.models import EndReason
from asyncsandbox.server.launcher import LaunchEnd, Launcher, LaunchSpec, StreamEnd, process
from asyncsandbox.server.launcher.process import ProcessLauncher
from asyncsandbox.server.launcher.procfs import JOB_VARIABLE, SANDBOX_VARIABLE

PATIENCE = 40.0
SANDBOX = f"sb-launcher-{os.getpid()}"


class Recorder:
    """Keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._news = asyncio.Event()

    def _hear(self, what: str, value: Any = None) -> None:
        self.heard.append((what, value))
        self._news.set()

    def started(self, process_id: str, pid: int, at: float) -> None:
        assert at > 0
        self._hear("started", (process_id, pid))

    def refused(self, process_id: str, message: str) -> None:
        self._hear("refused", (process_id, message))

    def busy(self, process_id: str, busy: bool) -> None:
        self._hear("busy", (process_id, busy))

    def ended(self, end: LaunchEnd) -> None:
        self._hear("ended", end)

    def gone(self) -> None:
        self._hear("gone")

    async def hears(self, what: str, count: int = 1) -> list[Any]:
        """Wait until something was heard so often; return all of it."""
        async with asyncio.timeout(PATIENCE):
            while len(found := [value for name, value in self.heard if name == what]) < count:
                self._news.clear()
                await self._news.wait()
        return found


def make_spec(directory: Path, process_id: str, script: str, **fields: Any) -> LaunchSpec:
    """Return a spec that bash runs."""
    env = {"PATH": os.environ["PATH"], SANDBOX_VARIABLE: SANDBOX, JOB_VARIABLE: process_id}
    defaults: dict[str, Any] = {
        "process_id": process_id,
        "argv": ("bash", "-c", script),
        "env": env,
        "cwd": str(directory),
        "stdout": str(directory / f"{process_id}.out"),
        "stderr": str(directory / f"{process_id}.err"),
        "timeout": 300.0,
        "output_limit": 1 << 20,
        "grace": 5.0,
    }
    return LaunchSpec(**(defaults | fields))


@asynccontextmanager
async def launching(directory: Path, **options: Any) -> AsyncIterator[tuple[ProcessLauncher, Recorder]]:
    """Run a launcher; afterwards its supervisor is gone and reaped."""
    recorder = Recorder()
    launcher = ProcessLauncher(
        sandbox_id=SANDBOX, events=recorder, log_path=str(directory / "supervisor.log"), **options
    )
    await launcher.open()
    pid = supervisor_pid(launcher)
    try:
        yield launcher, recorder
    finally:
        await launcher.close()
    assert not psutil.pid_exists(pid)


def supervisor_pid(launcher: ProcessLauncher) -> int:
    """Return the pid of a launcher's supervisor."""
    assert launcher._pid is not None
    return launcher._pid


def is_alive(pid: int) -> bool:
    """Return whether a process runs, zombies left out."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def test_job_is_told_from_start_to_end(tmp_path: Path) -> None:
    """A job is started and ends, with its code and its output."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "echo out; echo err >&2; exit 3"))
        (end,) = await recorder.hears("ended")
        assert (end.process_id, end.exit_code, end.signal, end.reason) == ("j", 3, None, EndReason.EXIT)
        assert (end.stdout.size, end.stderr.size) == (4, 4)
        assert end.stdout in (StreamEnd(size=4, inline=b"out\n"), StreamEnd(size=4, inline=None))
        assert recorder.heard[0][0] == "started"


async def test_refusal_is_told(tmp_path: Path) -> None:
    """A job that cannot be made is refused, and nothing else is heard of it."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "", argv=("no-such-program",)))
        assert await recorder.hears("refused") == [("j", "the program 'no-such-program' was not found")]
        assert len(recorder.heard) == 1


async def test_kill_and_load_are_passed_on(tmp_path: Path) -> None:
    """A sleeping job is told to be idle; a kill ends it."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "sleep 1000"))
        assert await recorder.hears("busy") == [("j", False)]
        launcher.kill("j")
        (end,) = await recorder.hears("ended")
        assert (end.exit_code, end.signal, end.reason) == (None, signal.SIGTERM, EndReason.KILLED)


async def test_pause_and_resume_are_passed_on(tmp_path: Path) -> None:
    """A paused job stands still and goes on."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "while [ ! -e go ]; do sleep 0.01; done"))
        launcher.pause()
        ((_, pid),) = await recorder.hears("started")
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        (tmp_path / "go").touch()
        launcher.resume()
        (end,) = await recorder.hears("ended")
        assert end.exit_code == 0


async def test_death_of_the_supervisor_is_told_once(tmp_path: Path) -> None:
    """A killed supervisor is told once; afterwards a start is an error and the rest does nothing."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "sleep 1000"))
        ((_, pid),) = await recorder.hears("started")
        os.kill(supervisor_pid(launcher), signal.SIGKILL)
        await recorder.hears("gone")
        with pytest.raises(ConnectionError, match="has no supervisor"):
            launcher.start(make_spec(tmp_path, "k", "true"))
        launcher.kill("j")
        launcher.pause()
        launcher.resume()
    assert [what for what, _ in recorder.heard].count("gone") == 1
    async with launching(tmp_path, sweep=True):
        assert not is_alive(pid)


async def test_close_ends_every_job_silently(tmp_path: Path) -> None:
    """Closing ends the jobs and the supervisor, and no event follows; a second time does nothing."""
    async with launching(tmp_path) as (launcher, recorder):
        launcher.start(make_spec(tmp_path, "j", "trap '' TERM; sleep 1000"))
        ((_, pid),) = await recorder.hears("started")
        assert repr(launcher) == f"<ProcessLauncher {SANDBOX!r} pid={supervisor_pid(launcher)}>"
        await asyncio.gather(launcher.close(), launcher.close())
        assert not is_alive(pid)
        assert repr(launcher) == f"<ProcessLauncher {SANDBOX!r} closed>"
    assert {what for what, _ in recorder.heard} <= {"started", "busy"}


async def test_close_kills_a_supervisor_that_does_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that is stuck is killed after a while."""
    monkeypatch.setattr(process, "_CLOSE_TIMEOUT", 0.2)
    async with launching(tmp_path) as (launcher, recorder):
        os.kill(supervisor_pid(launcher), signal.SIGSTOP)
        await launcher.close()
        assert recorder.heard == []


async def test_close_before_open_does_nothing(tmp_path: Path) -> None:
    """A launcher that was never opened closes, and takes no job."""
    launcher = ProcessLauncher(sandbox_id=SANDBOX, events=Recorder(), log_path=str(tmp_path / "log"))
    assert repr(launcher) == f"<ProcessLauncher {SANDBOX!r} new>"
    with pytest.raises(ConnectionError):
        launcher.start(make_spec(tmp_path, "j", "true"))
    await launcher.close()


async def test_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A supervisor that cannot be started is an OSError and leaves nothing."""
    launcher = ProcessLauncher(sandbox_id=SANDBOX, events=Recorder(), log_path=str(tmp_path / "none" / "log"))
    with pytest.raises(FileNotFoundError):
        await launcher.open()


async def test_supervisor_that_fails_at_once_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that ends before it is ready is an OSError with the last lines of its log."""
    monkeypatch.setattr(process, "_BOOTSTRAP", str(tmp_path / "missing.py"))
    recorder = Recorder()
    launcher: Launcher = ProcessLauncher(
        sandbox_id=SANDBOX, events=recorder, log_path=str(tmp_path / "supervisor.log")
    )
    with pytest.raises(OSError, match=r"did not start: .*missing\.py"):
        await launcher.open()
    assert recorder.heard == []


@pytest.mark.parametrize("turns", range(6))
async def test_open_may_be_cancelled_at_every_step(tmp_path: Path, turns: int) -> None:
    """However early the opening is given up, no supervisor stays."""
    launcher = ProcessLauncher(sandbox_id=SANDBOX, events=Recorder(), log_path=str(tmp_path / "log"))
    opening = asyncio.create_task(launcher.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert launcher._pid is None or not psutil.pid_exists(launcher._pid)


async def test_cancelled_open_leaves_no_supervisor(tmp_path: Path) -> None:
    """Cancelling while the supervisor comes up ends it."""
    launcher = ProcessLauncher(sandbox_id=SANDBOX, events=Recorder(), log_path=str(tmp_path / "log"))
    opening = asyncio.create_task(launcher.open())
    await until(lambda: launcher._pid is not None)
    pid = supervisor_pid(launcher)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not psutil.pid_exists(pid)


async def test_large_specs_and_many_jobs_pass_the_socket(tmp_path: Path) -> None:
    """Specs and ends far larger than the socket's buffer arrive whole, whatever their number."""
    big = "x" * 100_000
    async with launching(tmp_path) as (launcher, recorder):
        for n in range(100):
            spec = make_spec(tmp_path, f"j{n}", 'printf %s "${BIG:0:9000}"')
            launcher.start(attrs.evolve(spec, env={**spec.env, "BIG": big}))
        ends = await recorder.hears("ended", 100)
        assert {end.process_id for end in ends} == {f"j{n}" for n in range(100)}
        assert all(end.stdout.size == 9000 and end.exit_code == 0 for end in ends)
