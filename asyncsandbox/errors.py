"""Every exception that asyncsandbox raises on purpose.

::

    AsyncSandboxError
    ├─ TransportError             no usable reply
    │  ├─ ConnectError            (also ConnectionError)
    │  └─ RequestTimeoutError     (also TimeoutError)
    ├─ ProtocolError              a reply that breaks the protocol
    ├─ APIError                   the server refused; status, code
    │  ├─ InvalidRequestError     400, 422, or refused before it was sent (also ValueError)
    │  ├─ AuthenticationError     401
    │  ├─ PermissionDeniedError   403
    │  ├─ NotFoundError           404
    │  ├─ ConflictError           409
    │  ├─ RateLimitError          429
    │  └─ ServerError             5xx
    ├─ ClientStateError           closed, or used from another event loop or process (also RuntimeError)
    ├─ EmbeddedServerError        the embedded server could not be started, or died
    ├─ SandboxClosedError         used after close or expiry
    ├─ JobError
    │  ├─ JobFailedError          ended with another exit code than 0, or by a signal
    │  ├─ JobTimedOutError        over the server's limit (also TimeoutError)
    │  ├─ JobKilledError          ended by a kill call
    │  ├─ JobLostError            the server no longer knows it
    │  ├─ JobRemovedError         removed while somebody waited
    │  └─ JobNotFinishedError     result() too early
    ├─ StartError                 start_all: some were refused
    ├─ LeaseExpiredError          the sandbox's lease ended
    ├─ ServerUnreachableError     nothing but errors for a stated time (also ConnectionError)
    └─ WaitTimeoutError           the wait's own time is over; the jobs go on (also TimeoutError)

All of them pickle. Job handles that an error carries come back as `JobRef`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "APIError",
    "AsyncSandboxError",
    "AuthenticationError",
    "ClientStateError",
    "ConflictError",
    "ConnectError",
    "EmbeddedServerError",
    "InvalidRequestError",
    "JobError",
    "JobFailedError",
    "JobKilledError",
    "JobLostError",
    "JobNotFinishedError",
    "JobRemovedError",
    "JobTimedOutError",
    "LeaseExpiredError",
    "NotFoundError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "RequestTimeoutError",
    "SandboxClosedError",
    "ServerError",
    "ServerUnreachableError",
    "StartError",
    "TransportError",
    "WaitTimeoutError",
    "api_error_class",
]


def _portable(value: object) -> object:
    """Return `value` with every job handle in it replaced by its picklable reference."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_portable(item) for item in value)
    if isinstance(value, BaseException):
        return value
    return getattr(value, "ref", value)


def _rebuild(cls: type[AsyncSandboxError], args: tuple[object, ...], state: dict[str, object]) -> object:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AsyncSandboxError(Exception):
    """The base of the tree. The message always comes first; everything else is a keyword."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: _portable(value) for key, value in self.__dict__.items()}
        return (_rebuild, (type(self), self.args, state))


class TransportError(AsyncSandboxError):
    """No usable reply came.

    Attributes:
        method: the HTTP method of the call.
        url: where it went, without its query.
        sent: False when the request certainly never reached the server.
    """

    def __init__(self, message: str, *, method: str = "", url: str = "", sent: bool = True) -> None:
        super().__init__(message)
        self.method = method
        self.url = url
        self.sent = sent


class ConnectError(TransportError, ConnectionError):
    """No connection, or it broke before the reply was complete."""


class RequestTimeoutError(TransportError, TimeoutError):
    """The reply did not come in time.

    Attributes:
        timeout: seconds that were allowed.
    """

    def __init__(self, message: str, *, timeout: float, method: str = "", url: str = "") -> None:
        super().__init__(message, method=method, url=url)
        self.timeout = timeout


class ProtocolError(AsyncSandboxError):
    """A reply that breaks the protocol.

    Attributes:
        url: where the reply came from.
        detail: what was wrong with it.
    """

    def __init__(self, message: str, *, url: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.url = url
        self.detail = detail


class APIError(AsyncSandboxError):
    """The server refused, or the request was refused before it was sent.

    Attributes:
        status: the HTTP status; None when the request was not sent.
        code: the contract's code, such as ``RESOURCE_NOT_FOUND``; "" when there was none.
        request_id: the server's id of the request; None when it gave none.
        retry_after: seconds to wait before trying again, as the server said; None when it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "",
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


_BY_STATUS: dict[int, type[APIError]] = {}
_E = TypeVar("_E", bound=type[APIError])


def _answers(*statuses: int) -> Callable[[_E], _E]:
    def register(cls: _E) -> _E:
        _BY_STATUS.update(dict.fromkeys(statuses, cls))
        return cls

    return register


@_answers(400, 422)
class InvalidRequestError(APIError, ValueError):
    """The request makes no sense: bad value, unknown language or template, empty code."""


@_answers(401)
class AuthenticationError(APIError):
    """No key or token, or one that the server does not know."""


@_answers(403)
class PermissionDeniedError(APIError):
    """A known key or token that may not do this, or a path outside the sandbox."""


@_answers(404)
class NotFoundError(APIError):
    """No such sandbox, job, file or template."""


@_answers(409)
class ConflictError(APIError):
    """What is there does not allow this: a paused sandbox, a key used for another body, a running job."""


@_answers(429)
class RateLimitError(APIError):
    """Too many requests, and waiting as the server asked did not help."""


class ServerError(APIError):
    """The server failed."""


def api_error_class(status: int) -> type[APIError]:
    """Return the class for an HTTP status.

    Args:
        status: an HTTP status of 400 or more.

    Returns:
        The registered class; `ServerError` for any other 5xx, `APIError` for the rest.
    """
    return _BY_STATUS.get(status, ServerError if status >= 500 else APIError)  # noqa: PLR2004


class ClientStateError(AsyncSandboxError, RuntimeError):
    """The client is closed, or belongs to another event loop or process."""


class EmbeddedServerError(AsyncSandboxError):
    """The embedded server could not be started, or died.

    Attributes:
        log_tail: the last lines that the server wrote, "" when there were none.
    """

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class SandboxClosedError(AsyncSandboxError):
    """The sandbox was closed here, or is gone from the server.

    Attributes:
        sandbox_id: which.
    """

    def __init__(self, message: str, *, sandbox_id: str) -> None:
        super().__init__(message)
        self.sandbox_id = sandbox_id


class LeaseExpiredError(AsyncSandboxError):
    """The sandbox's lease ended while its client was away.

    Attributes:
        sandbox_id: which.
    """

    def __init__(self, message: str, *, sandbox_id: str) -> None:
        super().__init__(message)
        self.sandbox_id = sandbox_id


class JobError(AsyncSandboxError):
    """Something about one job.

    Attributes:
        process_id: which.
    """

    def __init__(self, message: str, *, process_id: str) -> None:
        super().__init__(message)
        self.process_id = process_id


class JobFailedError(JobError):
    """The job ended with another exit code than 0, or by a signal.

    Attributes:
        exit_code: None when a signal ended it or the system gave no code.
        signal: the number of the signal that ended it; None otherwise.
        stderr_tail: the end of what it wrote to stderr.
    """

    def __init__(
        self,
        message: str,
        *,
        process_id: str,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        super().__init__(message, process_id=process_id)
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail


class JobTimedOutError(JobError, TimeoutError):
    """The server ended the job because it ran longer than its own time-out.

    Attributes:
        timeout: the job's limit in seconds; None when it is not known here.
    """

    def __init__(self, message: str, *, process_id: str, timeout: float | None = None) -> None:
        super().__init__(message, process_id=process_id)
        self.timeout = timeout


class JobKilledError(JobError):
    """The job was ended by a kill call."""


class JobLostError(JobError):
    """The server no longer knows the job: neither success nor failure."""


class JobRemovedError(JobError):
    """The job's record was removed while somebody waited for it."""


class JobNotFinishedError(JobError):
    """`Job.result()` was asked before the job ended."""


class StartError(AsyncSandboxError):
    """Some of the jobs given to `start_all` were not accepted.

    Attributes:
        started: the handles of those that were, in input order.
        failed: ``{index in the input: error}`` for those that were not.
    """

    def __init__(self, message: str, *, started: Sequence[Any], failed: Mapping[int, Exception]) -> None:
        super().__init__(message)
        self.started = list(started)
        self.failed = dict(failed)


class ServerUnreachableError(AsyncSandboxError, ConnectionError):
    """Status calls to one server gave nothing but errors for `PollPolicy.unreachable_after` seconds.

    Attributes:
        url: the server.
        done: what has ended, as far as it is known.
        pending: handles of the jobs whose end is not known.
    """

    def __init__(self, message: str, *, url: str, done: Sequence[Any], pending: Sequence[Any]) -> None:
        super().__init__(message)
        self.url = url
        self.done = tuple(done)
        self.pending = tuple(pending)


class WaitTimeoutError(AsyncSandboxError, TimeoutError):
    """The wait's own time is over. The jobs keep running.

    Attributes:
        timeout: seconds that the wait was given.
        done: handles of the jobs that ended in time; their `result()` is there.
        pending: handles of the jobs that had not.
    """

    def __init__(self, message: str, *, timeout: float, done: Sequence[Any], pending: Sequence[Any]) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.done = tuple(done)
        self.pending = tuple(pending)
