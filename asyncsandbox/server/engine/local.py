"""Sandboxes that live on this machine: a directory and a supervisor each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from asyncsandbox.models import StreamName
from asyncsandbox.server import spool
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.engine import CodeOrder, Order, Prepared
from asyncsandbox.server.engine.inputs import Inputs, Place, delete_tree
from asyncsandbox.server.engine.languages import Toolchains
from asyncsandbox.server.launcher import LaunchEvents, LaunchSpec
from asyncsandbox.server.launcher.process import ProcessLauncher
from asyncsandbox.server.paths import Roots
from asyncsandbox.server.records import JobRecord, Launch, SandboxRecord
from asyncsandbox.server.templates import Templates

__all__ = ["LocalEngine"]

log = logging.getLogger(__name__)


class _Supervision:
    """One life of a sandbox's supervisor: what is said before it is up waits for it, in order."""

    def __init__(
        self, launcher: ProcessLauncher, events: LaunchEvents, on_failure: Callable[[], None]
    ) -> None:
        self._launcher = launcher
        self._events = events
        self._on_failure = on_failure
        self._early: list[tuple[str, Callable[[ProcessLauncher], None]]] | None = []
        self._opening = asyncio.get_running_loop().create_task(self._open())

    @property
    def pid(self) -> int | None:
        """The supervisor's process; None before it is up."""
        return self._launcher.pid

    def say(self, words: Callable[[ProcessLauncher], None], *, starts: str = "") -> None:
        """Say something to the launcher; `starts` is the job that is started by it, if one is."""
        if self._early is None:
            self._speak(words)
        else:
            self._early.append((starts, words))

    async def close(self) -> None:
        self._opening.cancel()
        await asyncio.wait([self._opening])
        await self._launcher.close()

    def _speak(self, words: Callable[[ProcessLauncher], None]) -> None:
        # A supervisor that has just died tells of that itself, and then everything given to it is lost.
        with contextlib.suppress(ConnectionError):
            words(self._launcher)

    async def _open(self) -> None:
        try:
            await self._launcher.open()
        except OSError as exc:
            log.exception("a supervisor could not be started")
            self._on_failure()
            for process_id, _words in self._early or ():
                if process_id:
                    self._events.refused(process_id, f"the sandbox's supervisor could not be started: {exc}")
            return
        early, self._early = self._early or [], None
        for _process_id, words in early:
            self._speak(words)


class LocalEngine:
    """See `asyncsandbox.server.engine.Engine`.

    Args:
        config: the server's settings.
        templates: the environments.
        events: gives who hears of a sandbox's jobs.
    """

    def __init__(
        self, config: ServerConfig, templates: Templates, events: Callable[[str], LaunchEvents]
    ) -> None:
        self._config = config
        self._templates = templates
        self._events = events
        self._toolchains = Toolchains()
        self._inputs = Inputs(self._toolchains, config.state_dir / "shims")
        self._top = config.state_dir / "sandboxes"
        self._supervisions: dict[str, _Supervision] = {}
        self._swept_first: set[str] = set()
        self._places: dict[str, Place] = {}

    def languages(self) -> list[str]:
        """Return the names of the languages that can run here."""
        return self._toolchains.available()

    def create(self, sandbox: SandboxRecord) -> None:
        """Make the sandbox's directories."""
        self._place(sandbox.id).make()

    def find_again(self, sandbox: SandboxRecord, kept: Iterable[Launch]) -> None:
        """Take over its directories, and delete scripts of jobs that will not come."""
        place = self._place(sandbox.id)
        place.make()
        self._swept_first.add(sandbox.id)
        wanted = {path for launch in kept for path in launch.inputs}
        for entry in os.scandir(place.scripts):
            if entry.path not in wanted:
                os.unlink(entry.path)  # noqa: PTH108 - scandir gives strings

    def open(self, sandbox_id: str) -> None:
        """Begin to bring its supervisor up; jobs given meanwhile wait for that."""
        self._supervision(sandbox_id)

    def roots(self, sandbox_id: str) -> Roots:
        """Return its ``/workspace`` and ``/tmp``."""
        return self._place(sandbox_id).roots

    def prepare(self, sandbox: SandboxRecord, process_id: str, order: Order) -> Prepared:
        """Write an order's script and files."""
        place = self._place(sandbox.id)
        template = self._templates.find(sandbox.template)
        if isinstance(order, CodeOrder):
            return self._inputs.prepare_code(place, template, sandbox, process_id, order)
        return self._inputs.prepare_command(place, template, sandbox, process_id, order)

    def discard(self, sandbox_id: str, process_id: str, launch: Launch | None) -> None:
        """Delete a job's inputs, spool files and own directory."""
        place = self._place(sandbox_id)
        if launch is not None:
            self.finished(launch)
        for stream in ("stdout", "stderr"):
            spool.remove(str(place.spool / f"{process_id}.{stream}"))
        place.rich_path(process_id).unlink(missing_ok=True)
        delete_tree(place.own_directory(process_id))

    def launch(self, job: JobRecord) -> None:
        """Hand a job to the supervisor, which is started if it is not there."""
        plan = job.launch
        if plan is None:
            return
        spec = LaunchSpec(
            process_id=job.process_id,
            argv=plan.argv,
            env=plan.env,
            cwd=plan.cwd,
            stdin=plan.stdin,
            stdout=str(self.output_path(job.sandbox_id, job.process_id, "stdout")),
            stderr=str(self.output_path(job.sandbox_id, job.process_id, "stderr")),
            timeout=job.info.timeout or 0.0,
            output_limit=self._config.output_limit,
            grace=self._config.grace,
            streamed=plan.streamed,
            terminal=plan.terminal,
        )
        self._supervision(job.sandbox_id).say(lambda launcher: launcher.start(spec), starts=job.process_id)

    def finished(self, launch: Launch) -> None:
        """Delete a job's inputs."""
        for path in launch.inputs:
            try:
                os.unlink(path)  # noqa: PTH108 - once per job, and Path costs more than the call
            except OSError:
                log.debug("an input of a finished job was gone already")

    def kill(self, sandbox_id: str, process_id: str) -> None:
        """Let the supervisor end a job."""
        self._tell(sandbox_id, lambda launcher: launcher.kill(process_id))

    def consumed(self, sandbox_id: str, process_id: str, stdout: int, stderr: int) -> None:
        """Let the supervisor know how far a job's output has been read."""
        self._tell(sandbox_id, lambda launcher: launcher.consumed(process_id, stdout, stderr))

    def type(self, sandbox_id: str, process_id: str, data: bytes) -> None:
        """Let the supervisor type into a job's terminal."""
        self._tell(sandbox_id, lambda launcher: launcher.type(process_id, data))

    def resize(self, sandbox_id: str, process_id: str, cols: int, rows: int) -> None:
        """Let the supervisor give a job's terminal another size."""
        self._tell(sandbox_id, lambda launcher: launcher.resize(process_id, cols, rows))

    def pause(self, sandbox_id: str) -> None:
        """Let the supervisor stop everything."""
        self._tell(sandbox_id, lambda launcher: launcher.pause())

    def resume(self, sandbox_id: str) -> None:
        """Let the supervisor continue everything."""
        self._tell(sandbox_id, lambda launcher: launcher.resume())

    def top_process(self, sandbox_id: str) -> int | None:
        """Return its supervisor's process: what a job leaves behind becomes the supervisor's child."""
        supervision = self._supervisions.get(sandbox_id)
        return None if supervision is None else supervision.pid

    def output_path(self, sandbox_id: str, process_id: str, stream: StreamName) -> Path:
        """Return the job's spool file."""
        return self._place(sandbox_id).spool / f"{process_id}.{stream}"

    def rich_path(self, sandbox_id: str, process_id: str) -> Path:
        """Return where the runner of a job keeps what a notebook would show."""
        return self._place(sandbox_id).rich_path(process_id)

    def supervisor_gone(self, sandbox_id: str) -> None:
        """Forget the supervisor; the next one begins by ending what this one left."""
        self._supervisions.pop(sandbox_id, None)
        self._swept_first.add(sandbox_id)

    async def halt(self, sandbox_id: str) -> None:
        """End the supervisor, and by that everything in the sandbox."""
        supervision = self._supervisions.pop(sandbox_id, None)
        if supervision is not None:
            await supervision.close()

    async def destroy(self, sandbox_id: str) -> None:
        """End the supervisor and delete the directories."""
        await self.halt(sandbox_id)
        self._swept_first.discard(sandbox_id)
        await asyncio.to_thread(delete_tree, self._place(sandbox_id).top)
        del self._places[sandbox_id]

    async def close(self) -> None:
        """End every supervisor."""
        await asyncio.gather(*(self.halt(sandbox_id) for sandbox_id in tuple(self._supervisions)))

    def _place(self, sandbox_id: str) -> Place:
        place = self._places.get(sandbox_id)
        if place is None:
            place = self._places[sandbox_id] = Place.at(self._top / sandbox_id)
        return place

    def _tell(self, sandbox_id: str, words: Callable[[ProcessLauncher], None]) -> None:
        """Say something that only a supervisor with jobs needs to hear."""
        supervision = self._supervisions.get(sandbox_id)
        if supervision is not None:
            supervision.say(words)

    def _supervision(self, sandbox_id: str) -> _Supervision:
        supervision = self._supervisions.get(sandbox_id)
        if supervision is None:
            events = self._events(sandbox_id)
            launcher = ProcessLauncher(
                sandbox_id=sandbox_id,
                events=events,
                log_path=str(self._place(sandbox_id).top / "supervisor.log"),
                sweep=sandbox_id in self._swept_first,
            )
            supervision = self._supervisions[sandbox_id] = _Supervision(
                launcher, events, lambda: self.supervisor_gone(sandbox_id)
            )
        return supervision
