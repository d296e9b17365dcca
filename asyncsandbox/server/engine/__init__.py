"""Where a sandbox lives: its directories, its supervisor, and how an order becomes a process there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from asyncsandbox.models import DEFAULT_TIMEOUT, JobSpec, StreamName
from asyncsandbox.server.paths import Roots
from asyncsandbox.server.records import JobRecord, Launch, SandboxRecord

__all__ = ["CodeOrder", "CommandOrder", "Engine", "Order", "Prepared"]


@attrs.frozen(kw_only=True)
class CodeOrder:
    """Code to run.

    Attributes:
        spec: the program, checked.
        own_directory: whether it gets an empty directory of its own.
        streamed: whether somebody reads its output while it runs.
        rich: whether what a notebook would show of it is kept; only of Python.
    """

    spec: JobSpec
    own_directory: bool = False
    streamed: bool = False
    rich: bool = False

    @property
    def name(self) -> str | None:
        """For people."""
        return self.spec.name

    @property
    def timeout(self) -> float:
        """Seconds that it may run."""
        return DEFAULT_TIMEOUT if self.spec.timeout is None else self.spec.timeout

    @property
    def text(self) -> None:
        """Code has no command line."""
        return

    @property
    def size(self) -> int:
        """Bytes to write before it can run."""
        return len(self.spec.code) + len(self.spec.stdin or b"") + sum(map(len, self.spec.files.values()))


@attrs.frozen(kw_only=True)
class CommandOrder:
    """A command to run.

    Attributes:
        argv: the program and its arguments.
        text: the command line, for people.
        env: variables on top of the sandbox's.
        working_dir: where it runs; None = ``/workspace``.
        timeout: seconds that it may run.
        name: for people; None when none was given.
        streamed: whether somebody reads its output while it runs.
        terminal: columns and rows of the terminal that it gets; None = none.
    """

    argv: Sequence[str]
    text: str
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    working_dir: str | None = None
    timeout: float
    name: str | None = None
    streamed: bool = False
    terminal: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes to write before it can run."""
        return 0


Order = CodeOrder | CommandOrder


@attrs.frozen(kw_only=True)
class Prepared:
    """An order that could be launched.

    Attributes:
        launch: how.
        language: of the code; "" for a command.
        working_dir: where it will run, as clients write paths.
    """

    launch: Launch
    language: str
    working_dir: str


class Engine(Protocol):
    """Keeps the sandboxes of one server. Events of launched jobs arrive in the server's event loop."""

    def languages(self) -> list[str]:
        """Return the names of the languages that can run here."""

    def create(self, sandbox: SandboxRecord) -> None:
        """Make a sandbox's place. Blocks for a moment.

        Raises:
            OSError: the place could not be made.
        """

    def find_again(self, sandbox: SandboxRecord, kept: Iterable[Launch]) -> None:
        """Take over the place of a sandbox from an earlier server. Blocks for a moment.

        Args:
            sandbox: whose.
            kept: launches that are still to come; the inputs of all others are deleted.

        Raises:
            OSError: the place is not usable.
        """

    def open(self, sandbox_id: str) -> None:
        """Bring the sandbox's supervisor up ahead of its first job."""

    def roots(self, sandbox_id: str) -> Roots:
        """Return the directories that clients may name."""

    def prepare(self, sandbox: SandboxRecord, process_id: str, order: Order) -> Prepared:
        """Write what an order needs. Blocks for as long as that takes; may run in a thread.

        Raises:
            InvalidRequestError: the language, its toolchain or the working directory is not there.
            PermissionDeniedError: a path leads outside the sandbox.
            OSError: the disk refused.
        """

    def discard(self, sandbox_id: str, process_id: str, launch: Launch | None) -> None:
        """Delete everything of a job: inputs, output, its own directory. Blocks."""

    def launch(self, job: JobRecord) -> None:
        """Hand a job to its supervisor; `started` or `refused` follows."""

    def finished(self, launch: Launch) -> None:
        """Delete a job's inputs; its output and directory stay."""

    def kill(self, sandbox_id: str, process_id: str) -> None:
        """End a launched job; `ended` follows."""

    def consumed(self, sandbox_id: str, process_id: str, stdout: int, stderr: int) -> None:
        """Say how far the output of a streamed job has been read, in bytes that it wrote."""

    def type(self, sandbox_id: str, process_id: str, data: bytes) -> None:
        """Type into a job's terminal; `typed` follows as the terminal takes it."""

    def resize(self, sandbox_id: str, process_id: str, cols: int, rows: int) -> None:
        """Give a job's terminal another size."""

    def pause(self, sandbox_id: str) -> None:
        """Stop every process in a sandbox; the jobs' clocks stand still."""

    def resume(self, sandbox_id: str) -> None:
        """Let them go on."""

    def top_process(self, sandbox_id: str) -> int | None:
        """Return the process below which all processes of a sandbox are; None when nothing can run there."""

    def output_path(self, sandbox_id: str, process_id: str, stream: StreamName) -> Path:
        """Return where a job's output is spooled."""

    def rich_path(self, sandbox_id: str, process_id: str) -> Path:
        """Return where what a notebook would show of a job lies, if there is any."""

    def supervisor_gone(self, sandbox_id: str) -> None:
        """Note that a supervisor died: the next job gets a new one, which ends what the old one left."""

    async def halt(self, sandbox_id: str) -> None:
        """End every process in a sandbox. No event follows; its place stays."""

    async def destroy(self, sandbox_id: str) -> None:
        """End every process in a sandbox and delete its place. No event follows."""

    async def close(self) -> None:
        """End every process in every sandbox. No event follows."""
