"""What the server does when its own ground fails: the disk, a supervisor, a directory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest


@contextlib.contextmanager
def _nobody_can_write(records: Path) -> Iterator[None]:
    """Hold the lock that a commit needs."""
    db = sqlite3.connect(records, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


async def test_a_start_that_cannot_be_recorded_did_not_happen(servers: Any) -> None:
    """503 means that nothing was started, with or without a key; later all is well."""
    server = servers.tcp()
    async with servers.connect(server) as api:
        box = await api.create()
        with _nobody_can_write(servers.directory / "state" / "records.sqlite"):
            for headers in ({}, {"Idempotency-Key": "k"}):
                body = {"code": "open('ran', 'w').close()"}
                status, answer = await box.call("POST", "/execute/background", json=body, headers=headers)
                assert (status, answer["code"]) == (503, "SERVICE_UNAVAILABLE"), answer
        assert (await box.ok("GET", "/execute/processes"))["processes"] == []
        job = await box.start("print('after')", key="k")
        assert (await box.end(job))["stdout"] == "after\n"
        assert not (await box.ok("GET", "/files/exists", params={"path": "ran"}))["exists"]


async def test_an_end_that_cannot_be_recorded_yet_is_recorded_later(servers: Any, until: Any) -> None:
    """Nobody is told before, nothing is lost, and the server keeps trying by itself."""
    server = servers.tcp()
    async with servers.connect(server) as api:
        box = await api.create()
        job = await box.start("import time; print('up'); time.sleep(600)")
        await box.printed(job, "up")
        pid = (await box.row(job))["pid"]
        with _nobody_can_write(servers.directory / "state" / "records.sqlite"):
            killing = asyncio.create_task(box.kill(job))
            await until(lambda: not psutil.pid_exists(pid))
        assert (await killing)["status"] == "killed"


async def test_a_supervisor_that_cannot_be_started_fails_the_job_and_not_the_server(servers: Any) -> None:
    """The job says why; the next one tries anew."""
    server = servers.embedded()
    async with servers.connect(server) as api:
        box = await api.create()
        await box.end(await box.start("pass"))
        log = server.directory / "sandboxes" / box.id / "supervisor.log"
        with _blocked(log):
            supervisor = server.descendants()[0]
            supervisor.kill()
            await asyncio.to_thread(psutil.wait_procs, [supervisor], 50)
            row = await box.end(await box.start("print(1)"))
            while row["end_reason"] == "lost":  # its start met the dying supervisor
                row = await box.end(await box.start("print(1)"))
            assert (row["status"], row["exit_code"], row["started_at"]) == ("failed", None, None)
            assert "supervisor" in row["stderr"]
            status, body = await box.call("POST", "/execute", json={"code": "1"})
            assert status == 400
            assert "supervisor" in body["message"]
        assert (await box.end(await box.start("print(2)")))["stdout"] == "2\n"


@contextlib.contextmanager
def _blocked(path: Path) -> Iterator[None]:
    """Put a directory where a file belongs."""
    path.unlink(missing_ok=True)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


async def test_an_unforeseen_failure_is_a_500_with_the_request_s_id(box: Any, shared_server: Any) -> None:
    """Not a broken connection, and nothing of the inside."""
    scripts = shared_server.directory / "sandboxes" / box.id / "scripts"
    shutil.rmtree(scripts)
    scripts.write_text("a file")
    status, body = await box.call("POST", "/execute/background", json={"code": "print('secret')"})
    assert (status, body["code"]) == (500, "INTERNAL_ERROR")
    assert body["request_id"] in body["message"]
    assert "secret" not in str(body)
    scripts.unlink()
    scripts.mkdir()
    assert (await box.end(await box.start("print(1)")))["stdout"] == "1\n"


async def test_files_that_stand_in_each_other_s_way_are_refused(box: Any) -> None:
    """The message names the one that cannot be written."""
    empty = base64.b64encode(b"").decode()
    for files in ({"a": empty, "a/b": empty}, {"a/b": empty, "a": empty}):
        status, body = await box.call("POST", "/execute/background", json={"code": "1", "files": files})
        assert status == 400
        assert "files" in body["message"]


async def test_deleting_a_sandbox_wakes_who_waits_in_it(api: Any) -> None:
    """An execution is answered, a kill is confirmed; nobody hangs."""
    box = await api.create()
    job = await box.start("import time; print('up'); time.sleep(600)")
    await box.printed(job, "up")
    code = "open('begun', 'w').close(); import time; time.sleep(600)"
    execution = asyncio.create_task(box.call("POST", "/execute", json={"code": code}))
    async with asyncio.timeout(50):
        while not (await box.ok("GET", "/files/exists", params={"path": "begun"}))["exists"]:
            await asyncio.sleep(0.02)
    _, (status, body) = await asyncio.gather(api.ok("DELETE", f"/v1/sandboxes/{box.id}"), execution)
    assert status == 200
    assert (body["success"], body["end_reason"]) == (False, "killed")


async def test_an_interpreter_without_the_usual_name_is_python_for_jobs(servers: Any, tmp_path: Path) -> None:
    """Commands that say python find it."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "odd-name").symlink_to(sys.executable)
    async with servers.connect(servers.tcp(templates={"odd": str(place / "odd-name")})) as api:
        box = await api.create(template_name="odd")
        for name in ("python", "python3"):
            body = await box.ok("POST", "/commands/run", json={"command": f"{name} -c 'print(40 + 2)'"})
            assert body["stdout"] == "42\n"


@pytest.mark.parametrize("body", [b"--x\r\n", b"garbage"])
async def test_a_broken_form_is_refused(box: Any, body: bytes) -> None:
    """And the server goes on."""
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = await box.call("POST", "/files/upload", data=body, headers=headers)
    assert status == 400, answer
