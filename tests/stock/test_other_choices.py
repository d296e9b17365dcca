"""Stock servers that choose otherwise where the contract leaves it open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncsandbox import Client, JobState, PollPolicy

from .stockserver import StockServer  # noqa: TID252 - it lies beside its tests, which are no package to install


class OtherServer(StockServer):
    """Lists no output, and tells no address when it makes a sandbox."""

    def _describe(self, sandbox: str) -> dict[str, Any]:
        described = super()._describe(sandbox)
        if not self.calls["GET /v1/sandboxes/{sandbox}"]:
            del described["public_host"]
        return described


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[OtherServer]:
    """Such a server."""
    server = OtherServer(tmp_path, lists_output=False)
    runner = await server.start()
    yield server
    keys = server.keys()
    await server.stop(runner)
    server.clean(keys)


@pytest.fixture
async def client(other: OtherServer) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(other.url, api_key="k", poll=PollPolicy(floor=0.02, cap=0.2)) as client:
        yield client


async def test_an_address_that_only_a_look_up_tells(client: Client) -> None:
    """It is looked up when the answer to the create lacks it."""
    sandbox = await client.create_sandbox()
    assert (await (await sandbox.run_code_background("print(1)")).wait()).stdout == "1\n"


async def test_much_output_of_a_killed_job_is_told_to_be_cut(client: Client) -> None:
    """Its tail went with it: what is there is no end, and stays to be read."""
    sandbox = await client.create_sandbox()
    code = "import sys, time\nprint('ab' * 4_000_000, flush=True)\nopen('go', 'w')\ntime.sleep(600)"
    job = await sandbox.run_code_background(code)
    async with asyncio.timeout(50):
        while (await sandbox.commands.run("test -e go")).exit_code:
            await asyncio.sleep(0.05)
    await job.kill()
    result = job.result()
    assert (result.state, result.stdout_truncated, result.stderr_truncated) == (JobState.KILLED, True, False)
    assert (await job.output("stdout", 0, 4)).data == b"abab"
