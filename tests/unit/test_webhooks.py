"""Signatures by fixed vectors, and callbacks in the words of any server."""

from __future__ import annotations

import pytest

from asyncsandbox.errors import AuthenticationError, InvalidRequestError, ProtocolError
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.protocol import Reply, decode_accepted, decode_callback, encode_callback, sign
from asyncsandbox.webhooks import WebhookReceiver, verify_signature

_BODY = b'{"execution_id":"exec_9c","status":"completed"}'
_SECRET = "whsec_test"
_STAMP = "1767322800"
# printf '%s' "$stamp$body" | openssl dgst -sha256 -hmac whsec_test, and the same without the stamp.
_BOTH = "sha256=86bfe69447e3fb8929ba4af92b3b524927824f4c66304e0a598c0259b0425674"
_ALONE = "sha256=883061df7eb9e66f1e83c558dd716fa9d57ab3e3af28075eeb5b901b8001794d"


def _verify(
    body: bytes = _BODY,
    *,
    secret: str = _SECRET,
    signature: str | None = _BOTH,
    timestamp: str | None = _STAMP,
    now: float = 1767322800.0,
) -> None:
    verify_signature(body, secret=secret, signature=signature, timestamp=timestamp, now=now)


def test_the_signature_is_of_time_and_body() -> None:
    """What the server makes is what openssl makes."""
    assert sign(_SECRET, _STAMP, _BODY) == _BOTH


@pytest.mark.parametrize("signature", [_BOTH, _ALONE])
@pytest.mark.parametrize("now", [1767322800.0, 1767323100.0, 1767322500.0])
def test_a_good_signature_is_accepted(signature: str, now: float) -> None:
    """Both forms that the sources name, up to five minutes old or ahead."""
    _verify(signature=signature, now=now)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signature": None}, "MISSING_SIGNATURE"),
        ({"signature": ""}, "MISSING_SIGNATURE"),
        ({"timestamp": None}, "MISSING_SIGNATURE"),
        ({"timestamp": "yesterday"}, "MISSING_SIGNATURE"),
        ({"timestamp": "+1767322800"}, "MISSING_SIGNATURE"),
        ({"timestamp": "1767322800.0"}, "MISSING_SIGNATURE"),
        ({"timestamp": "١٧٦٧٣٢٢٨٠٠"}, "MISSING_SIGNATURE"),
        ({"timestamp": "9" * 5000}, "MISSING_SIGNATURE"),
        ({"now": 1767323101.0}, "STALE_TIMESTAMP"),
        ({"now": 1767322499.0}, "STALE_TIMESTAMP"),
        ({"secret": "another"}, "INVALID_SIGNATURE"),
        ({"body": _BODY + b" "}, "INVALID_SIGNATURE"),
        ({"timestamp": "1767322801"}, "INVALID_SIGNATURE"),
        ({"signature": _BOTH.removeprefix("sha256=")}, "INVALID_SIGNATURE"),
        ({"signature": _BOTH.replace("sha256", "sha512")}, "INVALID_SIGNATURE"),
        ({"signature": _BOTH[:-1]}, "INVALID_SIGNATURE"),
        ({"signature": "sha256="}, "INVALID_SIGNATURE"),
        ({"signature": "sha256=\udcff"}, "INVALID_SIGNATURE"),
    ],
)
def test_any_other_is_refused(changes: dict[str, object], code: str) -> None:
    """Missing, malformed, old, from the future, or somebody else's."""
    with pytest.raises(AuthenticationError) as caught:
        _verify(**changes)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.status) == (code, 401)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize(
    ("state", "reason", "word"),
    [
        (JobState.COMPLETED, EndReason.EXIT, "completed"),
        (JobState.FAILED, EndReason.EXIT, "failed"),
        (JobState.FAILED, EndReason.SIGNAL, "failed"),
        (JobState.TIMED_OUT, EndReason.TIMEOUT, "timeout"),
        (JobState.KILLED, EndReason.KILLED, "failed"),
        (JobState.LOST, EndReason.LOST, "failed"),
    ],
)
def test_a_callback_of_ours_keeps_the_record(
    state: JobState, reason: EndReason, word: str, dropped: bool
) -> None:
    """Three words on the wire, and yet nothing of the record is lost."""
    info = JobInfo(
        process_id="bg_1",
        sandbox_id="s",
        name="n",
        language="python",
        state=state,
        end_reason=reason,
        exit_code={JobState.COMPLETED: 0, JobState.FAILED: 3}.get(state)
        if reason is EndReason.EXIT
        else None,
        signal=9 if reason is EndReason.SIGNAL else None,
        queued_at=1.0,
        started_at=2.0,
        ended_at=4.5,
        timeout=10.0,
        stdout_size=3,
        stderr_size=100,
        stderr_truncated=dropped,
    )
    body = encode_callback(info, stdout=b"a\xffb", stderr=b"tail")
    assert (body["status"], body["success"]) == (word, state is JobState.COMPLETED)
    assert (body["error"] is None) == (state is JobState.COMPLETED)
    row = decode_callback(body, process_id="bg_1", sandbox_id="s")
    assert row.info.raw_status in (word, "killed")
    assert (row.stdout, row.stderr) == (b"a\xffb", b"tail")
    assert (body["stdout_truncated"], body["stderr_truncated"]) == (False, True)
    assert (row.info.stdout_truncated, row.info.stderr_truncated) == (False, dropped)
    for field in ("state", "end_reason", "exit_code", "signal", "started_at", "ended_at", "name", "timeout"):
        assert getattr(row.info, field) == getattr(info, field), field


@pytest.mark.parametrize(
    ("body", "state", "exit_code"),
    [
        ({"status": "completed", "exit_code": 0}, JobState.COMPLETED, 0),
        ({"status": "completed", "exit_code": 2}, JobState.FAILED, 2),
        ({"status": "failed", "exit_code": 1}, JobState.FAILED, 1),
        ({"status": "timeout"}, JobState.TIMED_OUT, None),
        ({"status": "Timeout"}, JobState.TIMED_OUT, None),
        ({"status": "success", "success": True}, JobState.COMPLETED, None),
        ({"status": "running", "exit_code": 4}, JobState.FAILED, 4),
        ({}, JobState.FAILED, None),
    ],
)
def test_a_stock_callback_always_tells_of_an_end(
    body: dict[str, object], state: JobState, exit_code: int | None
) -> None:
    """Whatever word it uses, a callback is about a run that is over."""
    stock = {
        "execution_id": "exec_9c",
        "stdout": "out",
        "execution_time": 1.5,
        "timestamp": "2026-01-02T03:04:05Z",
        **body,
    }
    row = decode_callback(stock, process_id="exec_9c", sandbox_id="s")
    assert (row.info.process_id, row.info.state, row.info.exit_code) == ("exec_9c", state, exit_code)
    assert (row.stdout, row.stderr) == (b"out", b"")
    assert row.info.duration == 1.5


def test_an_accepted_run_has_one_id_at_least() -> None:
    """Ours has both, a stock server's the execution id alone; an answer without any is refused."""
    ours = Reply(status=200, body=b'{"process_id": "bg_1", "execution_id": "exec_1", "status": "queued"}')
    stock = Reply(status=200, body=b'{"execution_id": "exec_1", "status": "queued"}')
    assert decode_accepted(ours, sandbox_id="s").info.process_id == "bg_1"
    assert decode_accepted(stock, sandbox_id="s").info.process_id == "exec_1"
    assert decode_accepted(stock, sandbox_id="s").info.state is JobState.QUEUED
    with pytest.raises(ProtocolError, match="neither process_id nor execution_id"):
        decode_accepted(Reply(status=200, body=b'{"status": "queued"}'), sandbox_id="s")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"secret": ""}, "secret"),
        ({"public_url": "example.com"}, "public_url"),
        ({"max_age": 0}, "max_age"),
        ({"max_body": float("inf")}, "max_body"),
    ],
)
def test_an_impossible_receiver_is_refused(options: dict[str, object], match: str) -> None:
    """The message names the argument."""
    with pytest.raises(InvalidRequestError, match=match):
        WebhookReceiver(**options)  # type: ignore[arg-type]


def test_a_receiver_shows_no_secret() -> None:
    """Not in its `repr`; one that is not given is made, anew for each."""
    receiver = WebhookReceiver(secret="hidden", public_url="https://example.com/hooks/")
    assert repr(receiver) == "<WebhookReceiver at https://example.com/hooks expecting=0>"
    assert len({WebhookReceiver().secret for _ in range(3)}) == 3
