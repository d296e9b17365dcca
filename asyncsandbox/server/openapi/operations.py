"""One operation of the server as the document describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from asyncsandbox.server.openapi.schemas import Schema, record

__all__ = [
    "JSON",
    "Operation",
    "Reply",
    "also_at",
    "form",
    "header",
    "json_body",
    "names_in",
    "query",
    "socket",
]

JSON: Final = "application/json"

_IN_PATH: Final = re.compile(r"\{(\w+)\}")


@attrs.frozen(kw_only=True)
class Reply:
    """One way in which a call succeeds.

    Attributes:
        description: for people.
        schema: of the body; None = there is none to describe.
        media_type: of the body.
        headers: beside it, by name.
    """

    description: str
    schema: Schema | None = None
    media_type: str = JSON
    headers: Mapping[str, Schema] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Operation:
    """One method on one path.

    Attributes:
        route: both, as the router has them: ``"GET /files/read"``; an agent's without its prefix.
        summary: one line for people.
        replies: what success looks like, by status.
        refusals: the statuses of refusals, beside those that every call of its kind may get.
        parameters: of query and headers, as OpenAPI writes them; those of the path follow from it.
        body: the request's, as OpenAPI writes it; None = none is read.
        is_open: whether it needs neither key nor token.
    """

    route: str
    summary: str
    replies: Mapping[int, Reply]
    refusals: Sequence[int] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Mapping[str, Any] | None = None
    is_open: bool = False

    @property
    def method(self) -> str:
        """The method, in capitals."""
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path."""
        return self.route.partition(" ")[2]


def names_in(path: str) -> Sequence[str]:
    """Return the names of the variable parts of a path."""
    return _IN_PATH.findall(path)


def query(name: str, schema: Schema, description: str, *, required: bool = False) -> Mapping[str, Any]:
    """Return a parameter of the query."""
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": schema,
    }


def header(name: str, schema: Schema, description: str) -> Mapping[str, Any]:
    """Return a header that may be sent."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def json_body(
    schema: Schema, *, required: bool = True, example: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Return a request body of JSON."""
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"required": required, "content": {JSON: content}}


def form(parts: Mapping[str, Schema]) -> Mapping[str, Any]:
    """Return a request body that is a multipart form with all of `parts`."""
    return {"required": True, "content": {"multipart/form-data": {"schema": record(parts)}}}


def socket(route: str, summary: str, *refusals: int) -> Operation:
    """Return the operation of a WebSocket: the upgrade of a GET, 400 where none is asked for."""
    return Operation(
        route=route,
        summary=summary,
        replies={101: Reply(description="The connection speaks WebSocket from here on")},
        refusals=(400, *refusals),
    )


def also_at(operation: Operation, *routes: str) -> Sequence[Operation]:
    """Return an operation and its other spellings."""
    return [operation, *(attrs.evolve(operation, route=route) for route in routes)]
