"""Makes the main process of a job."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence

__all__ = ["RefusedError", "Spawned", "raise_file_limit", "spawn"]


class RefusedError(Exception):
    """The process could not be made; the message says why, for people."""


class Spawned:
    """A process that runs.

    Attributes:
        pid: its id, also that of its session and of its group.
        stdout: where what it writes can be read.
        stderr: the same for stderr.
    """

    __slots__ = ("pid", "stderr", "stdout")

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr


def raise_file_limit() -> tuple[int, int]:
    """Let this process have as many open files as it may; return the limit that jobs are to have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sys.platform == "linux":  # elsewhere a job could not be given its own limit back
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def spawn(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, stdin: str | None, file_limit: tuple[int, int]
) -> Spawned:
    """Run `argv` in a session of its own, its output in pipes.

    Pipes and not the spool files themselves: ``echo x > /dev/stderr`` would truncate a file, and only with
    pipes do jobs behave as under `subprocess.run` and is the kept output bounded.

    Raises:
        RefusedError: it cannot be run.
    """
    opened: list[int] = []
    try:
        source = _open_stdin(stdin, opened)
        stdout, stdout_end = _pipe(opened)
        stderr, stderr_end = _pipe(opened)
        process = subprocess.Popen(  # noqa: S603 - running what it is told is its task
            argv,
            env=env,
            cwd=cwd,
            stdin=source,
            stdout=stdout_end,
            stderr=stderr_end,
            start_new_session=True,
        )
        opened.remove(stdout)
        opened.remove(stderr)
    except (OSError, ValueError) as exc:
        raise RefusedError(_explain(exc, argv=argv, cwd=cwd, stdin=stdin)) from exc
    finally:
        for fd in opened:
            os.close(fd)
    # The supervisor reaps with waitpid(-1); `subprocess` must not remember this child, or wait for it.
    process.returncode = 0
    _limit_files(process.pid, file_limit)
    return Spawned(process.pid, stdout, stderr)


def _open_stdin(stdin: str | None, opened: list[int]) -> int:
    if stdin is None:
        return subprocess.DEVNULL
    opened.append(os.open(stdin, os.O_RDONLY | os.O_CLOEXEC))
    return opened[-1]


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    opened.extend(ends)
    return ends


def _limit_files(pid: int, file_limit: tuple[int, int]) -> None:
    # Popen has no hook for limits, so a job runs with the supervisor's own for its first microseconds.
    if sys.platform == "linux":
        # It may be over already, or have become another user's (a set-uid program).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, file_limit)


def _explain(exc: OSError | ValueError, *, argv: Sequence[str], cwd: str, stdin: str | None) -> str:
    program = argv[0] if argv else ""
    if not isinstance(exc, OSError):
        return f"{program!r} cannot be started: {exc}"
    if exc.filename is not None and exc.filename == stdin:
        return f"the standard input {stdin!r} cannot be read: {exc.strerror}"
    if exc.filename is not None and exc.filename == cwd:
        return f"the working directory {cwd!r} does not exist or cannot be entered: {exc.strerror}"
    if exc.errno == errno.ENOENT:
        return f"the program {program!r} was not found"
    reason = {
        errno.EACCES: "it may not be executed",
        errno.ENOEXEC: "it is no program for this machine and has no #! line",
        errno.E2BIG: "its arguments and environment are too long",
        errno.EAGAIN: "there are too many processes",
        errno.ENOMEM: "there is too little memory",
        errno.EMFILE: "too many files are open in this sandbox's supervisor",
        errno.ENFILE: "too many files are open on this machine",
    }.get(exc.errno or 0, exc.strerror)
    return f"the program {program!r} cannot be started: {reason}"
