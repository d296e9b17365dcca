"""The refusals that handlers raise: the package's own errors, with their status and code on the wire."""

from __future__ import annotations

from asyncsandbox.errors import (
    APIError,
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)

__all__ = [
    "conflict",
    "forbidden",
    "gone",
    "invalid",
    "not_found",
    "too_many",
    "unauthorized",
    "unavailable",
]


def invalid(message: str, *, code: str = "INVALID_REQUEST") -> InvalidRequestError:
    """The request makes no sense: 400."""
    return InvalidRequestError(message, status=400, code=code)


def unauthorized(message: str, *, code: str) -> AuthenticationError:
    """No key or token, or a wrong one: 401."""
    return AuthenticationError(message, status=401, code=code)


def forbidden(message: str) -> PermissionDeniedError:
    """A path outside the sandbox: 403. FORBIDDEN is the code that official clients survive (contract 2b)."""
    return PermissionDeniedError(message, status=403, code="FORBIDDEN")


def not_found(message: str, *, code: str = "RESOURCE_NOT_FOUND") -> NotFoundError:
    """No such thing: 404."""
    return NotFoundError(message, status=404, code=code)


def conflict(message: str, *, code: str = "CONFLICT") -> ConflictError:
    """What is there does not allow this: 409."""
    return ConflictError(message, status=409, code=code)


def gone(message: str, *, code: str) -> APIError:
    """It was here once: 410."""
    return APIError(message, status=410, code=code)


def too_many(message: str, *, retry_after: float) -> RateLimitError:
    """Too often: 429. Nothing was done; it may be asked again after `retry_after` seconds."""
    return RateLimitError(message, status=429, code="RATE_LIMIT_EXCEEDED", retry_after=retry_after)


def unavailable(message: str) -> ServerError:
    """Not now: 503. Nothing was done."""
    return ServerError(message, status=503, code="SERVICE_UNAVAILABLE")
