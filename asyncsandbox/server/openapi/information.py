"""What an agent says about itself, and its variables (contract 2.1, 2.11)."""

from __future__ import annotations

from typing import Final

from asyncsandbox.server.openapi.operations import Operation, Reply, also_at, json_body
from asyncsandbox.server.openapi.schemas import (
    FLAG,
    INTEGER,
    NUMBER,
    STRINGS,
    TEXT,
    TIME,
    array,
    choice,
    mapping,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["METRICS_TEXT", "OPERATIONS", "SCHEMAS"]

_EXTENSIONS: Final = with_note(
    mapping(INTEGER), "Extensions of the contract, name to version; an unknown one is to be ignored"
)

_PERCENT: Final = {"usage_percent": NUMBER}
_BYTES: Final = dict.fromkeys(("total", "used", "free"), INTEGER)
_USAGE: Final = {
    "cpu": record({**_PERCENT, "cores": INTEGER}),
    "memory": record({**_PERCENT, **_BYTES, "available": INTEGER}),
    "disk": record({**_PERCENT, **_BYTES}),
}

METRICS_TEXT: Final = {
    200: Reply(description="The text that Prometheus reads", schema=TEXT, media_type="text/plain")
}

SCHEMAS: Final = {
    "Features": record(
        {
            "code_execution": FLAG,
            "file_operations": FLAG,
            "terminal_access": FLAG,
            "websocket_streaming": FLAG,
            "rich_output": FLAG,
            "background_jobs": FLAG,
            "ipython_kernel": FLAG,
            "system_metrics": FLAG,
            "languages": array(TEXT),
            "asyncsandbox": _EXTENSIONS,
        }
    ),
    "AgentHealth": record(
        {
            "status": choice(["healthy"]),
            "agent": TEXT,
            "version": TEXT,
            "uptime": TEXT,
            "uptime_seconds": NUMBER,
            "vm_id": TEXT,
            "instance": TEXT,
            "features": reference("Features"),
            "active_streams": INTEGER,
            "timestamp": TIME,
        }
    ),
    "AgentInfo": record(
        {
            "agent": TEXT,
            "version": TEXT,
            "agent_version": TEXT,
            "vm_id": TEXT,
            "ip": TEXT,
            "vm_ip": TEXT,
            "port": TEXT,
            "vm_port": TEXT,
            "platform": TEXT,
            "os": TEXT,
            "arch": TEXT,
            "start_time": TIME,
            "uptime": NUMBER,
            "uptime_seconds": NUMBER,
            "endpoints": STRINGS,
            "features": reference("Features"),
        }
    ),
    "Metrics": record(
        {
            "uptime_seconds": NUMBER,
            "total_requests": INTEGER,
            "requests_total": INTEGER,
            "total_errors": INTEGER,
            "error_count": INTEGER,
            "active_executions": INTEGER,
            "total_executions": INTEGER,
            "avg_duration_ms": NUMBER,
            "p95_duration_ms": NUMBER,
            "cache": record({"size": INTEGER, "hits": INTEGER, "misses": INTEGER, "hit_rate": NUMBER}),
            "process": record({"count": INTEGER, "running": INTEGER}),
            "timestamp": TIME,
        },
        {"system": record(_USAGE)},
    ),
    "System": record(
        {
            **_USAGE,
            "uptime": NUMBER,
            "os": record(dict.fromkeys(("name", "version", "kernel", "arch", "hostname", "timezone"), TEXT)),
            "hardware": record(
                {"cpu_cores": INTEGER, "cpu_model": TEXT, "memory_mb": INTEGER, "disk_mb": INTEGER}
            ),
            "network": record({"internet_access": FLAG}),
            "environment": record({"template": TEXT, "languages": array(TEXT)}),
            "capabilities": array(TEXT),
            "timestamp": TIME,
        }
    ),
    "Environment": record({"env_vars": STRINGS, "count": INTEGER, "timestamp": TIME}),
    "EnvironmentChange": record(
        {},
        {
            "env_vars": nullable(STRINGS),
            "merge": with_note({}, "Ignored: PUT replaces, PATCH merges"),
        },
    ),
}

_ENVIRONMENT: Final = {200: Reply(description="All variables", schema=reference("Environment"))}
_CHANGE: Final = json_body(reference("EnvironmentChange"), example={"env_vars": {"STAGE": "dev"}})

OPERATIONS: Final = (
    *also_at(
        Operation(
            route="GET /",
            summary="Say that the sandbox is there, and what it can do",
            replies={200: Reply(description="It is", schema=reference("AgentHealth"))},
            is_open=True,
        ),
        "GET /health",
    ),
    Operation(
        route="GET /ping",
        summary="Answer",
        replies={200: Reply(description="An answer", schema=record({"message": TEXT}))},
        is_open=True,
    ),
    Operation(
        route="GET /info",
        summary="Describe the machine",
        replies={200: Reply(description="The machine", schema=reference("AgentInfo"))},
        is_open=True,
    ),
    Operation(
        route="GET /system",
        summary="Describe the machine and how busy it is",
        replies={200: Reply(description="The machine", schema=reference("System"))},
        refusals=(501,),
        is_open=True,
    ),
    Operation(
        route="GET /metrics/prometheus",
        summary="Tell Prometheus of this sandbox",
        replies=METRICS_TEXT,
        refusals=(501,),
    ),
    *also_at(
        Operation(
            route="GET /metrics",
            summary="Count what this sandbox did",
            replies={200: Reply(description="The counts", schema=reference("Metrics"))},
        ),
        "GET /metrics/snapshot",
    ),
    Operation(
        route="GET /cache/stats",
        summary="Describe the cache: there is none",
        replies={
            200: Reply(
                description="An empty cache",
                schema=record(
                    {
                        "cache": record(
                            {"size": INTEGER, "max_size": INTEGER, "total_hits": INTEGER, "ttl": INTEGER}
                        ),
                        "timestamp": TIME,
                    }
                ),
            )
        },
    ),
    Operation(
        route="POST /cache/clear",
        summary="Empty the cache: there is none",
        replies={
            200: Reply(
                description="Nothing was removed",
                schema=record({"message": TEXT, "entries_removed": INTEGER}),
            )
        },
    ),
    Operation(
        route="GET /jupyter/sessions",
        summary="List Jupyter sessions: there are none",
        replies={200: Reply(description="None", schema=record({"sessions": array({"type": "object"})}))},
    ),
    Operation(route="GET /env", summary="Return the variables of every later job", replies=_ENVIRONMENT),
    Operation(
        route="PUT /env",
        summary="Replace the variables",
        replies=_ENVIRONMENT,
        body=_CHANGE,
    ),
    Operation(
        route="PATCH /env",
        summary="Add to the variables",
        replies=_ENVIRONMENT,
        body=_CHANGE,
    ),
    Operation(route="DELETE /env", summary="Drop all variables", replies=_ENVIRONMENT),
)
