"""The client: which server, and everything that hangs on it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import os
import random
import warnings
import weakref
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import attrs

from asyncsandbox._clock import Clock, LoopClock
from asyncsandbox._tasks import Home, SingleFlight, Tasks
from asyncsandbox.agent import Agent
from asyncsandbox.backoff import Uniform
from asyncsandbox.control import ControlPlane, Created
from asyncsandbox.embedded import EmbeddedServer
from asyncsandbox.errors import (
    AsyncSandboxError,
    ClientStateError,
    EmbeddedServerError,
    InvalidRequestError,
)
from asyncsandbox.groups import JobGroup
from asyncsandbox.jobs import Job
from asyncsandbox.models import JobRef, JobSpec, PollPolicy, SandboxInfo, TemplateInfo
from asyncsandbox.protocol import Lane
from asyncsandbox.sandbox import Opening, Sandbox
from asyncsandbox.starting import CLEAN_UP_GRACE
from asyncsandbox.transport import Channel, Endpoint, HttpSender, TrafficCounter, is_url
from asyncsandbox.watcher import Watcher

if TYPE_CHECKING:
    from asyncsandbox.webhooks import WebhookReceiver

__all__ = ["Client", "ClientStats"]

_log = logging.getLogger("asyncsandbox")

EMBEDDED: Final = "embedded"

_HOPX_URL: Final = "https://api.hopx.dev"
_DEFAULT_RESULT_LIMIT: Final = 64 * 1024
_LANES: Final[dict[Lane, int]] = {"status": 16, "hold": 256, "end": 64}


@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has done so far.

    Attributes:
        requests: HTTP requests that were sent, repetitions included.
        looks: those among them that asked for the status of jobs.
        retries: repetitions.
        bytes_received: bytes of reply bodies.
    """

    requests: int
    looks: int
    retries: int
    bytes_received: int


@attrs.frozen
class _Choice:
    """Which server a client talks to: "embedded", or a URL with a key."""

    server: str
    api_key: str = attrs.field(repr=False)


def _choose(base_url: str | None, api_key: str | None, environ: Mapping[str, str]) -> _Choice:
    """Decide: what was given, else our variables, else Hopx's, else embedded."""
    if base_url == EMBEDDED:
        return _Choice(EMBEDDED, "")
    if base_url is not None:
        url, key = (
            base_url,
            api_key or environ.get("ASYNCSANDBOX_API_KEY") or environ.get("HOPX_API_KEY") or "",
        )
    elif environ.get("ASYNCSANDBOX_URL"):
        url, key = environ["ASYNCSANDBOX_URL"], api_key or environ.get("ASYNCSANDBOX_API_KEY", "")
    elif environ.get("HOPX_BASE_URL") or environ.get("HOPX_API_KEY"):
        url, key = environ.get("HOPX_BASE_URL") or _HOPX_URL, api_key or environ.get("HOPX_API_KEY", "")
    elif api_key is not None:
        raise InvalidRequestError(
            "api_key= was given, but no server: give base_url= too, or set ASYNCSANDBOX_URL"
        )
    else:
        return _Choice(EMBEDDED, "")
    if not isinstance(url, str) or not is_url(url):
        raise InvalidRequestError(
            f"base_url must be 'embedded' or an http(s) URL such as 'http://127.0.0.1:8080', not {url!r}"
        )
    return _Choice(url.rstrip("/"), key)


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


class Client:
    """Talks to one server and owns what it makes there.

    Which server: `base_url`; else ``ASYNCSANDBOX_URL`` and ``ASYNCSANDBOX_API_KEY``; else ``HOPX_BASE_URL``
    and ``HOPX_API_KEY`` (the hosted service); else an embedded one, a child process that ends with this one.
    It belongs to the event loop and the process in which it is first used, and raises `ClientStateError` in
    others.

    Args:
        base_url: the server's URL, or "embedded"; None as said above.
        api_key: the key for it; None as said above.
        poll: how often the status of jobs is asked for.
        isolation: for an embedded server: "bwrap" or "none"; None = ``ASYNCSANDBOX_ISOLATION``, else "bwrap".
            A served one decides for itself.
        templates: for an embedded server: more templates, ``{name: path of a virtual environment}``.
        max_running: for an embedded server: jobs at the same time at most; None = as many as the machine
            bears.
        request_timeout: seconds that one request may take, the run of code in it not counted.
        max_requests: requests in flight at most. Looks at jobs, and requests that are answered when something
            has ended, have bounds of their own.
        result_limit: bytes of each stream that a `JobResult` carries.
        webhook: where servers post the ends of what `Sandbox.run_code_async` starts; None = nowhere.
        clock: where time comes from; for tests.
        uniform: where randomness comes from; for tests.

    Raises:
        InvalidRequestError: a value out of its range, or a URL that is none.

    Example:
        >>> async with Client() as client:  # doctest: +SKIP
        ...     async with client.create_sandbox() as sandbox:
        ...         job = await sandbox.run_code_background("print(6 * 7)")
        ...         print((await job).stdout)
    """

    _closed = True  # until there is something to close: __del__ runs also after a refusal in __init__

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        poll: PollPolicy | None = None,
        isolation: Literal["bwrap", "none"] | None = None,
        templates: Mapping[str, str] | None = None,
        max_running: int | None = None,
        request_timeout: float = 30.0,
        max_requests: int = 64,
        result_limit: int = _DEFAULT_RESULT_LIMIT,
        webhook: WebhookReceiver | None = None,
        clock: Clock | None = None,
        uniform: Uniform = random.uniform,
    ) -> None:
        choice = _choose(base_url, api_key, os.environ)
        isolation = isolation or os.environ.get("ASYNCSANDBOX_ISOLATION") or None  # type: ignore[assignment]
        if isolation not in (None, "bwrap", "none"):
            raise InvalidRequestError(f"isolation must be 'bwrap' or 'none', not {isolation!r}")
        counts = (
            ("max_requests", max_requests),
            ("result_limit", result_limit),
            ("max_running", max_running),
        )
        for name, value in counts:
            if value is None and name == "max_running":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequestError(f"{name} must be a whole number from 1, not {value!r}")
        if not _is_seconds(request_timeout):
            raise InvalidRequestError(f"request_timeout must be more than 0 seconds, not {request_timeout!r}")
        if poll is not None and not isinstance(poll, PollPolicy):
            raise InvalidRequestError(f"poll must be a PollPolicy, not {type(poll).__name__}")
        if webhook is not None and not hasattr(webhook, "expect"):
            raise InvalidRequestError(f"webhook must be a WebhookReceiver, not {type(webhook).__name__}")
        self.server = choice.server
        self.webhook = webhook
        self._api_key = choice.api_key
        self._isolation = isolation
        self._templates = dict(templates or {})
        self._max_running = max_running
        self._lanes: dict[Lane, int] = {**_LANES, "call": max_requests}
        self._traffic = TrafficCounter()
        self._home = Home()
        self.tasks = Tasks()
        self._channel = Channel(
            self._open_endpoint,
            home=self._home,
            clock=clock or LoopClock(),
            uniform=uniform,
            timeout=request_timeout,
            traffic=self._traffic,
        )
        self.control = ControlPlane(self._channel)
        self.watcher = Watcher(
            policy=poll or PollPolicy(),
            clock=clock or LoopClock(),
            uniform=uniform,
            tasks=self.tasks,
            result_limit=result_limit,
        )
        self._endpoint: Endpoint | None = None
        self._embedded: EmbeddedServer | None = None
        self._dead: str | None = None
        self._connect = SingleFlight(self._make_endpoint, self.tasks, name="open the endpoint")
        self._agents: weakref.WeakValueDictionary[str, Agent] = weakref.WeakValueDictionary()
        self._own: dict[str, Sandbox] = {}
        self._closed = False
        self._used = False
        self._closer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        where = self.server if self._embedded is None else f"{self.server} pid={self._embedded.pid}"
        return f"<Client {state} {where} sandboxes={len(self._own)}>"

    @property
    def stats(self) -> ClientStats:
        """What the client has done so far. No I/O."""
        return ClientStats(
            requests=self._traffic.requests,
            looks=self._traffic.looks,
            retries=self._traffic.retries,
            bytes_received=self._traffic.bytes_received,
        )

    # --- the server -----------------------------------------------------------------------------------------

    async def _open_endpoint(self) -> Endpoint:
        self._home.check()
        if self._closed:
            raise ClientStateError("the client is closed; make a new one")
        if self._dead is not None:
            tail = "" if self._embedded is None else self._embedded.log_tail()
            raise EmbeddedServerError(f"{self._dead}; make a new client", log_tail=tail)
        self._used = True
        return self._endpoint or await self._connect()

    async def _make_endpoint(self) -> Endpoint:
        if self.server != EMBEDDED:
            sender = HttpSender(url=self.server, socket=None, limits=self._lanes, traffic=self._traffic)
            self._endpoint = Endpoint(sender=sender, url=self.server, api_key=self._api_key)
            return self._endpoint
        self._embedded = await EmbeddedServer.start(
            isolation=self._isolation,
            templates=self._templates,
            max_running=self._max_running,
            tasks=self.tasks,
            on_death=self._server_died,
        )
        url = "http://embedded"
        sender = HttpSender(url=url, socket=self._embedded.socket, limits=self._lanes, traffic=self._traffic)
        self._endpoint = Endpoint(sender=sender, url=url, api_key=self._embedded.api_key, by_path=True)
        return self._endpoint

    def _server_died(self, reason: str) -> None:
        self._dead = reason
        self.watcher.close_all(reason)

    # --- sandboxes ------------------------------------------------------------------------------------------

    def create_sandbox(
        self,
        template: str = "code-interpreter",
        *,
        timeout_seconds: float | None = None,
        env: Mapping[str, str] | None = None,
        internet_access: bool = False,
    ) -> Opening:
        """Make a sandbox: ``await`` it, or ``async with`` it to have it ended at the end of the block.

        Args:
            template: the environment that it is made from.
            timeout_seconds: the sandbox's own life; None = until it is ended.
            env: variables that its jobs start with.
            internet_access: whether its jobs reach the internet.

        Raises:
            InvalidRequestError: an unknown template, or isolation that this machine does not have.

        Cancellation: a sandbox that was made is ended.
        """
        if not isinstance(template, str) or not template:
            raise InvalidRequestError(f"a template is a name such as 'code-interpreter', not {template!r}")
        if timeout_seconds is not None and not _is_seconds(timeout_seconds):
            raise InvalidRequestError(f"timeout_seconds must be more than 0 seconds, not {timeout_seconds!r}")
        checked = JobSpec("pass", env=env).env

        async def make() -> Sandbox:
            return await self._create(template, timeout_seconds, checked, internet_access)

        return Opening(make, Sandbox.kill)

    async def _create(
        self,
        template: str,
        timeout_seconds: float | None,
        env: Mapping[str, str] | None,
        internet_access: bool,
    ) -> Sandbox:
        async def work() -> Sandbox:
            created = await self.control.create(
                template=template, timeout_seconds=timeout_seconds, env=env, internet_access=internet_access
            )
            agent = self._agent(created.info.id, created)
            sandbox = self._own[agent.sandbox_id] = Sandbox(agent, self)
            return sandbox

        await self._open_endpoint()
        return await self.tasks.run_or_undo(
            work(), Sandbox.kill, name="create a sandbox", grace=CLEAN_UP_GRACE
        )

    def connect(self, sandbox_id: str) -> Opening:
        """Use a sandbox that is there: ``await`` it, or ``async with`` it. It is never ended by this.

        Raises:
            NotFoundError: the server does not know it.
        """

        async def make() -> Sandbox:
            sandbox = self._sandbox(sandbox_id)
            await sandbox.refresh()
            return sandbox

        async def leave(_sandbox: Sandbox) -> None:
            return None

        return Opening(make, leave)

    def _sandbox(self, sandbox_id: str) -> Sandbox:
        if not isinstance(sandbox_id, str) or not sandbox_id:
            raise InvalidRequestError(f"a sandbox's id is a string, not {sandbox_id!r}")
        if sandbox_id in self._own:
            return self._own[sandbox_id]
        agent = self._agents.get(sandbox_id)
        if agent is None:
            agent = self._agent(sandbox_id, None)
        return Sandbox(agent, self)

    def _agent(self, sandbox_id: str, created: Created | None) -> Agent:
        agent = self._agents[sandbox_id] = Agent(
            sandbox_id,
            channel=self._channel,
            control=self.control,
            tasks=self.tasks,
            on_gone=self._forget,
            created=created,
        )
        return agent

    def release(self, sandbox: Sandbox, reason: str) -> None:
        """Forget a sandbox that has been ended. Called by `Sandbox.kill`."""
        self._forget(sandbox.id, reason)

    def _forget(self, sandbox_id: str, reason: str) -> None:
        self._own.pop(sandbox_id, None)
        agent = self._agents.pop(sandbox_id, None)
        if agent is not None:
            agent.close(reason)
        self.watcher.close_board(sandbox_id, reason)

    async def released(self) -> None:
        """Wait for what follows from a release: here, nothing."""

    async def list_sandboxes(self) -> list[SandboxInfo]:
        """Return all sandboxes of this key, whoever made them."""
        return await self.control.sandboxes()

    async def list_templates(self) -> list[TemplateInfo]:
        """Return what sandboxes can be made from."""
        return await self.control.templates()

    async def get_template(self, name: str) -> TemplateInfo:
        """Return one of them, by name or id.

        Raises:
            NotFoundError: there is none.
        """
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"a template is a name such as 'code-interpreter', not {name!r}")
        return await self.control.template(name)

    def job(self, ref: JobRef) -> Job:
        """Return a handle to the job that `ref` names. No I/O.

        Raises:
            InvalidRequestError: it names a job of another server.
        """
        if not isinstance(ref, JobRef):
            raise InvalidRequestError(f"a job is named by a JobRef, not {type(ref).__name__}")
        if ref.server != self.server:
            raise InvalidRequestError(
                f"job {ref.process_id!r} belongs to the server {ref.server}, but this client talks to {self.server}"
            )
        return self._sandbox(ref.sandbox_id).job(ref.process_id)

    def job_group(self) -> JobGroup:
        """Return a group for jobs of several sandboxes; see `JobGroup`."""
        return JobGroup(tasks=self.tasks, sandbox=None)

    # --- its own life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._open_endpoint()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the sandboxes that this client made, and the embedded server. Closing twice is fine.

        Cancellation: ends the waiting; what is to be closed is closed all the same.
        """
        if not self._used:
            self._closed = True
        if self._closed and (self._closer is None or self._closer.done()):
            return
        self._home.check()
        await asyncio.wait([self._begin_close()])
        self._begin_close().result()

    def _begin_close(self) -> asyncio.Task[None]:
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(
                self._close(), name="close the client", context=contextvars.Context()
            )
        return self._closer

    async def _close(self) -> None:
        """Let come to its end what was promised, end what was made, and only then cut the connections."""
        try:
            if self._embedded is None:  # an embedded server ends its sandboxes by itself, and faster
                await self._settle()
                await self.watcher.sweep(set(self._agents) - set(self._own))
                await asyncio.gather(*(self._end_quietly(sandbox) for sandbox in tuple(self._own.values())))
                await self._settle()
        finally:
            self._closed = True
            self.watcher.close_all("the client was closed")
            try:
                await self.tasks.cancel()
                if self._embedded is not None:
                    await self._embedded.aclose()
            finally:
                if self._endpoint is not None:
                    await self._endpoint.sender.aclose()

    async def _settle(self) -> None:
        try:
            await self.tasks.keep_promises(grace=CLEAN_UP_GRACE)
        except TimeoutError:
            _log.warning("clean-up took longer than %g s and is left to the server", CLEAN_UP_GRACE)

    async def _end_quietly(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.kill()
        except AsyncSandboxError as exc:
            _log.warning("sandbox %s could not be ended: %s", sandbox.id, exc)

    def __del__(self) -> None:
        if not self._closed and self._used:
            warnings.warn(
                f"{self!r} was never closed; use `async with` or aclose()", ResourceWarning, stacklevel=2
            )


_SANDBOX_OPTIONS: Final = frozenset({"timeout_seconds", "env", "internet_access"})


def _create_with_own_client(template: str, **options: Any) -> Opening:
    """Return an opening whose sandbox has a client of its own, which closes when the sandbox ends."""
    if "env_vars" in options and "env" not in options:  # as hopx-ai has it
        options["env"] = options.pop("env_vars")
    of_sandbox = {name: options.pop(name) for name in _SANDBOX_OPTIONS & options.keys()}
    client = _SingleSandboxClient(**options)
    opening = client.create_sandbox(template, **of_sandbox)

    async def close(sandbox: Sandbox) -> None:
        try:
            await sandbox.kill()
        finally:
            await client.aclose()

    return _with_own_client(client, opening, close)


def _connect_with_own_client(sandbox_id: str, **options: Any) -> Opening:
    """Return an opening whose sandbox has a client of its own, which closes when it is left."""
    client = _SingleSandboxClient(**options)

    async def close(_sandbox: Sandbox) -> None:
        await client.aclose()

    return _with_own_client(client, client.connect(sandbox_id), close)


def _with_own_client(
    client: Client, opening: Opening, close: Callable[[Sandbox], Awaitable[None]]
) -> Opening:
    async def make() -> Sandbox:
        try:
            return await opening
        except BaseException:
            await client.aclose()
            raise

    return Opening(make, close)


class _SingleSandboxClient(Client):
    """Closes when its sandbox has ended."""

    def release(self, sandbox: Sandbox, reason: str) -> None:
        super().release(sandbox, reason)
        _ = self._begin_close()  # in a task of its own, whatever becomes of whoever ended the sandbox

    async def released(self) -> None:
        if self._closer is not None:
            await self.aclose()


Sandbox.create_with_own_client = staticmethod(_create_with_own_client)
Sandbox.connect_with_own_client = staticmethod(_connect_with_own_client)
