"""The embedded server: a child of one client, on a private Unix socket, that ends with that client.

It is started with its standard input on a pipe whose other end only the client holds, reads one line of JSON
from it, and answers with one line of JSON on its standard output. End of file on that pipe, or the client's
end as the kernel tells it, is the order to end everything and to leave nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping

import attrs

from asyncsandbox.server.config import Isolation, ServerConfig
from asyncsandbox.server.nest import Nest, make_nest

__all__ = ["main"]

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Orders:
    """What the client says in its one line.

    Attributes:
        api_key: what it will send.
        client_pid: its process; None = only the pipe tells of its end.
        isolation: see `ServerConfig`.
        templates: see `ServerConfig`.
        max_running: see `ServerConfig`.
        state_parent: where the private directory is made; None = among temporary files.
    """

    api_key: str = attrs.field(repr=False, validator=attrs.validators.instance_of(str))
    client_pid: int | None = None
    isolation: Isolation = "bwrap"
    templates: Mapping[str, str] = attrs.field(factory=dict)
    max_running: int | None = None
    state_parent: str | None = None

    @classmethod
    def read(cls, line: bytes) -> Orders:
        """Read the line; what is null takes its default.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**{name: value for name, value in json.loads(line).items() if value is not None})
        except (ValueError, TypeError, AttributeError) as exc:
            raise ValueError(
                "python -m asyncsandbox.server is started by a client, which tells it what to do on its "
                f"standard input; this was no such thing: {exc}"
            ) from exc


def main() -> int:
    """Run the embedded server; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        orders = Orders.read(sys.stdin.buffer.readline())
        with make_nest(orders.state_parent) as nest:
            asyncio.run(_serve(nest, orders))
    except (OSError, ValueError, RuntimeError) as exc:
        _tell(ready=False, error=str(exc))
        return 1
    return 0


def _tell(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def _serve(nest: Nest, orders: Orders) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with _watch_pipe(stop), _watch_client(orders.client_pid, stop):
        from asyncsandbox.server.main import serve_unix  # noqa: PLC0415

        config = ServerConfig(
            state_dir=nest.directory,
            api_key=orders.api_key,
            isolation=orders.isolation,
            templates=orders.templates,
            max_running=orders.max_running,
        )
        async with serve_unix(config, nest.socket) as server:
            _tell(ready=True, socket=nest.socket, instance=server.ledger.instance)
            await stop.wait()


@contextlib.contextmanager
def _watch_pipe(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when the client closes its end of our standard input."""
    loop = asyncio.get_running_loop()
    fd = sys.stdin.fileno()

    def look() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            stop.set()

    loop.add_reader(fd, look)
    try:
        yield
    finally:
        loop.remove_reader(fd)


@contextlib.contextmanager
def _watch_client(pid: int | None, stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when the client's process ends, even while a stray copy of the pipe keeps that open."""
    if pid is None or not hasattr(os, "pidfd_open"):
        yield
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        stop.set()
        yield
        return
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(fd)
        stop.set()

    loop.add_reader(fd, gone)
    if os.getppid() != pid:
        stop.set()  # it ended, and its number may be another's by now
    try:
        yield
    finally:
        loop.remove_reader(fd)
        os.close(fd)
