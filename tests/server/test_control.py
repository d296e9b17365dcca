"""The control plane, through HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest


async def _is_gone(api: Any, box: Any) -> bool:
    return (await api.call("GET", f"/v1/sandboxes/{box.id}"))[0] == 404


async def test_health_needs_no_key_and_announces_the_extensions(api: Any) -> None:
    """Exactly "healthy": an official client asks again until it hears that."""
    async with api.session.get(f"{api.base}/health") as response:
        body = await response.json()
    assert body["status"] == "healthy"
    assert body["features"]["asyncsandbox"]["since"] == 1


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-API-Key": ""}, "AUTHENTICATION_REQUIRED"),
        ({"X-API-Key": "wrong"}, "INVALID_TOKEN"),
        ({"X-API-Key": "", "Authorization": "Bearer wrong"}, "INVALID_TOKEN"),
        ({"X-API-Key": "", "Authorization": "Basic abc"}, "AUTHENTICATION_REQUIRED"),
        ({"X-API-Key": "schlüssel"}, "INVALID_TOKEN"),
    ],
)
async def test_without_the_key_nobody_gets_in(api: Any, headers: dict[str, str], code: str) -> None:
    """The refusal is readable by every official client: nested and flat."""
    status, body = await api.call("GET", "/v1/sandboxes", headers=headers)
    assert (status, body["code"], body["error"]["code"]) == (401, code, code)
    assert body["error"]["message"] == body["message"]


async def test_the_key_is_taken_as_a_bearer_token_too(api: Any) -> None:
    """One official client sends nothing else."""
    headers = {"X-API-Key": "", "Authorization": "Bearer a-key-for-tests"}
    status, _body = await api.call("GET", "/v1/sandboxes", headers=headers)
    assert status == 200


async def test_a_sandbox_is_described_in_the_types_that_clients_need(api: Any) -> None:
    """Contract 1.4, field by field."""
    box = await api.create(timeout_seconds=900, env_vars={"STAGE": "dev"}, internet_access=True)
    body = box.body
    assert body["status"] == "running"
    assert isinstance(body["organization_id"], int)
    assert isinstance(body["template_id"], str)
    assert set(body["resources"]) == {"vcpu", "memory_mb", "disk_mb"}
    assert body["public_host"].endswith(f"/vm/{box.id}")
    assert body["public_host"].startswith("http://")
    assert body["template_name"] == "code-interpreter"
    assert (body["timeout_seconds"], body["internet_access"]) == (900, True)
    assert body["features"]["asyncsandbox"]["idempotency"] == 1
    expires = dt.datetime.fromisoformat(body["token_expires_at"])
    assert expires - dt.datetime.now(dt.UTC) >= dt.timedelta(hours=24)
    life = dt.datetime.fromisoformat(body["expires_at"]) - dt.datetime.fromisoformat(body["created_at"])
    assert life == dt.timedelta(seconds=900)
    again = await api.ok("GET", f"/v1/sandboxes/{box.id}")
    assert "auth_token" not in again
    assert again["id"] == box.id
    assert (await box.ok("GET", "/env"))["env_vars"] == {"STAGE": "dev"}
    await api.ok("DELETE", f"/v1/sandboxes/{box.id}")


@pytest.mark.parametrize("name", ["code-interpreter", "base", "python", "1"])
async def test_templates_have_names_aliases_and_ids(api: Any, name: str) -> None:
    """All of them name the Python that runs the server."""
    assert (await api.ok("GET", f"/v1/templates/{name}"))["name"] == "code-interpreter"
    for field in ("template_name", "template_id"):
        status, body = await api.call("POST", "/v1/sandboxes", json={field: name})
        assert (status, body["template_name"], body["template_id"]) == (201, "code-interpreter", "1")
        await api.ok("DELETE", f"/v1/sandboxes/{body['id']}")


async def test_templates_are_listed(api: Any) -> None:
    """Nothing in a row is null."""
    body = await api.ok("GET", "/v1/templates")
    assert [row["name"] for row in body["data"]] == ["code-interpreter"]
    assert None not in body["data"][0].values()
    status, body = await api.call("GET", "/v1/templates/nothing")
    assert (status, body["code"]) == (404, "RESOURCE_NOT_FOUND")
    assert "code-interpreter" in body["message"]


def _nulls(value: Any, path: str = "") -> list[str]:
    """Where in a JSON value there is a null."""
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in _nulls(inner, f"{path}.{name}")]
    if isinstance(value, list):
        return [found for number, inner in enumerate(value) for found in _nulls(inner, f"{path}[{number}]")]
    return [path] if value is None else []


async def test_a_template_has_the_types_that_an_official_client_insists_on(api: Any) -> None:
    """Contract 1.5, trap by trap: each would be a ValidationError there. What is unknown is left out."""
    body = await api.ok("GET", "/v1/templates", params={"category": "code", "language": "python"})
    assert (body["object"], body["has_more"]) == ("list", False)
    rows = [*body["data"], await api.ok("GET", "/v1/templates/code-interpreter")]
    for row in rows:
        assert _nulls(row) == []
        assert isinstance(row["id"], str)
        assert row["id"].isdecimal()
        assert row["name"]
        assert row["display_name"]
        for field in ("features", "tags"):
            assert isinstance(row[field], list)
        for field in ("is_active", "is_public"):
            assert row[field] is True
        assert isinstance(row.get("organization_id", ""), str)
        assert isinstance(row.get("popularity_score", 0), int)
        assert all(row.get(field, "x") for field in ("created_at", "updated_at"))
        for resources in (row.get("default_resources", {}), row.get("min_resources", {})):
            assert all(isinstance(value, int) for value in resources.values())


async def test_configured_templates_are_run_from_their_own_place(servers: Any, tmp_path: Path) -> None:
    """A virtual environment stays one, though its interpreter is a link to another's."""
    venv = tmp_path / "venv"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "venv", "--without-pip", str(venv))
    assert await process.wait() == 0
    server = servers.tcp(templates={"mine": str(venv), "direct": str(venv / "bin" / "python3")})
    async with servers.connect(server) as api:
        names = [row["name"] for row in (await api.ok("GET", "/v1/templates"))["data"]]
        assert names == ["code-interpreter", "mine", "direct"]
        for name in ("mine", "direct"):
            box = await api.create(template_name=name)
            row = await box.end(await box.start("import sys; print(sys.prefix)"))
            assert row["stdout"].strip() == str(venv)


@pytest.mark.parametrize(
    ("templates", "says"),
    [({"a b": "/usr"}, "a b"), ({"x": "/nowhere"}, "/nowhere"), ({"x": "/bin/sh"}, "interpreter")],
)
async def test_a_template_that_cannot_be_used_is_refused_at_the_start(
    servers: Any, templates: dict[str, str], says: str
) -> None:
    """Not at the first job."""
    server = servers.embedded(templates=templates)
    assert server.said["ready"] is False
    assert says in server.said["error"]
    assert server.popen.wait() == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "template_name"),
        ({"template_name": 5}, 400, "template_name"),
        ({"template_name": "nothing"}, 404, "nothing"),
        ({"template_name": "base", "timeout_seconds": 0}, 400, "timeout_seconds"),
        ({"template_name": "base", "timeout_seconds": "9"}, 400, "timeout_seconds"),
        ({"template_name": "base", "timeout_seconds": 1e300}, 400, "timeout_seconds"),
        ({"template_name": "base", "env_vars": {"A": 1}}, 400, "env"),
        ({"template_name": "base", "env_vars": [1]}, 400, "env_vars"),
        ({"template_name": "base", "internet_access": "yes"}, 400, "internet_access"),
    ],
)
async def test_a_senseless_create_is_refused(api: Any, body: dict[str, Any], status: int, says: str) -> None:
    """The message names the field."""
    got, answer = await api.call("POST", "/v1/sandboxes", json=body)
    assert got == status
    assert says in answer["message"]


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(api: Any, data: bytes) -> None:
    """In the contract's words, with the request's id in the header too."""
    async with api.session.post(
        f"{api.base}/v1/sandboxes", data=data, headers={"X-API-Key": "a-key-for-tests"}
    ) as response:
        body = await response.json()
        assert (response.status, body["code"]) == (400, "INVALID_JSON")
        assert response.headers["X-Request-ID"] == body["request_id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "RESOURCE_NOT_FOUND"),
        ("PATCH", "/v1/sandboxes", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/sandboxes/nothing", 404, "SANDBOX_NOT_FOUND"),
        ("DELETE", "/v1/sandboxes/nothing", 404, "SANDBOX_NOT_FOUND"),
        ("POST", "/v1/sandboxes/nothing/pause", 404, "SANDBOX_NOT_FOUND"),
        ("POST", "/v1/sandboxes/nothing/resume", 404, "SANDBOX_NOT_FOUND"),
        ("POST", "/v1/sandboxes/nothing/stop", 404, "SANDBOX_NOT_FOUND"),
        ("POST", "/v1/sandboxes/nothing/token/refresh", 404, "SANDBOX_NOT_FOUND"),
        ("GET", "/vm/nothing/health", 404, "SANDBOX_NOT_FOUND"),
        ("POST", "/vm/nothing/execute", 404, "SANDBOX_NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_said_in_the_contract_s_words(
    api: Any, method: str, path: str, status: int, code: str
) -> None:
    """Also by routes that do not exist."""
    got, body = await api.call(method, path)
    assert (got, body["code"]) == (status, code)


@pytest.mark.parametrize("framing", ["Content-Length: 68157440", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_too_large_is_refused(shared_server: Any, framing: str) -> None:
    """413 in the contract's words, before it is read where its length is told."""
    reader, writer = await asyncio.open_unix_connection(shared_server.said["socket"])
    head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: a-key-for-tests\r\n{framing}\r\n\r\n"
    writer.write(head.encode())
    if "chunked" in framing:
        writer.write(b"%x\r\n" % (65 * 1024 * 1024) + bytes(65 * 1024 * 1024))
    async with asyncio.timeout(50):
        answer = await reader.readuntil(b"PAYLOAD_TOO_LARGE")
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_sandboxes_are_listed_by_pages_that_end(servers: Any) -> None:
    """Each once; more is said only with a fresh cursor."""
    async with servers.connect(servers.embedded()) as api:
        ids = [(await api.create()).id for _ in range(5)]
        seen: list[str] = []
        query: dict[str, str] = {"limit": "2"}
        while True:
            body = await api.ok("GET", "/v1/sandboxes", params=query)
            seen += [row["id"] for row in body["data"]]
            if not body["has_more"]:
                assert body["next_cursor"] is None
                break
            query["cursor"] = body["next_cursor"]
        assert seen == ids
        await api.ok("POST", f"/v1/sandboxes/{ids[1]}/pause")
        for status, found in (("paused", ids[1:2]), ("running", ids[:1] + ids[2:]), ("stopped", [])):
            body = await api.ok("GET", "/v1/sandboxes", params={"status": status})
            assert [row["id"] for row in body["data"]] == found
        got, body = await api.call("GET", "/v1/sandboxes", params={"status": "asleep"})
        assert got == 400
        assert "paused" in body["message"]


@pytest.mark.parametrize(
    "cursor", ["x", "", "-1", "+1", "1.5", "0x1", " 1", "1_0", "٣", "9" * 19, "9" * 5000, "null", "None"]
)
async def test_a_cursor_that_was_never_given_is_refused(api: Any, cursor: str) -> None:
    """Answering it with the first page would let a client that lost its place page for ever."""
    status, body = await api.call("GET", "/v1/sandboxes", params={"cursor": cursor})
    assert (status, body["code"]) == (400, "INVALID_REQUEST")
    assert "next_cursor" in body["message"]


async def test_a_cursor_at_the_end_gives_an_empty_page(servers: Any) -> None:
    """Also when what it stands for was deleted meanwhile; more is never said without a cursor."""
    async with servers.connect(servers.embedded()) as api:
        boxes = [await api.create() for _ in range(3)]
        body = await api.ok("GET", "/v1/sandboxes", params={"limit": "2"})
        assert (body["has_more"], len(body["data"])) == (True, 2)
        cursor = body["next_cursor"]
        for box in boxes[1:]:
            await api.ok("DELETE", f"/v1/sandboxes/{box.id}")
        for place in (cursor, "9" * 18):
            body = await api.ok("GET", "/v1/sandboxes", params={"limit": "2", "cursor": place})
            assert (body["data"], body["has_more"], body["next_cursor"]) == ([], False, None)
        body = await api.ok("GET", "/v1/sandboxes", params={"limit": "1"})
        assert (len(body["data"]), body["has_more"], body["next_cursor"]) == (1, False, None)


@pytest.mark.parametrize(
    ("limit", "rows"), [("0", 1), ("-5", 1), ("1", 1), ("3", 3), ("100", 3), ("99999", 3)]
)
async def test_a_page_s_limit_is_clamped(servers: Any, limit: str, rows: int) -> None:
    """Neither an empty page that says more nor an endless one; at most 100 rows."""
    async with servers.connect(servers.embedded()) as api:
        for _ in range(3):
            await api.create()
        body = await api.ok("GET", "/v1/sandboxes", params={"limit": limit})
        assert len(body["data"]) == rows
        assert body["has_more"] is (rows < 3)
        assert (body["next_cursor"] is not None) is body["has_more"]


async def test_no_page_has_more_than_a_hundred_rows(servers: Any) -> None:
    """Whatever is asked for; the rest comes with the cursor."""
    async with servers.connect(servers.embedded()) as api:
        for _ in range(101):
            await api.create()
        body = await api.ok("GET", "/v1/sandboxes", params={"limit": "1000"})
        assert (len(body["data"]), body["has_more"]) == (100, True)
        body = await api.ok("GET", "/v1/sandboxes", params={"limit": "1000", "cursor": body["next_cursor"]})
        assert (len(body["data"]), body["has_more"]) == (1, False)


async def test_deleting_ends_the_jobs_and_the_files(api: Any, shared_server: Any) -> None:
    """With a body, always; a second time it is unknown, by its old token as well."""
    box = await api.create()
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    first, second = await asyncio.gather(
        api.call("DELETE", f"/v1/sandboxes/{box.id}"), api.call("DELETE", f"/v1/sandboxes/{box.id}")
    )
    assert first[0] == 200
    assert (first[1]["id"], first[1]["status"]) == (box.id, "deleted")
    assert second[0] in (200, 404)
    assert not (shared_server.directory / "sandboxes" / box.id).exists()
    status, body = await api.call("DELETE", f"/v1/sandboxes/{box.id}")
    assert status == 404
    status, body = await box.call("GET", "/execute/processes")
    assert (status, body["code"]) == (404, "SANDBOX_NOT_FOUND")


async def test_a_paused_sandbox_stands_still_and_goes_on(box: Any, api: Any) -> None:
    """Its jobs' clocks do too; it starts nothing, and can be looked at."""
    job = await box.start("import time\nprint('up')\nfor _ in range(3): time.sleep(0.05)\nprint('end')")
    await box.printed(job, "up")
    body = await api.ok("POST", f"/v1/sandboxes/{box.id}/pause")
    assert (body["id"], body["status"]) == (box.id, "paused")
    status, body = await box.call("POST", "/execute/background", json={"code": "1"})
    assert (status, body["code"]) == (409, "SANDBOX_PAUSED")
    status, body = await box.call("POST", "/execute", json={"code": "1"})
    assert (status, body["code"]) == (409, "SANDBOX_PAUSED")
    assert (await api.ok("POST", f"/v1/sandboxes/{box.id}/pause"))["status"] == "paused"
    body = await api.ok("POST", f"/v1/sandboxes/{box.id}/resume")
    assert body["status"] == "running"
    row = await box.end(job)
    assert (row["status"], row["stdout"]) == ("completed", "up\nend\n")
    assert (await api.ok("POST", f"/v1/sandboxes/{box.id}/start"))["status"] == "running"


async def test_a_job_in_a_paused_sandbox_can_be_killed(box: Any, api: Any) -> None:
    """It does not wait for the resume."""
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    await api.ok("POST", f"/v1/sandboxes/{box.id}/pause")
    assert (await box.kill(job))["status"] == "killed"


async def test_queued_jobs_of_a_paused_sandbox_wait_and_hold_up_nobody(servers: Any) -> None:
    """Another sandbox's jobs run past them."""
    async with servers.connect(servers.tcp(max_running=1)) as api:
        box, other = await api.create(), await api.create()
        first = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(first, "up")
        waiting = await box.start("print('waited')")
        await api.ok("POST", f"/v1/sandboxes/{box.id}/pause")
        await box.kill(first)
        assert (await other.end(await other.start("print('past')")))["stdout"] == "past\n"
        assert (await box.row(waiting))["status"] == "queued"
        await api.ok("POST", f"/v1/sandboxes/{box.id}/resume")
        assert (await box.end(waiting))["stdout"] == "waited\n"


async def test_stopping_ends_the_jobs_and_keeps_the_rest(box: Any, api: Any) -> None:
    """Records and files are there; it starts again."""
    job = await box.start("import time; open('kept', 'w').close(); print('up'); time.sleep(600)")
    await box.printed(job, "up")
    assert (await api.ok("POST", f"/v1/sandboxes/{box.id}/stop"))["status"] == "stopped"
    row = await box.row(job)
    assert (row["status"], row["stdout"]) == ("killed", "up\n")
    status, body = await box.call("POST", "/execute/background", json={"code": "1"})
    assert (status, body["code"]) == (409, "SANDBOX_STOPPED")
    status, body = await api.call("POST", f"/v1/sandboxes/{box.id}/pause")
    assert status == 409
    assert (await api.ok("POST", f"/v1/sandboxes/{box.id}/start"))["status"] == "running"
    row = await box.end(await box.start("import os; print(os.path.exists('kept'))"))
    assert row["stdout"] == "True\n"


async def test_a_sandbox_ends_by_itself_when_its_time_is_over(api: Any, until: Any) -> None:
    """Set at its making or later; a later setting counts from then."""
    box = await api.create(timeout_seconds=3600)
    body = await api.ok("PUT", f"/v1/sandboxes/{box.id}/timeout", json={"timeout_seconds": 0.2})
    assert (body["id"], body["timeout_seconds"]) == (box.id, 0.2)
    await until(lambda: _is_gone(api, box))
    status, body = await box.call("GET", "/execute/processes")
    assert status == 404


@pytest.mark.parametrize("seconds", [0, -1, "5", None, True, 1e300])
async def test_a_senseless_time_is_refused(box: Any, api: Any, seconds: Any) -> None:
    """The sandbox lives on."""
    status, body = await api.call("PUT", f"/v1/sandboxes/{box.id}/timeout", json={"timeout_seconds": seconds})
    assert status == 400
    assert "timeout_seconds" in body["message"]
    assert (await api.ok("GET", f"/v1/sandboxes/{box.id}"))["status"] == "running"


async def test_tokens_open_their_own_sandbox_only(box: Any, api: Any) -> None:
    """A refreshed one works beside the earlier one."""
    grant = await api.ok("POST", f"/v1/sandboxes/{box.id}/token/refresh")
    assert grant["auth_token"] != box.token
    other = await api.create()
    for token, status in ((grant["auth_token"], 200), (box.token, 200), (other.token, 401), ("x", 401)):
        headers = {"Authorization": f"Bearer {token}"}
        got, body = await api.call("GET", f"/vm/{box.id}/execute/processes", headers=headers)
        assert got == status
        if status == 401:
            assert body["code"] == "INVALID_TOKEN"
            assert isinstance(body["error"], str)
    got, _body = await api.call("GET", f"/vm/{box.id}/execute/processes")
    assert got == 401
    await api.ok("DELETE", f"/v1/sandboxes/{other.id}")


async def test_a_create_is_done_once_for_each_key(api: Any) -> None:
    """Same body, same sandbox; other body, refused; gone, said so."""
    headers = {"Idempotency-Key": "create-1"}
    body = {"template_name": "base"}
    answers = await asyncio.gather(
        *(api.ok("POST", "/v1/sandboxes", json=body, headers=headers) for _ in range(5))
    )
    assert len({answer["id"] for answer in answers}) == 1
    sandbox_id, token = answers[0]["id"], answers[-1]["auth_token"]
    status, _body = await api.call(
        "GET", f"/vm/{sandbox_id}/env", headers={"Authorization": f"Bearer {token}"}
    )
    assert status == 200
    other = {"template_name": "base", "timeout_seconds": 5}
    status, answer = await api.call("POST", "/v1/sandboxes", json=other, headers=headers)
    assert (status, answer["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    await api.ok("DELETE", f"/v1/sandboxes/{sandbox_id}")
    status, answer = await api.call("POST", "/v1/sandboxes", json=body, headers=headers)
    assert (status, answer["code"]) == (410, "GONE")


async def test_isolation_that_is_not_there_is_refused_with_the_way_out(servers: Any) -> None:
    """The default is bubblewrap, and it is not silently left out."""
    server = servers.embedded(isolation="bwrap")
    async with servers.connect(server) as api:
        status, body = await api.call("POST", "/v1/sandboxes", json={"template_name": "base"})
        assert (status, body["code"]) == (400, "ISOLATION_UNAVAILABLE")
        assert "ASYNCSANDBOX_ISOLATION=none" in body["message"]
