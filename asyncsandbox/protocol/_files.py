"""Files of a sandbox (contract 2.10)."""

from __future__ import annotations

from collections.abc import Mapping

from asyncsandbox.models import FileInfo
from asyncsandbox.protocol._messages import Reply, broken, json_object
from asyncsandbox.protocol._scalars import as_integer, as_text, first_of, unix_time

__all__ = ["decode_files"]


def decode_files(reply: Reply) -> list[FileInfo]:
    """Read a directory listing; either spelling of the two disputed fields.

    Raises:
        ProtocolError: no list of objects.
    """
    rows = json_object(reply).get("files")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise broken(reply, "files is no list of objects")
    return [
        FileInfo(
            name=str(row.get("name", "")),
            path=str(row.get("path", "")),
            size=as_integer(row.get("size")) or 0,
            is_dir=bool(first_of(row, "is_directory", "is_dir")),
            permissions=as_text(row.get("permissions")) or "",
            modified_at=unix_time(first_of(row, "modified_time", "modified")),
        )
        for row in rows
    ]
