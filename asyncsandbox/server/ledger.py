"""The tables together with their disk: who changes them says so here, and hears when that is safe.

Changes of one turn of the event loop share a commit. Nothing is acknowledged or shown before its commit:
whoever answers a start awaits `committed`, whoever reads calls `commit` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from asyncsandbox.errors import ServerError
from asyncsandbox.server import refusals
from asyncsandbox.server.deliveries import DeliveryTable
from asyncsandbox.server.jobtable import JobTable
from asyncsandbox.server.keys import KeyTable
from asyncsandbox.server.sandboxtable import SandboxTable
from asyncsandbox.server.store import Store, StoreError

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 0.5


class Ledger:
    """All tables of one server, and the one writer of its store.

    Args:
        store: where they are kept; closed with the ledger.

    Attributes:
        instance: id of this state, for as long as its directory lives.
        jobs: the jobs.
        sandboxes: the sandboxes.
        keys: the idempotency keys.
        deliveries: the callbacks.
    """

    def __init__(self, store: Store) -> None:
        stored = store.load()
        self._store = store
        self.instance = stored.instance
        self.jobs = JobTable(stored.jobs, stored.tombstones, next_seq=stored.next_seq)
        self.sandboxes = SandboxTable(stored.sandboxes, stored.tokens)
        self.keys = KeyTable(stored.keys)
        self.deliveries = DeliveryTable(stored.deliveries)
        self.before_commit: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None
        self._timer: asyncio.Handle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def touch(self) -> None:
        """Say that something changed: a commit follows in this turn of the event loop."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self._tick)

    async def committed(self) -> None:
        """Wait until everything up to here is on disk.

        Raises:
            ServerError: 503, the disk refused; the changes stay pending.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.touch()
        await waiter

    def commit(self) -> None:
        """Put everything on disk now.

        Raises:
            ServerError: 503, the disk refused; the changes stay pending.
        """
        self.before_commit()
        waiters, self._waiters = self._waiters, []
        try:
            self._save()
        except StoreError as exc:
            log.exception("a commit failed; its changes stay pending")
            self._later()
            refusal = refusals.unavailable(f"the server cannot write its records: {exc}")
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(refusal)
            raise refusal from exc
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.after_commit()

    def outputs(self, process_ids: list[str]) -> dict[str, tuple[bytes | None, bytes | None]]:
        """Return the output that was kept with records, ``{id: (stdout, stderr)}``."""
        return self._store.outputs(process_ids)

    def callback_body(self, execution_id: str) -> bytes | None:
        """Return what a callback is to post, committed or not; None when there is nothing."""
        if execution_id in self.deliveries.bodies:
            return self.deliveries.bodies[execution_id]
        return self._store.callback_body(execution_id)

    def close(self) -> None:
        """Commit what is pending and close the file."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._save()
        finally:
            self._store.close()

    def _save(self) -> None:
        jobs, sandboxes, keys = self.jobs.changes, self.sandboxes.changes, self.keys.changed
        deliveries, bodies = self.deliveries.changed, self.deliveries.bodies
        if not (jobs or sandboxes or keys or deliveries):
            return
        self._store.save(
            jobs=jobs,
            sandboxes=sandboxes,
            keys=keys,
            next_seq=self.jobs.next_seq,
            deliveries=deliveries,
            bodies=bodies,
        )
        self.jobs.changes_saved()
        self.sandboxes.changes_saved()
        self.keys.changed = {}
        self.deliveries.changes_saved()

    def _tick(self) -> None:
        self._timer = None
        try:
            self.commit()
        except ServerError:
            return  # logged, told to those who wait, and tried again

    def _later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._tick)
