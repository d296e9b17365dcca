"""Help, versions, mistakes, and what each exit status stands for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from asyncsandbox import JobResult, JobState, errors
from asyncsandbox.cli._errors import Status, status_of_error, status_of_result

_COMMANDS = [
    ["run"],
    ["serve"],
    ["ps"],
    ["logs"],
    ["wait"],
    ["kill"],
    ["rm"],
    ["sandbox", "create"],
    ["sandbox", "list"],
    ["sandbox", "kill"],
]


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_every_command_has_help(program: Any, command: list[str]) -> None:
    """--help and -h explain, with the keys of --json."""
    done = program(*command, "--help")
    assert done.status == 0
    assert done.err == ""
    assert f"Usage: asyncsandbox {' '.join(command)}" in done.out
    assert "--json" in done.out


def test_the_program_explains_its_statuses_and_its_server(program: Any) -> None:
    """What a script needs to know stands in the help of the program itself."""
    done = program("-h")
    assert "Exit status:" in done.out
    assert "ASYNCSANDBOX_URL" in done.out
    bare = program()
    assert (bare.status, bare.err) == (2, done.out)


def test_the_version_is_told(program: Any) -> None:
    """--version prints one line."""
    done = program("--version")
    assert done.status == 0
    assert done.out.startswith("asyncsandbox 0.")


@pytest.mark.parametrize(
    "args",
    [["nosuch"], ["run"], ["run", "--nosuch", "1"], ["run", "--env", "X", "1"], ["wait"], ["--nosuch"]],
)
def test_wrong_usage_is_status_2(program: Any, args: list[str]) -> None:
    """Usage errors name what is wrong and where help is."""
    done = program(*args)
    assert done.status == 2
    assert done.out == ""
    assert "Error: " in done.err
    assert "-h' for help" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ["run", "--background", "1"],
        ["ps"],
        ["logs", "x"],
        ["kill", "x"],
        ["sandbox", "create"],
    ],
    ids=" ".join,
)
def test_commands_that_need_a_server_say_how_to_get_one(program: Any, args: list[str]) -> None:
    """An embedded server would end with the command: the way out is named."""
    done = program(*args)
    assert done.status == 2
    assert "`asyncsandbox serve`" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_server_that_is_not_there_is_status_6(program: Any) -> None:
    """No connection is one line with the address."""
    done = program("ps", "--url", "http://127.0.0.1:9")
    assert done.status == 6
    assert "127.0.0.1:9" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_url_that_is_none_is_status_2(program: Any) -> None:
    """A typing mistake in the address is told before anything is tried."""
    assert program("ps", "--url", "nowhere").status == 2


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ("300", "'300' is no limit; write for example agent=300/min, or contract"),
        ("vm=1/min", "'vm' cannot be limited; there are: agent, control, create"),
        ("agent=1/day", "'day' is no unit of time; there are: s, sec, min, h"),
        ("agent=0/min", "would refuse everything"),
    ],
)
def test_a_senseless_rate_limit_is_told_in_words(program: Any, limits: str, says: str) -> None:
    """Before anything is served, with what would be right."""
    done = program("serve", "--rate-limit", limits)
    assert (done.status, done.out) == (2, "")
    assert "--rate-limit" in done.err
    assert says in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback(program: Any) -> None:
    """For those who mend the program itself; the line and the status stay."""
    done = program("--debug", "ps")
    assert done.status == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("asyncsandbox: `ps` needs a server")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(program: Any, missing: str) -> None:
    """Without the extra there is one line that says what to install."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from asyncsandbox.__main__ import main\nsys.argv = ['asyncsandbox', 'ps']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=program.env, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"pip install 'asyncsandbox[cli]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["sandbox", "--help"]])
def test_help_for_nobody_is_no_traceback(program: Any, args: list[str]) -> None:
    """A reader that is gone from the start is no reason to complain."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        popen = subprocess.Popen(
            [sys.executable, "-m", "asyncsandbox", *args],
            env=program.env,
            stdout=nobody,
            stderr=subprocess.PIPE,
        )
    _, err = popen.communicate(timeout=50)
    assert err == b""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequestError("x"), Status.USAGE),
        (errors.AuthenticationError("x"), Status.AUTH),
        (errors.PermissionDeniedError("x"), Status.AUTH),
        (errors.NotFoundError("x"), Status.NOT_FOUND),
        (errors.SandboxClosedError("x", sandbox_id="s"), Status.NOT_FOUND),
        (errors.JobRemovedError("x", process_id="p"), Status.NOT_FOUND),
        (errors.WaitTimeoutError("x", timeout=1, done=(), pending=()), Status.TIMEOUT),
        (errors.RequestTimeoutError("x", timeout=1), Status.TIMEOUT),
        (errors.ConnectError("x"), Status.NETWORK),
        (errors.ServerUnreachableError("x", url="u", done=(), pending=()), Status.NETWORK),
        (errors.RateLimitError("x"), Status.RATE_LIMIT),
        (errors.ServerError("x"), Status.FAILED),
        (errors.ConflictError("x"), Status.FAILED),
        (errors.EmbeddedServerError("x"), Status.FAILED),
        (errors.ProtocolError("x"), Status.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_each_family_of_errors_has_its_status(error: Exception, status: Status) -> None:
    """The documented statuses, family by family."""
    assert status_of_error(error) is status


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (JobResult(process_id="p", state=JobState.COMPLETED, exit_code=0), 0),
        (JobResult(process_id="p", state=JobState.FAILED, exit_code=42), 42),
        (JobResult(process_id="p", state=JobState.FAILED, signal=signal.SIGKILL), 137),
        (JobResult(process_id="p", state=JobState.FAILED), 1),
        (JobResult(process_id="p", state=JobState.TIMED_OUT, exit_code=0), 124),
        (JobResult(process_id="p", state=JobState.KILLED, signal=signal.SIGTERM), 137),
        (JobResult(process_id="p", state=JobState.LOST), 125),
    ],
    ids=lambda value: value.state.value if isinstance(value, JobResult) else str(value),
)
def test_each_end_of_a_job_has_its_status(result: JobResult, status: int) -> None:
    """A status of 0 is for a job that completed, and for nothing else."""
    assert status_of_result(result) == status
