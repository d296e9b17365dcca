"""``hopx-ai``, class Sandbox, unmodified: where it goes other ways than AsyncSandbox (contract 4.1, 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hopx_ai
import pytest
from hopx_ai import Sandbox

Until = Callable[..., Any]


def test_code_in_the_background(sync_sandbox: Sandbox, until: Until) -> None:
    """This class lists and kills by other paths than the asynchronous one."""
    started = sync_sandbox.run_code_background("print('out')", name="one")
    rows = until(sync_sandbox.list_processes, lambda rows: rows[0]["status"] == "completed")
    assert [(row["process_id"], row["stdout"]) for row in rows] == [(started["process_id"], "out\n")]
    assert sync_sandbox.kill_process(started["process_id"])["status"] == "completed"
    sleeper = sync_sandbox.run_code_background("import time; time.sleep(600)")
    assert sync_sandbox.kill_process(sleeper["process_id"])["status"] == "killed"
    with pytest.raises(hopx_ai.HopxError, match="no process"):
        sync_sandbox.kill_process("bg_unknown")


def test_run_code_and_commands(sync_sandbox: Sandbox) -> None:
    """Results and variables; a time-out is this class's own error."""
    sync_sandbox.env.set("A", "1")
    assert sync_sandbox.run_code("import os; print(os.environ['A'])").stdout == "1\n"
    assert sync_sandbox.commands.run("echo $A; exit 4").exit_code == 4
    with pytest.raises(hopx_ai.CodeExecutionError, match="time-out of 1 s"):
        sync_sandbox.run_code("import time; time.sleep(600)", timeout=1)


def test_upload_and_download(sync_sandbox: Sandbox, tmp_path: Path) -> None:
    """Bytes come back as they were."""
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(bytes(range(256)) * 5_000)
    sync_sandbox.files.upload(str(sent), "/workspace/a & b.bin")
    sync_sandbox.files.download("/workspace/a & b.bin", str(back))
    assert back.read_bytes() == sent.read_bytes()
    with pytest.raises(hopx_ai.FileNotFoundError, match="no file"):
        sync_sandbox.files.read("/workspace/none")


def test_connecting_resumes_a_paused_sandbox(sync_sandbox: Sandbox, place: dict[str, str]) -> None:
    """It runs again, and the older token is still good."""
    sync_sandbox.files.write("/workspace/a", "b")
    sync_sandbox.pause()
    other = Sandbox.connect(sync_sandbox.sandbox_id, **place)
    assert other.get_info().status == "running"
    assert other.files.read("/workspace/a") == sync_sandbox.files.read("/workspace/a") == "b"


def test_debug_needs_the_agent_alone(sync_sandbox: Sandbox) -> None:
    """An agent's URL and a token are enough."""
    host, token = sync_sandbox.get_info().public_host, sync_sandbox.get_token()
    assert Sandbox.debug(host, token).run_code("print(1)").stdout == "1\n"


def test_the_control_plane(sync_sandbox: Sandbox, place: dict[str, str], base_url: str) -> None:
    """Health, lists, templates, expiry, metrics and a wrong key."""
    assert Sandbox.health_check(base_url=base_url)["status"] == "healthy"
    assert sync_sandbox.sandbox_id in [other.sandbox_id for other in Sandbox.iter(**place)]
    assert sync_sandbox.sandbox_id in [other.sandbox_id for other in Sandbox.list(**place)]
    assert Sandbox.get_template("python", **place).name == Sandbox.list_templates(**place)[0].name
    sync_sandbox.set_timeout(200)
    assert sync_sandbox.is_expiring_soon()
    assert sync_sandbox.get_metrics_snapshot()["total_errors"] == 0
    assert sync_sandbox.cache.clear()["entries_removed"] == 0
    with pytest.raises(hopx_ai.AuthenticationError):
        Sandbox.list(base_url=base_url, api_key="wrong")
    sync_sandbox.kill()
    with pytest.raises(hopx_ai.NotFoundError):
        sync_sandbox.get_info()
