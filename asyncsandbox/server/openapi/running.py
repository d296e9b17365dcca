"""Running code and commands (contract 2.2, 2.3, 2.7)."""

from __future__ import annotations

from typing import Final

from asyncsandbox.server.openapi.operations import Operation, Reply, header, json_body
from asyncsandbox.server.openapi.schemas import (
    BASE64,
    FLAG,
    INTEGER,
    NUMBER,
    STRINGS,
    TEXT,
    TIME,
    array,
    mapping,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["IDEMPOTENCY_KEY", "OPERATIONS", "SCHEMAS"]

_SECONDS: Final = with_note({"type": ["number", "null"], "exclusiveMinimum": 0}, "Seconds that it may run")
_PLACE: Final = {
    "workdir": with_note(nullable(TEXT), "Where it runs; /workspace where it is left out"),
    "working_dir": with_note(nullable(TEXT), "The same in another spelling; workdir comes first"),
}
_ENV: Final = with_note(nullable(STRINGS), "Variables of this run")
_NAME: Final = with_note(nullable(TEXT), "For people; need not be unique")

SCHEMAS: Final = {
    "CodeRequest": record(
        {"code": TEXT},
        {
            "language": with_note(nullable(TEXT), "python, javascript, bash or go; python where left out"),
            "timeout": _SECONDS,
            "env": _ENV,
            "name": _NAME,
            **_PLACE,
            "args": with_note(nullable(array(TEXT)), "What follows the program's name (ours)"),
            "stdin_base64": with_note(nullable(BASE64), "What it reads from standard input (ours)"),
            "files": with_note(nullable(mapping(BASE64)), "Written before it starts, by path (ours)"),
            "own_directory": with_note(nullable(FLAG), "Run in a directory of its own (ours)"),
        },
    ),
    "CommandRequest": record(
        {"command": with_note(TEXT, "Run by a shell without args, else the program to run")},
        {"args": nullable(array(TEXT)), "timeout": _SECONDS, "env": _ENV, "name": _NAME, **_PLACE},
    ),
    "Execution": record(
        {
            "success": FLAG,
            "stdout": TEXT,
            "stderr": TEXT,
            "stdout_truncated": FLAG,
            "stderr_truncated": FLAG,
            "exit_code": nullable(INTEGER),
            "signal": nullable(INTEGER),
            "end_reason": nullable(TEXT),
            "execution_time": NUMBER,
            "language": TEXT,
            "command": nullable(TEXT),
            "pid": nullable(INTEGER),
            "timestamp": TIME,
        },
        {
            "png": with_note(BASE64, "The first figure"),
            "html": TEXT,
            "json": {},
            "svg": TEXT,
            "markdown": TEXT,
            "result": with_note(TEXT, "The last expression as a notebook shows it"),
            "dataframe": {},
            "display": with_note(
                array(record({"png": BASE64})), "All figures, where there are several (ours)"
            ),
            "omitted": with_note(array(TEXT), "What was too large (ours)"),
        },
    ),
    "Started": {
        "allOf": [reference("Process"), record({"message": TEXT, "timestamp": TIME})],
    },
}

IDEMPOTENCY_KEY: Final = header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "A repeat with the same key and body gets the first one's answer and starts nothing (ours)",
)

_STARTED: Final = {200: Reply(description="It has been accepted", schema=reference("Started"))}
_EXECUTED: Final = {200: Reply(description="It has ended, well or not", schema=reference("Execution"))}
_START_REFUSALS: Final = (400, 403, 404, 409, 410)
_RUN_REFUSALS: Final = (400, 403, 404, 408, 409)

_CODE: Final = json_body(reference("CodeRequest"), example={"code": "print(6 * 7)"})
_COMMAND: Final = json_body(reference("CommandRequest"), example={"command": "echo hello"})

OPERATIONS: Final = (
    Operation(
        route="POST /execute",
        summary="Run code and answer with what came of it",
        body=_CODE,
        replies=_EXECUTED,
        refusals=_RUN_REFUSALS,
    ),
    Operation(
        route="POST /execute/background",
        summary="Start code in the background",
        parameters=[IDEMPOTENCY_KEY],
        body=_CODE,
        replies=_STARTED,
        refusals=_START_REFUSALS,
    ),
    Operation(
        route="POST /commands/run",
        summary="Run a command and answer with what came of it",
        body=_COMMAND,
        replies=_EXECUTED,
        refusals=_RUN_REFUSALS,
    ),
    Operation(
        route="POST /commands/background",
        summary="Start a command in the background",
        parameters=[IDEMPOTENCY_KEY],
        body=_COMMAND,
        replies=_STARTED,
        refusals=_START_REFUSALS,
    ),
)
