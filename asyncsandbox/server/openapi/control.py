"""The control plane: sandboxes and templates (contract 1)."""

from __future__ import annotations

from typing import Final

from asyncsandbox.server.openapi.information import METRICS_TEXT
from asyncsandbox.server.openapi.operations import Operation, Reply, json_body, query
from asyncsandbox.server.openapi.running import IDEMPOTENCY_KEY
from asyncsandbox.server.openapi.schemas import (
    FLAG,
    INTEGER,
    NUMBER,
    STRINGS,
    TEXT,
    TIME,
    Schema,
    array,
    choice,
    mapping,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["OPERATIONS", "SCHEMAS"]

_STATUS: Final = choice(["running", "paused", "stopped", "deleted"])
_SECONDS: Final = {"type": "number", "exclusiveMinimum": 0}
_GRANT: Final = {"auth_token": TEXT, "token_expires_at": TIME}


def _list_of(name: str) -> Schema:
    return record(
        {
            "object": choice(["list"]),
            "data": array(reference(name)),
            "has_more": FLAG,
            "next_cursor": nullable(TEXT),
            "url": TEXT,
            "request_id": TEXT,
        }
    )


SCHEMAS: Final = {
    "Sandbox": record(
        {
            "id": TEXT,
            "object": choice(["sandbox"]),
            "status": _STATUS,
            "public_host": TEXT,
            "direct_url": TEXT,
            "organization_id": INTEGER,
            "template_id": TEXT,
            "template_name": TEXT,
            "region": TEXT,
            "resources": record({"vcpu": INTEGER, "memory_mb": INTEGER, "disk_mb": INTEGER}),
            "internet_access": FLAG,
            "live_mode": FLAG,
            "created_at": TIME,
            "features": record({"asyncsandbox": mapping(INTEGER)}),
        },
        {
            "timeout_seconds": NUMBER,
            "expires_at": TIME,
            "request_id": TEXT,
        },
    ),
    "Grant": record(_GRANT),
    "SandboxList": _list_of("Sandbox"),
    "SandboxChange": record({"id": TEXT, "status": _STATUS, "request_id": TEXT}),
    "SandboxCreate": record(
        {},
        {
            "template_id": with_note(
                {"type": ["string", "integer", "null"]}, "This or template_name; this one comes first"
            ),
            "template_name": nullable(TEXT),
            "timeout_seconds": with_note({**_SECONDS, "type": ["number", "null"]}, "Its life; null = no end"),
            "internet_access": nullable(FLAG),
            "env_vars": nullable(STRINGS),
            "region": with_note({}, "Ignored, as are vcpu, memory_mb and disk_gb"),
        },
    ),
    "Template": record(
        {
            "id": TEXT,
            "object": choice(["template"]),
            "name": TEXT,
            "display_name": TEXT,
            "description": TEXT,
            "category": TEXT,
            "language": TEXT,
            "is_active": FLAG,
            "is_public": FLAG,
            "features": array(TEXT),
            "tags": array(TEXT),
        },
        {"request_id": TEXT},
    ),
    "TemplateList": _list_of("Template"),
}

_CHANGED: Final = {200: Reply(description="How it is now", schema=reference("SandboxChange"))}

OPERATIONS: Final = (
    Operation(
        route="GET /health",
        summary="Say that the server is there, and what it can do",
        replies={
            200: Reply(
                description="It is",
                schema=record(
                    {
                        "status": choice(["healthy"]),
                        "instance": TEXT,
                        "features": record({"asyncsandbox": mapping(INTEGER)}),
                    }
                ),
            )
        },
        is_open=True,
    ),
    Operation(
        route="GET /metrics/prometheus",
        summary="Tell Prometheus of the whole server (ours)",
        replies=METRICS_TEXT,
        refusals=(501,),
    ),
    Operation(
        route="POST /v1/sandboxes",
        summary="Make a sandbox",
        parameters=[IDEMPOTENCY_KEY],
        body=json_body(reference("SandboxCreate"), example={"template_name": "code-interpreter"}),
        replies={
            201: Reply(
                description="The sandbox and its first token",
                schema={"allOf": [reference("Sandbox"), reference("Grant")]},
            )
        },
        refusals=(404, 409, 410),
    ),
    Operation(
        route="GET /v1/sandboxes",
        summary="List sandboxes by pages",
        parameters=[
            query("limit", INTEGER, "Rows on a page, 1 to 100"),
            query("cursor", TEXT, "The next_cursor of the page before"),
            query("status", choice(["", *_STATUS["enum"]]), "Only those; empty = all"),
        ],
        replies={200: Reply(description="A page", schema=reference("SandboxList"))},
        refusals=(400,),
    ),
    Operation(
        route="GET /v1/sandboxes/{id}",
        summary="Describe a sandbox",
        replies={200: Reply(description="The sandbox", schema=reference("Sandbox"))},
    ),
    Operation(
        route="DELETE /v1/sandboxes/{id}",
        summary="End everything in a sandbox and delete it",
        replies=_CHANGED,
    ),
    Operation(
        route="POST /v1/sandboxes/{id}/pause",
        summary="Stop a sandbox's processes for a while",
        replies=_CHANGED,
        refusals=(409,),
    ),
    *(
        Operation(
            route=f"POST /v1/sandboxes/{{id}}/{word}",
            summary="Let a paused or stopped sandbox go on",
            replies=_CHANGED,
        )
        for word in ("resume", "start")
    ),
    Operation(
        route="POST /v1/sandboxes/{id}/stop",
        summary="End a sandbox's processes; its files stay",
        replies=_CHANGED,
    ),
    Operation(
        route="PUT /v1/sandboxes/{id}/timeout",
        summary="Set how long a sandbox lives from now",
        body=json_body(record({"timeout_seconds": _SECONDS}), example={"timeout_seconds": 900}),
        replies={
            200: Reply(
                description="How it is now",
                schema={
                    "allOf": [
                        reference("SandboxChange"),
                        record({"timeout_seconds": NUMBER, "expires_at": TIME}),
                    ]
                },
            )
        },
    ),
    Operation(
        route="POST /v1/sandboxes/{id}/token/refresh",
        summary="Give a new token for a sandbox; earlier ones stay good",
        replies={200: Reply(description="The token", schema=reference("Grant"))},
    ),
    Operation(
        route="GET /v1/templates",
        summary="List the templates",
        replies={200: Reply(description="All of them", schema=reference("TemplateList"))},
    ),
    Operation(
        route="GET /v1/templates/{name}",
        summary="Describe a template, found by name, alias or id",
        replies={200: Reply(description="The template", schema=reference("Template"))},
        refusals=(404,),
    ),
    Operation(
        route="DELETE /v1/templates/{name}",
        summary="Refuse: templates are the operator's",
        replies={},
        refusals=(403, 404),
    ),
)
