"""What every test needs: one event loop that is never blocked, and no way to a real service."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

_SERVICE_VARIABLES = (
    "ASYNCSANDBOX_URL",
    "ASYNCSANDBOX_API_KEY",
    "ASYNCSANDBOX_ISOLATION",
    "HOPX_BASE_URL",
    "HOPX_API_KEY",
)

for _name in _SERVICE_VARIABLES:
    os.environ.pop(_name, None)


@pytest.fixture
def anyio_backend() -> str:
    """Run every async test on asyncio: the only loop that the package supports."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    """Fail a test in which the package blocks the event loop."""
    with blockbuster_ctx("asyncsandbox") as blockbuster:
        yield blockbuster
