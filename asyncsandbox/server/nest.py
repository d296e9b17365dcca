"""The embedded server's private directory: made for one life, and swept by the next if that ended badly."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

__all__ = ["Nest", "make_nest"]

_LONGEST_SOCKET: Final = 100
"""Bytes of a Unix socket's path that every platform takes."""

_FALLBACK: Final = "/tmp"  # noqa: S108 - only ever a directory of our own below it, checked


@attrs.frozen
class Nest:
    """A private directory and the socket in it."""

    directory: Path
    socket: str


@contextlib.contextmanager
def make_nest(parent: str | None) -> Iterator[Nest]:
    """Make a private directory for as long as the block lasts, and sweep what dead servers left beside it.

    Args:
        parent: where; None = the directory for temporary files.

    Raises:
        OSError: it cannot be made, or the one that is there belongs to somebody else.
    """
    family = _family(parent)
    with _locked(family / ".lock"):
        # Under this lock no directory is half made: one without a lock that is held has no server.
        _sweep(family)
        directory = family / secrets.token_hex(6)
        directory.mkdir(mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield Nest(directory, str(directory / "s"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _family(parent: str | None) -> Path:
    """Return the directory of all of this user's nests."""
    name = f"asyncsandbox-{os.getuid()}"
    family = Path(parent or tempfile.gettempdir()).absolute() / name
    if len(os.fsencode(family / "0123456789ab" / "s")) > _LONGEST_SOCKET:
        family = Path(_FALLBACK) / name
    family.mkdir(mode=0o700, exist_ok=True)
    facts = family.lstat()
    if facts.st_uid != os.getuid() or family.is_symlink() or facts.st_mode & 0o077:
        raise PermissionError(
            f"{family} is not a directory of yours alone; remove it, or point TMPDIR to one of your own"
        )
    return family


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sweep(family: Path) -> None:
    for directory in family.iterdir():
        if directory.is_dir() and not directory.is_symlink() and not _is_held(directory / "lock"):
            shutil.rmtree(directory, ignore_errors=True)


def _is_held(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
