"""What a job wrote, read from its spool file: while it is being written, and after its supervisor is gone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs

from asyncsandbox.server.launcher.ring import Cut, cut_path

__all__ = ["SpoolPiece", "is_cut", "read", "remove", "tail", "write"]

# A writer that overwrites faster than we read is met again so often before a read gives nothing.
_ATTEMPTS = 20


@attrs.frozen(kw_only=True)
class SpoolPiece:
    """A piece of a stream.

    Attributes:
        data: the bytes; empty when there is nothing (yet).
        offset: where they start, in bytes that the job wrote; later than asked for inside the cut.
        next_offset: where to go on.
        size: bytes that the job wrote so far.
    """

    data: bytes
    offset: int
    next_offset: int
    size: int


def read(path: str, *, offset: int, limit: int) -> SpoolPiece:
    """Read a piece of a stream.

    It never spans the cut: a piece ends where the head ends, and its `next_offset` is where the tail begins
    now.

    Args:
        path: the spool file; one that does not exist is an empty stream.
        offset: where to begin, in bytes that the job wrote.
        limit: how many bytes at most.

    Returns:
        What was there; at the end of the stream an empty piece.

    Raises:
        OSError: the file cannot be read.
    """
    for _ in range(_ATTEMPTS):
        before = _load_cut(path)
        piece = _read_plain(path, offset, limit) if before is None else _read_cut(path, before, offset, limit)
        after = _load_cut(path)
        if after is None:
            return piece
        if before is not None and (kept := _still_good(piece, after)) is not None:
            return kept
    return SpoolPiece(data=b"", offset=offset, next_offset=offset, size=_size(path))


def tail(path: str, limit: int) -> SpoolPiece:
    """Read the last `limit` bytes of a stream, or what is left of them after the cut.

    Raises:
        OSError: the file cannot be read.
    """
    cut = _load_cut(path)
    size = _size(path)
    start = max(0, size - limit)
    if cut is not None and start < cut.low:
        start = max(start, cut.layout.head)
    return read(path, offset=start, limit=limit)


def is_cut(path: str) -> bool:
    """Return whether the middle of the stream was dropped."""
    return _load_cut(path) is not None


def remove(path: str) -> None:
    """Remove the file of a stream. One that is not there is fine."""
    for name in (path, cut_path(path)):
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def write(path: str, data: bytes) -> None:
    """Make `data` the whole stream: all of it is there afterwards, or nothing changed."""
    unfinished = Path(f"{path}.new")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _load_cut(path: str) -> Cut | None:
    for _ in range(_ATTEMPTS):
        try:
            raw = Path(cut_path(path)).read_bytes()
        except FileNotFoundError:
            return None
        if not raw:  # just made: nothing was overwritten yet
            return None
        if (cut := Cut.unpack(raw)) is not None:
            return cut
    raise OSError(f"{cut_path(path)!r} is damaged")


def _size(path: str) -> int:
    cut = _load_cut(path)
    if cut is not None:
        return cut.total
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def _read_plain(path: str, offset: int, limit: int) -> SpoolPiece:
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = min(offset, size)
            data = os.pread(file.fileno(), min(limit, size - offset), offset)
    except FileNotFoundError:
        return SpoolPiece(data=b"", offset=0, next_offset=0, size=0)
    return SpoolPiece(data=data, offset=offset, next_offset=offset + len(data), size=size)


def _read_cut(path: str, cut: Cut, offset: int, limit: int) -> SpoolPiece:
    head = cut.layout.head
    if head <= offset < cut.low:
        offset = cut.low
    offset = min(offset, cut.total)
    stop = min(offset + limit, cut.total)
    if offset < head:
        stop = min(stop, head)
    try:
        with Path(path).open("rb") as file:
            runs = cut.layout.runs(offset, stop)
            data = b"".join(os.pread(file.fileno(), last - first, place) for first, last, place in runs)
    except FileNotFoundError:  # not there yet, or removed meanwhile
        return SpoolPiece(data=b"", offset=offset, next_offset=offset, size=cut.total)
    following = max(stop, cut.low) if stop == head else stop
    return SpoolPiece(data=data, offset=offset, next_offset=following, size=cut.total)


def _still_good(piece: SpoolPiece, cut: Cut) -> SpoolPiece | None:
    """Return what of `piece` was not overwritten while it was read; None when that is nothing."""
    end = piece.offset + len(piece.data)
    if end <= cut.layout.head or piece.offset >= cut.low or not piece.data:
        return piece
    if cut.low >= end:
        return None
    return attrs.evolve(piece, data=piece.data[cut.low - piece.offset :], offset=cut.low)
