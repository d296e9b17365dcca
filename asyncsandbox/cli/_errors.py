"""From errors and results to one line on stderr and one exit status."""

from __future__ import annotations

import enum
import traceback
from typing import Any, Final

import typer
from typer.core import TyperGroup

from asyncsandbox.cli._output import discard_stdout, note
from asyncsandbox.errors import (
    AsyncSandboxError,
    AuthenticationError,
    InvalidRequestError,
    JobRemovedError,
    LeaseExpiredError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    SandboxClosedError,
    ServerUnreachableError,
    TransportError,
    WaitTimeoutError,
)
from asyncsandbox.models import JobResult, JobState

__all__ = ["ErrorBoundary", "Status", "status_of_error", "status_of_result"]


class Status(enum.IntEnum):
    """What the command's exit status says. The single digits are those of the contract's own command line."""

    OK = 0
    FAILED = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    NETWORK = 6
    RATE_LIMIT = 7
    JOB_TIMED_OUT = 124
    JOB_LOST = 125
    JOB_KILLED = 137
    BROKEN_PIPE = 141


SIGNAL_BASE: Final = 128
"""A shell's word for death by a signal is this and its number."""

# The first that fits counts: a time-out of a request is a TransportError too.
_FAMILIES: Final[tuple[tuple[tuple[type[Exception], ...], Status], ...]] = (
    ((InvalidRequestError,), Status.USAGE),
    ((AuthenticationError, PermissionDeniedError), Status.AUTH),
    ((NotFoundError, SandboxClosedError, LeaseExpiredError, JobRemovedError), Status.NOT_FOUND),
    ((WaitTimeoutError, RequestTimeoutError), Status.TIMEOUT),
    ((RateLimitError,), Status.RATE_LIMIT),
    ((TransportError, ServerUnreachableError), Status.NETWORK),
    ((Exception,), Status.FAILED),
)

_ENDS: Final = {
    JobState.COMPLETED: Status.OK,
    JobState.TIMED_OUT: Status.JOB_TIMED_OUT,
    JobState.KILLED: Status.JOB_KILLED,
    JobState.LOST: Status.JOB_LOST,
}


def status_of_error(error: Exception) -> Status:
    """Return the exit status of an error's family."""
    return next(status for family, status in _FAMILIES if isinstance(error, family))


def status_of_result(result: JobResult) -> int:
    """Return the exit status that stands for how one job ended, as a shell would say it.

    The job's own exit code; 128 and the signal's number; 124 after its time-out, 137 when it was killed, 125
    when it was lost.
    """
    if result.state in _ENDS:
        return _ENDS[result.state]
    if result.signal is not None:
        return SIGNAL_BASE + result.signal
    return result.exit_code or Status.FAILED


class ErrorBoundary(TyperGroup):
    """Turns what a command raises into one line on stderr and an exit status; with --debug, a traceback too."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except AsyncSandboxError as exc:
            if ctx.params.get("debug"):
                traceback.print_exception(exc)
            note(str(exc))
            raise typer.Exit(status_of_error(exc)) from exc
        except BrokenPipeError as exc:
            discard_stdout()
            raise typer.Exit(Status.BROKEN_PIPE) from exc
