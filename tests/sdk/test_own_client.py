"""A sandbox with a client of its own takes all of it along."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from asyncsandbox import Client, NotFoundError, Sandbox, SandboxInfo


async def test_the_server_is_gone_once_the_block_is_left() -> None:
    """Leaving waits for the end of the server, though the sandbox's end has begun to close the client."""
    before = asyncio.all_tasks()
    async with Sandbox.create(isolation="none") as sandbox:
        server = sandbox._owner._embedded.pid
        os.kill(server, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert asyncio.all_tasks() == before


async def test_the_names_of_hopx_mean_the_same(tmp_path: Path) -> None:
    """A program written for their class finds its calls, and leaving what was connected to ends nothing."""
    key = "a-key-for-tests"
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncsandbox", "serve", "--isolation", "none", "--port", "0", "--json"),
        *("--state-dir", str(tmp_path / "state")),
        env={**os.environ, "ASYNCSANDBOX_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        where = {"base_url": json.loads(await server.stdout.readline())["url"], "api_key": key}
        async with Sandbox.create(
            template="code-interpreter", env_vars={"A": "1"}, timeout_seconds=600, **where
        ) as sandbox:
            assert (await sandbox.run_code("import os; print(os.environ['A'])")).stdout == "1\n"
            await sandbox.files.write_bytes("b", b"\xff")
            async with Sandbox.connect(sandbox.sandbox_id, **where) as again:
                assert await again.files.read_bytes("b") == b"\xff"
                assert isinstance(await again.get_info(), SandboxInfo)
                assert (await again.get_agent_metrics()).executions == 1
                assert isinstance(await again.list_system_processes(), list)
            assert (await sandbox.refresh()).status == "running"
        with pytest.raises(NotFoundError, match=sandbox.id):
            await Sandbox.connect(sandbox.id, **where)
        async with Client(**where) as client:
            assert await client.list_sandboxes() == []
    finally:
        server.terminate()
        await server.communicate()


async def test_a_variable_is_given_by_one_name() -> None:
    """Ours and theirs at once is a mistake."""
    with pytest.raises(TypeError, match="env_vars"):
        Sandbox.create(env={"A": "1"}, env_vars={"A": "2"})
