"""The real program, as a process in a clean environment, alone and against a served instance."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PATIENCE = 50.0
"""Seconds for what takes a moment: only to fail, never to measure."""

_KEPT = ("PATH", "HOME", "PYTHONPATH", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE")


class Finished:
    """What a command left: its exit status and what it wrote."""

    def __init__(self, popen: subprocess.Popen[bytes], out: bytes, err: bytes) -> None:
        self.status = popen.returncode
        self.raw = out
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its stdout as JSON objects, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def words(self) -> list[str]:
        """Its stdout as words."""
        return self.out.split()


class Running:
    """A command that runs."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen

    def line(self) -> str:
        """Wait for the next line of its stdout."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().decode().rstrip("\n")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def hang_up(self) -> None:
        """Read no more of its stdout."""
        assert self.popen.stdout is not None
        self.popen.stdout.close()

    def end(self) -> Finished:
        """Wait for its end."""
        err = b""
        if self.popen.stdout is not None and self.popen.stdout.closed:
            assert self.popen.stderr is not None
            err = self.popen.stderr.read()
            self.popen.wait(PATIENCE)
            return Finished(self.popen, b"", err)
        out, err = self.popen.communicate(timeout=PATIENCE)
        return Finished(self.popen, out, err)


class Program:
    """The command ``asyncsandbox`` with an environment of its own."""

    def __init__(self, directory: Path, started: list[subprocess.Popen[bytes]], **env: str) -> None:
        self.directory = directory
        self.env = {
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "TMPDIR": str(directory),
            "ASYNCSANDBOX_ISOLATION": "none",
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **env,
        }
        self._started = started

    def start(self, *args: str, stdin: int = subprocess.DEVNULL, **env: str) -> Running:
        """Start a command."""
        popen = subprocess.Popen(
            [sys.executable, "-m", "asyncsandbox", *args],
            cwd=self.directory,
            env=self.env | env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(popen)
        return Running(popen)

    def __call__(self, *args: str, stdin: bytes | None = None, **env: str) -> Finished:
        """Run a command to its end."""
        running = self.start(*args, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, **env)
        out, err = running.popen.communicate(stdin, timeout=PATIENCE)
        return Finished(running.popen, out, err)

    def at(self, **env: str) -> Program:
        """Return the same program with more in its environment."""
        return Program(self.directory, self._started, **{**self.env, **env})


def _end_all(started: list[subprocess.Popen[bytes]]) -> None:
    for popen in started:
        with popen, contextlib.suppress(ProcessLookupError):
            if popen.poll() is None:
                popen.send_signal(signal.SIGKILL)
            for pipe in (popen.stdin, popen.stdout, popen.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """The program, with no server configured."""
    started: list[subprocess.Popen[bytes]] = []
    yield Program(tmp_path, started)
    _end_all(started)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a served instance prints for its clients, as an environment."""
    started: list[subprocess.Popen[bytes]] = []
    directory = tmp_path_factory.mktemp("served")
    server = Program(directory, started).start("serve", "--port", "0", "--state-dir", "state")
    export = shlex.split(server.line())
    yield dict(word.split("=", 1) for word in export[1:])
    server.signal(signal.SIGTERM)
    server.popen.wait(PATIENCE)
    _end_all(started)


@pytest.fixture
def served(program: Program, instance: dict[str, str]) -> Program:
    """The program, with a served instance configured."""
    return program.at(**instance)


def _wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something is true; fail after a generous time."""
    return _wait_until


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Tell whether a process runs; one that only waits to be reaped does not."""

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return runs


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    """Programs that tell their process and go on until they are stopped."""
    return Sleeper(tmp_path / "pids")


class Sleeper:
    """Makes programs that leave their process id in a file and then sleep for longer than any test."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._count = 0

    def code(self, *, before: str = "", then: str = "time.sleep(600)") -> str:
        """Return the text of one more program; `before` is run first, `then` for ever."""
        self._count += 1
        marker = self._directory / f"{self._count}"
        return (
            f"import os, signal, time\n{before}\n"
            f"with open({str(marker) + '.part'!r}, 'w') as file: file.write(str(os.getpid()))\n"
            f"os.rename({str(marker) + '.part'!r}, {str(marker)!r})\n"
            f"while True: {then}\n"
        )

    def pids(self) -> list[int]:
        """Wait until all of them run, and return their process ids."""
        markers = [self._directory / f"{number}" for number in range(1, self._count + 1)]
        _wait_until(lambda: all(marker.exists() for marker in markers))
        return [int(marker.read_text()) for marker in markers]
