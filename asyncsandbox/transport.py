"""One request, one reply: the only module that speaks HTTP.

`HttpSender` sends a request once and maps whatever aiohttp raises. `Channel` sits on it: it adds the key or
token, repeats what is safe to repeat, and turns refusals into errors.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

import aiohttp
import attrs
import yarl

from asyncsandbox._clock import Clock, sleep
from asyncsandbox._tasks import Home
from asyncsandbox._version import __version__
from asyncsandbox.backoff import Uniform, retry_delay
from asyncsandbox.errors import (
    APIError,
    ClientStateError,
    ConnectError,
    InvalidRequestError,
    ProtocolError,
    RequestTimeoutError,
    TransportError,
)
from asyncsandbox.pacing import Pace
from asyncsandbox.protocol import Lane, Reply, Request, decode_error, get
from asyncsandbox.sockets import LARGEST_MESSAGE, WS_TIMEOUT, Socket

__all__ = ["Auth", "Channel", "Endpoint", "HttpSender", "Sender", "TrafficCounter", "is_url"]

_log = logging.getLogger("asyncsandbox.transport")

_ATTEMPTS: Final = 4
_RETRY_FLOOR: Final = 0.1
_RETRY_CAP: Final = 5.0
_RATE_LIMIT_PATIENCE: Final = 120.0
_CONNECT_TIMEOUT: Final = 10.0
_KEEPALIVE: Final = 15.0  # below what servers use, so that a reused connection is seldom one just closed

_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_FAILURES: Final = frozenset({500, 502, 503, 504})
_REDIRECT: Final = 300
_REFUSAL: Final = 400


class TrafficCounter:
    """What went over the wire so far.

    Attributes:
        requests: requests that were sent, repetitions included.
        looks: those among them that asked for the status of jobs.
        retries: repetitions.
        bytes_received: bytes of reply bodies.
    """

    __slots__ = ("bytes_received", "looks", "requests", "retries")

    def __init__(self) -> None:
        self.requests = 0
        self.looks = 0
        self.retries = 0
        self.bytes_received = 0


class Sender(Protocol):
    """Sends a request once."""

    async def send(self, request: Request, *, base: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Send `request` below `base` and return the whole reply, whatever its status.

        Raises:
            ConnectError: no connection, or it broke; `sent` says whether the server may have the request.
            RequestTimeoutError: no whole reply within `timeout` seconds.
            TransportError: anything else that is not a reply.
        """

    async def connect(
        self, path: str, *, base: str, headers: Mapping[str, str], timeout: float
    ) -> Socket | Reply:
        """Open a WebSocket at `path` below `base`; where the server refuses, return its reply.

        Raises:
            TransportError: as `send`.
            ProtocolError: what was answered is no WebSocket.
        """

    async def aclose(self) -> None:
        """Close the connections. Closing twice is fine."""


class Auth(Protocol):
    """What shows a server who asks.

    Attributes:
        pace: how much may be asked under this name.
    """

    @property
    def pace(self) -> Pace:
        """How much may be asked under this name."""

    async def headers(self) -> Mapping[str, str]:
        """Return the headers to send."""

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """Get new ones after `refused` were answered with 401; False when there are none to be had."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where the control plane is, and how it is reached.

    Attributes:
        sender: what sends to it.
        url: its base URL, without a slash at the end.
        api_key: the key for it.
        by_path: whether agents are reached at `url` too, by the path of their own URL (a Unix socket).
    """

    sender: Sender
    url: str
    api_key: str = attrs.field(repr=False)
    by_path: bool = False


def is_url(text: str) -> bool:
    """Return whether `text` is an absolute http or https URL."""
    try:
        url = yarl.URL(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _loopback(url: str) -> bool:
    host = yarl.URL(url).host or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HttpSender:
    """Sends requests through one aiohttp session, made at the first of them.

    Args:
        url: the base URL; decides only whether the machine's proxy settings apply.
        socket: path of a Unix socket; None = TCP.
        limits: how many requests of each lane may be in flight.
        traffic: where to count.
    """

    def __init__(
        self, *, url: str, socket: str | None, limits: Mapping[Lane, int], traffic: TrafficCounter
    ) -> None:
        self._url = url
        self._socket = socket
        self._lanes = {lane: asyncio.Semaphore(limit) for lane, limit in limits.items()}
        self._traffic = traffic
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The lanes bound what is in flight; a bounded pool besides would count waiting as slowness.
            connector = (
                aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE)
                if self._socket is None
                else aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=_KEEPALIVE)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._socket is None and not _loopback(self._url),
                headers={"User-Agent": f"asyncsandbox/{__version__}"},
            )
        return self._session

    async def send(self, request: Request, *, base: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Send `request` once. See `Sender.send`."""
        where = f"{base}{request.path}"
        async with self._lanes[request.lane]:
            if self._closed:  # while this waited for its turn
                raise ClientStateError("the client was closed meanwhile")
            self._traffic.requests += 1
            self._traffic.looks += request.lane == "status"
            try:
                return await self._exchange(request, where, headers, timeout)
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                raise _own_error(exc, request.method, where, timeout) from exc

    async def connect(
        self, path: str, *, base: str, headers: Mapping[str, str], timeout: float
    ) -> Socket | Reply:
        """Open a WebSocket, outside of the lanes of ordinary requests. See `Sender.connect`."""
        where = f"{base}{path}"
        if self._closed:
            raise ClientStateError("the client was closed meanwhile")
        self._traffic.requests += 1
        try:
            async with asyncio.timeout(timeout):
                response = await self._open().ws_connect(
                    yarl.URL(where, encoded=True),
                    headers=headers,
                    autoping=False,  # `Socket` answers: it wants to see the pongs
                    timeout=WS_TIMEOUT,
                    max_msg_size=LARGEST_MESSAGE,
                )
        except aiohttp.WSServerHandshakeError as exc:
            if exc.status < _REDIRECT:
                raise ProtocolError(
                    f"{where}: the server answered {exc.status} and opened no WebSocket: {exc.message}",
                    url=where,
                    detail="no WebSocket",
                ) from exc
            refusal = Reply(status=exc.status, headers=_lower(exc.headers or {}), url=where)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _own_error(exc, "GET", where, timeout) from exc
        else:
            return Socket(response, url=where)
        return await self._explained(refusal, path, base=base, headers=headers, timeout=timeout)

    async def _explained(
        self, refusal: Reply, path: str, *, base: str, headers: Mapping[str, str], timeout: float
    ) -> Reply:
        """Ask for the words of a refused upgrade, whose body aiohttp throws away, with a plain request."""
        try:
            reply = await self.send(get(path), base=base, headers=headers, timeout=timeout)
        except TransportError:
            return refusal
        return reply if reply.status == refusal.status else refusal

    async def _exchange(
        self, request: Request, where: str, headers: Mapping[str, str], timeout: float
    ) -> Reply:
        data: bytes | aiohttp.FormData | None = None
        sent = {**headers, **request.headers}
        if request.form:
            data = aiohttp.FormData()
            for part in request.form:
                data.add_field(part.name, part.data, filename=part.filename)
        elif request.json is not None:
            data = json.dumps(request.json).encode()
            sent["Content-Type"] = "application/json"
        async with self._open().request(
            request.method,
            yarl.URL(where, encoded=True).update_query(request.params),
            data=data,
            headers=sent,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, _CONNECT_TIMEOUT)),
        ) as response:
            body = await response.read()
        self._traffic.bytes_received += len(body)
        return Reply(status=response.status, headers=_lower(response.headers), body=body, url=where)

    async def aclose(self) -> None:
        """Close the session. Closing twice is fine."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _own_error(exc: Exception, method: str, url: str, timeout: float) -> Exception:
    """Map what aiohttp raises. Its time-out is a `ClientError` too, so the order matters."""
    if isinstance(exc, TimeoutError):
        error = RequestTimeoutError(
            f"{method} {url}: no reply within {timeout:g} s", timeout=timeout, method=method, url=url
        )
        error.sent = not isinstance(exc, aiohttp.ConnectionTimeoutError)
        return error
    if isinstance(exc, aiohttp.InvalidURL):
        return InvalidRequestError(f"{url!r} is no URL that can be asked", code="INVALID_REQUEST")
    reason = str(exc) or type(exc).__name__
    if isinstance(exc, aiohttp.ClientConnectorError):
        return ConnectError(f"{method} {url}: cannot connect: {reason}", method=method, url=url, sent=False)
    if isinstance(exc, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return ConnectError(f"{method} {url}: the connection broke: {reason}", method=method, url=url)
    return TransportError(f"{method} {url}: {reason}", method=method, url=url)


class Channel:
    """Calls that end in a good reply or in an error of the tree.

    Args:
        open_endpoint: gives the endpoint; asked before each call, so it may start a server at the first.
        home: the loop and process that the calls belong to.
        clock: for the delays between tries.
        uniform: the randomness in them.
        timeout: seconds that a call may take when it does not say.
        traffic: where repetitions are counted.
    """

    def __init__(
        self,
        open_endpoint: Callable[[], Awaitable[Endpoint]],
        *,
        home: Home,
        clock: Clock,
        uniform: Uniform,
        timeout: float,
        traffic: TrafficCounter,
    ) -> None:
        self.open_endpoint = open_endpoint
        self.home = home
        self.clock = clock
        self._uniform = uniform
        self._timeout = timeout
        self._traffic = traffic

    async def call(
        self,
        request: Request,
        *,
        base: str,
        auth: Auth,
        what: str,
        timeout: float | None = None,
        retry: bool = True,
        accept: Collection[int] = (),
    ) -> Reply:
        """Return a good reply: a status below 300, or one of `accept`.

        Repeated: what never reached the server; any answer of 429, after the wait that it asks for; and, for
        requests that may be repeated, lost replies and 500, 502, 503, 504. Up to four tries with full jitter;
        two minutes in all for 429.

        Args:
            request: what to send.
            base: below which URL.
            auth: who asks; its `renew` is tried once after a 401.
            what: the call in words, for messages.
            timeout: seconds for one try; None = the channel's.
            retry: False for calls that have a policy of their own.
            accept: refusals that the caller reads itself.

        Raises:
            TransportError: no usable reply.
            ProtocolError: a redirect, which nothing here follows: it would carry the key elsewhere.
            APIError: the server refused.

        Cancellation: a request that was already sent may still be acted on.
        """

        async def attempt(sender: Sender, headers: Mapping[str, str]) -> Reply:
            return await sender.send(request, base=base, headers=headers, timeout=timeout or self._timeout)

        reply = await self._repeat(
            attempt, auth=auth, what=what, repeatable=request.repeatable, retry=retry, accept=accept
        )
        assert isinstance(reply, Reply)
        return reply

    async def connect(self, path: str, *, base: str, auth: Auth, what: str) -> Socket:
        """Return an open WebSocket. Opening one starts nothing, so it is repeated as a look is.

        Raises:
            TransportError: no usable reply.
            ProtocolError: what was answered is no WebSocket.
            APIError: the server refused.
        """

        async def attempt(sender: Sender, headers: Mapping[str, str]) -> Socket | Reply:
            return await sender.connect(path, base=base, headers=headers, timeout=self._timeout)

        socket = await self._repeat(attempt, auth=auth, what=what, repeatable=True, retry=True, accept=())
        assert isinstance(socket, Socket)
        return socket

    async def _repeat(
        self,
        attempt: Callable[[Sender, Mapping[str, str]], Awaitable[Socket | Reply]],
        *,
        auth: Auth,
        what: str,
        repeatable: bool,
        retry: bool,
        accept: Collection[int],
    ) -> Socket | Reply:
        self.home.check()
        failures, began, renewed = 0, self.clock.now(), False
        while True:
            endpoint = await self.open_endpoint()
            headers = await auth.headers()
            error: APIError | TransportError
            await auth.pace.enter()
            try:
                reply = await attempt(endpoint.sender, headers)
            except TransportError as exc:
                error = exc
                again = repeatable or not exc.sent
            else:
                if isinstance(reply, Reply):
                    auth.pace.hear(reply)
                if isinstance(reply, Socket) or reply.status < _REDIRECT or reply.status in accept:
                    return reply
                if reply.status < _REFUSAL:
                    raise ProtocolError(
                        f"{what}: the server answered {reply.status}, a redirect, which is not followed; "
                        "check the base URL",
                        url=reply.url,
                        detail="redirect",
                    )
                error = decode_error(reply, what=what)
                if reply.status == _UNAUTHORIZED and not renewed and await auth.renew(headers):
                    renewed = True
                    continue
                again = reply.status == _TOO_MANY or (repeatable and reply.status in _FAILURES)
            finally:
                auth.pace.leave()
            failures += 1
            if not (retry and again and await self._pause(error, failures, began)):
                raise error
            self._traffic.retries += 1

    async def _pause(self, error: APIError | TransportError, failures: int, began: float) -> bool:
        """Wait before the next try; False when there should be none."""
        hint = error.retry_after if isinstance(error, APIError) else None
        delay = retry_delay(failures, floor=_RETRY_FLOOR, cap=_RETRY_CAP, uniform=self._uniform, hint=hint)
        if isinstance(error, APIError) and error.status == _TOO_MANY:
            if self.clock.now() + delay - began > _RATE_LIMIT_PATIENCE:
                return False
        elif failures >= _ATTEMPTS or delay > _RATE_LIMIT_PATIENCE:
            return False
        _log.debug("try %d failed, next in %.2f s: %s", failures, delay, type(error).__name__)
        await sleep(self.clock, delay)
        return True
