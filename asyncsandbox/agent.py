"""Calls to one sandbox's agent: where it is, the token for it, what it can do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import yarl

from asyncsandbox import protocol
from asyncsandbox._tasks import SingleFlight, Tasks
from asyncsandbox.control import ControlPlane, Created
from asyncsandbox.errors import (
    APIError,
    NotFoundError,
    ProtocolError,
    SandboxClosedError,
)
from asyncsandbox.models import SandboxInfo
from asyncsandbox.pacing import Pace
from asyncsandbox.protocol import Reply, Request, TokenGrant
from asyncsandbox.sockets import Socket
from asyncsandbox.transport import Channel

__all__ = ["Agent"]

_NOT_FOUND: Final = 404
_GONE_CODES: Final = frozenset({"SANDBOX_NOT_FOUND", "SANDBOX_EXPIRED"})


class Agent:
    """The agent of one sandbox. Looks itself up when it does not know where it is.

    Everything it finds out, it finds out once, however many calls need it at the same time.
    """

    def __init__(
        self,
        sandbox_id: str,
        *,
        channel: Channel,
        control: ControlPlane,
        tasks: Tasks,
        on_gone: Callable[[str, str], None],
        created: Created | None = None,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.channel = channel
        self.control = control
        self.pace = Pace(channel.clock)
        self.info: SandboxInfo | None = None
        self.lists_output = False  # whether a list of this server ever had output in it
        self.board: object = None  # kept here for the watcher, so that it lives as long as any handle does
        self._grant: TokenGrant | None = None
        self._features: Mapping[str, int] | None = None
        self._closed: str | None = None
        self._on_gone = on_gone
        self._locate = SingleFlight(self._look_up, tasks, name=f"locate {sandbox_id}")
        self._refresh = SingleFlight(self._fetch_token, tasks, name=f"refresh {sandbox_id}")
        self._probe = SingleFlight(self._fetch_features, tasks, name=f"probe {sandbox_id}")
        if created is not None:
            self._learn(created)

    @property
    def closed(self) -> str | None:
        """Why no call is possible any more; None while it is."""
        return self._closed

    def close(self, reason: str) -> None:
        """Let every further call fail with `reason`."""
        self._closed = self._closed or reason

    def gone(self, reason: str) -> None:
        """Close, because the sandbox is no longer there, and tell whoever keeps it."""
        self.close(reason)
        self._on_gone(self.sandbox_id, reason)

    def _learn(self, created: Created) -> None:
        self.info = created.info
        self._grant = created.grant or self._grant
        if created.features is not None:
            self._features = created.features

    async def _look_up(self) -> None:
        try:
            self._learn(await self.control.get(self.sandbox_id))
        except NotFoundError as exc:
            self.gone("the server does not know it: it was never there, has expired or was deleted")
            raise self._closed_error() from exc

    async def _fetch_token(self) -> None:
        self._grant = await self.control.refresh_token(self.sandbox_id) or self._grant

    async def _fetch_features(self) -> None:
        reply = await self.call(protocol.get("/health"), what="asking the agent for its health")
        self._features = protocol.decode_features(protocol.json_object(reply))

    def _closed_error(self) -> SandboxClosedError:
        return SandboxClosedError(
            f"sandbox {self.sandbox_id!r} cannot be used: {self._closed}", sandbox_id=self.sandbox_id
        )

    @property
    def speaks_ours(self) -> bool:
        """Whether the server has any of our extensions, as far as is known. No I/O."""
        return bool(self._features)

    async def announces(self, feature: str) -> bool:
        """Return whether the agent announces one of our extensions."""
        if self._features is None:
            await self._probe()
        return self._features is not None and feature in self._features

    async def require(self, feature: str, *, what: str) -> None:
        """Refuse, in words, what needs an extension that this agent does not announce.

        Raises:
            APIError: it does not.
        """
        if not await self.announces(feature):
            raise APIError(
                f"{what}: the server of sandbox {self.sandbox_id!r} has only the published contract, which has "
                "no way to do this; `asyncsandbox serve` and the embedded server have",
                code="NOT_SUPPORTED",
            )

    async def headers(self) -> Mapping[str, str]:
        """Return the headers that show who asks. Part of `Auth`."""
        if self._grant is None:
            await self._refresh()
        return {} if self._grant is None else {"Authorization": f"Bearer {self._grant.token}"}

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """Get a new token, unless somebody else already has. Part of `Auth`."""
        if dict(await self.headers()) == dict(refused):
            await self._refresh()
        return dict(await self.headers()) != dict(refused)

    async def call(
        self,
        request: Request,
        *,
        what: str,
        timeout: float | None = None,
        retry: bool = True,
        accept: Collection[int] = (),
    ) -> Reply:
        """Return a good reply from the agent. See `Channel.call`.

        Raises:
            SandboxClosedError: the sandbox was closed here, or is gone from the server.
        """
        base, where = await self._base(), self.where(what)
        try:
            return await self.channel.call(
                request, base=base, auth=self, what=where, timeout=timeout, retry=retry, accept=accept
            )
        except APIError as exc:
            self.raise_gone(exc)
            raise

    async def connect(self, path: str, *, what: str) -> Socket:
        """Return an open WebSocket of the agent. See `Channel.connect`.

        Raises:
            SandboxClosedError: the sandbox was closed here, or is gone from the server.
        """
        base, where = await self._base(), self.where(what)
        try:
            return await self.channel.connect(path, base=base, auth=self, what=where)
        except APIError as exc:
            self.raise_gone(exc)
            raise

    def where(self, what: str) -> str:
        """Return a call in words, with the sandbox that it is about."""
        return f"{what} in sandbox {self.sandbox_id!r}"

    def raise_gone(self, error: APIError) -> None:
        """Raise what a refusal means when it means that the sandbox is gone.

        Raises:
            SandboxClosedError: it means that.
        """
        if error.status == _NOT_FOUND and error.code in _GONE_CODES:
            self.gone("it is gone from the server: expired or deleted")
            raise self._closed_error() from error

    async def _base(self) -> str:
        if self._closed is not None:
            raise self._closed_error()
        self.channel.home.check()
        if self.info is None or not self.info.public_host:  # the answer to a create may lack it
            await self._locate()
        endpoint = await self.channel.open_endpoint()
        host = None if self.info is None else self.info.public_host
        if not host:
            raise ProtocolError(
                f"the server gives no address for sandbox {self.sandbox_id!r}", detail="no public_host"
            )
        # Ours: behind a Unix socket only the path of the address means something.
        return (
            f"{endpoint.url}{yarl.URL(host).raw_path.rstrip('/')}" if endpoint.by_path else host.rstrip("/")
        )
