"""Files of a sandbox (contract 2.10). Whatever touches the disk does so in a thread."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import BadHttpMessage

from asyncsandbox import protocol
from asyncsandbox.server import refusals, wire
from asyncsandbox.server.handling import json_body, sandbox_of, server_of
from asyncsandbox.server.paths import Roots, explain

__all__ = ["routes"]

log = logging.getLogger(__name__)

_CHUNK: Final = 256 * 1024
_DEFAULT_MODE: Final = 0o644

_T = TypeVar("_T")

routes = web.RouteTableDef()


def _roots(request: web.Request) -> Roots:
    return server_of(request).engine.roots(sandbox_of(request).id)


def _path_in_query(request: web.Request, *, default: str | None = None) -> str:
    path = request.query.get("path", default)
    if path is None:
        raise refusals.invalid("path is missing; say which file is meant", code="MISSING_PARAMETER")
    return path


async def _on_disk(path: str, work: Callable[[], _T]) -> _T:
    """Do `work` in a thread; say what went wrong with `path` in the contract's words."""
    try:
        return await asyncio.to_thread(work)
    except OSError as exc:
        raise explain(path, exc) from exc


def _open_regular(path: Path, mode: str, *, flags: int = os.O_RDONLY, permissions: int = 0) -> BinaryIO:
    """Open a regular file, and nothing that could make a thread wait: a job may leave a FIFO anywhere.

    Raises:
        OSError: it cannot be opened.
        InvalidRequestError: it is something else, such as a pipe, a socket or a device.
    """
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, permissions)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a FIFO that nobody reads, or a socket
            raise _no_file(path) from exc
        raise
    file = os.fdopen(fd, mode)  # the caller closes it
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return cast("BinaryIO", file)
    file.close()
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise _no_file(path)


def _no_file(path: Path) -> Exception:
    return refusals.invalid(
        f"{path.name!r} is a pipe, a socket or a device, and no file to read or write", code="INVALID_PATH"
    )


def _done(path: Path, roots: Roots, *, size: int, message: str) -> web.Response:
    body = {"success": True, "path": roots.show(path), "size": size, "message": message}
    return web.json_response({**body, "timestamp": protocol.timestamp(time.time())})


@routes.get("/files/read")
async def read(request: web.Request) -> web.Response:
    """Return a file as text; what is no UTF-8 becomes U+FFFD (``/files/download`` gives the bytes)."""
    given, roots = _path_in_query(request), _roots(request)

    def work() -> tuple[Path, bytes]:
        path = roots.resolve(given)
        with _open_regular(path, "rb") as file:
            return path, file.read()

    path, data = await _on_disk(given, work)
    return web.json_response(
        {"content": data.decode(errors="replace"), "path": roots.show(path), "size": len(data)}
    )


@routes.post("/files/write")
async def write(request: web.Request) -> web.Response:
    """Write a file; directories on the way are made."""
    body, roots = await json_body(request), _roots(request)
    given = _path_in_body(body)
    data, mode = _content(body), _mode(body)
    overwrite = _overwrite(body)

    def work() -> Path:
        path = roots.resolve(given)
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (0 if overwrite else os.O_EXCL)
        with _open_regular(path, "wb", flags=flags, permissions=mode) as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        return path

    path = await _on_disk(given, work)
    return _done(path, roots, size=len(data), message="written")


def _path_in_body(body: Mapping[str, Any]) -> str:
    path = body.get("path")
    if not isinstance(path, str):
        raise refusals.invalid("path must be a string; say which file is meant", code="MISSING_PARAMETER")
    return path


def _content(body: Mapping[str, Any]) -> bytes:
    content = body.get("content")
    if not isinstance(content, str):
        raise refusals.invalid("content must be a string", code="MISSING_PARAMETER")
    encoding = body.get("encoding")
    if encoding is None or encoding == "":
        encoding = "utf-8"
    if encoding == "base64":
        try:
            return base64.b64decode(content, validate=True)
        except ValueError:
            raise refusals.invalid("content is no base64 text, though encoding says so") from None
    if encoding not in ("utf-8", "utf8", "text"):
        raise refusals.invalid(f"encoding must be 'utf-8' or 'base64', not {encoding!r}")
    return content.encode(errors="surrogatepass")


def _overwrite(body: Mapping[str, Any]) -> bool:
    value = body.get("overwrite")
    if value is not None and not isinstance(value, bool):
        raise refusals.invalid(f"overwrite must be true or false, not {value!r}")
    return value is not False


def _mode(body: Mapping[str, Any]) -> int:
    mode = body.get("mode")
    if mode is None:
        return _DEFAULT_MODE
    try:
        value = int(str(mode), 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:  # noqa: PLR2004 - all that chmod knows
        raise refusals.invalid(f"mode must be an octal text such as '0644', not {mode!r}")
    return value


@routes.get("/files/list")
async def list_directory(request: web.Request) -> web.Response:
    """List a directory, by name."""
    given, roots = _path_in_query(request, default="/workspace"), _roots(request)

    def work() -> tuple[Path, list[dict[str, Any]]]:
        directory = roots.resolve(given)
        entries: list[dict[str, Any]] = []
        for entry in sorted(directory.iterdir()):
            try:
                entries.append(wire.encode_entry(entry, roots.show(entry)))
            except FileNotFoundError:
                continue  # a job removed it meanwhile
        return directory, entries

    directory, entries = await _on_disk(given, work)
    return web.json_response({"files": entries, "path": roots.show(directory), "count": len(entries)})


@routes.get("/files/exists")
async def exists(request: web.Request) -> web.Response:
    """Say whether something is there."""
    given, roots = _path_in_query(request), _roots(request)
    there = await _on_disk(given, lambda: roots.resolve(given).exists())
    return web.json_response({"exists": there, "path": given})


@routes.post("/files/mkdir")
async def make_directory(request: web.Request) -> web.Response:
    """Make a directory and those above it; one that is there is fine."""
    body, roots = await json_body(request), _roots(request)
    given = _path_in_body(body)

    def work() -> Path:
        path = roots.resolve(given)
        path.mkdir(parents=True, exist_ok=True)
        return path

    path = await _on_disk(given, work)
    return _done(path, roots, size=0, message="directory created")


@routes.delete("/files/remove")
async def remove(request: web.Request) -> web.Response:
    """Remove a file, a link (not what it points to), or a directory with everything in it."""
    given, roots = _path_in_query(request), _roots(request)

    def work() -> Path:
        path = roots.resolve(given, follow=False)
        if roots.is_root(path):
            raise refusals.forbidden(f"{given!r} is the top of the sandbox's files and cannot be removed")
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return path

    path = await _on_disk(given, work)
    return _done(path, roots, size=0, message="removed")


@routes.post("/files/upload")
async def upload(request: web.Request) -> web.Response:
    """Store a file of any size. It waits aside, as its bytes come before its path (V)."""
    if not request.content_type.startswith("multipart/"):
        raise refusals.invalid("an upload is a multipart form with the parts 'file' and 'path'")
    roots = _roots(request)
    aside = roots.tmp.parent / f"upload-{secrets.token_hex(8)}"
    try:
        given, received = await _receive(request, aside)
        if not received:
            raise refusals.invalid("the form has no part 'file'", code="MISSING_PARAMETER")

        def work() -> tuple[Path, int]:
            path = roots.resolve(given)
            if path.is_dir():
                raise IsADirectoryError(21, "Is a directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.chmod(_DEFAULT_MODE)
            size = aside.stat().st_size
            shutil.move(aside, path)
            return path, size

        path, size = await _on_disk(given, work)
    finally:
        aside.unlink(missing_ok=True)
    return _done(path, roots, size=size, message="uploaded")


async def _receive(request: web.Request, aside: Path) -> tuple[str, bool]:
    """Read a form: the file goes to `aside`. Returns the path that it names, and whether a file came."""
    path, received = "", False
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "path":
                path = await part.text()
            elif part.name == "file":
                received = True
                with await asyncio.to_thread(aside.open, "wb") as file:
                    while chunk := await part.read_chunk(_CHUNK):
                        await asyncio.to_thread(file.write, part.decode(chunk))
    except (ValueError, RuntimeError, LookupError, BadHttpMessage, web.RequestPayloadError) as exc:
        # aiohttp's reader says RuntimeError of a transfer encoding that it does not know
        raise refusals.invalid(f"the form cannot be read: {exc}") from exc
    if not path:
        raise refusals.invalid("the form has no part 'path'", code="MISSING_PARAMETER")
    return path, received


@routes.get("/files/download")
async def download(request: web.Request) -> web.StreamResponse:
    """Send a file's bytes as they are.

    Not aiohttp's file response: that one may send a compressed neighbour instead.
    """
    given, roots = _path_in_query(request), _roots(request)
    file = await _on_disk(given, lambda: _open_regular(roots.resolve(given), "rb"))
    with file:
        left = os.fstat(file.fileno()).st_size
        response = web.StreamResponse(
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(left)}
        )
        await response.prepare(request)
        while left > 0:
            chunk = await asyncio.to_thread(file.read, min(_CHUNK, left))
            if not chunk:
                log.warning("a file became shorter while it was sent; its download is cut off")
                response.force_close()
                break
            await response.write(chunk)
            left -= len(chunk)
    if left == 0:
        await response.write_eof()
    elif request.transport is not None:
        request.transport.abort()
    return response
