"""A server in memory and a client of it, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asyncsandbox import Sandbox
from asyncsandbox.testing import FakeClient, FakeServer


@pytest.fixture
def server() -> FakeServer:
    """Return a server with all extensions."""
    return FakeServer()


@pytest.fixture
def stock() -> FakeServer:
    """Return a server that has only the published contract."""
    return FakeServer(features={})


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[FakeClient]:
    """Return a client of the server."""
    async with FakeClient(server) as client:
        yield client


@pytest.fixture
async def sandbox(client: FakeClient) -> Sandbox:
    """Return a sandbox of the client."""
    return await client.create_sandbox()
