"""Jobs as processes of this machine: a supervisor per sandbox, spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from asyncsandbox.models import EndReason
from asyncsandbox.server.launcher import LaunchEnd, LaunchEvents, LaunchSpec, StreamEnd

__all__ = ["ProcessLauncher"]

log = logging.getLogger(__name__)

_BOOTSTRAP = str(Path(__file__).with_name("bootstrap.py"))
_READY_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 5.0
_LOG_TAIL = 2000


class ProcessLauncher:
    """The `Launcher` that makes plain processes, through a supervisor of its own."""

    def __init__(self, *, sandbox_id: str, events: LaunchEvents, log_path: str, sweep: bool = False) -> None:
        """Prepare; nothing is started before `open`.

        Args:
            sandbox_id: whose supervisor it is.
            events: who hears of the jobs.
            log_path: where the supervisor's stderr goes.
            sweep: end first what an earlier supervisor of this sandbox left behind.
        """
        self._sandbox_id = sandbox_id
        self._events = events
        self._log_path = Path(log_path)
        self._sweep = sweep
        self._link: _Link | None = None
        self._spawning: asyncio.Future[subprocess.Popen[bytes]] | None = None
        self._exited: asyncio.Future[Any] | None = None
        self._pid: int | None = None
        self._opened = False
        self._closing = False

    def __repr__(self) -> str:
        state = "closed" if self._closing else "new" if self._pid is None else f"pid={self._pid}"
        return f"<ProcessLauncher {self._sandbox_id!r} {state}>"

    @property
    def pid(self) -> int | None:
        """The supervisor's process; None before it was made and once it is being ended."""
        return None if self._closing else self._pid

    async def open(self) -> None:
        """Start the supervisor and wait until it listens.

        Raises:
            OSError: it could not be started, or did not become ready.

        Cancellation: the supervisor is ended before the cancellation goes on.
        """
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        # In a thread: Popen waits until the program was found.
        self._spawning = loop.run_in_executor(None, self._spawn, theirs)
        ours.setblocking(False)
        _, self._link = await loop.create_unix_connection(
            lambda: _Link(self._on_message, self._on_lost), sock=ours
        )
        process = await asyncio.shield(self._spawning)
        self._pid, self._exited = process.pid, _watch_exit(process)
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                self._opened = await self._link.ready and self._link.alive
        except TimeoutError:
            pass
        if not self._opened:
            said = await asyncio.to_thread(self._log_tail)
            raise OSError(f"the supervisor of sandbox {self._sandbox_id!r} did not start: {said}")

    def start(self, spec: LaunchSpec) -> None:
        """Make a process; `started` or `refused` follows.

        Raises:
            ConnectionError: there is no supervisor.
        """
        fields = attrs.asdict(spec, recurse=False)
        fields["id"] = fields.pop("process_id")
        fields["argv"], fields["env"] = list(spec.argv), dict(spec.env)
        if not self._send("start", **fields):
            raise ConnectionError(f"sandbox {self._sandbox_id!r} has no supervisor")

    def kill(self, process_id: str) -> None:
        """End a job's whole process tree; `ended` follows. Unknown ids do nothing."""
        self._send("kill", id=process_id)

    def consumed(self, process_id: str, stdout: int, stderr: int) -> None:
        """Say how far a streamed job's output has been read."""
        self._send("consumed", id=process_id, stdout=stdout, stderr=stderr)

    def type(self, process_id: str, data: bytes) -> None:
        """Type into a job's terminal."""
        self._send("type", id=process_id, data=base64.b64encode(data).decode())

    def resize(self, process_id: str, cols: int, rows: int) -> None:
        """Give a job's terminal another size."""
        self._send("resize", id=process_id, cols=cols, rows=rows)

    def pause(self) -> None:
        """Stop every process; the jobs' clocks stand still."""
        self._send("pause")

    def resume(self) -> None:
        """Let them go on."""
        self._send("resume")

    async def close(self) -> None:
        """End every job and the supervisor. Returns when the supervisor is gone; no event follows."""
        self._closing = True
        try:
            if self._spawning is not None:
                await self._end(await asyncio.shield(self._spawning))
        except OSError:
            pass  # it was never started, as `open` has said
        finally:
            if self._link is not None:
                self._link.close()

    async def _end(self, process: subprocess.Popen[bytes]) -> None:
        exited = self._exited = self._exited or _watch_exit(process)
        if self._link is not None:
            self._link.send({"op": "stop"})
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await asyncio.shield(exited)
        except TimeoutError:
            log.warning("the supervisor of sandbox %s does not end, killing it", self._sandbox_id)
            process.kill()
            await asyncio.shield(exited)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        flags = ["sweep"] if self._sweep else []
        descriptor = theirs.fileno()
        with theirs, self._log_path.open("ab") as log_file:
            return subprocess.Popen(  # noqa: S603 - our own script
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-X",
                    "utf8",
                    _BOOTSTRAP,
                    str(descriptor),
                    self._sandbox_id,
                    *flags,
                ],
                env={"LANG": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(descriptor,),
                start_new_session=True,
            )

    def _send(self, op: str, **fields: object) -> bool:
        return self._link is not None and not self._closing and self._link.send({"op": op, **fields})

    def _on_message(self, message: dict[str, Any]) -> None:
        if self._closing:
            return
        events, op = self._events, message["op"]
        if op == "started":
            events.started(message["id"], message["pid"], message["at"])
        elif op == "ended":
            events.ended(_decode_end(message))
        elif op == "busy":
            events.busy(message["id"], message["busy"])
        elif op == "wrote":
            events.wrote(message["id"])
        elif op == "typed":
            events.typed(message["id"], message["count"])
        elif op == "refused":
            events.refused(message["id"], message["message"])

    def _on_lost(self) -> None:
        if self._closing or not self._opened:
            return
        log.error("the supervisor of sandbox %s is gone; its log is %s", self._sandbox_id, self._log_path)
        self._events.gone()

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError), self._log_path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            return file.read().decode(errors="replace").strip()
        return ""


class _Link(asyncio.Protocol):
    """The server's end of the talk with a supervisor: one JSON object a line."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._incoming = bytearray()

    @property
    def alive(self) -> bool:
        """Whether there is somebody to talk to."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: dict[str, Any]) -> bool:
        """Send a message; return False when there is nobody to send it to."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        return True

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take whole lines out of what came."""
        self._incoming += data
        if b"\n" not in data:
            return
        *lines, self._incoming = self._incoming.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["op"] != "ready":
                self._on_message(message)
            elif not self.ready.done():  # whoever waited may have given up
                self.ready.set_result(True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's name
        """Tell that the supervisor is gone."""
        if not self.ready.done():
            self.ready.set_result(False)
        self._on_lost()


def _watch_exit(process: subprocess.Popen[bytes]) -> asyncio.Future[Any]:
    """Return a future that is done once `process` has ended and was reaped."""
    loop = asyncio.get_running_loop()
    if sys.platform != "linux":
        return loop.run_in_executor(None, process.wait)
    exited: asyncio.Future[Any] = loop.create_future()
    descriptor = os.pidfd_open(process.pid)

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.poll()
        exited.set_result(None)

    loop.add_reader(descriptor, reap)
    return exited


def _decode_end(message: dict[str, Any]) -> LaunchEnd:
    return LaunchEnd(
        process_id=message["id"],
        exit_code=message["exit_code"],
        signal=message["signal"],
        reason=EndReason(message["reason"]),
        ended_at=message["at"],
        stdout=_decode_stream(message["stdout"]),
        stderr=_decode_stream(message["stderr"]),
    )


def _decode_stream(stream: dict[str, Any]) -> StreamEnd:
    inline = stream["inline"]
    return StreamEnd(size=stream["size"], inline=None if inline is None else base64.b64decode(inline))
