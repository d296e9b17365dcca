"""What an agent says of itself and of the system that it runs on (contract 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asyncsandbox.models import SandboxMetrics, SystemProcess
from asyncsandbox.protocol._messages import Reply, broken, json_object
from asyncsandbox.protocol._scalars import as_integer, as_number, as_text, first_of

__all__ = ["METRICS", "SYSTEM_PROCESSES", "decode_metrics", "decode_system_processes"]

METRICS: Final = "/metrics/snapshot"
SYSTEM_PROCESSES: Final = "/processes"


def decode_metrics(reply: Reply) -> SandboxMetrics:
    """Read a snapshot of the metrics, in the names of either SDK's types.

    Raises:
        ProtocolError: it is no object.
    """
    body = json_object(reply)
    return SandboxMetrics(
        uptime=as_number(body.get("uptime_seconds")),
        requests=as_integer(first_of(body, "total_requests", "requests_total")),
        errors=as_integer(first_of(body, "total_errors", "error_count")),
        running=as_integer(body.get("active_executions")),
        executions=as_integer(body.get("total_executions")),
    )


def decode_system_processes(reply: Reply) -> list[SystemProcess]:
    """Read the processes of the operating system; a null list is an empty one.

    Background jobs may stand among them, for clients that look for these here (contract 2b): they have a
    `process_id` and are left out.

    Raises:
        ProtocolError: it is no list.
    """
    rows = json_object(reply).get("processes")
    if rows is not None and not isinstance(rows, list):
        raise broken(reply, "the processes are no list")
    return [
        _process(row, pid)
        for row in rows or ()
        if isinstance(row, Mapping)
        and "process_id" not in row
        and (pid := as_integer(row.get("pid"))) is not None
    ]


def _process(row: Mapping[str, Any], pid: int) -> SystemProcess:
    return SystemProcess(
        pid=pid,
        command=as_text(row.get("command")) or "",
        name=as_text(row.get("name")) or "",
        user=as_text(row.get("user")) or "",
        status=as_text(row.get("status")) or "",
        cpu_percent=as_number(row.get("cpu_percent")),
    )
