"""Values: what they refuse, and what they say of an end."""

from __future__ import annotations

import pickle

import pytest

from asyncsandbox import (
    EndReason,
    ExecutionResult,
    InvalidRequestError,
    JobFailedError,
    JobKilledError,
    JobLostError,
    JobRef,
    JobResult,
    JobSpec,
    JobState,
    JobTimedOutError,
    PollPolicy,
)
from asyncsandbox.models import merge_specs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": ""}, "code is empty"),
        ({"code": " \n"}, "code is empty"),
        ({"code": b"x"}, "code must be a string, not bytes"),
        ({"timeout": 0}, "timeout must be more than 0 seconds, not 0"),
        ({"timeout": -1}, "not -1"),
        ({"timeout": float("inf")}, "not inf"),
        ({"timeout": 10**400}, "not inf"),
        ({"timeout": -(10**400)}, "more than 0"),
        ({"env": {"A": "\ud800"}}, "'A'"),
        ({"env": {"\ud800": "x"}}, "env"),
        ({"args": ["\ud800"]}, "surrogate"),
        ({"name": "\ud800"}, "surrogate"),
        ({"timeout": "5"}, "timeout must be seconds, not str"),
        ({"timeout": True}, "timeout must be seconds, not bool"),
        ({"env": {"A": 1}}, "'A' maps to int"),
        ({"env": {1: "a"}}, "env must map strings"),
        ({"env": {"A=B": "a"}}, "no environment can hold"),
        ({"env": {"": "a"}}, "no environment can hold"),
        ({"env": {"A": "\0"}}, "no environment can hold"),
        ({"env": ["A"]}, "env must be a mapping"),
        ({"args": "a b"}, "args must be a sequence"),
        ({"args": [1]}, "args must be strings, not int"),
        ({"stdin": 5}, "stdin must be str or bytes"),
        ({"files": {"a": 5}}, "files must map paths to bytes"),
        ({"files": {"": b""}}, "files must map paths to bytes"),
        ({"collect": [""]}, "collect must be glob patterns"),
        ({"name": 5}, "name must be a string"),
        ({"language": 5}, "language must be a string"),
        ({"working_dir": 5}, "working_dir must be a string"),
    ],
    ids=str,
)
def test_a_spec_refuses_what_no_server_could_accept(options: dict[str, object], message: str) -> None:
    """With the field and the value in words; the error is a ValueError too."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        JobSpec(**{"code": "pass", **options})  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert caught.value.status is None


def test_a_spec_takes_text_where_bytes_go() -> None:
    """UTF-8, one pattern, any sequence."""
    spec = JobSpec("x", stdin="é", files={"a": "é"}, collect="*.txt", args=["1", "2"], timeout=5)
    assert (spec.stdin, spec.files["a"], spec.collect, spec.args) == (
        b"\xc3\xa9",
        b"\xc3\xa9",
        ("*.txt",),
        ("1", "2"),
    )
    assert type(spec.timeout) is float


def test_defaults_fill_what_a_spec_leaves_open() -> None:
    """Its own values win; variables and files are merged."""
    defaults = {"timeout": 5, "language": "bash", "env": {"A": "d", "B": "d"}, "args": ("d",), "files": None}
    spec = merge_specs(JobSpec("x", language="python", env={"A": "s"}), defaults)
    assert (spec.language, spec.timeout, spec.env, spec.args) == ("python", 5.0, {"A": "s", "B": "d"}, ("d",))
    assert merge_specs("x", defaults).language == "bash"
    with pytest.raises(InvalidRequestError, match="a string or a JobSpec, not int"):
        merge_specs(5, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (
            {"state": JobState.FAILED, "exit_code": 3, "stderr_bytes": b"a\nlast line\n"},
            JobFailedError,
            "job 'p' failed with exit code 3: last line",
        ),
        ({"state": JobState.FAILED, "signal": 9}, JobFailedError, "job 'p' was ended by signal 9"),
        ({"state": JobState.FAILED}, JobFailedError, "job 'p' failed"),
        (
            {"state": JobState.TIMED_OUT, "timeout": 2.0},
            JobTimedOutError,
            "its time-out of 2 s and was ended",
        ),
        ({"state": JobState.KILLED}, JobKilledError, "job 'p' was killed"),
        ({"state": JobState.LOST}, JobLostError, "job 'p' is lost: its server no longer knows it"),
        ({"state": JobState.LOST, "output_error": "why"}, JobLostError, "is lost: why"),
    ],
    ids=str,
)
def test_check_raises_the_error_of_the_state(
    result: dict[str, object], error: type[Exception], message: str
) -> None:
    """With the id, and what is known of the cause."""
    value = JobResult(process_id="p", **result)  # type: ignore[arg-type]
    assert not value.ok
    with pytest.raises(error, match=message):
        value.check()


def test_check_gives_a_good_result_back() -> None:
    """So that calls can be chained."""
    result = JobResult(process_id="p", state=JobState.COMPLETED, end_reason=EndReason.EXIT, exit_code=0)
    assert result.check() is result
    execution = ExecutionResult(stdout="x", exit_code=0)
    assert execution.check() is execution
    with pytest.raises(JobFailedError, match="the execution failed with exit code 1"):
        ExecutionResult(exit_code=1, state=JobState.FAILED).check()


def test_bytes_that_are_no_text_decode_anyway() -> None:
    """The bytes themselves are there too."""
    result = JobResult(process_id="p", state=JobState.COMPLETED, stdout_bytes=b"\xff!", stderr_bytes=b"ok")
    assert (result.stdout, result.stderr) == ("\ufffd!", "ok")


def test_values_pickle_and_do_not_change() -> None:
    """Results go to other processes; nobody alters them on the way."""
    result = JobResult(process_id="p", state=JobState.COMPLETED)
    assert pickle.loads(pickle.dumps(result)) == result
    ref = JobRef(server="embedded", sandbox_id="s", process_id="p")
    assert {pickle.loads(pickle.dumps(ref)): 1}[ref] == 1
    with pytest.raises(AttributeError):
        result.state = JobState.FAILED  # type: ignore[misc]


@pytest.mark.parametrize(
    "options",
    [
        {"floor": 0},
        {"floor": float("nan")},
        {"cap": float("inf")},
        {"cap": 0.01},
        {"factor": 0.5},
        {"age_share": 0},
        {"jitter": 1.5},
        {"jitter": "x"},
        {"request_timeout": -1},
        {"unreachable_after": 0},
        {"retry_floor": True},
    ],
    ids=str,
)
def test_a_policy_refuses_what_makes_no_sense(options: dict[str, object]) -> None:
    """By the name of the field."""
    with pytest.raises(InvalidRequestError, match=f"PollPolicy.{next(iter(options))}"):
        PollPolicy(**options)  # type: ignore[arg-type]


def test_a_policy_may_never_give_up() -> None:
    """None is the way to say so."""
    assert PollPolicy(unreachable_after=None).unreachable_after is None
