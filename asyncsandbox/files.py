"""The files of one sandbox."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import InvalidRequestError, ProtocolError
from asyncsandbox.models import FileInfo
from asyncsandbox.protocol import FormPart, Request
from asyncsandbox.watching import FileWatch

__all__ = ["Files"]


class Files:
    """Reads and writes files of a sandbox. Relative paths start at ``/workspace``.

    All calls raise `NotFoundError` for what is not there and `PermissionDeniedError` for a path outside of
    ``/workspace`` and ``/tmp``.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def read(self, path: str) -> str:
        """Return a file's content as text; what is no UTF-8 becomes U+FFFD.

        Protocol: ``GET /files/read`` (agent API 3.2).
        """
        reply = await self._agent.call(protocol.get("/files/read", path=path), what=f"reading {path!r}")
        content = protocol.json_object(reply).get("content")
        if not isinstance(content, str):
            raise ProtocolError(
                f"the server read {path!r} and gave no content", url=reply.url, detail="no content"
            )
        return content

    async def read_bytes(self, path: str) -> bytes:
        """Return a file's content.

        Protocol: ``GET /files/download`` (agent API 3.2).
        """
        reply = await self._agent.call(protocol.get("/files/download", path=path), what=f"reading {path!r}")
        return reply.body

    async def write(self, path: str, content: str | bytes, *, mode: str = "0644") -> None:
        """Write a file, over what is there; directories above it are made.

        Args:
            path: where.
            content: text is written as UTF-8.
            mode: its permissions, as octal text.

        Protocol: ``POST /files/write`` with ``encoding: base64`` for bytes (agent API 3.2).
        """
        body: dict[str, object] = {"path": path, "mode": mode, "overwrite": True}
        if isinstance(content, str):
            body["content"] = content
        elif isinstance(content, bytes | bytearray):
            body |= {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        else:
            raise InvalidRequestError(f"content must be str or bytes, not {type(content).__name__}")
        request = Request(method="POST", path="/files/write", json=body, repeatable=True)
        await self._agent.call(request, what=f"writing {path!r}")

    write_bytes = write  # as hopx-ai has it

    async def list(self, path: str = "/workspace") -> list[FileInfo]:
        """Return what a directory holds.

        Protocol: ``GET /files/list`` (agent API 3.2).
        """
        reply = await self._agent.call(protocol.get("/files/list", path=path), what=f"listing {path!r}")
        return protocol.decode_files(reply)

    async def exists(self, path: str) -> bool:
        """Return whether there is a file or directory at `path`.

        Protocol: ``GET /files/exists`` (agent API 3.2).
        """
        reply = await self._agent.call(protocol.get("/files/exists", path=path), what=f"looking for {path!r}")
        return protocol.json_object(reply).get("exists") is True

    async def mkdir(self, path: str) -> None:
        """Make a directory and those above it; one that is there is fine.

        Protocol: ``POST /files/mkdir`` (agent API 3.2).
        """
        request = Request(method="POST", path="/files/mkdir", json={"path": path}, repeatable=True)
        await self._agent.call(request, what=f"making directory {path!r}")

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that it holds.

        Protocol: ``DELETE /files/remove`` (agent API 3.2).
        """
        request = Request(method="DELETE", path="/files/remove", params={"path": path}, repeatable=True)
        await self._agent.call(request, what=f"removing {path!r}")

    def watch(self, path: str = "/workspace") -> FileWatch:
        """Watch a file, or a directory and everything below it.

        Returns:
            An async iterator of `FileChange`s, and a context manager that ends the watching; see `FileWatch`.

        Protocol: WebSocket ``/files/watch`` (contract 2.8).
        """
        return FileWatch(self._agent, path)

    async def upload(self, local: str | os.PathLike[str], path: str) -> None:
        """Copy a file of this machine into the sandbox.

        Raises:
            OSError: the local file cannot be read.

        Protocol: ``POST /files/upload``, multipart (agent API 3.2).
        """
        source = Path(local)
        data = await asyncio.to_thread(source.read_bytes)
        parts = (FormPart(name="path", data=path), FormPart(name="file", data=data, filename=source.name))
        request = Request(method="POST", path="/files/upload", form=parts, repeatable=True)
        await self._agent.call(request, what=f"uploading to {path!r}")

    async def download(self, path: str, local: str | os.PathLike[str]) -> None:
        """Copy a file of the sandbox to this machine, over what is there.

        Raises:
            OSError: the local file cannot be written.

        Protocol: ``GET /files/download`` (agent API 3.2).
        """
        data = await self.read_bytes(path)
        await asyncio.to_thread(Path(local).write_bytes, data)
