"""What streams of a sandbox tell: output as it is written, the end of a run, changes of files."""

from __future__ import annotations

import attrs

from asyncsandbox.models import JobState, StreamName

__all__ = ["FileChange", "StreamOutput", "StreamResult"]


@attrs.frozen(kw_only=True)
class StreamOutput:
    """A piece of what a run wrote.

    Attributes:
        stream: "stdout" or "stderr".
        text: what it wrote; a piece may begin and end anywhere but inside a character.
        at: when the server sent it, Unix time; None when it does not say.
    """

    stream: StreamName
    text: str
    at: float | None = None


@attrs.frozen(kw_only=True)
class StreamResult:
    """The end of a run: the last event of its stream.

    Attributes:
        success: whether it ended with exit code 0.
        exit_code: as the kernel gave it; None after a signal or a time-out, or when the server does not say.
        signal: the number of the signal that ended it; None otherwise.
        state: completed, failed or timed_out; killed or lost when the sandbox was ended meanwhile.
        execution_time: wall-clock seconds on the server; None when it does not say.
        timeout: the limit that was asked for, in seconds.
        truncated: whether the server dropped some of the output.
    """

    success: bool
    exit_code: int | None = None
    signal: int | None = None
    state: JobState
    execution_time: float | None = None
    timeout: float | None = None
    truncated: bool = False


@attrs.frozen(kw_only=True)
class FileChange:
    """Something happened to a file or directory.

    Attributes:
        path: which, as clients write it: ``/workspace/…``.
        event: "created", "modified", "deleted", "renamed", or what the server says.
        at: when the server told of it, Unix time; None when it does not say.
    """

    path: str
    event: str
    at: float | None = None
