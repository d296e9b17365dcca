"""The wire: what one side writes the other reads, and what servers say that are not ours."""

from __future__ import annotations

import base64
import contextlib
import json
import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsandbox import (
    EndReason,
    ExecutionResult,
    JobInfo,
    JobSpec,
    JobState,
    ProtocolError,
    SandboxMetrics,
    SystemProcess,
    protocol,
)
from asyncsandbox.protocol import Reply

times = st.none() | st.floats(0, 4e9).map(lambda t: round(t, 6))
texts = st.none() | st.text(max_size=20)
sizes = st.none() | st.integers(0, 2**60)

_REASONS = {
    JobState.TIMED_OUT: EndReason.TIMEOUT,
    JobState.KILLED: EndReason.KILLED,
    JobState.LOST: EndReason.LOST,
    JobState.COMPLETED: EndReason.EXIT,
}


@st.composite
def infos(draw: st.DrawFn) -> JobInfo:
    """Return a record that a server may hold."""
    state = draw(st.sampled_from(JobState))
    signal = draw(st.none() | st.integers(1, 64)) if state is JobState.FAILED else None
    exit_code = None
    if state is JobState.COMPLETED:
        exit_code = 0
    elif state is JobState.FAILED and signal is None:
        exit_code = draw(st.integers(1, 255))
    reason = None
    if state.finished:
        reason = _REASONS.get(state, EndReason.EXIT if signal is None else EndReason.SIGNAL)
    odd = state in (JobState.TIMED_OUT, JobState.LOST)
    return JobInfo(
        process_id=draw(st.text(min_size=1, max_size=12)),
        sandbox_id="s",
        name=draw(texts),
        language=draw(st.sampled_from(["", "python", "bash"])),
        state=state,
        raw_status="failed" if odd else state.value,
        end_reason=reason,
        exit_code=exit_code,
        signal=signal,
        pid=draw(st.none() | st.integers(1, 2**22)),
        queued_at=draw(times),
        started_at=draw(times),
        ended_at=draw(times) if state.finished else None,
        timeout=draw(st.none() | st.floats(0.001, 1e6)),
        command=draw(texts),
        working_dir=draw(texts),
        stdout_size=draw(sizes),
        stderr_size=draw(sizes),
        stdout_truncated=draw(st.booleans()),
        stderr_truncated=draw(st.booleans()),
    )


def close(a: float | None, b: float | None) -> bool:
    """Compare times that went through text."""
    return a == b or (a is not None and b is not None and math.isclose(a, b, abs_tol=2e-6))


@given(infos(), st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_a_record_survives_the_wire(info: JobInfo, stdout: bytes, stderr: bytes | None) -> None:
    """Encoding, JSON and decoding give back the record and the bytes, whatever they are."""
    info = attrs.evolve(info, stdout_size=len(stdout))
    text = json.dumps(protocol.encode_process(info, stdout=stdout, stderr=stderr))
    row = protocol.decode_process(json.loads(text), sandbox_id="s")
    for field in ("queued_at", "started_at", "ended_at"):
        assert close(getattr(row.info, field), getattr(info, field))
    forget = {"queued_at": None, "started_at": None, "ended_at": None}
    assert attrs.evolve(row.info, **forget) == attrs.evolve(info, **forget)
    assert row.stdout == stdout
    assert row.stderr == (stderr if stderr is not None and info.stderr_size == len(stderr) else None)


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"status": "queued"}, JobState.QUEUED),
        ({"status": "running"}, JobState.RUNNING),
        ({"status": "RUNNING"}, JobState.RUNNING),
        ({"status": "completed", "exit_code": 0}, JobState.COMPLETED),
        ({"status": "completed"}, JobState.COMPLETED),
        ({"status": "completed", "exit_code": 2}, JobState.FAILED),
        ({"status": "failed", "exit_code": 1}, JobState.FAILED),
        ({"status": "failed", "timed_out": True}, JobState.TIMED_OUT),
        ({"status": "failed", "end_reason": "timeout"}, JobState.TIMED_OUT),
        ({"status": "timeout"}, JobState.TIMED_OUT),
        ({"status": "killed"}, JobState.KILLED),
        ({"status": "failed", "end_reason": "lost"}, JobState.LOST),
        ({"status": "snoozing"}, JobState.RUNNING),
        ({"status": "snoozing", "exit_code": 0}, JobState.COMPLETED),
        ({"status": "snoozing", "exit_code": 9}, JobState.FAILED),
        ({"status": "snoozing", "end_time": "2026-01-02T03:04:05Z"}, JobState.FAILED),
        ({}, JobState.RUNNING),
    ],
    ids=str,
)
def test_states_of_any_server_are_read_as_the_design_says(row: dict[str, object], state: JobState) -> None:
    """Unknown words are running until the row shows an end; the raw word is kept."""
    info = protocol.decode_process({"process_id": "p", **row}, sandbox_id="s").info
    assert info.state is state
    assert info.raw_status == str(row.get("status", ""))
    assert (info.end_reason is not None) == state.finished


def test_either_spelling_of_times_is_read() -> None:
    """O and D disagree on all of them (contract 2.4)."""
    for start, end in (("start_time", "end_time"), ("started_at", "completed_at")):
        row = {
            "process_id": "p",
            "status": "completed",
            start: "2026-01-02T03:04:05Z",
            end: "2026-01-02T03:04:06.5Z",
        }
        info = protocol.decode_process(row, sandbox_id="s").info
        assert info.duration == 1.5


def test_a_stock_row_without_output_holds_none() -> None:
    """Absent is not empty."""
    row = protocol.decode_process({"process_id": "p", "status": "completed"}, sandbox_id="s")
    assert (row.stdout, row.stderr) == (None, None)
    partial = protocol.decode_process({"process_id": "p", "status": "running", "stdout": "x"}, sandbox_id="s")
    assert partial.stdout is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05", 1767323045.0),
        ("2026-01-02T04:04:05.25+01:00", 1767323045.25),
        ("2026-01-02T03:04:05.123456789Z", 1767323045.123456),
        (17, 17.0),
        ("soon", None),
        ("", None),
        (None, None),
        (True, None),
        (float("nan"), None),
    ],
)
def test_times_of_any_server_are_read(value: object, expected: float | None) -> None:
    """With and without offset, nanoseconds too; anything else is unknown."""
    assert protocol.unix_time(value) == expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"<html>", b'{"processes": 3}', b'{"processes": [1]}', b"{}"]
)
def test_a_broken_list_is_a_protocol_error(body: bytes) -> None:
    """Never a KeyError, never an empty list by mistake."""
    with pytest.raises(ProtocolError):
        protocol.decode_processes(Reply(status=200, body=body), sandbox_id="s", since=None)


def test_rows_without_an_id_are_a_protocol_error() -> None:
    """There is nothing to attach them to."""
    with pytest.raises(ProtocolError, match="without an id"):
        protocol.decode_process({"status": "running"}, sandbox_id="s")
    with pytest.raises(ProtocolError, match="no process_id"):
        protocol.decode_started(Reply(status=200, body=b'{"status": "running"}'), sandbox_id="s")
    with pytest.raises(ProtocolError, match="without an id"):
        protocol.decode_sandbox({"status": "running"})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_whatever_a_server_sends_is_a_value_or_a_protocol_error(value: object) -> None:
    """No parser raises anything else, in any field."""
    row = dict.fromkeys(
        ("status", "exit_code", "signal", "name", "stdout", "stdout_base64", "start_time", "pid", "timeout"),
        value,
    )
    protocol.decode_process({"process_id": "p", **row}, sandbox_id="s")
    protocol.decode_features({"features": value})
    protocol.decode_token({"auth_token": value, "token_expires_at": value})
    protocol.retry_after({}, {"retry_after": value, "error": value, "details": value})
    protocol.decode_error(
        Reply(status=500, body=json.dumps({"error": value, "code": value}).encode()), what="x"
    )
    with contextlib.suppress(ProtocolError):
        protocol.decode_processes(
            Reply(status=200, body=json.dumps(value).encode()), sandbox_id="s", since=None
        )


def test_a_start_carries_only_what_was_asked_for() -> None:
    """Plain code needs no extension; whole seconds are whole on the wire."""
    assert protocol.encode_code(JobSpec("x")) == {"code": "x", "language": "python", "timeout": 300}
    assert type(protocol.encode_code(JobSpec("x", timeout=5.0))["timeout"]) is int
    body = protocol.encode_code(
        JobSpec("x", timeout=0.5, args=("a",), stdin="é", files={"f": b"\xff"}, env={"A": "b"}, name="n")
    )
    assert body["timeout"] == 0.5
    assert base64.b64decode(body["stdin_base64"]) == "é".encode()
    assert body["files"] == {"f": "/w=="}
    assert body["own_directory"] is True
    assert protocol.needs_inputs(body) == ["args", "stdin", "files"]
    placed = protocol.encode_code(JobSpec("x", files={"f": b""}, working_dir="/workspace/d"))
    assert (placed["workdir"], placed["working_dir"], "own_directory" in placed) == (
        "/workspace/d",
        "/workspace/d",
        False,
    )


def test_a_command_line_goes_to_a_shell_and_a_program_does_not() -> None:
    """As every official SDK sends it (contract 2.7)."""
    options: dict[str, object] = {"timeout": 30, "env": None, "working_dir": "d", "name": "n"}
    line = protocol.encode_command("echo $X", args=None, **options)  # type: ignore[arg-type]
    assert (line["command"], line["args"], line["workdir"], line["name"]) == (
        "bash",
        ["-c", "echo $X"],
        "d",
        "n",
    )
    program = protocol.encode_command("ls", args=["-l"], **options)  # type: ignore[arg-type]
    assert (program["command"], program["args"]) == ("ls", ["-l"])


def test_errors_can_be_read_by_every_official_client() -> None:
    """Nested and flat on the control plane, flat with the text twice on the agent (contract 1.7, 2)."""
    control = protocol.encode_error("no", code="C", request_id="r", path="/p", agent=False)
    assert control["error"]["message"] == control["message"] == "no"
    agent = protocol.encode_error("no", code="C", request_id="r", path="/p", details={"a": 1}, agent=True)
    assert agent["error"] == agent["message"] == "no"
    assert agent["details"] == {"a": 1}


def test_an_error_without_a_readable_body_still_says_what_came() -> None:
    """A proxy's page, or nothing at all."""
    error = protocol.decode_error(Reply(status=502, body=b"<b>bad gateway</b>"), what="doing it")
    assert str(error) == "doing it: the server answered 502: <b>bad gateway</b>"
    assert "no reason given" in str(protocol.decode_error(Reply(status=500), what="x"))


def test_output_headers_must_be_there() -> None:
    """Without them nobody could go on reading."""
    headers = {"x-output-offset": "3", "x-output-next-offset": "5", "x-output-eof": "true"}
    chunk = protocol.decode_output(Reply(status=200, body=b"ab", headers=headers), offset=0)
    assert (chunk.offset, chunk.next_offset, chunk.eof) == (3, 5, True)
    with pytest.raises(ProtocolError, match="X-Output-Next-Offset"):
        protocol.decode_output(Reply(status=200, body=b"ab"), offset=0)


def test_execution_replies_of_any_server() -> None:
    """Missing fields, signals, and the 408 that D documents."""

    def read(**body: object) -> tuple[JobState, int | None, int | None]:
        result = protocol.decode_execution(Reply(status=200, body=json.dumps(body).encode()), timeout=1)
        return result.state, result.exit_code, result.signal

    assert read(stdout="x", exit_code=0, success=True) == (JobState.COMPLETED, 0, None)
    assert read(stdout="x") == (JobState.COMPLETED, None, None)
    assert read(success=False) == (JobState.FAILED, None, None)
    assert read(exit_code=2, success=False) == (JobState.FAILED, 2, None)
    assert read(exit_code=-9, signal=9) == (JobState.FAILED, None, 9)
    late = Reply(status=408, body=b'{"code": "EXECUTION_TIMEOUT", "details": {"stdout": "so far"}}')
    result = protocol.decode_execution_timeout(late, timeout=1)
    assert result is not None
    assert (result.state, result.stdout) == (JobState.TIMED_OUT, "so far")
    assert protocol.decode_execution_timeout(Reply(status=408, body=b"{}"), timeout=1) is None
    assert protocol.decode_execution_timeout(Reply(status=408, body=b"x"), timeout=1) is None


def test_rich_results_are_read_as_far_as_they_make_sense() -> None:
    """The contract's fields, our lists beside them, and whatever else a server may put there."""

    def read(**body: object) -> ExecutionResult:
        return protocol.decode_execution(Reply(status=200, body=json.dumps(body).encode()), timeout=1)

    full = read(
        png="YQ==", html="<b>", svg="<svg>", markdown="*", json=[1], dataframe={"data": []}, result="1"
    )
    assert (full.png, full.figures, full.html, full.svg, full.markdown) == (b"a", [b"a"], "<b>", "<svg>", "*")
    assert (full.json, full.dataframe, full.result, full.omitted) == ([1], {"data": []}, "1", ())
    several = read(png="YQ==", display=[{"png": "YQ=="}, {"png": "Yg=="}, {"png": 1}, 2], omitted=["html", 3])
    assert (several.png, several.figures, several.omitted) == (b"a", [b"a", b"b"], ["html"])
    odd = read(png="!", html=1, svg=[], markdown={}, result=7, display="x", omitted="y")
    assert (odd.png, odd.figures, odd.html, odd.svg, odd.markdown) == (None, [], None, None, None)
    assert (odd.json, odd.dataframe, odd.result, odd.omitted) == (None, None, None, ())


def test_template_ids_and_names_go_in_their_own_fields() -> None:
    """Hosted ids are numeric strings (contract 1.1)."""
    options: dict[str, object] = {"timeout_seconds": None, "env": None, "internet_access": False, "key": None}
    assert protocol.create_sandbox(template="17", **options).json["template_id"] == "17"  # type: ignore[arg-type]
    named = protocol.create_sandbox(template="python", **options)  # type: ignore[arg-type]
    assert named.json == {"internet_access": False, "template_name": "python"}
    assert not named.repeatable
    assert protocol.decode_templates({"data": None}) == []


def test_metrics_are_read_in_the_names_of_either_sdk() -> None:
    """What is missing, or no number, is None (contract 2.1)."""

    def read(**body: object) -> SandboxMetrics:
        return protocol.decode_metrics(Reply(status=200, body=json.dumps(body).encode()))

    python = read(
        uptime_seconds=1.5, total_requests=2, total_errors=3, active_executions=4, total_executions=5
    )
    assert python == SandboxMetrics(uptime=1.5, requests=2, errors=3, running=4, executions=5)
    assert read(requests_total=2, error_count=3) == SandboxMetrics(requests=2, errors=3)
    assert read(total_requests="x", uptime_seconds=None) == SandboxMetrics()


def test_processes_of_the_system_are_read_as_far_as_they_make_sense() -> None:
    """Jobs among them are known by their `process_id` (contract 2b); rows without a pid are no processes."""

    def read(rows: object) -> list[SystemProcess]:
        return protocol.decode_system_processes(
            Reply(status=200, body=json.dumps({"processes": rows}).encode())
        )

    full = {
        "pid": 7,
        "command": "sleep 9",
        "name": "sleep",
        "user": "u",
        "status": "sleeping",
        "cpu_percent": 1,
    }
    job = {"pid": 8, "process_id": "bg_1"}
    assert read([full, job, {"pid": 9}, {"name": "x"}, "y"]) == [
        SystemProcess(pid=7, command="sleep 9", name="sleep", user="u", status="sleeping", cpu_percent=1.0),
        SystemProcess(pid=9),
    ]
    assert read(None) == []
    with pytest.raises(ProtocolError, match="no list"):
        read({})


def test_a_template_is_looked_up_by_any_name() -> None:
    """Its path is escaped; a description without a name is none."""
    assert protocol.template_path("a/b c") == "/v1/templates/a%2Fb%20c"
    with pytest.raises(ProtocolError, match="without a name"):
        protocol.decode_template({"id": "1"})
