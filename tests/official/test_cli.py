"""``hopx-cli``, unmodified; `wrapped` commands are those that ignore the base URL (contract 4.3, 5.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hopx_ai
import pytest

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def sandbox_id(sync_sandbox: hopx_ai.Sandbox) -> str:
    """A sandbox for the command line."""
    return sync_sandbox.sandbox_id


def test_sandboxes(hopx: Any) -> None:
    """A sandbox's life by commands."""
    created = hopx.json("sandbox", "create")
    sandbox_id = created["sandbox_id"]
    assert sandbox_id in [row["sandbox_id"] for row in hopx.json("sandbox", "list")]
    assert hopx.json("sandbox", "info", sandbox_id)["status"] == "running"
    hopx.ok("sandbox", "health", sandbox_id)
    hopx.ok("sandbox", "timeout", sandbox_id, "500")
    assert 0 < hopx.json("sandbox", "expiry", sandbox_id)["time_to_expiry"] <= 500
    hopx.ok("sandbox", "kill", sandbox_id, "--force")
    assert hopx.run("sandbox", "info", sandbox_id).returncode != 0


def test_health_and_templates(hopx: Any) -> None:
    """The server is found and healthy."""
    hopx.ok("system", "health", wrapped=True)
    assert [row["name"] for row in hopx.json("template", "list")] == ["code-interpreter"]


def test_files_and_env(hopx: Any, sandbox_id: str) -> None:
    """What is written is listed and read."""
    hopx.ok("files", "write", sandbox_id, "/workspace/a.txt", "--data", "hello")
    assert [row["name"] for row in hopx.json("files", "list", sandbox_id)] == ["a.txt"]
    assert "hello" in hopx.ok("files", "read", sandbox_id, "/workspace/a.txt")
    hopx.ok("env", "set", sandbox_id, "STAGE", "dev")
    assert "STAGE" in hopx.ok("env", "list", sandbox_id)


def test_commands(hopx: Any, sandbox_id: str) -> None:
    """One that is waited for, one that fails, one in the background."""
    assert hopx.json("cmd", "run", sandbox_id, "echo hi")["stdout"] == "hi\n"
    assert hopx.run("cmd", "run", sandbox_id, "exit 4").returncode == 1
    assert "cmd_" in hopx.ok("cmd", "run", sandbox_id, "sleep 600", "-b")


def test_run_list_and_kill(
    hopx: Any, sandbox_id: str, sync_sandbox: hopx_ai.Sandbox, until: Callable[..., Any]
) -> None:
    """Code runs, is listed with its OS process, and can be ended by that."""
    assert hopx.json("run", "-s", sandbox_id, "print(6 * 7)", wrapped=True)["stdout"] == "42\n"
    started = hopx.json("run", "-s", sandbox_id, "-b", "import time; time.sleep(600)", wrapped=True)
    assert "cmd_" in started["stdout"]
    until(sync_sandbox.list_processes, lambda rows: rows[0]["status"] == "running")
    (row,) = hopx.json("run", "x", "ps", "-s", sandbox_id, wrapped=True)
    assert "time.sleep(600)" in row["command"]
    assert json.dumps(hopx.json("system", "processes", sandbox_id, wrapped=True)[0]["pid"]) == str(row["pid"])
    assert hopx.json("system", "metrics", sandbox_id, wrapped=True)["total_errors"] == 0
    assert hopx.json("run", "x", "kill", str(row["pid"]), "-s", sandbox_id, wrapped=True)["killed"]
    until(sync_sandbox.list_processes, lambda rows: rows[0]["status"] == "failed")
