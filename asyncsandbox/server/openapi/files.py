"""Files of a sandbox (contract 2.10)."""

from __future__ import annotations

from typing import Final

from asyncsandbox.server.openapi.operations import Operation, Reply, form, json_body, query
from asyncsandbox.server.openapi.schemas import (
    FLAG,
    INTEGER,
    TEXT,
    TIME,
    array,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["OPERATIONS", "SCHEMAS"]

_BYTES: Final = {"type": "string", "contentMediaType": "application/octet-stream"}

SCHEMAS: Final = {
    "FileContent": record({"content": TEXT, "path": TEXT, "size": INTEGER}),
    "FileEntry": record(
        {
            "name": TEXT,
            "path": TEXT,
            "size": INTEGER,
            "is_directory": FLAG,
            "is_dir": FLAG,
            "permissions": TEXT,
            "modified_time": TIME,
            "modified": TIME,
        }
    ),
    "FileList": record({"files": array(reference("FileEntry")), "path": TEXT, "count": INTEGER}),
    "FileDone": record({"success": FLAG, "path": TEXT, "size": INTEGER, "message": TEXT, "timestamp": TIME}),
    "FileWrite": record(
        {"path": TEXT, "content": TEXT},
        {
            "encoding": with_note(nullable(TEXT), "'utf-8', or 'base64' for bytes"),
            "mode": with_note({"type": ["string", "integer", "null"]}, "Octal, such as '0644'"),
            "overwrite": with_note(nullable(FLAG), "false: refuse with 409 when it is there"),
        },
    ),
}

_PATH: Final = query(
    "path", TEXT, "Below /workspace or /tmp; relative ones start at /workspace", required=True
)
_DONE: Final = {200: Reply(description="It is done", schema=reference("FileDone"))}
_REFUSALS: Final = (400, 403, 404)

OPERATIONS: Final = (
    Operation(
        route="GET /files/read",
        summary="Read a file as text",
        parameters=[_PATH],
        replies={200: Reply(description="Its text", schema=reference("FileContent"))},
        refusals=_REFUSALS,
    ),
    Operation(
        route="POST /files/write",
        summary="Write a file; directories on the way are made",
        body=json_body(reference("FileWrite"), example={"path": "/workspace/a.txt", "content": "hello"}),
        replies=_DONE,
        refusals=(*_REFUSALS, 409),
    ),
    Operation(
        route="GET /files/list",
        summary="List a directory",
        parameters=[query("path", TEXT, "The directory; /workspace where it is left out")],
        replies={200: Reply(description="Its entries, by name", schema=reference("FileList"))},
        refusals=_REFUSALS,
    ),
    Operation(
        route="GET /files/exists",
        summary="Say whether something is there",
        parameters=[_PATH],
        replies={200: Reply(description="Whether it is", schema=record({"exists": FLAG, "path": TEXT}))},
        refusals=_REFUSALS,
    ),
    Operation(
        route="POST /files/mkdir",
        summary="Make a directory and those above it",
        body=json_body(record({"path": TEXT}), example={"path": "/workspace/new"}),
        replies=_DONE,
        refusals=(*_REFUSALS, 409),
    ),
    Operation(
        route="DELETE /files/remove",
        summary="Remove a file, or a directory with everything in it",
        parameters=[_PATH],
        replies=_DONE,
        refusals=_REFUSALS,
    ),
    Operation(
        route="POST /files/upload",
        summary="Store a file of any size",
        body=form({"file": _BYTES, "path": TEXT}),
        replies=_DONE,
        refusals=(*_REFUSALS, 409),
    ),
    Operation(
        route="GET /files/download",
        summary="Read a file's bytes",
        parameters=[_PATH],
        replies={
            200: Reply(description="Its bytes", schema=_BYTES, media_type="application/octet-stream"),
        },
        refusals=_REFUSALS,
    ),
)
