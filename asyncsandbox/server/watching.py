"""Telling of changes of files (contract 2.8)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.errors import ServerError
from asyncsandbox.protocol import Frame
from asyncsandbox.server import refusals
from asyncsandbox.server.handling import sandbox_of, server_of
from asyncsandbox.server.paths import Roots, explain
from asyncsandbox.server.sockets import Socket, serve

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

__all__ = ["routes"]

_EVENTS: Final = {1: "created", 2: "modified", 3: "deleted"}
_CREATED, _MODIFIED, _DELETED = _EVENTS

_DEBOUNCE: Final = 400
"""Milliseconds for which changes are gathered at most while they keep coming."""

_STEP: Final = 50
"""Milliseconds without a change after which those before it are told."""

_LOOK_AROUND: Final = 1_000
"""Milliseconds after which it is seen whether the sandbox is still there."""

routes = web.RouteTableDef()


@routes.get(protocol.FILE_WATCH)
async def watch_files(request: web.Request) -> web.WebSocketResponse:
    """Watch a file, or a directory with everything below it."""
    if importlib.util.find_spec("watchfiles") is None:
        raise ServerError(
            'watching files needs the library watchfiles on the server: pip install "asyncsandbox[local]"',
            status=501,
            code="NOT_IMPLEMENTED",
        )
    return await serve(request, _talk)


async def _talk(socket: Socket) -> None:
    frame = await socket.first()
    if frame.get("action", "watch") != "watch":
        raise refusals.invalid(f"the first frame's action must be 'watch', not {frame['action']!r}")
    given = frame.get("path", "/workspace")
    if not isinstance(given, str):
        raise refusals.invalid("path must be a string; say what is to be watched", code="INVALID_PATH")
    server, sandbox_id = server_of(socket.request), sandbox_of(socket.request).id
    roots = server.engine.roots(sandbox_id)
    notifier = await asyncio.to_thread(_notifier, given, roots)
    watch, stop = _Watch(notifier, roots), threading.Event()

    async def listen() -> None:
        await socket.until_hung_up()
        stop.set()

    listening = asyncio.create_task(listen())
    own_thread = anyio.CapacityLimiter(1)  # the shared ones would be used up by a few dozen watches
    try:
        while not stop.is_set():
            frames = await anyio.to_thread.run_sync(watch.next, stop, limiter=own_thread)
            server.sandboxes.find(sandbox_id)  # or it is told that it is gone
            for told in frames:
                await socket.send(told)
    finally:
        stop.set()
        listening.cancel()
        await asyncio.wait([listening])
        notifier.close()


def _notifier(given: str, roots: Roots) -> RustNotify:
    """Begin to watch.

    Raises:
        APIError: the path is not there, or leads outside.
        ServerError: the system has no more watches.
    """
    # Not `watchfiles.awatch`: it uses threads of a small shared pool, and does not tell when it has begun.
    from watchfiles._rust_notify import RustNotify  # noqa: PLC0415

    try:
        path = roots.resolve(given)
        path.lstat()
        return RustNotify([str(path)], False, False, 0, True, True)
    except OSError as exc:
        raise explain(given, exc) from exc


class _Watch:
    """Reads one notifier. Its calls block, one at a time."""

    def __init__(self, notifier: RustNotify, roots: Roots) -> None:
        self._notifier = notifier
        self._roots = roots
        self._told: set[str] = set()

    def next(self, stop: threading.Event) -> list[Frame]:
        """Return the next changes, in an order in which they can have happened; none after a while."""
        found = self._notifier.watch(_DEBOUNCE, _STEP, _LOOK_AROUND, stop)
        if isinstance(found, str):
            return []
        by_path: dict[str, set[int]] = {}
        for kind, path in found:
            by_path.setdefault(path, set()).add(kind)
        self._add_missed(by_path)
        now = time.time()
        return [
            protocol.change_frame(self._roots.show(Path(path)), _EVENTS[kind], now)
            for path in sorted(by_path)
            if _inside(path, self._roots)
            for kind in _in_order(path, by_path[path])
        ]

    def _add_missed(self, by_path: dict[str, set[int]]) -> None:
        """Add what was made in a new directory before the kernel was asked to watch that one too."""
        for path in self._told & by_path.keys():
            if _DELETED not in by_path[path]:
                by_path[path].discard(_CREATED)  # it comes twice: once as missed, once by itself
        made = [path for path, kinds in by_path.items() if _CREATED in kinds]
        below = {
            os.path.join(directory, name)  # noqa: PTH118 - walk gives strings
            for path in made
            if not os.path.islink(path)  # noqa: PTH114
            for directory, directories, names in os.walk(path)
            for name in (*directories, *names)
        }
        self._told = below - by_path.keys()
        for path in self._told:
            by_path[path] = {_CREATED}


def _in_order(path: str, kinds: Iterable[int]) -> list[int]:
    """Of what was both deleted and made, the last is what can still be seen."""
    order = (_DELETED, _CREATED, _MODIFIED) if os.path.lexists(path) else (_CREATED, _MODIFIED, _DELETED)
    return sorted(kinds, key=order.index)


def _inside(path: str, roots: Roots) -> bool:
    """Whether a path is the sandbox's own: links below a watched directory may lead anywhere."""
    real = Path(os.path.realpath(Path(path).parent), Path(path).name)
    return any(real == root or root in real.parents for root in (roots.workspace, roots.tmp))
