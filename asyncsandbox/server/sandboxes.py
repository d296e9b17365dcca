"""Sandboxes: made, opened, paused, ended, each by itself when its time is over."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping

import attrs

from asyncsandbox.server import refusals
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.engine import Engine
from asyncsandbox.server.jobs import Jobs
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.records import SandboxRecord, SandboxStatus
from asyncsandbox.server.templates import Templates

__all__ = ["CreateOrder", "Grant", "Sandboxes"]

log = logging.getLogger(__name__)

_CREATES = ""
"""The scope of keys of creates: there is one API key."""


@attrs.frozen(kw_only=True)
class CreateOrder:
    """A sandbox to make.

    Attributes:
        template: name, alias or id.
        timeout_seconds: its life; None = no limit.
        internet_access: as asked for.
        env: variables of every job in it.
    """

    template: str
    timeout_seconds: float | None = None
    internet_access: bool = False
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)


@attrs.frozen(kw_only=True)
class Grant:
    """A token, told once. `expires_at` is Unix time."""

    token: str = attrs.field(repr=False)
    expires_at: float


class Sandboxes:
    """The sandboxes of one server.

    Args:
        config: the server's settings.
        ledger: their records.
        engine: their places.
        jobs: what runs in them.
        templates: what they are made from.
    """

    def __init__(
        self, *, config: ServerConfig, ledger: Ledger, engine: Engine, jobs: Jobs, templates: Templates
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._table = ledger.sandboxes
        self._engine = engine
        self._jobs = jobs
        self._templates = templates
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._deletions: dict[str, asyncio.Task[None]] = {}

    def recover(self) -> None:
        """Take over what an earlier server left. Call before `Jobs.recover`.

        Raises:
            OSError: a sandbox's place is not usable.
        """
        for sandbox in self._table:
            if sandbox.status is SandboxStatus.DELETED:
                self._begin_deletion(sandbox.id)
                continue
            records = self._ledger.jobs.of_sandbox(sandbox.id)
            kept = [record.launch for record in records if record.launch is not None and not record.launched]
            self._engine.find_again(sandbox, kept)
            if sandbox.status is not SandboxStatus.RUNNING:
                self._jobs.hold(sandbox.id)
            self._set_timer(sandbox)

    def find(self, sandbox_id: str) -> SandboxRecord:
        """Return a sandbox's record.

        Raises:
            NotFoundError: there is none.
        """
        record = self._table.get(sandbox_id)
        if record is None or record.status is SandboxStatus.DELETED:
            raise refusals.not_found(f"sandbox {sandbox_id!r} was not found", code="SANDBOX_NOT_FOUND")
        return record

    def listed(self) -> list[SandboxRecord]:
        """Return all sandboxes in the order of creation."""
        return [record for record in self._table if record.status is not SandboxStatus.DELETED]

    async def create(
        self, order: CreateOrder, *, key: str | None, digest: str
    ) -> tuple[SandboxRecord, Grant]:
        """Make a sandbox, once for each key.

        Raises:
            InvalidRequestError: isolation was not given up and is not there.
            NotFoundError: there is no such template.
            ConflictError: the key came with another body.
            APIError: 410, what the key made is gone.
        """
        if self._config.isolation != "none":
            raise refusals.invalid(
                "isolation by bubblewrap is not there yet in this version of asyncsandbox; isolation='none' "
                "(argument of Client, --isolation none of the server, or ASYNCSANDBOX_ISOLATION=none) runs "
                "jobs as plain processes with the user's own rights",
                code="ISOLATION_UNAVAILABLE",
            )
        known = self._ledger.keys.find(_CREATES, key, digest)
        record = self.find(known) if known is not None else self._make(order, key=key, digest=digest)
        return record, await self.grant(record.id)

    async def grant(self, sandbox_id: str) -> Grant:
        """Return a new token; earlier ones stay good.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        token, expires_at = self._table.grant(self.find(sandbox_id).id, now=time.time())
        await self._ledger.committed()
        return Grant(token=token, expires_at=expires_at)

    async def delete(self, sandbox_id: str) -> None:
        """End everything in a sandbox and delete it. Returns when it is gone.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        if sandbox_id not in self._deletions:
            self.find(sandbox_id)
            self._begin_deletion(sandbox_id)
        await asyncio.shield(self._deletions[sandbox_id])

    async def pause(self, sandbox_id: str) -> SandboxRecord:
        """Stop every process in a sandbox, start none. Pausing a paused one does nothing.

        Raises:
            NotFoundError: there is no such sandbox.
            ConflictError: it is stopped.
        """
        record = self.find(sandbox_id)
        if record.status is SandboxStatus.STOPPED:
            raise refusals.conflict(f"sandbox {sandbox_id!r} is stopped; there is nothing to pause")
        self._jobs.hold(sandbox_id)
        self._ledger.commit()
        self._engine.pause(sandbox_id)
        return await self._change(sandbox_id, status=SandboxStatus.PAUSED)

    async def resume(self, sandbox_id: str) -> SandboxRecord:
        """Let a paused or stopped sandbox go on. A running one stays as it is.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        self.find(sandbox_id)
        self._engine.resume(sandbox_id)
        self._jobs.release(sandbox_id)
        return await self._change(sandbox_id, status=SandboxStatus.RUNNING)

    async def stop(self, sandbox_id: str) -> SandboxRecord:
        """End every process in a sandbox; files, variables and records stay.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        self.find(sandbox_id)
        self._table.change(sandbox_id, status=SandboxStatus.STOPPED)
        await self._end_everything(sandbox_id)
        return self.find(sandbox_id)

    async def set_timeout(self, sandbox_id: str, seconds: float) -> SandboxRecord:
        """Let a sandbox live for so many seconds from now.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        self.find(sandbox_id)
        record = await self._change(sandbox_id, timeout_seconds=seconds, expires_at=time.time() + seconds)
        self._set_timer(record)
        return record

    async def set_env(self, sandbox_id: str, env: Mapping[str, str]) -> SandboxRecord:
        """Replace the variables of later jobs.

        Raises:
            NotFoundError: there is no such sandbox.
        """
        self.find(sandbox_id)
        return await self._change(sandbox_id, env=dict(env))

    async def close(self) -> None:
        """Stop the clocks and wait for deletions that have begun."""
        for timer in self._timers.values():
            timer.cancel()
        if self._deletions:
            await asyncio.wait(self._deletions.values())

    def _make(self, order: CreateOrder, *, key: str | None, digest: str) -> SandboxRecord:
        template = self._templates.find(order.template)
        now = time.time()
        seconds = order.timeout_seconds
        record = self._table.add(
            id=f"sb_{secrets.token_hex(8)}",
            template=template.name,
            template_id=template.id,
            created_at=now,
            timeout_seconds=seconds,
            expires_at=None if seconds is None else now + seconds,
            internet_access=order.internet_access,
            env=dict(order.env),
        )
        try:
            self._engine.create(record)
        except OSError:
            self._table.remove(record.id)
            raise
        self._ledger.keys.record(_CREATES, key, digest, record.id)
        self._engine.open(record.id)
        self._set_timer(record)
        return record

    async def _change(self, sandbox_id: str, **values: object) -> SandboxRecord:
        record = self._table.change(sandbox_id, **values)
        await self._ledger.committed()
        return record

    async def _end_everything(self, sandbox_id: str) -> None:
        self._jobs.hold(sandbox_id)
        self._ledger.commit()  # what was chosen to start is with the supervisor now
        await self._engine.halt(sandbox_id)
        self._jobs.end_all(sandbox_id)
        self._ledger.commit()  # whoever waits for these ends hears of them while the records are there

    def _begin_deletion(self, sandbox_id: str) -> None:
        self._table.change(sandbox_id, status=SandboxStatus.DELETED)
        task = asyncio.get_running_loop().create_task(self._delete(sandbox_id))
        self._deletions[sandbox_id] = task
        task.add_done_callback(lambda done: self._deletion_over(sandbox_id, done))

    def _deletion_over(self, sandbox_id: str, task: asyncio.Task[None]) -> None:
        self._deletions.pop(sandbox_id, None)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "sandbox %s could not be deleted; it will be at the next start",
                sandbox_id,
                exc_info=task.exception(),
            )

    async def _delete(self, sandbox_id: str) -> None:
        timer = self._timers.pop(sandbox_id, None)
        if timer is not None:
            timer.cancel()
        await self._end_everything(sandbox_id)
        await self._engine.destroy(sandbox_id)
        self._jobs.drop(sandbox_id)
        self._table.remove(sandbox_id)
        self._ledger.keys.mark_gone(sandbox_id, time.time())
        await self._ledger.committed()

    def _set_timer(self, record: SandboxRecord) -> None:
        timer = self._timers.pop(record.id, None)
        if timer is not None:
            timer.cancel()
        if record.expires_at is not None:
            loop = asyncio.get_running_loop()
            seconds = max(0.0, record.expires_at - time.time())
            self._timers[record.id] = loop.call_later(seconds, self._expire, record.id)

    def _expire(self, sandbox_id: str) -> None:
        log.info("sandbox %s has reached the end of its life", sandbox_id)
        if sandbox_id in self._table and sandbox_id not in self._deletions:
            self._begin_deletion(sandbox_id)
