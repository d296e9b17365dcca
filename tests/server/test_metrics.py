"""What a sandbox and a server tell of themselves in numbers, and of the machine below them."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

_SLEEP = "import time; print('up'); time.sleep(600)"


def _samples(text: bytes) -> dict[tuple[Any, ...], float]:
    """Read Prometheus' text with its own parser: ``{(name, label, value, …): number}``."""
    return {
        (sample.name, *(word for pair in sorted(sample.labels.items()) for word in pair)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


# --- the operating system -----------------------------------------------------------------------------------


async def test_the_machine_is_described_in_both_spellings(box: Any) -> None:
    """As the documentation has it and as the SDKs' types have it; no token is asked for."""
    body = await box.ok("GET", "/system", headers={"Authorization": ""})
    assert set(body["os"]) == {"name", "version", "kernel", "arch", "hostname", "timezone"}
    assert set(body["hardware"]) == {"cpu_cores", "cpu_model", "memory_mb", "disk_mb"}
    assert body["hardware"]["cpu_cores"] == body["cpu"]["cores"] == psutil.cpu_count()
    assert body["hardware"]["cpu_model"]
    assert 0 <= body["cpu"]["usage_percent"] <= 100
    assert body["memory"]["total"] == psutil.virtual_memory().total
    for part in ("memory", "disk"):
        assert body[part]["total"] >= body[part]["used"] > 0
        assert body[part]["total"] > body[part]["free"] >= 0
        assert 0 < body[part]["usage_percent"] <= 100
    assert body["uptime"] == pytest.approx(time.time() - psutil.boot_time(), abs=300)
    assert "background_jobs" in body["capabilities"]
    assert "system_metrics" in body["capabilities"]
    assert "python" in body["environment"]["languages"]
    assert body["network"]["internet_access"] is False
    health = await box.ok("GET", "/health")
    assert health["features"]["system_metrics"] is True
    assert health["uptime_seconds"] > 0


async def test_many_may_ask_for_the_machine_at_once(box: Any) -> None:
    """They share one look at the processors."""
    bodies = await asyncio.gather(*(box.ok("GET", "/system") for _ in range(30)))
    assert all(0 <= body["cpu"]["usage_percent"] <= 100 for body in bodies)


async def test_the_agent_s_calls_are_a_map_from_names(box: Any) -> None:
    """The type that both SDKs give it; paths are the agent's own."""
    info = await box.ok("GET", "/info")
    assert info["endpoints"]["execute_background"] == "POST /execute/background"
    assert info["endpoints"]["env"] == "DELETE, GET, PATCH, PUT /env"
    assert info["endpoints"]["root"] == "GET /"
    assert not any("/vm/" in text or "/v1/" in text for text in info["endpoints"].values())
    assert info["ip"] == info["vm_ip"] == "localhost"
    assert info["uptime_seconds"] == pytest.approx(info["uptime"], abs=1)


# --- processes ----------------------------------------------------------------------------------------------


async def test_a_sandbox_s_own_processes_are_listed_and_then_its_jobs(box: Any, api: Any, until: Any) -> None:
    """Children too, those that left their session and environment too; nothing of anybody else's."""
    code = (
        "import subprocess, time\n"
        "subprocess.Popen(['env', '-i', 'setsid', 'sleep', '600'])\n"
        "print('up'); time.sleep(600)"
    )
    job = await box.start(code, name="mine")
    await box.printed(job, "up")
    other = await api.create()
    theirs = await other.start(_SLEEP)
    await other.printed(theirs, "up")

    async def system_rows() -> dict[int, Any]:
        rows = (await box.ok("GET", "/processes"))["processes"]
        return {row["pid"]: row for row in rows if "process_id" not in row}

    async def both() -> bool:
        return sorted(row["name"] for row in (await system_rows()).values())[1:] == ["sleep"]

    await until(both)
    rows = await system_rows()
    pid = (await box.row(job))["pid"]
    assert len(rows) == 2
    main = rows.pop(pid)
    ((_, child),) = rows.items()
    assert child["command"] == "sleep 600"
    process = psutil.Process(pid)
    assert (main["user"], main["ppid"], main["name"]) == (process.username(), process.ppid(), process.name())
    assert main["status"] in {"sleeping", "running", "disk-sleep"}
    assert main["command"].startswith(process.cmdline()[0])
    assert main["cpu_percent"] >= 0
    assert main["memory_mb"] > 0
    assert main["memory_bytes"] > 0
    body = await box.ok("GET", "/processes")
    assert body["count"] == len(body["processes"]) == 3
    last = body["processes"][-1]
    assert (last["process_id"], last["status"], last["name"]) == (job["process_id"], "running", "mine")
    assert last["stdout"] == "up\n"
    await box.kill(job)
    assert [row["status"] for row in (await box.ok("GET", "/processes"))["processes"]] == ["killed"]
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


async def test_a_sandbox_in_which_nothing_runs_has_no_processes(box: Any) -> None:
    """Its supervisor is the server's, and is not shown."""
    await box.end(await box.start("pass"))
    rows = (await box.ok("GET", "/processes"))["processes"]
    assert [row["status"] for row in rows] == ["completed"]
    await box.api.ok("POST", f"/v1/sandboxes/{box.id}/stop")
    assert len((await box.ok("GET", "/processes"))["processes"]) == 1


async def test_processes_come_and_go_while_they_are_listed(box: Any) -> None:
    """One that vanishes between two looks at it is left out, and nothing fails."""
    job = await box.start("import subprocess\nwhile True: subprocess.run(['true'])")
    await box.running(job)
    for _ in range(30):
        await box.ok("GET", "/processes")
    await box.kill(job)


# --- numbers of a sandbox -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/metrics/snapshot"])
async def test_a_snapshot_has_every_name_of_both_sdks(box: Any, path: str) -> None:
    """With numbers of this sandbox."""
    job = await box.start(_SLEEP)
    await box.printed(job, "up")
    await box.ok("POST", "/execute", json={"code": "import time; time.sleep(0.2)"})
    await box.call("GET", "/files/read", params={"path": "nothing"})
    body = await box.ok("GET", path)
    assert body["uptime_seconds"] > 0
    assert body["total_requests"] == body["requests_total"] >= 4
    assert body["total_errors"] == body["error_count"] == 1
    assert (body["total_executions"], body["active_executions"]) == (2, 1)
    assert body["avg_duration_ms"] >= 200
    assert body["p95_duration_ms"] == pytest.approx(body["avg_duration_ms"])
    assert (body["process"]["count"], body["process"]["running"]) == (1, 1)
    assert body["cache"] == {"size": 0, "hits": 0, "misses": 0, "hit_rate": 0.0}
    assert set(body["system"]) == {"cpu", "memory", "disk"}
    assert body["system"]["memory"]["usage_percent"] > 0


async def test_a_new_sandbox_has_run_nothing(box: Any) -> None:
    """Zeros, not nulls: official clients calculate with them."""
    body = await box.ok("GET", "/metrics")
    assert (body["total_executions"], body["avg_duration_ms"], body["p95_duration_ms"]) == (0, 0.0, 0.0)
    assert None not in body.values()


async def test_a_sandbox_tells_prometheus_of_itself_alone(box: Any, api: Any) -> None:
    """As text that Prometheus' own parser reads."""
    other = await api.create()
    await other.end(await other.start("pass"))
    await box.end(await box.start("print('x')"))
    await box.call("GET", "/files/read", params={"path": "nothing"})
    headers = {"Authorization": f"Bearer {box.token}"}
    async with api.session.get(f"{api.base}/vm/{box.id}/metrics/prometheus", headers=headers) as response:
        assert response.content_type == "text/plain"
        samples = _samples(await response.read())
    own = ("sandbox", box.id)
    assert all(key[1:3] == own for key in samples)
    assert samples["asyncsandbox_sandbox_executions_total", *own] == 1
    assert samples["asyncsandbox_sandbox_errors_total", *own] == 1
    assert samples["asyncsandbox_sandbox_requests_total", *own] >= 3
    assert samples["asyncsandbox_sandbox_jobs", *own, "state", "completed"] == 1
    assert samples["asyncsandbox_sandbox_jobs", *own, "state", "running"] == 0
    assert samples["asyncsandbox_sandbox_execution_duration_seconds_count", *own] == 1
    assert samples["asyncsandbox_sandbox_execution_duration_seconds_sum", *own] > 0
    assert (await box.call("GET", "/metrics/prometheus", headers={"Authorization": ""}))[0] == 401
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


# --- numbers of the server ----------------------------------------------------------------------------------


async def test_a_server_tells_prometheus_of_everything(servers: Any) -> None:
    """Sandboxes, jobs, the queue, starts, ends, bytes, requests: each with the number that it has."""
    async with servers.connect(servers.tcp(max_running=1)) as api:
        box, other = await api.create(), await api.create()
        await api.ok("POST", f"/v1/sandboxes/{other.id}/pause")
        await box.end(await box.start("print('twelve chars', end='')"))
        await box.end(await box.start("raise SystemExit(1)"))
        await box.ok("POST", "/commands/run", json={"command": "true"})
        job = await box.start(_SLEEP)
        await box.printed(job, "up")
        for _ in range(2):
            await box.ok("POST", "/commands/background", json={"command": "true"})
        await api.call("GET", f"/v1/sandboxes/{box.id}")
        await api.call("GET", "/v1/sandboxes/nothing")
        await api.call("GET", "/v1/invented/1")
        await api.call("GET", "/v1/invented/2")
        await api.call("PURGE", "/v1/sandboxes")
        text = await api.ok("GET", "/metrics/prometheus")
    got = _samples(text)
    assert (
        got["asyncsandbox_sandboxes", "status", "running"],
        got["asyncsandbox_sandboxes", "status", "paused"],
    ) == (
        1,
        1,
    )
    states = {
        state: got["asyncsandbox_jobs", "state", state]
        for state in ("completed", "failed", "running", "queued")
    }
    assert states == {"completed": 1, "failed": 1, "running": 1, "queued": 2}
    assert got["asyncsandbox_queue_length",] == 2
    starts = {
        kind: got["asyncsandbox_job_starts_total", "kind", kind] for kind in ("code", "command", "execution")
    }
    assert starts == {"code": 3, "command": 2, "execution": 1}
    assert got["asyncsandbox_processes_started_total",] == 4
    ends = {
        state: got["asyncsandbox_job_ends_total", "state", state]
        for state in ("completed", "failed", "killed")
    }
    assert ends == {"completed": 2, "failed": 1, "killed": 0}
    assert got["asyncsandbox_output_bytes_total",] == 12

    def requests(method: str, route: str, status: str) -> float:
        return got["asyncsandbox_http_requests_total", "method", method, "route", route, "status", status]

    assert requests("POST", "/v1/sandboxes", "2xx") == 2
    assert requests("GET", "/v1/sandboxes/{id}", "2xx") == 1
    assert requests("GET", "/v1/sandboxes/{id}", "4xx") == 1
    assert requests("POST", "/vm/{sandbox_id}/execute/background", "2xx") == 3
    assert requests("GET", "other", "4xx") == 2
    assert requests("other", "other", "4xx") == 1
    latency = "asyncsandbox_http_request_duration_seconds"
    route = ("method", "POST", "route", "/v1/sandboxes")
    assert got[f"{latency}_count", *route] == 2
    assert got[f"{latency}_sum", *route] > 0
    assert got[f"{latency}_bucket", "le", "+Inf", *route] == 2
    assert box.id not in text.decode()
    assert "invented" not in text.decode()
    assert "PURGE" not in text.decode()


async def test_the_server_s_numbers_need_the_api_key(api: Any) -> None:
    """Which Prometheus sends as a bearer token; each server counts for itself."""
    status, _body = await api.call("GET", "/metrics/prometheus", headers={"X-API-Key": ""})
    assert status == 401
    headers = {"X-API-Key": "", "Authorization": "Bearer a-key-for-tests"}
    status, text = await api.call("GET", "/metrics/prometheus", headers=headers)
    assert status == 200
    assert re.search(
        r'^asyncsandbox_server_info\{instance="\w+",version="[\d.]+"\} 1.0$', text.decode(), re.MULTILINE
    )
    assert "python_gc" not in text.decode()


async def test_without_the_libraries_the_server_works_and_says_what_to_install(servers: Any) -> None:
    """501 where one is needed, less to tell where it is not."""
    server = servers.tcp(without=["psutil", "prometheus_client"])
    async with servers.connect(server) as api:
        box = await api.create()
        job = await box.start(_SLEEP)
        await box.printed(job, "up")
        for path, library in (("/system", "psutil"), ("/metrics/prometheus", "prometheus-client")):
            status, body = await box.call("GET", path)
            assert (status, body["code"]) == (501, "NOT_IMPLEMENTED")
            assert library in body["message"]
            assert "asyncsandbox[local]" in body["message"]
        assert (await api.call("GET", "/metrics/prometheus"))[0] == 501
        assert "system" not in await box.ok("GET", "/metrics")
        assert [row["process_id"] for row in (await box.ok("GET", "/processes"))["processes"]] == [
            job["process_id"]
        ]
        assert (await box.ok("GET", "/health"))["features"]["system_metrics"] is False
