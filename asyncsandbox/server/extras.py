"""The libraries of the extra ``local``: whether they are here, and what is said where one is not."""

from __future__ import annotations

import functools
import importlib.util

from asyncsandbox.errors import APIError

__all__ = ["is_installed", "need"]


@functools.cache
def is_installed(library: str) -> bool:
    """Return whether a library can be imported. Looks for it on the disk, once."""
    return importlib.util.find_spec(library) is not None


def need(library: str, *, distribution: str, what: str) -> None:
    """Refuse with 501 where a library is missing.

    Args:
        library: as it is imported.
        distribution: as it is installed.
        what: what needs it, for people.

    Raises:
        APIError: 501, it is not there.
    """
    if not is_installed(library):
        raise APIError(
            f"{what} needs {distribution}, which this server does not have; install it with "
            "pip install 'asyncsandbox[local]'",
            status=501,
            code="NOT_IMPLEMENTED",
        )
