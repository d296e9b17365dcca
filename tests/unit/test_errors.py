"""The tree of errors."""

from __future__ import annotations

import inspect
import pickle

import pytest

from asyncsandbox import errors
from asyncsandbox.errors import AsyncSandboxError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, AsyncSandboxError)
]

EXAMPLES: dict[str, dict[str, object]] = {
    "RequestTimeoutError": {"timeout": 1.0, "url": "u"},
    "ConnectError": {"method": "GET", "url": "u", "sent": False},
    "APIError": {"status": 418, "code": "C", "request_id": "r", "retry_after": 2.0},
    "SandboxClosedError": {"sandbox_id": "s"},
    "LeaseExpiredError": {"sandbox_id": "s"},
    "JobFailedError": {"process_id": "p", "exit_code": 1, "signal": None, "stderr_tail": "t"},
    "StartError": {"started": [], "failed": {3: ValueError("x")}},
    "ServerUnreachableError": {"url": "u", "done": (), "pending": ()},
    "WaitTimeoutError": {"timeout": 1.0, "done": (), "pending": ()},
}


def options(cls: type[AsyncSandboxError]) -> dict[str, object]:
    """Return keywords for a class: its own example, or that of the family."""
    if cls.__name__ in EXAMPLES:
        return EXAMPLES[cls.__name__]
    if issubclass(cls, errors.APIError):
        return EXAMPLES["APIError"]
    if issubclass(cls, errors.JobError):
        return {"process_id": "p"}
    return {}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_pickles_with_its_attributes(cls: type[AsyncSandboxError]) -> None:
    """They cross process boundaries in every batch system."""
    error = cls("what went wrong", **options(cls))  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == "what went wrong"
    assert {key: repr(value) for key, value in vars(again).items()} == {
        key: repr(value) for key, value in vars(error).items()
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_in_the_drawn_tree(cls: type[AsyncSandboxError]) -> None:
    """The docstring of the module is the map that users read."""
    assert errors.__doc__ is not None
    assert cls.__name__ in errors.__doc__
    assert cls.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConnectError", ConnectionError),
        ("RequestTimeoutError", TimeoutError),
        ("JobTimedOutError", TimeoutError),
        ("WaitTimeoutError", TimeoutError),
        ("ServerUnreachableError", ConnectionError),
        ("InvalidRequestError", ValueError),
        ("ClientStateError", RuntimeError),
    ],
)
def test_builtin_that_a_caller_would_catch(name: str, builtin: type[Exception]) -> None:
    """`except TimeoutError` works."""
    assert issubclass(getattr(errors, name), builtin)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 422, 429, 500, 503, 599])
def test_every_status_has_a_class(status: int) -> None:
    """And 5xx is the server's fault."""
    cls = errors.api_error_class(status)
    assert issubclass(cls, errors.APIError)
    assert issubclass(cls, errors.ServerError) == (status >= 500)
