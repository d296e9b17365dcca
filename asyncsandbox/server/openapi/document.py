"""From the table of operations to an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from asyncsandbox import _version
from asyncsandbox.server.handling import AGENT_PREFIX, REQUEST_ID
from asyncsandbox.server.openapi import callbacks, control, files, information, processes, running, streams
from asyncsandbox.server.openapi.operations import JSON, Operation, Reply, names_in
from asyncsandbox.server.openapi.schemas import TEXT, TIME, Schema, record, reference

__all__ = [
    "AGENT_OPERATIONS",
    "CONTROL_OPERATIONS",
    "OPEN_OPERATIONS",
    "agent_document",
    "document",
    "placed",
]

OPEN_OPERATIONS: Final = (
    Operation(
        route="GET /openapi.json",
        summary="Return this document",
        replies={200: Reply(description="An OpenAPI 3.1 document", schema=record({"openapi": TEXT}))},
        is_open=True,
    ),
)
"""What the control plane and every agent answer alike."""

CONTROL_OPERATIONS: Final = (*control.OPERATIONS, *OPEN_OPERATIONS)

AGENT_OPERATIONS: Final = (
    *running.OPERATIONS,
    *processes.OPERATIONS,
    *callbacks.OPERATIONS,
    *information.OPERATIONS,
    *files.OPERATIONS,
    *streams.OPERATIONS,
    *OPEN_OPERATIONS,
)

_ERROR: Final = {
    "message": TEXT,
    "code": TEXT,
    "request_id": TEXT,
    "timestamp": TIME,
    "path": TEXT,
    "details": {"type": "object"},
}

_SCHEMAS: Final[Mapping[str, Schema]] = {
    "ControlError": record(
        {
            "error": record({name: _ERROR[name] for name in ("message", "code", "request_id", "details")}),
            **_ERROR,
        }
    ),
    "AgentError": record({"error": TEXT, **_ERROR}),
    **control.SCHEMAS,
    **information.SCHEMAS,
    **running.SCHEMAS,
    **processes.SCHEMAS,
    **callbacks.SCHEMAS,
    **files.SCHEMAS,
}

_ANYWHERE: Final = (429, 500, 503)
"""Statuses with which any call may be refused."""

_REFUSALS: Final = {
    400: "The request makes no sense; the message says what",
    401: "No key or token, or a wrong one",
    403: "The path is not allowed",
    404: "There is no such thing",
    408: "It ran longer than its time-out and was ended; details hold its output",
    409: "What is there does not allow this",
    410: "It was here once",
    413: "The body is too large",
    429: "Too many requests; Retry-After says when to come again",
    500: "The server failed; its log says more under the request's id",
    501: "This server is not able to; the message says what is missing",
    503: "Not now; nothing was done",
}

_IN_PATH: Final = {
    "id": "A sandbox",
    "sandbox_id": "A sandbox",
    "process_id": "A background job",
    "execution_id": "A background job",
    "name": "A template's name, alias or id",
}

_SECURITY_SCHEMES: Final = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The server's key"},
    "BearerKey": {"type": "http", "scheme": "bearer", "description": "The server's key"},
    "Token": {"type": "http", "scheme": "bearer", "description": "A token of the sandbox"},
}

_HEADERS: Final = {
    REQUEST_ID: {
        "description": "The id of this request, also in the server's log",
        "required": True,
        "schema": TEXT,
    }
}

_HEADER: Final = {REQUEST_ID: {"$ref": f"#/components/headers/{REQUEST_ID}"}}


def placed(operation: Operation) -> str:
    """Return the path of an agent's operation as the whole server has it."""
    return f"{AGENT_PREFIX}{{sandbox_id}}{operation.path}"


def _success(reply: Reply) -> dict[str, Any]:
    headers: dict[str, Any] = dict(_HEADER)
    for name, schema in reply.headers.items():
        headers[name] = {"required": True, "schema": schema}
    described: dict[str, Any] = {"description": reply.description, "headers": headers}
    if reply.schema is not None:
        described["content"] = {reply.media_type: {"schema": reply.schema}}
    return described


def _refusal(status: int, schema: str) -> dict[str, Any]:
    return {
        "description": _REFUSALS[status],
        "headers": _HEADER,
        "content": {JSON: {"schema": reference(schema)}},
    }


def _refusals(operation: Operation, *, always: Iterable[int]) -> set[int]:
    """Return the statuses of refusals: its own, and those that follow from what it is."""
    statuses = {*operation.refusals, *always, *_ANYWHERE}
    if not operation.is_open:
        statuses.add(401)
    if operation.body is not None:
        statuses |= {400, 413}
    if names_in(operation.path):
        statuses.add(404)
    return statuses


def _describe(operation: Operation, path: str, *, agent: bool) -> dict[str, Any]:
    """Return one operation as it is answered at `path`."""
    parameters = [
        {"name": name, "in": "path", "required": True, "description": _IN_PATH[name], "schema": TEXT}
        for name in names_in(path)
    ]
    statuses = _refusals(operation, always=[404] if agent else [])
    error = "AgentError" if agent else "ControlError"
    replies = {status: _success(reply) for status, reply in operation.replies.items()}
    replies |= {status: _refusal(status, error) for status in statuses}
    security: list[dict[str, list[str]]] = [{"Token": []}] if agent else [{"ApiKey": []}, {"BearerKey": []}]
    described: dict[str, Any] = {
        "operationId": "_".join([operation.method.lower(), *re.findall(r"\w+", path)]),
        "tags": ["agent" if agent else "control plane"],
        "summary": operation.summary,
        "parameters": [*parameters, *operation.parameters],
        "responses": {str(status): replies[status] for status in sorted(replies)},
        "security": [] if operation.is_open else security,
    }
    if operation.body is not None:
        described["requestBody"] = operation.body
    return described


def _assemble(title: str, paths: Mapping[str, dict[str, Any]], **more: object) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": _version.__version__,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        **more,
        "paths": paths,
        "components": {
            "schemas": dict(_SCHEMAS),
            "headers": dict(_HEADERS),
            "securitySchemes": dict(_SECURITY_SCHEMES),
        },
    }


def _paths(
    operations: Iterable[Operation], where: Callable[[Operation], str], *, agent: bool
) -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = where(operation)
        paths.setdefault(path, {})[operation.method.lower()] = _describe(operation, path, agent=agent)
    return paths


def _own_path(operation: Operation) -> str:
    return operation.path


def document() -> dict[str, Any]:
    """Return the document of a whole server: the control plane, and the agents below their sandboxes."""
    paths = _paths(CONTROL_OPERATIONS, _own_path, agent=False)
    paths |= _paths(streams.OPERATIONS, _own_path, agent=True)  # at the root the token names the sandbox
    return _assemble("asyncsandbox", paths | _paths(AGENT_OPERATIONS, placed, agent=True))


def agent_document(sandbox_id: str) -> dict[str, Any]:
    """Return the document of one sandbox's agent, its paths as the contract writes them."""
    paths = _paths(AGENT_OPERATIONS, _own_path, agent=True)
    return _assemble("asyncsandbox agent", paths, servers=[{"url": f"{AGENT_PREFIX}{sandbox_id}"}])
