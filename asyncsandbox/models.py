"""Values: what goes down (specs), what comes up (records, results, output), and how to poll.

All of them are frozen. All durations and times are seconds as floats; times are Unix time on the server's
clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self, TypedDict

import attrs

from asyncsandbox.errors import (
    InvalidRequestError,
    JobFailedError,
    JobKilledError,
    JobLostError,
    JobTimedOutError,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "EndReason",
    "ExecutionResult",
    "FileInfo",
    "JobInfo",
    "JobOptions",
    "JobRef",
    "JobResult",
    "JobSpec",
    "JobState",
    "OutputChunk",
    "OutputEvent",
    "PollPolicy",
    "SandboxInfo",
    "StreamName",
    "TemplateInfo",
    "merge_specs",
]

DEFAULT_TIMEOUT: Final = 300.0
"""Seconds that a job may run when nobody says otherwise (contract 2.3)."""

_STDERR_TAIL: Final = 2_000

StreamName = Literal["stdout", "stderr"]


class JobState(enum.StrEnum):
    """Where a job is. The last five are final and never change."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    KILLED = "killed"
    LOST = "lost"

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class EndReason(enum.StrEnum):
    """Why a job ended."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    KILLED = "killed"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    DISK_FULL = "disk_full"
    LOST = "lost"
    UNKNOWN = "unknown"


def _refuse(what: str) -> InvalidRequestError:
    return InvalidRequestError(what, code="INVALID_REQUEST")


def _has_bytes(text: str) -> bool:
    """Whether a text can reach a process: a lone surrogate stands for no character and for no byte."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _env(value: Mapping[str, str] | None) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _refuse(f"env must be a mapping of strings, not {type(value).__name__}")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise _refuse(f"env must map strings to strings, but {key!r} maps to {type(item).__name__}")
        if not key or "=" in key or "\0" in key + item or not _has_bytes(key + item):
            raise _refuse(f"env has the name or value {key!r}, which no environment can hold")
    return dict(value)


def _args(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str | bytes):
        raise _refuse("args must be a sequence of strings, not one string; write args=('a', 'b')")
    if not isinstance(value, Iterable):
        raise _refuse(f"args must be a sequence of strings, not {type(value).__name__}")
    items = tuple(value)
    for item in items:
        if not isinstance(item, str):
            raise _refuse(f"args must be strings, not {type(item).__name__}")
        if not _has_bytes(item):
            raise _refuse(
                f"args holds {item!r}, which no process can be given: a lone surrogate is no character"
            )
    return items


def _globs(value: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise _refuse(f"collect must be glob patterns, not {type(value).__name__}")
    items = (value,) if isinstance(value, str) else tuple(value)
    for pattern in items:
        if not isinstance(pattern, str) or not pattern:
            raise _refuse(f"collect must be glob patterns, not {pattern!r}")
    return items


def _files(value: Mapping[str, bytes | str] | None) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if value is not None and not isinstance(value, Mapping):
        raise _refuse(f"files must map paths to bytes, not {type(value).__name__}")
    for path, data in (value or {}).items():
        if not isinstance(path, str) or not path or not isinstance(data, bytes | bytearray | str):
            raise _refuse(f"files must map paths to bytes, but {path!r} maps to {type(data).__name__}")
        files[path] = _utf8(data, f"the file {path!r}") if isinstance(data, str) else bytes(data)
    return files


def _stdin(value: str | bytes | None) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise _refuse(f"stdin must be str or bytes, not {type(value).__name__}")
    return _utf8(value, "stdin")


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise _refuse(f"{what} has a lone surrogate, which no UTF-8 can hold; give bytes instead") from exc


def _timeout(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(f"timeout must be seconds, not {type(value).__name__}")
    if not value > 0:
        raise _refuse(f"timeout must be more than 0 seconds, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # an int may have any length
        seconds = math.inf
    if math.isinf(seconds):
        raise _refuse(f"timeout must be a finite number of seconds, not {seconds!r}")
    return seconds


def _text(name: str) -> Any:
    def check(_instance: object, _attribute: object, value: object) -> None:
        if value is not None and not isinstance(value, str):
            raise _refuse(f"{name} must be a string, not {type(value).__name__}")
        if value is not None and not _has_bytes(value):
            raise _refuse(f"{name} is {value!r}: a lone surrogate is no character")

    return check


def _code(_instance: object, _attribute: object, value: Any) -> None:
    if not isinstance(value, str):
        raise _refuse(f"code must be a string, not {type(value).__name__}")
    if not value.strip():
        raise _refuse("code is empty; give the text of the program to run")


@attrs.frozen
class JobSpec:
    """One job to start. What is left None takes the default of the call that starts it.

    Attributes:
        code: the text of the program.
        language: "python", "javascript", "bash" or "go"; None = the call's default, else "python".
        timeout: seconds that the job may run, counted from the moment it runs; None = the call's default,
            else 300.
        env: variables for this job, on top of the sandbox's.
        name: for people; need not be unique.
        working_dir: where it runs. None = ``/workspace``, which the jobs of a sandbox share; a job with
            `files` or `collect` gets a directory of its own instead, with nothing in it but the program.
        stdin: what it reads from standard input (text is sent as UTF-8); None = nothing, end of file at once.
        args: what follows the program's name in ``sys.argv`` or ``$@``.
        files: ``{path: content}``, written before it starts; relative paths start at its working directory.
        collect: glob patterns, relative to its working directory; what matches when it has ended comes back
            in `JobResult.files`.
        metadata: yours; never sent.

    Raises:
        InvalidRequestError: a value that no server could accept; the message names it.
    """

    code: str = attrs.field(validator=_code)
    language: str | None = attrs.field(default=None, kw_only=True, validator=_text("language"))
    timeout: float | None = attrs.field(default=None, kw_only=True, converter=_timeout)
    env: Mapping[str, str] | None = attrs.field(default=None, kw_only=True, converter=_env)
    name: str | None = attrs.field(default=None, kw_only=True, validator=_text("name"))
    working_dir: str | None = attrs.field(default=None, kw_only=True, validator=_text("working_dir"))
    stdin: bytes | None = attrs.field(default=None, kw_only=True, converter=_stdin)
    args: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_args)
    files: Mapping[str, bytes] = attrs.field(default=None, kw_only=True, converter=_files)
    collect: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_globs)
    metadata: Any = attrs.field(default=None, kw_only=True, eq=False)


class JobOptions(TypedDict, total=False):
    """What `JobSpec` takes besides the code, as keywords of calls that start several jobs."""

    language: str | None
    timeout: float | None
    env: Mapping[str, str] | None
    name: str | None
    working_dir: str | None
    stdin: str | bytes | None
    args: Sequence[str]
    files: Mapping[str, bytes | str] | None
    collect: str | Sequence[str]


def merge_specs(spec: str | JobSpec, defaults: Mapping[str, Any]) -> JobSpec:
    """Return `spec` with what it leaves open taken from `defaults`.

    Args:
        spec: the text of a program, or a spec. `env` and `files` are merged, the spec's values first.
        defaults: names and values as `JobSpec` takes them, without `code`.

    Raises:
        InvalidRequestError: `spec` is neither, or a value is impossible.
    """
    if isinstance(spec, str):
        return JobSpec(spec, **defaults)
    if not isinstance(spec, JobSpec):
        raise _refuse(f"a job is given as a string or a JobSpec, not {type(spec).__name__}")
    changes: dict[str, Any] = {}
    for key, value in defaults.items():
        own = getattr(spec, key)
        if key in ("env", "files"):
            if value:
                changes[key] = {**value, **(own or {})}
        elif own is None or own == ():
            changes[key] = value
    return attrs.evolve(spec, **changes) if changes else spec


@attrs.frozen(kw_only=True)
class JobRef:
    """Names one job, for another program or another day. Pickles; give it to `Client.job`.

    Attributes:
        server: the server's URL, or "embedded".
        sandbox_id: the sandbox.
        process_id: the job.
    """

    server: str
    sandbox_id: str
    process_id: str


@attrs.frozen(kw_only=True)
class JobInfo:
    """What a server said of a job, as it was last seen.

    Attributes:
        process_id: the job's id.
        sandbox_id: where it lives.
        name: as given at its start; None when none was.
        language: of its code; "" when the server does not say.
        state: where it is.
        raw_status: the status word as the server wrote it.
        end_reason: why it ended; None while it has not.
        exit_code: as the kernel gave it; None while it runs, after a signal, and where there was none.
        signal: the number of the signal that ended it; None otherwise.
        pid: as commands in the sandbox see it; None when unknown.
        queued_at: when the server accepted it, Unix time; None when unknown.
        started_at: when its process began to run.
        ended_at: when its last process was gone.
        timeout: its limit in seconds; None when the server does not say.
        command: the command line, of a background command; None for code.
        working_dir: where it runs; None when the server does not say.
        stdout_size: bytes it has written to stdout so far; None when the server does not say.
        stderr_size: the same for stderr.
        stdout_truncated: whether the middle of its stdout was dropped.
        stderr_truncated: the same for stderr.
    """

    process_id: str
    sandbox_id: str = ""
    name: str | None = None
    language: str = ""
    state: JobState = JobState.RUNNING
    raw_status: str = ""
    end_reason: EndReason | None = None
    exit_code: int | None = None
    signal: int | None = None
    pid: int | None = None
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    timeout: float | None = None
    command: str | None = None
    working_dir: str | None = None
    stdout_size: int | None = None
    stderr_size: int | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def finished(self) -> bool:
        """Whether the job has ended."""
        return self.state.finished

    @property
    def duration(self) -> float | None:
        """Seconds from the start of its process to its end, queue excluded; None until both are known."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.started_at)


def _describe_end(exit_code: int | None, signal: int | None) -> str:
    if signal is not None:
        return f"was ended by signal {signal}"
    return "failed" if exit_code is None else f"failed with exit code {exit_code}"


def _check_end(  # the one place where an end becomes an exception
    *,
    what: str,
    process_id: str,
    state: JobState,
    exit_code: int | None,
    signal: int | None,
    stderr: str,
    timeout: float | None,
    note: str = "",
) -> None:
    tail = stderr[-_STDERR_TAIL:]
    match state:
        case JobState.FAILED:
            hint = f": {tail.strip().splitlines()[-1]}" if tail.strip() else ""
            raise JobFailedError(
                f"{what} {_describe_end(exit_code, signal)}{hint}",
                process_id=process_id,
                exit_code=exit_code,
                signal=signal,
                stderr_tail=tail,
            )
        case JobState.TIMED_OUT:
            limit = "its time-out" if timeout is None else f"its time-out of {timeout:g} s"
            raise JobTimedOutError(
                f"{what} ran longer than {limit} and was ended; raise timeout= where it is started",
                process_id=process_id,
                timeout=timeout,
            )
        case JobState.KILLED:
            raise JobKilledError(f"{what} was killed", process_id=process_id)
        case JobState.LOST:
            raise JobLostError(
                f"{what} is lost: {note or 'its server no longer knows it'}", process_id=process_id
            )
        case _:
            return


@attrs.frozen(kw_only=True)
class JobResult:
    """How a job ended, and the end of what it wrote.

    Attributes:
        process_id: the job's id.
        name: as given at its start; None when none was.
        sandbox_id: where it ran.
        state: completed, failed, timed_out, killed or lost.
        end_reason: why it ended.
        exit_code: as the kernel gave it; None after a signal and where there was none.
        signal: the number of the signal that ended it; None otherwise.
        stdout_bytes: the last bytes of its stdout, at most the client's `result_limit`.
        stderr_bytes: the same for stderr.
        stdout_truncated: whether `stdout_bytes` is not all that it wrote; `Job.output` reads the rest.
        stderr_truncated: the same for stderr.
        queued_at: when the server accepted it, Unix time, server clock; None when unknown.
        started_at: when its process began to run; None when it never did, or unknown.
        ended_at: when its last process was gone; None when unknown.
        duration: wall-clock seconds from start to end, queue excluded, server clock; None when unknown.
        files: what `JobSpec.collect` matched, ``{path: content}``.
        output_error: why output or files are incomplete; None when they are not.
        timeout: its limit in seconds; None when the server does not say.
    """

    process_id: str
    name: str | None = None
    sandbox_id: str = ""
    state: JobState
    end_reason: EndReason | None = None
    exit_code: int | None = None
    signal: int | None = None
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    duration: float | None = None
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    output_error: str | None = None
    timeout: float | None = None

    @property
    def stdout(self) -> str:
        """`stdout_bytes` as text; what is no UTF-8 becomes U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """`stderr_bytes` as text; what is no UTF-8 becomes U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether the job completed: exit code 0 and nothing else."""
        return self.state is JobState.COMPLETED

    def check(self) -> Self:
        """Return the result if the job completed.

        Raises:
            JobFailedError: another exit code than 0, or a signal.
            JobTimedOutError: it ran longer than its time-out.
            JobKilledError: it was killed.
            JobLostError: its server no longer knows it.
        """
        _check_end(
            what=f"job {self.process_id!r}",
            process_id=self.process_id,
            state=self.state,
            exit_code=self.exit_code,
            signal=self.signal,
            stderr=self.stderr,
            timeout=self.timeout,
            note=self.output_error or "",
        )
        return self


@attrs.frozen(kw_only=True)
class ExecutionResult:
    """What a synchronous run of code or of a command gave.

    Attributes:
        stdout: all that it wrote to stdout, as text, within the server's limit.
        stderr: the same for stderr.
        exit_code: as the kernel gave it; None after a signal or a time-out.
        signal: the number of the signal that ended it; None otherwise.
        state: completed, failed or timed_out; killed or lost when the sandbox was ended meanwhile.
        duration: wall-clock seconds on the server; None when it does not say.
        timeout: the limit that was asked for, in seconds.
        result: of code, the value of its last expression as its ``repr``; None when there is none.
        png: the first picture: a figure that was shown or left open, or the last value's own.
        figures: all pictures, the first one included.
        html: the last value as HTML, such as a table; None when it has no such form.
        svg: the same as SVG.
        markdown: the same as Markdown.
        json: the same as what JSON can say.
        dataframe: the data of a table, as the server puts it; ours: ``columns``, ``index`` and ``data``.
        omitted: names of those among these that were too large to be sent.
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    signal: int | None = None
    state: JobState = JobState.COMPLETED
    duration: float | None = None
    timeout: float | None = None
    result: str | None = None
    png: bytes | None = attrs.field(default=None, repr=False)
    figures: Sequence[bytes] = attrs.field(default=(), repr=False)
    html: str | None = attrs.field(default=None, repr=False)
    svg: str | None = attrs.field(default=None, repr=False)
    markdown: str | None = attrs.field(default=None, repr=False)
    json: Any = attrs.field(default=None, repr=False)
    dataframe: Any = attrs.field(default=None, repr=False)
    omitted: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.state is JobState.COMPLETED

    def check(self) -> Self:
        """Return the result if it ended with exit code 0.

        Raises:
            JobFailedError: another exit code than 0, or a signal.
            JobTimedOutError: it ran longer than its time-out.
        """
        _check_end(
            what="the execution",
            process_id="",
            state=self.state,
            exit_code=self.exit_code,
            signal=self.signal,
            stderr=self.stderr,
            timeout=self.timeout,
        )
        return self


@attrs.frozen(kw_only=True)
class OutputChunk:
    """A piece of what a job wrote.

    Attributes:
        data: the bytes; empty when there is nothing yet.
        offset: where `data` really starts, counted in bytes the job wrote. Later than asked for where the
            middle of a long output was dropped.
        next_offset: where to go on.
        eof: whether nothing will follow.
    """

    data: bytes
    offset: int
    next_offset: int
    eof: bool


@attrs.frozen(kw_only=True)
class OutputEvent:
    """A piece of output as it was followed.

    Attributes:
        stream: "stdout" or "stderr".
        data: the bytes.
        offset: where they start in that stream.
    """

    stream: StreamName
    data: bytes
    offset: int

    @property
    def text(self) -> str:
        """`data` as text; what is no UTF-8, or cut in the middle of a character, becomes U+FFFD."""
        return self.data.decode(errors="replace")


@attrs.frozen(kw_only=True)
class SandboxInfo:
    """What the control plane says of a sandbox.

    Attributes:
        id: the sandbox's id.
        status: "creating", "running", "paused", "stopped", or what the server says.
        template: the template's name; "" when the server does not say.
        created_at: Unix time; None when unknown.
        expires_at: when the server will end it; None = never.
        timeout_seconds: its life as it was asked for; None = no limit.
        internet_access: whether it reaches the internet; None when the server does not say.
        public_host: the URL of its agent; None when the server does not say.
    """

    id: str
    status: str
    template: str = ""
    created_at: float | None = None
    expires_at: float | None = None
    timeout_seconds: float | None = None
    internet_access: bool | None = None
    public_host: str | None = None


@attrs.frozen(kw_only=True)
class TemplateInfo:
    """An environment that sandboxes are made from.

    Attributes:
        id: the template's id.
        name: what `Client.create_sandbox` takes.
        display_name: for people.
        description: for people; "" when there is none.
    """

    id: str
    name: str
    display_name: str = ""
    description: str = ""


@attrs.frozen(kw_only=True)
class FileInfo:
    """A file or directory of a sandbox.

    Attributes:
        name: the last part of its path.
        path: the whole path.
        size: bytes.
        is_dir: whether it is a directory.
        permissions: as ``ls -l`` writes them; "" when the server does not say.
        modified_at: Unix time; None when unknown.
    """

    name: str
    path: str
    size: int
    is_dir: bool
    permissions: str = ""
    modified_at: float | None = None


@attrs.frozen(kw_only=True)
class SandboxMetrics:
    """What a sandbox has done so far, as its agent counts. What the server does not say is None.

    Attributes:
        uptime: seconds.
        requests: requests to the agent.
        errors: those among them that were refused or failed.
        running: executions and jobs that run now.
        executions: executions and jobs in all.
    """

    uptime: float | None = None
    requests: int | None = None
    errors: int | None = None
    running: int | None = None
    executions: int | None = None


@attrs.frozen(kw_only=True)
class SystemProcess:
    """A process of the operating system that a sandbox runs on. What the server does not say is "" or None.

    Attributes:
        pid: its number.
        command: its command line.
        name: its name.
        user: whose it is.
        status: in the words of the operating system, such as "sleeping".
        cpu_percent: share of one core.
    """

    pid: int
    command: str = ""
    name: str = ""
    user: str = ""
    status: str = ""
    cpu_percent: float | None = None


def _positive(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is None and attribute.name == "unreachable_after":
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        what = f"{type(instance).__name__}.{attribute.name}"
        raise _refuse(f"{what} must be a finite number above 0, not {value!r}")


@attrs.frozen(kw_only=True)
class PollPolicy:
    """How the status of jobs is polled. `asyncsandbox.backoff` has the formulas.

    Attributes:
        floor: the shortest gap between two looks at a sandbox, seconds.
        factor: how much longer each gap is than the one before, at least 1.
        cap: the longest gap, seconds.
        age_share: no gap is longer than this share of the age of the youngest unfinished job.
        jitter: each gap is varied by up to this share, 0 to 1.
        request_timeout: seconds that one look may take.
        retry_floor: first delay after a failed look, seconds, before jitter; doubles each time.
        retry_cap: the longest such delay.
        unreachable_after: after so many seconds of nothing but errors a server counts as unreachable;
            None = never.

    Raises:
        InvalidRequestError: a value out of its range.
    """

    floor: float = attrs.field(default=0.05, validator=_positive)
    factor: float = attrs.field(default=1.5, validator=_positive)
    cap: float = attrs.field(default=2.0, validator=_positive)
    age_share: float = attrs.field(default=0.3, validator=_positive)
    jitter: float = attrs.field(default=0.1)
    request_timeout: float = attrs.field(default=15.0, validator=_positive)
    retry_floor: float = attrs.field(default=0.1, validator=_positive)
    retry_cap: float = attrs.field(default=5.0, validator=_positive)
    unreachable_after: float | None = attrs.field(default=60.0, validator=_positive)

    @jitter.validator
    def _check_jitter(self, _attribute: object, value: float) -> None:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise _refuse(f"PollPolicy.jitter must be between 0 and 1, not {value!r}")

    def __attrs_post_init__(self) -> None:
        """Refuse bounds that contradict each other."""
        if self.factor < 1:
            raise _refuse(f"PollPolicy.factor must be at least 1, not {self.factor!r}")
        if self.cap < self.floor:
            raise _refuse(f"PollPolicy.cap ({self.cap!r}) must not be below floor ({self.floor!r})")
