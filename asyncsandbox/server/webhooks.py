"""Delivers callbacks: what is posted, when it is tried again, and when it is given up (contract 2.6).

Whoever may start a job chooses where this server posts to, addresses inside its own network included
(server-side request forgery). All that such a call carries is what the starter gave and what the job wrote: no
key, token, cookie or proxy setting of this server, no redirect is followed, and of the answer nothing but the
status is ever shown. Give keys to nobody who may not reach what the server can reach.

At least once: a delivery that this server did not live to note is made again after its next start. Receivers
tell repetitions by ``X-HopX-Delivery``.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import aiohttp
import attrs
import yarl

from asyncsandbox import protocol
from asyncsandbox._clock import Clock, LoopClock, Timer
from asyncsandbox._version import __version__
from asyncsandbox.backoff import Uniform, retry_delay
from asyncsandbox.models import EndReason, JobInfo, JobState, StreamName
from asyncsandbox.server.deliveries import Delivery, DeliveryState
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.outputs import Outputs
from asyncsandbox.server.records import JobRecord
from asyncsandbox.server.store import StoreError

__all__ = ["Answer", "DeliveryPolicy", "HttpPoster", "Poster", "Webhooks"]

log = logging.getLogger(__name__)

_GONE: Final = 410
_LONGEST_ERROR: Final = 300


@attrs.frozen(kw_only=True)
class DeliveryPolicy:
    """How hard to try. All times are seconds.

    Attributes:
        floor: the bound of the first gap between two tries; it doubles each time (full jitter).
        cap: the bound of the longest gap.
        life: when to give up, counted from the end of the job.
        timeout: of one try.
        in_flight: tries at the same time.
        per_target: those among them that go to one host and port, so that a slow one holds up no other.
    """

    floor: float = 0.5
    cap: float = 60.0
    life: float = 24 * 3600.0
    timeout: float = 10.0
    in_flight: int = 64
    per_target: int = 8


@attrs.frozen(kw_only=True)
class Answer:
    """What a receiver said.

    Attributes:
        status: the HTTP status.
        retry_after: seconds that it wants to be left alone; None when it does not say.
    """

    status: int
    retry_after: float | None = None


class Poster(Protocol):
    """Posts once."""

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Return the answer, whatever its status.

        Raises:
            OSError, ValueError, aiohttp.ClientError: there was none; a time-out is a `TimeoutError`.
        """

    async def aclose(self) -> None:
        """Close the connections. Closing twice is fine."""


class HttpPoster:
    """Posts through one aiohttp session, made at the first call, that knows no cookie and no proxy."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Post once. See `Poster.post`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                headers={"User-Agent": f"asyncsandbox/{__version__}"},
            )
        async with self._session.post(
            url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as response:
            said = {name.lower(): value for name, value in response.headers.items()}
            return Answer(status=response.status, retry_after=protocol.retry_after(said, {}))

    async def aclose(self) -> None:
        """Close the session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Webhooks:
    """Tells whoever wants to be told of the ends of jobs.

    Args:
        ledger: has what is to be delivered.
        outputs: what the jobs wrote.
        policy: how hard to try.
        poster: what posts.
        clock: for waiting.
        wall: Unix time, for records and time stamps.
        uniform: the randomness in the gaps.
    """

    def __init__(
        self,
        ledger: Ledger,
        outputs: Outputs,
        *,
        policy: DeliveryPolicy,
        poster: Poster | None = None,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
        uniform: Uniform = random.uniform,
    ) -> None:
        self._ledger = ledger
        self._table = ledger.deliveries
        self._outputs = outputs
        self._policy = policy
        self._poster = poster or HttpPoster()
        self._clock = clock or LoopClock()
        self._wall = wall
        self._uniform = uniform
        self._later: list[tuple[float, str]] = []
        self._ready: dict[str, deque[str]] = {}
        self._flying: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._closed = False

    def recover(self) -> None:
        """Go on after a restart. Call before `Jobs.recover`, whose ends arrive in the usual way."""
        self._table.prune(self._wall())
        for entry in self._table.open():
            record = self._ledger.jobs.get(entry.process_id)
            if entry.state is DeliveryState.PENDING:
                self._plan(entry.execution_id, entry.next_attempt_at or 0.0)
            elif record is None:  # nobody removes what has not been told; so that nothing waits for ever
                lost = JobInfo(
                    process_id=entry.process_id,
                    sandbox_id=entry.sandbox_id,
                    state=JobState.LOST,
                    end_reason=EndReason.LOST,
                )
                self._tell(entry, lost, b"", b"", "the record of the job is gone")
            elif record.finished:
                self.job_ended(record)
        self._turn()

    def job_ended(self, record: JobRecord) -> None:
        """Begin to tell of an end, if anybody wants to know. Its record must be on disk."""
        entry = self._table.get(protocol.execution_id(record.process_id))
        if entry is None or entry.state is not DeliveryState.WAITING:
            return
        problem = None
        stdout = stderr = b""
        try:
            stdout, stderr = self._tail(record, "stdout"), self._tail(record, "stderr")
        except (OSError, StoreError) as exc:
            log.exception("the output of job %s cannot be read for its callback", record.process_id)
            problem = f"the output could not be read: {type(exc).__name__}"
        self._tell(entry, record.info, stdout, stderr, problem)
        self._turn()

    async def close(self) -> None:
        """Stop trying. What was not delivered is on disk, for the next start."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._poster.aclose()

    # --- what to post ---------------------------------------------------------------------------------------

    def _tail(self, record: JobRecord, stream: StreamName) -> bytes:
        limit = protocol.CALLBACK_OUTPUT
        data, offset = b"", -limit
        while len(data) < limit:
            piece = self._outputs.read(record, stream, offset=offset, limit=limit - len(data))
            data += piece.data
            if piece.eof or not piece.data:
                break
            offset = piece.next_offset
        return data

    def _tell(
        self, entry: Delivery, info: JobInfo, stdout: bytes, stderr: bytes, problem: str | None
    ) -> None:
        now = self._wall()
        body = protocol.encode_callback(info, stdout=stdout, stderr=stderr, problem=problem)
        self._table.ended(entry.execution_id, json.dumps(body).encode(), now=now, life=self._policy.life)
        self._ledger.touch()
        self._plan(entry.execution_id, now)

    # --- when to post ---------------------------------------------------------------------------------------

    def _plan(self, execution_id: str, when: float) -> None:
        heapq.heappush(self._later, (when, execution_id))

    def _turn(self) -> None:
        """Start what is due and has room, and come back when more is due."""
        if self._closed:
            return
        now = self._wall()
        while self._later and self._later[0][0] <= now:
            execution_id = heapq.heappop(self._later)[1]
            entry = self._table.get(execution_id)
            if entry is not None and entry.state is DeliveryState.PENDING:
                self._ready.setdefault(_target(entry.callback.url), deque()).append(execution_id)
        self._start_ready()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            self._timer = self._clock.call_at(self._clock.now() + self._later[0][0] - now, self._turn)

    def _start_ready(self) -> None:
        for target in tuple(self._ready):
            waiting = self._ready[target]
            while waiting and self._has_room(target):
                self._flying[target] += 1
                work = self._try_once(target, waiting.popleft())
                task = asyncio.get_running_loop().create_task(work, name=f"deliver to {target}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if not waiting:
                del self._ready[target]
            else:  # whoever had to wait comes last, so that the next round begins with others
                self._ready[target] = self._ready.pop(target)

    def _has_room(self, target: str) -> bool:
        policy = self._policy
        return self._flying.total() < policy.in_flight and self._flying[target] < policy.per_target

    async def _try_once(self, target: str, execution_id: str) -> None:
        try:
            entry = self._table.get(execution_id)
            if entry is not None:
                await self._deliver(entry)
        except Exception:  # whatever is wrong with one delivery must not end the others
            log.exception("delivery of %s went wrong", execution_id)
            self._failed(execution_id, None, "the server failed at this delivery; its log says more", None)
        finally:
            self._flying[target] -= 1
            if not self._flying[target]:
                del self._flying[target]
            self._turn()

    # --- one try --------------------------------------------------------------------------------------------

    async def _deliver(self, entry: Delivery) -> None:
        body = self._ledger.callback_body(entry.execution_id)
        if body is None:
            self._settle(entry.execution_id, DeliveryState.GIVEN_UP, None, "there is nothing to post")
            return
        url, timeout = entry.callback.url, self._policy.timeout
        headers = _headers(entry, body, stamp=str(int(self._wall())))
        try:
            answer = await self._poster.post(url, headers=headers, body=body, timeout=timeout)
        except TimeoutError:
            self._failed(entry.execution_id, None, f"no answer within {timeout:g} s", None)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            self._failed(entry.execution_id, None, _reason(exc), None)
        else:
            self._answered(entry.execution_id, answer)

    def _answered(self, execution_id: str, answer: Answer) -> None:
        error = f"the receiver answered {answer.status}"
        if 200 <= answer.status < 300:  # noqa: PLR2004 - what "2xx" means
            self._settle(execution_id, DeliveryState.DELIVERED, answer.status, None)
        elif answer.status == _GONE:
            self._settle(execution_id, DeliveryState.GIVEN_UP, answer.status, error)
        else:
            self._failed(execution_id, answer.status, error, answer.retry_after)

    def _failed(self, execution_id: str, status: int | None, error: str, hint: float | None) -> None:
        entry = self._table.get(execution_id)
        if entry is None:
            return
        now, expires_at = self._wall(), entry.expires_at or 0.0
        if now >= expires_at:
            self._settle(execution_id, DeliveryState.GIVEN_UP, status, error)
            return
        delay = retry_delay(
            entry.attempts + 1,
            floor=self._policy.floor,
            cap=self._policy.cap,
            uniform=self._uniform,
            hint=hint,
        )
        again_at = min(now + delay, expires_at)  # the last try comes at the very end
        log.info("try %d to deliver %s failed: %s", entry.attempts + 1, execution_id, error)
        self._table.failed(execution_id, status=status, error=error, again_at=again_at)
        self._ledger.touch()
        self._plan(execution_id, again_at)

    def _settle(self, execution_id: str, state: DeliveryState, status: int | None, error: str | None) -> None:
        entry = self._table.settle(execution_id, state, status=status, error=error, now=self._wall())
        self._ledger.touch()
        if state is DeliveryState.GIVEN_UP:
            log.warning("gave up delivering %s after %d tries: %s", execution_id, entry.attempts, error)


def _target(url: str) -> str:
    """Return the host and port of a URL: all of it that logs may show."""
    try:
        parsed = yarl.URL(url)
    except ValueError:
        return "nowhere"
    return f"{parsed.host}:{parsed.port}"


def _headers(entry: Delivery, body: bytes, *, stamp: str) -> dict[str, str]:
    own = {
        "Content-Type": "application/json",
        protocol.TIMESTAMP_HEADER: stamp,
        protocol.DELIVERY_HEADER: entry.delivery_id,
    }
    if entry.callback.secret is not None:
        own[protocol.SIGNATURE_HEADER] = protocol.sign(entry.callback.secret, stamp, body)
    taken = {name.lower() for name in (*own, protocol.SIGNATURE_HEADER)}
    given = {name: value for name, value in entry.callback.headers.items() if name.lower() not in taken}
    return {**given, **own}


def _reason(exc: Exception) -> str:
    """Return why there was no answer. aiohttp shows whole URLs in some of its errors; those show none."""
    if isinstance(exc, aiohttp.InvalidURL | ValueError):
        return "the callback URL or a header cannot be used"
    if isinstance(exc, aiohttp.ClientResponseError):
        return f"the answer was no HTTP: {exc.message}"[:_LONGEST_ERROR]
    return (str(exc) or type(exc).__name__)[:_LONGEST_ERROR]
