"""How a job's process is made: the words that the server and a sandbox's supervisor exchange.

The server handles no pid. It says *start*, *kill*, *pause*; a `Launcher` answers through `LaunchEvents`, in
the server's event loop, in the order in which things happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from asyncsandbox.models import EndReason

__all__ = ["LaunchEnd", "LaunchEvents", "LaunchSpec", "Launcher", "StreamEnd"]


@attrs.frozen(kw_only=True)
class LaunchSpec:
    """One process to make.

    Attributes:
        process_id: the job's id.
        argv: what to run, the program first (found on the ``PATH`` of `env`).
        env: its whole environment.
        cwd: where it runs; exists.
        stdin: path of the file that it reads; None = end of file at once.
        stdout: path of the spool file for its stdout; made only when it is needed.
        stderr: the same for stderr.
        timeout: seconds that it may run, counted while it runs and is not paused.
        output_limit: bytes kept of each stream: the first half and the last half.
        grace: seconds between SIGTERM and SIGKILL when it is ended.
        streamed: whether somebody reads its output while it runs: all of it goes to the spool files at once,
            `wrote` tells of it, and the job waits where it is too far ahead of `consumed`.
        terminal: columns and rows of the pseudo-terminal that controls it, whose output is its stdout and
            which `type` types into; None = no terminal.
    """

    process_id: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdin: str | None = None
    stdout: str
    stderr: str
    timeout: float
    output_limit: int
    grace: float
    streamed: bool = False
    terminal: tuple[int, int] | None = None


@attrs.frozen(kw_only=True)
class StreamEnd:
    """What became of one stream.

    Attributes:
        size: bytes that the job wrote.
        inline: all of them, when they are few and no file was made; None when they are in the spool file.
    """

    size: int = 0
    inline: bytes | None = b""


@attrs.frozen(kw_only=True)
class LaunchEnd:
    """The end of a job: its last process is gone and its last byte is readable.

    Attributes:
        process_id: the job's id.
        exit_code: as the kernel gave it; None after a signal.
        signal: the number of the signal that ended it; None otherwise.
        reason: exit, signal, timeout or killed; disk_full, or unknown, when it had to be ended because what it
            wrote could not be kept.
        ended_at: Unix time.
        stdout: what became of its stdout.
        stderr: what became of its stderr.
    """

    process_id: str
    exit_code: int | None
    signal: int | None
    reason: EndReason
    ended_at: float
    stdout: StreamEnd = StreamEnd()
    stderr: StreamEnd = StreamEnd()


class LaunchEvents(Protocol):
    """Who hears what became of the jobs. All calls are synchronous and must not block."""

    def started(self, process_id: str, pid: int, at: float) -> None:
        """The process runs, since Unix time `at`."""

    def refused(self, process_id: str, message: str) -> None:
        """The process could not be made; nothing of it is left. `message` says why, for people."""

    def busy(self, process_id: str, busy: bool) -> None:
        """The job began or ceased to want a core. Every job counts as busy from its start."""

    def wrote(self, process_id: str) -> None:
        """A streamed job has written more."""

    def typed(self, process_id: str, count: int) -> None:
        """A terminal has taken so many bytes of what was typed."""

    def ended(self, end: LaunchEnd) -> None:
        """The job is over."""

    def gone(self) -> None:
        """The supervisor died without being asked to; whatever had not ended is lost."""


class Launcher(Protocol):
    """Makes, times and ends the processes of one sandbox."""

    async def open(self) -> None:
        """Bring the supervisor up.

        Raises:
            OSError: it could not be started.
        """

    def start(self, spec: LaunchSpec) -> None:
        """Make a process; `started` or `refused` follows.

        Raises:
            ConnectionError: there is no supervisor: not yet, or no longer.
        """

    def kill(self, process_id: str) -> None:
        """End a job's whole tree: SIGTERM, its grace, SIGKILL; `ended` follows. Unknown ids do nothing."""

    def consumed(self, process_id: str, stdout: int, stderr: int) -> None:
        """Say how far the output of a streamed job has been read, in bytes that it wrote."""

    def type(self, process_id: str, data: bytes) -> None:
        """Type into a job's terminal; `typed` follows as the terminal takes it."""

    def resize(self, process_id: str, cols: int, rows: int) -> None:
        """Give a job's terminal another size."""

    def pause(self) -> None:
        """Stop every process; the jobs' clocks stand still."""

    def resume(self) -> None:
        """Let them go on."""

    async def close(self) -> None:
        """End every job and the supervisor. Returns when the supervisor is gone; no event follows."""
