"""From a path as a client writes it to a real one inside the sandbox, and back."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

from asyncsandbox.errors import APIError
from asyncsandbox.server import refusals

__all__ = ["Roots", "explain"]

_ABOUT_THE_PATH: Final = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)


def explain(path: str, error: OSError) -> APIError:
    """Return the refusal for what the file system said of a client's path."""
    match error:
        case FileNotFoundError():
            # Not "not found": with "sandbox" in the path the JavaScript SDK takes that for an expired sandbox.
            return refusals.not_found(f"there is no file {path!r}", code="FILE_NOT_FOUND")
        case FileExistsError():
            return refusals.conflict(f"{path!r} exists already", code="FILE_ALREADY_EXISTS")
        case PermissionError():
            return refusals.forbidden(f"the file system does not allow this with {path!r}")
        case _ if error.errno in _ABOUT_THE_PATH:
            return refusals.invalid(f"{path!r}: {error.strerror}", code="INVALID_PATH")
        case _:
            return refusals.unavailable(
                f"the server's file system failed at {path!r}: {error.strerror or error}"
            )


def _encodes(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@attrs.frozen
class Roots:
    """The two directories of a sandbox that clients may name: ``/workspace`` and ``/tmp``.

    Attributes:
        workspace: the real directory behind ``/workspace``.
        tmp: the real directory behind ``/tmp``.
    """

    workspace: Path = attrs.field(converter=_real)
    tmp: Path = attrs.field(converter=_real)

    def resolve(self, path: str, *, follow: bool = True, base: Path | None = None) -> Path:
        """Return the real path behind `path`; nothing needs to be there.

        Relative paths start at `base`, else at ``/workspace``. ``/workspace/…`` and ``/tmp/…`` mean the
        sandbox's own directories; the real paths of these, which jobs see where nothing is isolated, are
        understood too.

        Args:
            path: as the client wrote it.
            follow: whether a symbolic link at the very end is followed.
            base: where relative paths start, a real directory inside the sandbox.

        Raises:
            InvalidRequestError: the path is empty or impossible.
            PermissionDeniedError: it leads outside, by ``..`` or by a symbolic link.
        """
        if not path or "\0" in path or not _encodes(path):
            raise refusals.invalid(
                f"path must be the path of a file or directory, not {path!r}", code="INVALID_PATH"
            )
        place = self._place(path, base or self.workspace)
        real = Path(os.path.realpath(place if follow else place.parent))
        if not follow:
            real = real / place.name
        if place.name == ".." or not any(
            real == root or root in real.parents for root in (self.workspace, self.tmp)
        ):
            raise refusals.forbidden(
                f"the path {path!r} is not allowed: it leads outside /workspace and /tmp"
            )
        return real

    def show(self, real: Path) -> str:
        """Return the path of a real file as clients write it."""
        for name, root in (("/workspace", self.workspace), ("/tmp", self.tmp)):  # noqa: S108 - the sandbox's own
            if real == root or root in real.parents:
                return str(PurePosixPath(name) / real.relative_to(root).as_posix())
        return str(real)

    def is_root(self, real: Path) -> bool:
        """Whether it is one of the two directories themselves."""
        return real in (self.workspace, self.tmp)

    def _place(self, path: str, base: Path) -> Path:
        given = PurePosixPath(path)
        if not given.is_absolute():
            return base / given
        for root in (self.workspace, self.tmp):
            if given.is_relative_to(root):
                return Path(given)
        for name, root in (("/workspace", self.workspace), ("/tmp", self.tmp)):  # noqa: S108 - the sandbox's own
            if given.is_relative_to(name):
                return root / given.relative_to(name)
        return Path(given)
