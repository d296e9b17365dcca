"""Starting and stopping a server, over TCP or on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from aiohttp import web

from asyncsandbox.server.app import make_app
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.state import Server

__all__ = ["StartError", "run", "serve_tcp", "serve_unix"]

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
"""The JavaScript SDK opens a connection for every call (contract 4.2)."""

_SHUTDOWN_SECONDS: Final = 1.0
"""How long replies that are under way may take when the server stops."""


class StartError(OSError):
    """The server could not start; the message says why, for people."""


@contextlib.contextmanager
def _own(state_dir: Path) -> Iterator[None]:
    """Own a state directory: two servers on the same records would tell different truths."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StartError(f"the state directory {state_dir} cannot be used: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise StartError(
                f"another server uses the state directory {state_dir}; "
                "stop it, or give this one its own with --state-dir"
            ) from exc
        yield
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _application(config: ServerConfig) -> AsyncIterator[tuple[Server, web.AppRunner]]:
    with _own(config.state_dir):
        server = Server.make(config)
        try:
            # Handlers are not cancelled when a client hangs up: what was begun is finished and recorded.
            runner = web.AppRunner(
                make_app(server), access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_SECONDS
            )
            await runner.setup()
            try:
                yield server, runner
            finally:
                await runner.cleanup()
        finally:
            await server.close()


@contextlib.asynccontextmanager
async def serve_unix(config: ServerConfig, path: str) -> AsyncIterator[Server]:
    """Serve on a Unix socket for as long as the block lasts.

    Raises:
        StartError: the state directory is taken or not usable.
        OSError: the socket cannot be made.
    """
    async with _application(config) as (server, runner):
        await web.UnixSite(runner, path, backlog=_BACKLOG).start()
        yield server


@contextlib.asynccontextmanager
async def serve_tcp(config: ServerConfig, *, host: str, port: int) -> AsyncIterator[str]:
    """Serve over TCP for as long as the block lasts.

    Args:
        config: the server's settings.
        host: the address to listen on.
        port: 0 = any that is free.

    Yields:
        The server's URL.

    Raises:
        StartError: the state directory or the port is taken or not usable.
    """
    async with _application(config) as (_server, runner):
        try:
            await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        except (OSError, OverflowError) as exc:
            reason = getattr(exc, "strerror", None) or str(exc)
            raise StartError(
                f"cannot listen on {host} port {port}: {reason}; choose another with --port"
            ) from exc
        address = runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        yield f"http://{shown}:{address[1]}"


def run(config: ServerConfig, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve over TCP until SIGTERM or SIGINT; what runs then is ended with the server.

    Args:
        config: the server's settings.
        host: the address to listen on.
        port: 0 = any that is free.
        on_ready: called with the server's URL once it answers.

    Raises:
        StartError: the state directory or the port is taken or not usable.
        TemplateError: a template cannot be used.
        StoreError: the records cannot be read.
    """
    asyncio.run(_run(config, host=host, port=port, on_ready=on_ready))


async def _run(config: ServerConfig, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve_tcp(config, host=host, port=port) as url:
        on_ready(url)
        await stop.wait()
