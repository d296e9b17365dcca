"""What a notebook would show of a run, as `asyncsandbox.server.engine.rich_runner` kept it (contract 2.2)."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["read"]

_LIMIT: Final = 9 * 1024 * 1024
"""Bytes that are read: the runner keeps 8 MiB and what stands between them. The rest was not written by it."""

_TEXT: Final = frozenset({"result", "html", "svg", "markdown"})
_JSON: Final = frozenset({"json", "dataframe"})


def read(path: Path) -> dict[str, Any]:
    """Return the rich fields of an answer; none when nothing was kept. Blocks for as long as the disk does.

    The file is the sandbox's: it may be anything, and says nothing but what the answer shows.

    Returns:
        The contract's fields, and ours: ``display``, a list of ``{"png": …}``, where there are several pictures, and
        ``omitted``, the names of what was too large.
    """
    fields: dict[str, Any] = {}
    pictures: list[str] = []
    omitted: list[str] = []
    for name, data in _frames(_bytes(path)):
        if name == "png":
            pictures.append(base64.b64encode(data).decode())
        elif name == "omitted":
            omitted.append(data.decode(errors="replace"))
        elif name in _TEXT:
            fields[name] = data.decode(errors="replace")
        elif name in _JSON:
            fields |= _object(name, data)
    if pictures:
        fields["png"] = pictures[0]
    if len(pictures) > 1:
        fields["display"] = [{"png": picture} for picture in pictures]
    if omitted:
        fields["omitted"] = omitted
    return fields


def _bytes(path: Path) -> bytes:
    """Return what a plain file holds: not what a link leads to, and not what a pipe may never say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read(_LIMIT)


def _frames(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each whole frame."""
    start = 0
    while (end := data.find(b"\n", start, start + 64)) >= 0:
        name, _, size = data[start:end].decode(errors="replace").partition(" ")
        start = end + 1
        if not size.isascii() or not size.isdigit() or start + int(size) > len(data):
            return
        yield name, data[start : start + int(size)]
        start += int(size)


def _object(name: str, data: bytes) -> dict[str, Any]:
    try:
        return {name: json.loads(data, parse_constant=_refuse)}
    except (ValueError, RecursionError):
        return {}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
