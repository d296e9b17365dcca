"""Background jobs: list, look at, read, kill, remove (contract 2.4, 2.5)."""

from __future__ import annotations

from typing import Final

from asyncsandbox import protocol
from asyncsandbox.models import EndReason
from asyncsandbox.server.openapi.operations import Operation, Reply, also_at, json_body, query
from asyncsandbox.server.openapi.schemas import (
    BASE64,
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    TIME,
    array,
    choice,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["OPERATIONS", "SCHEMAS"]

_STREAMS: Final = ("stdout", "stderr")

_WHEN_SMALL: Final = {
    name: schema
    for stream in _STREAMS
    for name, schema in {
        stream: with_note(TEXT, "What it wrote, where that is small enough for a row"),
        f"{stream}_complete": with_note(FLAG, "Whether that is all of it so far (ours)"),
        f"{stream}_base64": with_note(BASE64, "The same where it is no UTF-8 (ours)"),
    }.items()
}

SCHEMAS: Final = {
    "Process": record(
        {
            "process_id": TEXT,
            "execution_id": TEXT,
            "name": nullable(TEXT),
            "language": TEXT,
            "status": choice(["queued", "running", "completed", "failed", "killed"]),
            "timed_out": FLAG,
            "end_reason": nullable(choice([reason.value for reason in EndReason])),
            "exit_code": nullable(INTEGER),
            "signal": nullable(INTEGER),
            "pid": nullable(INTEGER),
            "queued_at": nullable(TIME),
            "start_time": nullable(TIME),
            "started_at": nullable(TIME),
            "end_time": nullable(TIME),
            "completed_at": nullable(TIME),
            "duration": nullable(NUMBER),
            "execution_time": nullable(NUMBER),
            "timeout": nullable(NUMBER),
            "command": nullable(TEXT),
            "working_dir": nullable(TEXT),
            "stdout_size": nullable(INTEGER),
            "stderr_size": nullable(INTEGER),
            "stdout_truncated": FLAG,
            "stderr_truncated": FLAG,
        },
        _WHEN_SMALL,
    ),
    "SystemProcess": record(
        {
            "pid": INTEGER,
            "ppid": INTEGER,
            "name": TEXT,
            "command": TEXT,
            "user": TEXT,
            "status": TEXT,
            "cpu_percent": NUMBER,
            "memory_mb": NUMBER,
            "memory_bytes": INTEGER,
            "memory_percent": NUMBER,
            "threads": INTEGER,
            "start_time": TIME,
            "started_at": TIME,
        }
    ),
    "ProcessList": record(
        {"processes": array(reference("Process")), "count": INTEGER, "timestamp": TIME},
        {
            "cursor": with_note(TEXT, "For the next since (ours)"),
            "removed": with_note(array(TEXT), "Ids whose records are gone; with since (ours)"),
            "more": with_note(FLAG, "Whether there is more to say right now; with since (ours)"),
        },
    ),
}

_KILLED: Final = {
    200: Reply(
        description="It has ended, by this call or before",
        schema={"allOf": [reference("Process"), record({"message": TEXT})]},
    )
}

OPERATIONS: Final = (
    Operation(
        route="GET /execute/processes",
        summary="List background jobs, or what changed in them",
        parameters=[query("since", TEXT, "A cursor of an earlier list: only what changed after it (ours)")],
        replies={200: Reply(description="The jobs", schema=reference("ProcessList"))},
        refusals=(410,),
    ),
    Operation(
        route="GET /processes",
        summary="List the operating system's processes of the sandbox, then its background jobs",
        replies={
            200: Reply(
                description="Those rows with a process_id are jobs",
                schema=record(
                    {
                        "processes": array({"anyOf": [reference("Process"), reference("SystemProcess")]}),
                        "count": INTEGER,
                        "timestamp": TIME,
                    }
                ),
            )
        },
    ),
    Operation(
        route="GET /execute/processes/{process_id}",
        summary="Describe one job (ours)",
        replies={200: Reply(description="The job", schema=reference("Process"))},
    ),
    Operation(
        route="DELETE /execute/processes/{process_id}",
        summary="Remove a finished job (ours)",
        replies={
            200: Reply(
                description="Record and output are gone",
                schema=record({"process_id": TEXT, "removed": FLAG}),
            )
        },
        refusals=(409,),
    ),
    Operation(
        route="GET /execute/processes/{process_id}/output",
        summary="Read bytes of one stream from an offset (ours)",
        parameters=[
            query("stream", choice(_STREAMS), "Which one; stdout where it is left out"),
            query("offset", INTEGER, "Where to begin, in bytes that the job wrote"),
            query("limit", INTEGER, "How many bytes at most"),
        ],
        replies={
            200: Reply(
                description="The bytes",
                schema={"type": "string", "contentMediaType": "application/octet-stream"},
                media_type="application/octet-stream",
                headers={
                    protocol.OFFSET_HEADER: INTEGER,
                    protocol.NEXT_OFFSET_HEADER: INTEGER,
                    protocol.EOF_HEADER: choice(["true", "false"]),
                },
            )
        },
        refusals=(400,),
    ),
    *also_at(
        Operation(
            route="DELETE /execute/kill",
            summary="End the job that the query or the body names",
            parameters=[query("process_id", TEXT, "Its id; else the body's")],
            body=json_body(record({}, {"process_id": TEXT}), required=False),
            replies=_KILLED,
        ),
        "POST /execute/kill",
    ),
    *also_at(
        Operation(
            route="DELETE /execute/kill/{process_id}",
            summary="End the job that the path names",
            replies=_KILLED,
        ),
        "POST /execute/kill/{process_id}",
        "POST /processes/{process_id}/kill",
    ),
)
