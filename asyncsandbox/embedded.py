"""Starts, watches and ends the embedded server: a child process on a private Unix socket.

The child ends with this process, whatever ends it: it sees the end of its standard input, which only this
process holds open, and watches this process itself. So nothing here has to run for nothing to be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from asyncsandbox._tasks import Tasks
from asyncsandbox.errors import EmbeddedServerError

__all__ = ["EmbeddedServer"]

_BOOTSTRAP: Final = """
import runpy, sys
sys.path.append(sys.argv[1])
runpy.run_module("asyncsandbox.server", run_name="__main__")
"""
"""Runs the server as ``python -m`` does, found also where the package is not installed."""

_READY_WITHIN: Final = 30.0
_END_WITHIN: Final = 10.0
_LOG_TAIL: Final = 4_000


@attrs.define
class EmbeddedServer:
    """A running embedded server.

    Attributes:
        socket: path of its Unix socket.
        api_key: the key for it; nobody else has it.
        pid: its process id.
    """

    socket: str
    api_key: str = attrs.field(repr=False)
    pid: int
    _process: asyncio.subprocess.Process = attrs.field(repr=False)
    _log: bytearray = attrs.field(repr=False)
    _reader: asyncio.Task[None] = attrs.field(repr=False)
    _closing: bool = False

    @classmethod
    async def start(
        cls,
        *,
        isolation: str | None,
        templates: Mapping[str, str],
        max_running: int | None,
        tasks: Tasks,
        on_death: Callable[[str], None],
    ) -> EmbeddedServer:
        """Start a server and return when it answers.

        Args:
            isolation: "bwrap" or "none"; None = the server's default.
            templates: more templates, ``{name: path of a virtual environment}``.
            max_running: jobs at the same time at most; None = as many as the machine bears.
            tasks: the client's tasks.
            on_death: called with the reason when the server ends without having been asked to.

        Raises:
            EmbeddedServerError: it did not come up; says why.

        Cancellation: no server is left.
        """
        config = {
            "api_key": secrets.token_urlsafe(32),
            "client_pid": os.getpid(),
            "isolation": isolation,
            "templates": dict(templates),
            "max_running": max_running,
        }
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # or a module of the current directory would take the place of one of the library's
                "-c",
                _BOOTSTRAP,
                str(Path(__file__).parents[1]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise EmbeddedServerError(f"the embedded server could not be started: {exc}") from exc
        log = bytearray()
        # Not one of the client's tasks: it ends by itself with the server, and is needed until then.
        reader = asyncio.get_running_loop().create_task(
            _keep_tail(process.stderr, log), name="embedded server's log", context=contextvars.Context()
        )
        try:
            async with asyncio.timeout(_READY_WITHIN):
                ready = await _introduce(process, config)
                if not ready.get("ready"):
                    await process.wait()
        except BaseException as exc:
            await _end(process, reader)
            if isinstance(exc, TimeoutError):
                raise EmbeddedServerError(
                    f"the embedded server did not come up within {_READY_WITHIN:g} s", log_tail=_text(log)
                ) from exc
            raise
        if not ready.get("ready"):
            await _drained(process, reader)
            reason = ready.get("error") or _text(log).strip().rpartition("\n")[2] or "it gave no reason"
            raise EmbeddedServerError(
                f"the embedded server could not be started: {reason}", log_tail=_text(log)
            )
        server = cls(
            socket=str(ready["socket"]),
            api_key=str(config["api_key"]),
            pid=process.pid,
            process=process,
            log=log,
            reader=reader,
        )
        _ = tasks.spawn(server._watch(on_death), name="embedded server's end")
        return server

    async def _watch(self, on_death: Callable[[str], None]) -> None:
        status = await self._process.wait()
        if not self._closing:
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            on_death(f"the embedded server ended by itself with {how}")

    def log_tail(self) -> str:
        """Return the end of what the server wrote to its standard error."""
        return _text(self._log)

    async def aclose(self) -> None:
        """End the server and everything in it. Returns when it is gone; closing twice is fine."""
        self._closing = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_WITHIN)
        except TimeoutError:
            await _end(self._process, self._reader)
        else:
            await _drained(self._process, self._reader)


async def _end(process: asyncio.subprocess.Process, reader: asyncio.Task[None]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    await _drained(process, reader)


async def _drained(process: asyncio.subprocess.Process, reader: asyncio.Task[None]) -> None:
    """Let the pipes of a process that has ended close, or they would outlive the event loop."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    with contextlib.suppress(ConnectionError):
        await process.stdin.wait_closed()
    await asyncio.wait([reader, asyncio.ensure_future(process.stdout.read())], timeout=_END_WITHIN)


async def _introduce(process: asyncio.subprocess.Process, config: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the child what to be, and read what became of it. The key goes where no `ps` shows it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    while line := await process.stdout.readline():
        try:
            ready = json.loads(line)
        except ValueError:
            continue  # something that the interpreter's own start-up files print
        if isinstance(ready, dict):
            return ready
    return {}


async def _keep_tail(stream: asyncio.StreamReader | None, log: bytearray) -> None:
    assert stream is not None
    while chunk := await stream.read(4096):
        log += chunk
        del log[:-_LOG_TAIL]


def _text(log: bytearray) -> str:
    return log.decode(errors="replace")
