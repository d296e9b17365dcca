r"""Fakes for tests of programs that use asyncsandbox, and for our own: virtual time, and a server in memory.

`FakeServer` keeps to the contract: what it answers goes through the same encoders as the real server's
answers. Jobs end when the test says so. Nothing here opens a socket, starts a process or waits in real time.

Example:
    >>> server = FakeServer()
    >>> async def program():
    ...     async with FakeClient(server) as client, client.create_sandbox() as sandbox:
    ...         job = await sandbox.run_code_background("print(42)")
    ...         server.finish(job.process_id, stdout=b"42\n")
    ...         return (await server.clock.run(job.wait())).stdout
    >>> import asyncio
    >>> asyncio.run(program())
    '42\n'
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import attrs

from asyncsandbox import protocol
from asyncsandbox.client import Client
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.protocol import Reply, Request
from asyncsandbox.sockets import Socket
from asyncsandbox.transport import Endpoint

__all__ = ["FakeClient", "FakeClock", "FakeServer"]

T = TypeVar("T")

_SETTLING_ROUNDS = 50


class _FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time that passes only when it is told to. A `Clock`."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _FakeTimer]] = []

    def now(self) -> float:
        """Return virtual seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> _FakeTimer:
        """Call `callback` when virtual time reaches `when`."""
        timer = _FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    @staticmethod
    async def settle() -> None:
        """Let every task run until it waits for something that only a test can bring about."""
        for _ in range(_SETTLING_ROUNDS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: timers go off in order, and what they set going settles in between."""
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            self._fire()
            await self.settle()
        self._now = end
        await self.settle()

    def _fire(self) -> None:
        when, _, timer = heapq.heappop(self._timers)
        if timer.callback is not None:
            self._now = max(self._now, when)
            timer.callback()

    async def run(self, work: Awaitable[T], *, limit: float = 3_600.0) -> T:
        """Return what `work` gives, and let as much time pass as it needs.

        Args:
            work: something to await.
            limit: virtual seconds after which something must be wrong.

        Raises:
            TimeoutError: it took longer than that, or waits for something that no timer brings about.
        """
        task = asyncio.ensure_future(work)
        end = self._now + limit
        try:
            await self.settle()
            idle = 0
            while not task.done():
                if self._timers and self._timers[0][0] <= end:
                    self._fire()
                elif (idle := idle + 1) > _SETTLING_ROUNDS:
                    raise TimeoutError(f"still waiting at virtual second {self._now:g}")
                await self.settle()
            return task.result()
        finally:
            task.cancel()


@attrs.define
class _FakeJob:
    info: JobInfo
    body: Mapping[str, Any]
    changed: int
    stdout: bytes = b""
    stderr: bytes = b""


class FakeServer:
    """A server of the contract in memory, behind the `Sender` protocol.

    Args:
        features: what it announces; None = all that this version has, {} = a stock server.
        url: what it is called; two in one program need different names.

    Attributes:
        clock: its time, and that of every `FakeClient` of it.
        calls: how often each ``(method, path)`` was asked, ids in the path replaced by ``*``.
        requests: every request, in order.
        failures: errors to raise, and replies to give, instead of the next answers; each is used once.
        losses: the same for the answers to POST, but only after what was asked for was done.
        broken: an error to raise for every request; None = none.
        gates: by the end of a path: events that the replies to it wait for, after what they tell of was done.
        sandboxes: what is there: ``{sandbox_id: {process_id: job}}``.
    """

    def __init__(self, *, features: Mapping[str, int] | None = None, url: str = "http://fake") -> None:
        self.clock = FakeClock()
        self.url = url
        self.features = dict(protocol.FEATURES if features is None else features)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.requests: list[Request] = []
        self.failures: deque[Exception | Reply] = deque()
        self.losses: deque[Exception | Reply] = deque()
        self.broken: Exception | None = None
        self.sandboxes: dict[str, dict[str, _FakeJob]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self._instance = "fake"
        self._sequence = 0
        self._ids = itertools.count(1)
        self._keys: dict[str, str] = {}
        self._removed: list[tuple[int, str, str]] = []
        self.closed = False

    # --- what a test does -----------------------------------------------------------------------------------

    def finish(
        self,
        process_id: str,
        *,
        exit_code: int | None = 0,
        signal: int | None = None,
        state: JobState | None = None,
        stdout: bytes = b"",
        stderr: bytes = b"",
    ) -> None:
        """End a job."""
        job = self._find(process_id)
        now = self.clock.now()
        state = state or (JobState.COMPLETED if exit_code == 0 else JobState.FAILED)
        reasons = {JobState.TIMED_OUT: EndReason.TIMEOUT, JobState.KILLED: EndReason.KILLED}
        job.stdout, job.stderr = stdout, stderr
        job.info = attrs.evolve(
            job.info,
            state=state,
            end_reason=reasons.get(state, EndReason.EXIT if signal is None else EndReason.SIGNAL),
            exit_code=exit_code if signal is None and state not in reasons else None,
            signal=signal,
            ended_at=now,
            stdout_size=len(stdout),
            stderr_size=len(stderr),
        )
        job.changed = self._next()

    def drop(self, process_id: str) -> None:
        """Forget a job without a word, as a server does that lost its memory."""
        for jobs in self.sandboxes.values():
            jobs.pop(process_id, None)

    def expire_cursors(self) -> None:
        """Answer every cursor handed out so far with 410."""
        self._instance += "'"

    def looks(self) -> int:
        """Return how often the list of jobs was asked for."""
        return sum(count for (_, path), count in self.calls.items() if path.endswith("/execute/processes"))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _find(self, process_id: str) -> _FakeJob:
        return next(jobs[process_id] for jobs in self.sandboxes.values() if process_id in jobs)

    # --- what a client sees ---------------------------------------------------------------------------------

    async def send(self, request: Request, *, base: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Answer a request. See `Sender.send`."""
        del headers, timeout
        prefix = base.removeprefix(self.url)
        path = f"{prefix}{request.path}"
        self.requests.append(request)
        self.calls[request.method, self._anonymous(path)] += 1
        reply = self._reply(request, prefix)
        if self.losses and request.method == "POST":
            reply = _raised(self.losses.popleft())
        for end, gate in tuple(self.gates.items()):
            if request.path.endswith(end):
                await gate.wait()
        return reply

    def _reply(self, request: Request, prefix: str) -> Reply:
        if self.broken is not None:
            raise self.broken
        if self.failures:
            return _raised(self.failures.popleft())
        if not prefix:
            return self._control(request)
        sandbox_id = prefix.removeprefix("/vm/")
        if sandbox_id not in self.sandboxes:
            return _refuse(404, "SANDBOX_NOT_FOUND", "no such sandbox")
        return self._agent(request, sandbox_id)

    async def connect(
        self,
        path: str,
        *,
        base: str,
        headers: Mapping[str, str],  # noqa: ARG002 - the protocol's
        timeout: float,  # noqa: ARG002
    ) -> Socket | Reply:
        """Refuse a WebSocket: there are none in memory. See `Sender.connect`."""
        body = protocol.encode_error(
            "the server in memory has no WebSockets; use an embedded one",
            code="NOT_SUPPORTED",
            request_id="",
            path=path,
            agent=True,
        )
        return Reply(status=501, body=json.dumps(body).encode(), url=f"{base}{path}")

    async def aclose(self) -> None:
        """Note that the client closed."""
        self.closed = True

    def _anonymous(self, path: str) -> str:
        known = set(self.sandboxes).union(*self.sandboxes.values())
        return "/".join("*" if part in known else part for part in path.split("/"))

    def _control(self, request: Request) -> Reply:
        parts = request.path.strip("/").split("/")
        if parts == ["health"]:
            return _json({"status": "healthy", "features": {"asyncsandbox": self.features}})
        if parts == ["v1", "sandboxes"] and request.method == "POST":
            sandbox_id = f"sb-{next(self._ids)}"
            self.sandboxes[sandbox_id] = {}
            return _json(self._describe(sandbox_id), status=201)
        if parts == ["v1", "sandboxes"]:
            return _json({"data": [self._describe(key) for key in self.sandboxes], "has_more": False})
        sandbox_id = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - /v1/sandboxes/ID
        if sandbox_id not in self.sandboxes:
            return _refuse(404, "RESOURCE_NOT_FOUND", "no such sandbox")
        if request.method == "DELETE":
            del self.sandboxes[sandbox_id]
            return _json({"id": sandbox_id, "status": "deleted"})
        return _json(self._describe(sandbox_id))

    def _describe(self, sandbox_id: str) -> dict[str, Any]:
        return {
            "id": sandbox_id,
            "status": "running",
            "public_host": f"{self.url}/vm/{sandbox_id}",
            "auth_token": f"token-{next(self._ids)}",
            "token_expires_at": protocol.timestamp(self.clock.now() + 86_400),
        }

    def _agent(self, request: Request, sandbox_id: str) -> Reply:
        jobs = self.sandboxes[sandbox_id]
        parts = request.path.strip("/").split("/")
        match request.method, parts:
            case "GET", ["health"]:
                return _json({"status": "healthy", "features": {"asyncsandbox": self.features}})
            case "POST", ["execute" | "commands", "background" | "async"]:
                return self._start(request, sandbox_id)
            case "GET", ["execute", "processes"]:
                return self._list(sandbox_id, request.params.get("since"))
            case "DELETE", ["execute", "kill"]:
                return self._kill(jobs, request.params["process_id"])
            case method, ["execute", "processes", process_id, *rest] if process_id in jobs:
                return self._one(method, sandbox_id, process_id, rest, request.params)
            case _:
                return _refuse(404, "PROCESS_NOT_FOUND", "no such process")

    def _start(self, request: Request, sandbox_id: str) -> Reply:
        jobs = self.sandboxes[sandbox_id]
        key = request.headers.get(protocol.IDEMPOTENCY_KEY)
        if key is not None and self._keys.get(key) in jobs:
            return _json(self._row(jobs[self._keys[key]]))
        process_id = f"bg_{next(self._ids)}"
        now = self.clock.now()
        info = JobInfo(
            process_id=process_id,
            sandbox_id=sandbox_id,
            name=request.json.get("name"),
            language=request.json.get("language", ""),
            state=JobState.RUNNING,
            queued_at=now,
            started_at=now,
            timeout=float(request.json["timeout"]),
            stdout_size=0,
            stderr_size=0,
        )
        jobs[process_id] = _FakeJob(info, request.json, self._next())
        if key is not None:
            self._keys[key] = process_id
        return _json(self._row(jobs[process_id]))

    def _row(self, job: _FakeJob) -> dict[str, Any]:
        return protocol.encode_process(job.info, stdout=job.stdout, stderr=job.stderr)

    def _list(self, sandbox_id: str, since: str | None) -> Reply:
        jobs = self.sandboxes[sandbox_id].values()
        cursor = {"cursor": f"{self._instance}.{self._sequence}"} if "since" in self.features else {}
        if since is None:
            return _json({"processes": [self._row(job) for job in jobs], **cursor})
        instance, _, sequence = since.rpartition(".")
        if instance != self._instance:
            return _refuse(410, "CURSOR_EXPIRED", "this cursor is too old")
        seen = int(sequence)
        rows = [self._row(job) for job in jobs if job.changed > seen]
        gone = [key for at, where, key in self._removed if at > seen and where == sandbox_id]
        return _json({"processes": rows, "removed": gone, **cursor})

    def _kill(self, jobs: Mapping[str, _FakeJob], process_id: str) -> Reply:
        if process_id not in jobs:
            return _refuse(404, "PROCESS_NOT_FOUND", "no such process")
        if not jobs[process_id].info.finished:
            self.finish(process_id, state=JobState.KILLED)
        if not self.features:
            return _json({"process_id": process_id, "status": "killed"})
        return _json(self._row(jobs[process_id]))

    def _one(
        self, method: str, sandbox_id: str, process_id: str, rest: list[str], params: Mapping[str, str]
    ) -> Reply:
        job = self.sandboxes[sandbox_id][process_id]
        if rest == ["output"]:
            data = job.stdout if params["stream"] == "stdout" else job.stderr
            offset = int(params["offset"])
            piece = data[offset : offset + int(params["limit"])]
            following = offset + len(piece)
            eof = job.info.finished and following >= len(data)
            headers = {
                protocol.OFFSET_HEADER: str(offset),
                protocol.NEXT_OFFSET_HEADER: str(following),
                protocol.EOF_HEADER: "true" if eof else "false",
            }
            return Reply(
                status=200, headers={key.lower(): value for key, value in headers.items()}, body=piece
            )
        if method == "DELETE":
            del self.sandboxes[sandbox_id][process_id]
            self._removed.append((self._next(), sandbox_id, process_id))
            return _json({"process_id": process_id, "status": "removed"})
        return _json(self._row(job))


def _raised(outcome: Exception | Reply) -> Reply:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _json(body: Mapping[str, Any], *, status: int = 200) -> Reply:
    return Reply(status=status, body=json.dumps(body).encode(), url="http://fake")


def _refuse(status: int, code: str, message: str) -> Reply:
    body = protocol.encode_error(message, code=code, request_id="r-1", path="/", agent=True)
    return _json(body, status=status)


class FakeClient(Client):
    """A client of a `FakeServer`, on its clock, without randomness: every draw is the middle of its range.

    Args:
        server: the fake.
        options: as `Client` takes them.
    """

    def __init__(self, server: FakeServer, **options: Any) -> None:
        super().__init__(
            server.url,
            api_key="key",
            clock=server.clock,
            uniform=lambda low, high: (low + high) / 2,
            **options,
        )
        self._fake = server

    async def _make_endpoint(self) -> Endpoint:
        self._endpoint = Endpoint(sender=self._fake, url=self._fake.url, api_key="key")
        return self._endpoint
