"""Receives callbacks: servers post the ends of runs here, and no job's status is asked for.

Works inside your own aiohttp server, or listens by itself::

    receiver = WebhookReceiver(public_url="https://example.com/hooks")
    app.add_subapp("/hooks", receiver.app())

    async with WebhookReceiver().listen() as receiver:
        async with Client(webhook=receiver) as client: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Self

from aiohttp import web

from asyncsandbox import protocol
from asyncsandbox.errors import AuthenticationError, ClientStateError, InvalidRequestError
from asyncsandbox.protocol import verify_signature
from asyncsandbox.transport import is_url

__all__ = ["ExpectedCallback", "WebhookReceiver", "verify_signature"]

_log = logging.getLogger("asyncsandbox.webhooks")

_MAX_BODY: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024
_BODY_SECONDS: Final = 30.0
"""How long a body may take to come: a sender that dawdles must not hold a connection for ever."""

Take = Callable[[Mapping[str, Any]], None]


class ExpectedCallback:
    """One callback to come. It may come before the answer to the start that asked for it.

    Attributes:
        url: where it is to be posted; nobody else's is posted there.
        secret: what it is to be signed with.
    """

    def __init__(self, receiver: WebhookReceiver, token: str, url: str) -> None:
        self.url = url
        self.secret = receiver.secret
        self._receiver = receiver
        self._token = token
        self._take: Take | None = None
        self._early: Mapping[str, Any] | None = None

    def bind(self, take: Take) -> None:
        """Hand the body of the callback to `take`, once: now if it is here already."""
        self._take = take
        if self._early is not None:
            self.arrive(self._early)

    def arrive(self, body: Mapping[str, Any]) -> None:
        """Take in a body that was verified. Only the first one counts."""
        if self._take is None:
            self._early = self._early or body
            return
        self.cancel()
        self._take(body)

    def cancel(self) -> None:
        """Expect it no more. Whatever still comes is accepted and dropped."""
        self._receiver.forget(self._token)


class WebhookReceiver:
    """Verifies callbacks and turns them into the ends of jobs.

    Give it to `Client` as ``webhook=``: `Sandbox.run_code_async` then fills in URL and secret by itself, and the
    jobs that it returns end when they are called back for. It belongs to the event loop of that client. A
    callback that is not verified changes nothing; one that comes twice changes nothing the second time.

    Args:
        secret: what callbacks are signed with; None = one made for this receiver.
        public_url: the URL under which servers reach `app`, without a slash at the end; None = as `listen`
            finds it.
        max_age: seconds that the time stamp of a callback may differ from this machine's clock, either way.
        max_body: bytes of a callback at most.
        now: Unix time; for tests.

    Raises:
        InvalidRequestError: an empty secret, a URL that is none, or a number that is not above 0.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        public_url: str | None = None,
        max_age: float = 300.0,
        max_body: int = _MAX_BODY,
        now: Callable[[], float] = time.time,
    ) -> None:
        if secret is not None and (not isinstance(secret, str) or not secret):
            raise InvalidRequestError("a webhook secret is a string that is not empty; None makes one")
        if public_url is not None and not (isinstance(public_url, str) and is_url(public_url)):
            raise InvalidRequestError(
                f"public_url must be an http(s) URL such as 'https://example.com/hooks', not {public_url!r}"
            )
        for name, value in (("max_age", max_age), ("max_body", max_body)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidRequestError(f"{name} must be a number above 0, not {value!r}")
        self.secret = secret or secrets.token_urlsafe(32)
        self._public_url = None if public_url is None else public_url.rstrip("/")
        self._max_age = max_age
        self._max_body = max_body
        self._now = now
        self._expected: dict[str, ExpectedCallback] = {}

    def __repr__(self) -> str:
        return f"<WebhookReceiver at {self._public_url or 'no URL yet'} expecting={len(self._expected)}>"

    @property
    def public_url(self) -> str | None:
        """The URL under which servers reach it; None until that is known."""
        return self._public_url

    def expect(self) -> ExpectedCallback:
        """Return a callback to come, with a URL of its own that cannot be guessed.

        Raises:
            ClientStateError: its URL is not known yet.
        """
        if self._public_url is None:
            raise ClientStateError(
                "the webhook receiver has no URL: give it public_url=, or start it with `async with "
                "receiver.listen():`"
            )
        token = secrets.token_urlsafe(24)
        expected = ExpectedCallback(self, token, f"{self._public_url}/{token}")
        self._expected[token] = expected
        return expected

    def forget(self, token: str) -> None:
        """Expect a callback no more. One that is not expected is fine."""
        self._expected.pop(token, None)

    def app(self) -> web.Application:
        """Return a new aiohttp application to mount in your own server, below the path of `public_url`.

        It answers ``POST /{token}``: 200 when the callback was taken in, or is known or wanted no more; 401
        when it is not verified, 400 when it is no JSON object, 408 or 413 when it is too slow or too large.
        """
        app = web.Application()
        app.router.add_post("/{token}", self._handle)
        return app

    @contextlib.asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Self]:
        """Listen for as long as the block lasts, for programs without a web server of their own.

        Args:
            host: the address to listen on.
            port: 0 = any that is free.

        Yields:
            The receiver; where it had no `public_url`, its URL is now the address it listens on.

        Raises:
            InvalidRequestError: all addresses are to be listened on, and no `public_url` says which to tell.
            OSError: it cannot listen there.
        """
        if self._public_url is None and _is_wildcard(host):
            raise InvalidRequestError(f"listening on {host} needs public_url=: what servers are to call it")
        runner = web.AppRunner(self.app(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        before = self._public_url
        try:
            await web.TCPSite(runner, host, port).start()
            if before is None:
                shown = f"[{host}]" if ":" in host else host
                self._public_url = f"http://{shown}:{runner.addresses[0][1]}"
            yield self
        finally:
            self._public_url = before
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                raw = await self._read(request)
        except TimeoutError:
            return _refuse(408, "TIMEOUT", "the body took too long")
        if raw is None:
            return _refuse(413, "PAYLOAD_TOO_LARGE", f"a callback may have {self._max_body} bytes")
        try:
            verify_signature(
                raw,
                secret=self.secret,
                signature=request.headers.get(protocol.SIGNATURE_HEADER),
                timestamp=request.headers.get(protocol.TIMESTAMP_HEADER),
                now=self._now(),
                max_age=self._max_age,
            )
        except AuthenticationError as exc:
            _log.warning("refused a callback: %s", exc)
            return _refuse(401, exc.code, str(exc))
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return _refuse(400, "INVALID_JSON", "a callback is a JSON object")
        expected = self._expected.get(request.match_info["token"])
        if expected is not None:
            expected.arrive(body)
        return web.json_response({"received": True, "expected": expected is not None})

    async def _read(self, request: web.Request) -> bytes | None:
        """Return the body; None when it is too large. A mounted application's own limit is not asked."""
        if (request.content_length or 0) > self._max_body:
            return None
        raw = bytearray()
        async for chunk in request.content.iter_chunked(_CHUNK):
            raw += chunk
            if len(raw) > self._max_body:
                return None
        return bytes(raw)


def _is_wildcard(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _refuse(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": message, "code": code}, status=status)
