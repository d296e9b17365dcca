"""A sandbox with a client of its own takes all of it along."""

from __future__ import annotations

import asyncio
import os

import pytest

from asyncsandbox import Sandbox


async def test_the_server_is_gone_once_the_block_is_left() -> None:
    """Leaving waits for the end of the server, though the sandbox's end has begun to close the client."""
    before = asyncio.all_tasks()
    async with Sandbox.create(isolation="none") as sandbox:
        server = sandbox._owner._embedded.pid
        os.kill(server, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert asyncio.all_tasks() == before
