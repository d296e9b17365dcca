"""What the server knows of sandboxes and jobs. All of it is frozen; tables replace whole records."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import attrs

from asyncsandbox.models import JobInfo

__all__ = ["JobKind", "JobRecord", "Launch", "SandboxRecord", "SandboxStatus"]


class JobKind(enum.StrEnum):
    """What was asked for."""

    CODE = "code"
    COMMAND = "command"
    EXECUTION = "execution"
    """Somebody holds a request open for it: never listed, never stored, gone with its answer."""


@attrs.frozen(kw_only=True)
class Launch:
    """What a job needs to run. Kept until it has ended.

    Attributes:
        argv: the program and its arguments.
        env: its whole environment.
        cwd: where it runs, a real path.
        stdin: path of the file that it reads; None = nothing.
        inputs: files that were made for it and go when it has ended.
        streamed: whether somebody reads its output while it runs.
        terminal: columns and rows of the terminal that it gets; None = none.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = attrs.field(repr=False)
    cwd: str
    stdin: str | None = None
    inputs: Sequence[str] = ()
    streamed: bool = False
    terminal: tuple[int, int] | None = None


@attrs.frozen(kw_only=True)
class JobRecord:
    """One job.

    Attributes:
        info: what the world may know.
        kind: what was asked for.
        added: its place in the order of acceptance.
        seq: number of its last visible change.
        launched: whether it was handed to its supervisor, so that it may have run.
        launch: how to run it; None once it has ended.
    """

    info: JobInfo
    kind: JobKind
    added: int
    seq: int
    launched: bool = False
    launch: Launch | None = None

    @property
    def process_id(self) -> str:
        """The job's id."""
        return self.info.process_id

    @property
    def sandbox_id(self) -> str:
        """Where it lives."""
        return self.info.sandbox_id

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.info.finished


class SandboxStatus(enum.StrEnum):
    """Where a sandbox is (contract 1.4)."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"
    """On its way out: unknown to clients already."""


@attrs.frozen(kw_only=True)
class SandboxRecord:
    """One sandbox.

    Attributes:
        id: its id.
        added: its place in the order of creation.
        template: the template's name.
        template_id: its id at the time.
        status: where it is.
        created_at: Unix time.
        timeout_seconds: its life as it was asked for; None = no limit.
        expires_at: when it ends by itself, Unix time; None = never.
        internet_access: as asked for.
        env: variables of every job in it.
    """

    id: str
    added: int
    template: str
    template_id: str
    status: SandboxStatus = SandboxStatus.RUNNING
    created_at: float
    timeout_seconds: float | None = None
    expires_at: float | None = None
    internet_access: bool = False
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
