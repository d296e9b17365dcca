"""Makes the main process of a job."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

__all__ = ["RefusedError", "Spawned", "raise_file_limit", "spawn", "spawn_in_terminal"]


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
    _adopt(process, file_limit)
    return Spawned(process.pid, stdout, stderr)


def spawn_in_terminal(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    size: tuple[int, int],
    file_limit: tuple[int, int],
) -> tuple[int, int]:
    """Run `argv` in a session of its own that a new pseudo-terminal controls.

    Args:
        argv: what to run.
        env: its whole environment.
        cwd: where it runs.
        size: columns and rows.
        file_limit: of open files.

    Returns:
        Its pid, and where the terminal is read from and typed into.

    Raises:
        RefusedError: it cannot be run.
    """
    opened: list[int] = []
    try:
        master, slave = os.openpty()
        opened += master, slave
        termios.tcsetwinsize(master, (size[1], size[0]))
        process = subprocess.Popen(  # noqa: S603 - running what it is told is its task
            argv,
            env=env,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_control_by_stdin,  # noqa: PLW1509 - there is one thread here, which it is safe in
        )
        opened.remove(master)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        raise RefusedError(_explain(exc, argv=argv, cwd=cwd, stdin=None)) from exc
    finally:
        for fd in opened:
            os.close(fd)
    _adopt(process, file_limit)
    return process.pid, master


def _control_by_stdin() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _adopt(process: subprocess.Popen[bytes], file_limit: tuple[int, int]) -> None:
    # The supervisor reaps with waitpid(-1); `subprocess` must not remember this child, or wait for it.
    process.returncode = 0
    _limit_files(process.pid, file_limit)


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


def _explain(exc: Exception, *, argv: Sequence[str], cwd: str, stdin: str | None) -> str:
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
