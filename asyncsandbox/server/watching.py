"""Telling of changes of files (contract 2.8)."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
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

log = logging.getLogger(__name__)

_EVENTS: Final = {1: "created", 2: "modified", 3: "deleted"}
_CREATED, _MODIFIED, _DELETED = _EVENTS

_DEBOUNCE: Final = 400
"""Milliseconds for which changes are gathered at most while they keep coming."""

_STEP: Final = 50
"""Milliseconds without a change after which those before it are told."""

_LOOK_AROUND: Final = 1_000
"""Milliseconds after which it is seen whether the sandbox is still there."""

_ATTEMPTS: Final = 5
"""How often a tree that changes while it is listed is listed."""

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
    watch, stop = await asyncio.to_thread(_begin, given, roots), threading.Event()

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
        watch.close()


def _begin(given: str, roots: Roots) -> _Watch:
    """Begin to watch.

    Raises:
        APIError: the path is not there, or leads outside; or the system has no more watches.
    """
    try:
        path = roots.resolve(given)
        path.lstat()
        return _Watch(path, roots)
    except OSError as exc:
        raise explain(given, exc) from exc


class _Watch:
    """Changes below one path. Everything here blocks, and is called by one thread at a time.

    Each directory is watched by itself: a recursive notifier would follow symbolic links, which may lead
    anywhere outside the sandbox. So there is a new one whenever there are new directories.

    Args:
        path: a real file or directory.
        roots: the sandbox's.

    Raises:
        OSError: it is not there, or the system has no more watches.
    """

    def __init__(self, path: Path, roots: Roots) -> None:
        self._path = path
        self._roots = roots
        self._told: set[str] = set()
        self._notifier = self._notify()

    def close(self) -> None:
        """Watch no longer."""
        self._notifier.close()

    def next(self, stop: threading.Event) -> list[Frame]:
        """Return the next changes, in an order in which they can have happened; none after a while."""
        by_path: dict[str, set[int]] = {}
        _gather(by_path, self._notifier.watch(_DEBOUNCE, _STEP, _LOOK_AROUND, stop))
        for path in self._told & by_path.keys():
            if _DELETED not in by_path[path]:
                by_path[path].discard(_CREATED)  # it comes twice: once as missed, once by itself
        self._told = set()
        made = [path for path, kinds in by_path.items() if _CREATED in kinds and _is_real_directory(path)]
        if made:
            self._renew(by_path)
            self._add_missed(by_path, made)
        now = time.time()
        return [
            protocol.change_frame(self._roots.show(Path(path)), _EVENTS[kind], now)
            for path in sorted(by_path)
            for kind in _in_order(path, by_path[path])
        ]

    def _notify(self) -> RustNotify:
        # Not `watchfiles.awatch`: it uses threads of a small shared pool, and does not tell when it has begun.
        from watchfiles._rust_notify import RustNotify  # noqa: PLC0415

        for _ in range(_ATTEMPTS):
            paths = [directory for directory, _, _ in os.walk(self._path)] or [str(self._path)]
            try:
                return RustNotify(paths, False, False, 0, False, True)
            except FileNotFoundError:  # one of them was removed meanwhile
                self._path.lstat()
        return RustNotify([str(self._path)], False, False, 0, False, True)

    def _renew(self, by_path: dict[str, set[int]]) -> None:
        """Watch new directories too; what the notifier so far knows until then is added to `by_path`."""
        try:
            notifier = self._notify()
        except OSError as exc:
            log.warning("new directories below %s cannot be watched: %s", self._path, exc)
            return
        _gather(by_path, self._notifier.watch(1, 1, 1, None))
        self._notifier.close()
        self._notifier = notifier

    def _add_missed(self, by_path: dict[str, set[int]], made: Iterable[str]) -> None:
        """Add what was put into new directories before they were watched."""
        below = {
            os.path.join(directory, name)  # noqa: PTH118 - walk gives strings
            for path in made
            for directory, directories, names in os.walk(path)
            for name in (*directories, *names)
        }
        self._told = below - by_path.keys()
        for path in self._told:
            by_path[path] = {_CREATED}


def _gather(by_path: dict[str, set[int]], found: set[tuple[int, str]] | str) -> None:
    if not isinstance(found, str):
        for kind, path in found:
            by_path.setdefault(path, set()).add(kind)


def _is_real_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114 - the library gives strings


def _in_order(path: str, kinds: Iterable[int]) -> list[int]:
    """Of what was both deleted and made, the last is what can still be seen."""
    order = (_DELETED, _CREATED, _MODIFIED) if os.path.lexists(path) else (_CREATED, _MODIFIED, _DELETED)
    return sorted(kinds, key=order.index)
