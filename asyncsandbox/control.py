"""Calls to the control plane: which sandboxes there are, and how an agent is reached."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import attrs

from asyncsandbox import protocol
from asyncsandbox.errors import NotFoundError
from asyncsandbox.models import SandboxInfo, TemplateInfo
from asyncsandbox.pacing import Pace
from asyncsandbox.protocol import Request, TokenGrant, sandbox_path
from asyncsandbox.transport import Channel

__all__ = ["ControlPlane", "Created"]


@attrs.frozen(kw_only=True)
class Created:
    """A sandbox as the control plane described it, with what else the description held.

    Attributes:
        info: the sandbox.
        grant: a token for its agent; None when there was none.
        features: extensions announced beside it; None when it says nothing of them.
    """

    info: SandboxInfo
    grant: TokenGrant | None
    features: Mapping[str, int] | None


class _KeyAuth:
    """The API key. There is no other to be had when it is refused."""

    def __init__(self, api_key: str, pace: Pace) -> None:
        self.pace = pace
        self._headers = {"X-API-Key": api_key} if api_key else {}

    async def headers(self) -> Mapping[str, str]:
        return self._headers

    async def renew(self, refused: Mapping[str, str]) -> bool:
        del refused
        return False


class ControlPlane:
    """The control plane behind one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pace = Pace(channel.clock)
        self._features: Mapping[str, int] | None = None

    async def _call(self, request: Request, what: str, *, retry: bool = True) -> dict[str, Any]:
        endpoint = await self._channel.open_endpoint()
        reply = await self._channel.call(
            request, base=endpoint.url, auth=_KeyAuth(endpoint.api_key, self._pace), what=what, retry=retry
        )
        # Contract 5.2: every success has a JSON object, but a 204 has no body.
        return protocol.json_object(reply) if reply.body else {}

    @staticmethod
    def _described(body: Mapping[str, Any]) -> Created:
        features = protocol.decode_features(body) if isinstance(body.get("features"), Mapping) else None
        return Created(
            info=protocol.decode_sandbox(body), grant=protocol.decode_token(body), features=features
        )

    async def create(
        self,
        *,
        template: str,
        timeout_seconds: float | None,
        env: Mapping[str, str] | None,
        internet_access: bool,
    ) -> Created:
        """Make a sandbox. Repeated safely where the server announces idempotency keys."""
        request = protocol.create_sandbox(
            template=template,
            timeout_seconds=timeout_seconds,
            env=env,
            internet_access=internet_access,
            key=uuid.uuid4().hex if await self.announces("idempotency") else None,
        )
        return self._described(await self._call(request, f"creating a sandbox from template {template!r}"))

    async def announces(self, feature: str) -> bool:
        """Return whether the control plane announces one of our extensions."""
        if self._features is None:
            body = await self._call(protocol.get("/health"), "asking the server for its health")
            self._features = protocol.decode_features(body)
        return feature in self._features

    async def get(self, sandbox_id: str, *, retry: bool = True) -> Created:
        """Describe a sandbox."""
        request = protocol.get(sandbox_path(sandbox_id))
        body = await self._call(request, f"looking up sandbox {sandbox_id!r}", retry=retry)
        return self._described(body)

    async def sandboxes(self) -> list[SandboxInfo]:
        """Describe all sandboxes of the key, over all pages."""
        found: dict[str, SandboxInfo] = {}
        cursor: str | None = None
        while True:
            body = await self._call(protocol.list_sandboxes(cursor=cursor), "listing sandboxes")
            page = [protocol.decode_sandbox(row) for row in protocol.rows_of(body)]
            fresh = {info.id: info for info in page if info.id not in found}
            found |= fresh
            following = body.get("next_cursor")
            # A page that brings nothing new, or no way on, is the last, whatever has_more says.
            if not body.get("has_more") or not fresh or not isinstance(following, str) or following == cursor:
                return list(found.values())
            cursor = following

    async def delete(self, sandbox_id: str) -> bool:
        """End a sandbox and everything in it; False when it was not there."""
        request = Request(method="DELETE", path=sandbox_path(sandbox_id), repeatable=True, lane="end")
        try:
            await self._call(request, f"ending sandbox {sandbox_id!r}")
        except NotFoundError:
            return False
        return True

    async def pause(self, sandbox_id: str) -> None:
        """Stop every process of a sandbox."""
        request = Request(method="POST", path=sandbox_path(sandbox_id, "/pause"), repeatable=True)
        await self._call(request, f"pausing sandbox {sandbox_id!r}")

    async def resume(self, sandbox_id: str) -> None:
        """Let them go on."""
        request = Request(method="POST", path=sandbox_path(sandbox_id, "/resume"), repeatable=True)
        await self._call(request, f"resuming sandbox {sandbox_id!r}")

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let the sandbox end `seconds` from now."""
        request = Request(
            method="PUT",
            path=sandbox_path(sandbox_id, "/timeout"),
            json={"timeout_seconds": seconds},
            repeatable=True,
        )
        await self._call(request, f"setting the time-out of sandbox {sandbox_id!r}")

    async def refresh_token(self, sandbox_id: str) -> TokenGrant | None:
        """Get a new token for a sandbox's agent."""
        request = Request(method="POST", path=sandbox_path(sandbox_id, "/token/refresh"), repeatable=True)
        return protocol.decode_token(
            await self._call(request, f"refreshing the token of sandbox {sandbox_id!r}")
        )

    async def templates(self) -> list[TemplateInfo]:
        """Describe what sandboxes can be made from."""
        return protocol.decode_templates(await self._call(protocol.get("/v1/templates"), "listing templates"))

    async def template(self, name: str) -> TemplateInfo:
        """Describe one of them, by name or id."""
        request = protocol.get(protocol.template_path(name))
        return protocol.decode_template(await self._call(request, f"looking up template {name!r}"))
