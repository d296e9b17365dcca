"""The handle of one sandbox."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Unpack

from asyncsandbox import protocol
from asyncsandbox._tasks import Tasks
from asyncsandbox.agent import Agent
from asyncsandbox.callbacks import CallbackStarter
from asyncsandbox.commands import Commands, run_to_end
from asyncsandbox.control import ControlPlane
from asyncsandbox.environment import Environment
from asyncsandbox.errors import ClientStateError, EmbeddedServerError, InvalidRequestError
from asyncsandbox.files import Files
from asyncsandbox.groups import JobGroup
from asyncsandbox.jobs import Job
from asyncsandbox.models import (
    ExecutionResult,
    JobInfo,
    JobOptions,
    JobSpec,
    SandboxInfo,
    SandboxMetrics,
    SystemProcess,
    merge_specs,
)
from asyncsandbox.protocol import Request
from asyncsandbox.starting import DEFAULT_MAX_IN_FLIGHT, Specs, StartAll, Starter
from asyncsandbox.streaming import RunStream
from asyncsandbox.terminal import Terminal
from asyncsandbox.watcher import Watcher

if TYPE_CHECKING:
    from asyncsandbox.webhooks import WebhookReceiver

__all__ = ["Opening", "Sandbox"]


class Owner(Protocol):
    """What a sandbox needs of its client."""

    server: str
    control: ControlPlane
    watcher: Watcher
    tasks: Tasks
    webhook: WebhookReceiver | None

    def release(self, sandbox: Sandbox, reason: str) -> None:
        """Forget a sandbox that has been ended."""

    async def released(self) -> None:
        """Wait for what follows from that."""


class Opening:
    """A sandbox to come: await it, or use it as a context manager that ends it (or closes it) afterwards."""

    def __init__(
        self, make: Callable[[], Awaitable[Sandbox]], close: Callable[[Sandbox], Awaitable[None]]
    ) -> None:
        self._make = make
        self._close = close
        self._sandbox: Sandbox | None = None
        self._used = False

    def __await__(self) -> Generator[Any, None, Sandbox]:
        self._used = True
        return self._make().__await__()

    def __del__(self) -> None:
        if not self._used:
            warnings.warn("a sandbox was asked for, but never awaited", RuntimeWarning, stacklevel=2)

    async def __aenter__(self) -> Sandbox:
        self._used = True
        self._sandbox = await self._make()
        return self._sandbox

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sandbox is not None:
            await self._close(self._sandbox)


def _plain_body(spec: JobSpec, call: str) -> dict[str, Any]:
    """Return the body of a run that somebody waits for, which has no inputs (contract 2.2)."""
    body = protocol.encode_code(spec)
    unusable = protocol.needs_inputs(body) + (["collect"] if spec.collect else [])
    if unusable:
        raise InvalidRequestError(f"{call} takes no {' or '.join(unusable)}; run_code_background does")
    return body


class Sandbox:
    """A place to run code in, away from this machine's files and network as far as its server provides.

    Made by `Client.create_sandbox`, `Client.connect` and `Sandbox.create`.

    Attributes:
        id: the sandbox's id.
        server: the URL of its server, or "embedded".
        files: its files.
        env: its environment variables.
        commands: shell commands in it.
    """

    create_with_own_client: ClassVar[Callable[..., Opening]]
    connect_with_own_client: ClassVar[Callable[..., Opening]]
    """How `create` and `connect` make a client; `asyncsandbox.client` sets it, so that imports go one way."""

    def __init__(self, agent: Agent, owner: Owner) -> None:
        self.id = agent.sandbox_id
        self.server = owner.server
        self._agent = agent
        self._owner = owner
        self._starter = Starter(self, agent=agent, watcher=owner.watcher, tasks=owner.tasks)
        self._callbacks = CallbackStarter(
            self, agent=agent, watcher=owner.watcher, tasks=owner.tasks, receiver=owner.webhook
        )
        self.files = Files(agent)
        self.env = Environment(agent)
        self.commands = Commands(agent, self._starter)

    @classmethod
    def create(cls, template: str = "code-interpreter", **options: Any) -> Opening:
        """Create a sandbox with a client of its own, which closes with it.

        Args:
            template: as `Client.create_sandbox` takes it.
            options: what `Client.create_sandbox` and `Client` take; `env_vars` is `env` as hopx-ai has it.
        """
        return cls.create_with_own_client(template, **options)

    @classmethod
    def connect(cls, sandbox_id: str, **options: Any) -> Opening:
        """Use a sandbox that is there with a client of its own, which closes when the block is left.

        Leaving the block does not end the sandbox. Who awaits it instead has the client until `kill`.

        Args:
            sandbox_id: as `Client.connect` takes it.
            options: what `Client` takes.

        Raises:
            NotFoundError: the server does not know it.
        """
        return cls.connect_with_own_client(sandbox_id, **options)

    def __repr__(self) -> str:
        state = "closed" if self._agent.closed else "open"
        return f"<Sandbox {self.id!r} {state} on {self.server}>"

    @property
    def info(self) -> SandboxInfo | None:
        """What the server said of it last; None for one that was connected to and not asked yet. No I/O."""
        return self._agent.info

    @property
    def closed(self) -> bool:
        """Whether it was ended here, or found gone. No I/O."""
        return self._agent.closed is not None

    async def refresh(self) -> SandboxInfo:
        """Ask the server about the sandbox now and return what it says.

        Raises:
            NotFoundError: it is gone.
        """
        self._agent.info = (await self._owner.control.get(self.id)).info
        return self._agent.info

    # --- running code ---------------------------------------------------------------------------------------

    async def run_code(
        self,
        code: str | JobSpec,
        *,
        language: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> ExecutionResult:
        """Run code, wait for its end, and return what it gave. Code that fails raises nothing.

        Of Python that is also what a notebook would show: `ExecutionResult.result`, `figures`, `html`, ….

        For more than a few at once, or more than a few minutes, use `run_code_background`.

        Args:
            code: a program, or a spec without inputs and name.
            language: "python" (default), "javascript", "bash" or "go".
            timeout: seconds that it may run.
            env: variables for this run, on top of the sandbox's.
            working_dir: where it runs; None = ``/workspace``.

        Raises:
            InvalidRequestError: empty code, an unknown language, an impossible value.

        Cancellation: our server ends the run; others let it go on.

        Protocol: ``POST /execute`` (agent API 3.2; contract 2.2).
        """
        spec = merge_specs(
            code, {"language": language, "timeout": timeout, "env": env, "working_dir": working_dir}
        )
        body = _plain_body(spec, "run_code")
        request = Request(method="POST", path="/execute", json=body, lane="hold")
        return await run_to_end(self._agent, request, timeout=spec.timeout or timeout, what="running code")

    def run_code_stream(
        self,
        code: str | JobSpec,
        *,
        language: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> RunStream:
        """Run code and read its output as it is written. Arguments as for `run_code`.

        Returns:
            An async iterator of `StreamOutput`s and a last `StreamResult`, and a context manager that ends the
            run when it is left; see `RunStream`. Nothing is sent before it is entered or iterated over.

        Raises:
            InvalidRequestError: empty code, an unknown language, an impossible value.

        Protocol: WebSocket ``/execute/stream`` (contract 2.8).
        """
        spec = merge_specs(
            code, {"language": language, "timeout": timeout, "env": env, "working_dir": working_dir}
        )
        frame = protocol.code_frame(_plain_body(spec, "run_code_stream"))
        limit = spec.timeout or timeout
        return RunStream(self._agent, protocol.CODE_STREAM, frame, timeout=limit, what="streaming code")

    def terminal(self, *, cols: int = 80, rows: int = 24) -> Terminal:
        """Open a shell on a terminal: ``async with sandbox.terminal() as terminal``; see `Terminal`.

        Args:
            cols: its width in characters.
            rows: its height in lines.

        Raises:
            InvalidRequestError: no such size.

        Protocol: WebSocket ``/terminal`` (contract 2.8).
        """
        return Terminal(self._agent, cols=cols, rows=rows)

    async def run_code_background(
        self,
        code: str | JobSpec,
        *,
        language: str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        working_dir: str | None = None,
        stdin: str | bytes | None = None,
        args: Sequence[str] = (),
        files: Mapping[str, bytes | str] | None = None,
        collect: Sequence[str] = (),
    ) -> Job:
        """Start code as a background job and return its handle as soon as the server has accepted it.

        Args:
            code: a program, or a spec; what a spec leaves open is taken from the other arguments.
            language: "python" (default), "javascript", "bash" or "go".
            timeout: seconds that the job may run, not counting the time in the queue; None = 300.
            env: variables for this job, on top of the sandbox's.
            name: for people; need not be unique.
            working_dir: where it runs; None as in `JobSpec`.
            stdin: what it reads; None = end of file at once.
            args: its arguments.
            files: ``{path: content}``, written before it starts.
            collect: glob patterns of files to bring back with the result.

        Raises:
            InvalidRequestError: empty code, an unknown language, an impossible value.
            SandboxClosedError: the sandbox was closed or is gone.
            TransportError: the server could not be reached.

        Cancellation: the start is settled all the same, and its job killed.

        Protocol: ``POST /execute/background`` (agent API 3.2; contract 2.3).
        """
        spec = merge_specs(
            code,
            {
                "language": language,
                "timeout": timeout,
                "env": env,
                "name": name,
                "working_dir": working_dir,
                "stdin": stdin,
                "args": args,
                "files": files,
                "collect": collect,
            },
        )
        return await self._starter.code(spec)

    async def run_code_async(
        self,
        code: str | JobSpec,
        *,
        callback_url: str | None = None,
        callback_headers: Mapping[str, str] | None = None,
        callback_signature_secret: str | None = None,
        language: str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> Job:
        """Start code as a background job whose end the server posts to a URL, and return its handle.

        With a client that has a `WebhookReceiver` the URL and the secret are filled in, and the job ends here
        as soon as it is called back for. Nobody asks for its status meanwhile, but for a look every 30 seconds
        in case the callback is lost. With a `callback_url` of your own the handle is like that of
        `run_code_background`. A stock server, which tells no process id, lists such runs at most by their
        execution id: there a job ends by its callback, or as lost when its sandbox is gone.

        Args:
            code: a program, or a spec; what a spec leaves open is taken from the other arguments.
            callback_url: where the server is to post; None = the client's receiver.
            callback_headers: to be sent along with the callback.
            callback_signature_secret: what a callback to `callback_url` is signed with; None = not signed.
            language: "python" (default), "javascript", "bash" or "go".
            timeout: seconds that the job may run, not counting the time in the queue; None = 3600.
            env: variables for this job, on top of the sandbox's.
            working_dir: where it runs; None as in `JobSpec`.

        Raises:
            InvalidRequestError: no URL and no receiver, empty code, an impossible value.
            ClientStateError: the receiver does not listen yet.
            SandboxClosedError: the sandbox was closed or is gone.
            TransportError: the server could not be reached.

        Cancellation: the start is settled all the same, and its job killed.

        Protocol: ``POST /execute/async`` (contract 2.6).
        """
        spec = merge_specs(
            code,
            {
                "language": language,
                "timeout": protocol.ASYNC_TIMEOUT if timeout is None else timeout,
                "env": env,
                "working_dir": working_dir,
            },
        )
        return await self._callbacks.start(
            spec, url=callback_url, headers=callback_headers, secret=callback_signature_secret
        )

    def start_all(
        self,
        specs: Specs,
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        **defaults: Unpack[JobOptions],
    ) -> StartAll:
        """Start many background jobs.

        Await the result for all handles in input order, or iterate over it (``async for``) for handles as
        they are accepted; then the input is read only as fast as handles are taken, so it may be endless.

        Args:
            specs: programs or specs, a sync or async iterable.
            max_in_flight: start requests at the same time. How many jobs run at once is the server's
                business; there is no need to limit that here.
            defaults: for what a spec leaves open: language, timeout, env, name, working_dir, stdin, args, files
                and collect, as `run_code_background` takes them.

        Raises:
            StartError: some were refused; `started` has the others' handles, `failed` tells why by index.
            InvalidRequestError: the arguments themselves are impossible.

        Cancellation: what it started is killed.
        """
        return StartAll(self._starter, specs, max_in_flight=max_in_flight, defaults=defaults)

    def job_group(self) -> JobGroup:
        """Return a group whose jobs do not outlive its block."""
        return JobGroup(tasks=self._owner.tasks, sandbox=self)

    # --- jobs that are there --------------------------------------------------------------------------------

    def job(self, process_id: str) -> Job:
        """Return a handle to a job by its id, whoever started it. No I/O.

        A job that the server does not know ends as lost when it is waited for; `Job.refresh` raises
        `NotFoundError`.
        """
        if not isinstance(process_id, str) or not process_id:
            raise InvalidRequestError(f"a process_id is a string such as 'bg_4f21', not {process_id!r}")
        watcher = self._owner.watcher
        return Job(watcher.reattach(watcher.board(self._agent), process_id), watcher=watcher, sandbox=self)

    async def list_processes(self) -> list[JobInfo]:
        """Return the background jobs of the sandbox, finished ones included.

        Protocol: ``GET /execute/processes`` (agent API 3.2; contract 2.4).
        """
        reply = await self._agent.call(protocol.list_processes(since=None), what="listing jobs")
        listing = protocol.decode_processes(reply, sandbox_id=self.id, since=None)
        return [row.info for row in listing.rows]

    async def kill_process(self, process_id: str) -> None:
        """End a job by its id. Returns when the end is confirmed; a finished job stays as it is.

        Raises:
            NotFoundError: the server does not know it.
        """
        job = self.job(process_id)
        await job.refresh()
        await job.kill()

    # --- what its agent says --------------------------------------------------------------------------------

    async def metrics(self) -> SandboxMetrics:
        """Return what the sandbox has done so far.

        Protocol: ``GET /metrics/snapshot`` (agent API 3.2; contract 2.1).
        """
        reply = await self._agent.call(protocol.get(protocol.METRICS), what="reading the metrics")
        return protocol.decode_metrics(reply)

    async def system_processes(self) -> list[SystemProcess]:
        """Return the processes of the operating system, as far as the server shows them; not the jobs as such.

        Protocol: ``GET /processes`` (agent API 3.2; contract 2.1).
        """
        reply = await self._agent.call(protocol.get(protocol.SYSTEM_PROCESSES), what="listing processes")
        return protocol.decode_system_processes(reply)

    # --- the same under the names of hopx-ai ----------------------------------------------------------------

    @property
    def sandbox_id(self) -> str:
        """The same as `id`."""
        return self.id

    get_info = refresh
    get_agent_metrics = get_metrics_snapshot = metrics
    list_system_processes = system_processes

    # --- its own life ---------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop every process in the sandbox. The jobs' time-outs stand still; waits rest."""
        await self._owner.control.pause(self.id)

    async def resume(self) -> None:
        """Let the processes go on."""
        await self._owner.control.resume(self.id)

    async def set_timeout(self, seconds: int) -> None:
        """Let the sandbox end `seconds` from now."""
        if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
            raise InvalidRequestError(
                f"a sandbox's timeout is a whole number of seconds from 1, not {seconds!r}"
            )
        await self._owner.control.set_timeout(self.id, seconds)

    async def kill(self) -> None:
        """End the sandbox with all its jobs and files. Returns when that is confirmed; twice is fine.

        Jobs that had not ended become lost for whoever waits for them here.

        Raises:
            TransportError: the server could not be reached; the sandbox may still be there.
            APIError: the server refused.

        Cancellation: the sandbox is ended all the same.
        """
        try:
            await self._owner.tasks.complete(self._end(), name=f"end {self.id}")
        finally:
            await self._owner.released()

    async def _end(self) -> None:
        if self._agent.closed is None:
            with contextlib.suppress(ClientStateError, EmbeddedServerError):  # then the sandbox is gone too
                await self._owner.control.delete(self.id)
        self._owner.release(self, "it was ended here")
