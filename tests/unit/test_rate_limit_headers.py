"""What the headers of an answer tell of a rate limit, as a value."""

from __future__ import annotations

import pytest

from asyncsandbox import protocol


def _headers(limit: str | None, remaining: str | None, reset: str | None) -> dict[str, str]:
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    values = zip(names, (limit, remaining, reset), strict=True)
    return {name: value for name, value in values if value is not None}


@pytest.mark.parametrize("reset", [1_790_000_000, None])
def test_what_one_side_writes_the_other_reads(reset: int | None) -> None:
    """The names are the contract's, in any case."""
    value = protocol.RateLimit(limit=300, remaining=299, reset=reset)
    headers = protocol.encode_rate_limit(value)
    assert headers["X-RateLimit-Limit"] == "300"
    assert protocol.decode_rate_limit({name.lower(): text for name, text in headers.items()}) == value


@pytest.mark.parametrize(
    ("limit", "remaining"),
    [
        (None, None),
        ("300", None),
        (None, "5"),
        ("", ""),
        ("300", "many"),
        ("300", "-1"),
        ("300", "1.5"),
        ("300", "1e2"),
        ("300", "٣"),
        ("300", "5_0"),
        ("300, 300;w=60", "5"),
        ("9" * 5000, "5"),
        ("inf", "nan"),
    ],
)
def test_half_a_hint_is_none(limit: str | None, remaining: str | None) -> None:
    """Nothing is raised and nothing is made up, whatever stands there."""
    assert protocol.decode_rate_limit(_headers(limit, remaining, "1790000000")) is None


@pytest.mark.parametrize(
    "reset", [None, "", "soon", "-5", "nan", "1e400", "1790000000.5", "9" * 14, "9" * 400]
)
def test_a_reset_that_is_no_time_is_left_out(reset: str | None) -> None:
    """The counts are good without it."""
    found = protocol.decode_rate_limit(_headers(" 300 ", "0", reset))
    assert found == protocol.RateLimit(limit=300, remaining=0, reset=None)


def test_a_refusal_says_how_long_in_every_place_of_its_body() -> None:
    """Flat, and nested in the details, which is all that one official client obeys."""
    options = {"code": "RATE_LIMIT_EXCEEDED", "request_id": "r", "path": "/v1/sandboxes", "retry_after": 30.0}
    body = protocol.encode_error("slow down", agent=False, **options)
    assert body["retry_after"] == 30
    assert body["error"]["details"] == {"retry_after_seconds": 30}
    body = protocol.encode_error("slow down", agent=True, details={"more": 1}, **options)
    assert (body["retry_after"], body["details"]) == (30, {"more": 1, "retry_after_seconds": 30})
    assert isinstance(body["retry_after"], int)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"retry-after": "7"}, {}),
        ({}, {"retry_after": 7}),
        ({}, {"error": {"details": {"retry_after_seconds": 7}}}),
        ({}, {"error": "text", "details": {"retry_after_seconds": 7}}),
        ({}, {"error": {"message": "no details here"}, "details": {"retry_after_seconds": 7}}),
        (
            {"retry-after": "whenever"},
            {"retry_after": "soon", "error": {"details": {"retry_after_seconds": 7}}},
        ),
    ],
)
def test_each_hint_is_read_and_a_broken_one_hides_no_good_one(
    headers: dict[str, str], body: dict[str, object]
) -> None:
    """Header, body, details: nested as the control plane has them and flat as the agent does."""
    assert protocol.retry_after(headers, body) == 7
