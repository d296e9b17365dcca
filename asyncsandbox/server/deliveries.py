"""The truth about callbacks: who is to be told of which end, and how far that got. Synchronous, no I/O."""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from asyncsandbox import protocol

__all__ = ["RECORD_LIFE", "Callback", "Delivery", "DeliveryState", "DeliveryTable"]

RECORD_LIFE: Final = 24 * 3600.0
"""Seconds that the record of a delivery is kept after it was settled, also when its sandbox is gone."""


class DeliveryState(enum.StrEnum):
    """How far a callback got. The last two are final."""

    WAITING = "waiting"
    """The job has not ended: there is nothing to tell yet."""
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"

    @property
    def settled(self) -> bool:
        """Whether nothing more will be tried."""
        return self in (DeliveryState.DELIVERED, DeliveryState.GIVEN_UP)


@attrs.frozen(kw_only=True)
class Callback:
    """Whom to tell. None of it is shown in a `repr`: URLs and headers carry secrets too.

    Attributes:
        url: an absolute http or https URL.
        headers: to send along.
        secret: to sign with; None = no signature.
    """

    url: str = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    secret: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Delivery:
    """One callback.

    Attributes:
        execution_id: what the contract calls the run.
        process_id: the job.
        sandbox_id: where it ran.
        delivery_id: the same in every try, so that a receiver can tell a repetition.
        callback: whom to tell.
        state: how far it got.
        attempts: tries so far.
        last_status: HTTP status of the last answer; None when none came.
        last_error: why the last try failed; None when it did not, and before it.
        next_attempt_at: Unix time of the next try; None when there is none.
        expires_at: when it is given up, Unix time; None before the job has ended.
        settled_at: when it was delivered or given up, Unix time; None before.
    """

    execution_id: str
    process_id: str
    sandbox_id: str
    delivery_id: str
    callback: Callback
    state: DeliveryState = DeliveryState.WAITING
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    next_attempt_at: float | None = None
    expires_at: float | None = None
    settled_at: float | None = None


class DeliveryTable:
    """Every callback of one server.

    Args:
        stored: as they were stored.

    Attributes:
        changed: what a commit has to write; None = gone.
        bodies: what to post, as far as a commit has to write that; None = not needed any more.
    """

    def __init__(self, stored: Iterable[Delivery] = ()) -> None:
        self._entries = {entry.execution_id: entry for entry in stored}
        settled = [entry for entry in self._entries.values() if entry.state.settled]
        settled.sort(key=lambda entry: entry.settled_at or 0.0)
        self._settled = deque(entry.execution_id for entry in settled)
        self.changed: dict[str, Delivery | None] = {}
        self.bodies: dict[str, bytes | None] = {}

    def expect(self, process_id: str, sandbox_id: str, callback: Callback) -> Delivery:
        """Note that somebody is to be told of a job's end."""
        entry = Delivery(
            execution_id=protocol.execution_id(process_id),
            process_id=process_id,
            sandbox_id=sandbox_id,
            delivery_id=f"dlv_{secrets.token_hex(12)}",
            callback=callback,
        )
        return self._put(entry)

    def get(self, execution_id: str) -> Delivery | None:
        """Return one callback."""
        return self._entries.get(execution_id)

    def open(self) -> list[Delivery]:
        """Return those that are not settled."""
        return [entry for entry in self._entries.values() if not entry.state.settled]

    def ended(self, execution_id: str, body: bytes, *, now: float, life: float) -> Delivery:
        """Note that the job has ended, and what to post about it for up to `life` seconds."""
        entry = self._entries[execution_id]
        self.bodies[execution_id] = body
        return self._put(
            attrs.evolve(entry, state=DeliveryState.PENDING, next_attempt_at=now, expires_at=now + life)
        )

    def failed(self, execution_id: str, *, status: int | None, error: str, again_at: float) -> Delivery:
        """Note a try that failed, and when the next one is."""
        entry = self._entries[execution_id]
        return self._put(
            attrs.evolve(
                entry,
                attempts=entry.attempts + 1,
                last_status=status,
                last_error=error,
                next_attempt_at=again_at,
            )
        )

    def settle(
        self, execution_id: str, state: DeliveryState, *, status: int | None, error: str | None, now: float
    ) -> Delivery:
        """Note the last try; forget its secrets, and the records of those settled long ago."""
        before = self._entries[execution_id]
        entry = attrs.evolve(
            before,
            callback=Callback(url=before.callback.url),
            state=state,
            attempts=before.attempts + 1,
            last_status=status,
            last_error=error,
            next_attempt_at=None,
            settled_at=now,
        )
        self._put(entry)
        self.bodies[execution_id] = None
        self._settled.append(execution_id)
        self.prune(now)
        return entry

    def prune(self, now: float) -> None:
        """Forget the records of those settled long ago."""
        while self._settled:
            entry = self._entries.get(self._settled[0])
            if entry is not None and (entry.settled_at or 0.0) > now - RECORD_LIFE:
                return
            self.forget(self._settled.popleft())

    def forget(self, execution_id: str) -> None:
        """Take a callback away; one that is not there is fine."""
        if self._entries.pop(execution_id, None) is not None:
            self.changed[execution_id] = None
            self.bodies.pop(execution_id, None)

    def changes_saved(self) -> None:
        """Note that `changed` and `bodies` are on disk."""
        self.changed, self.bodies = {}, {}

    def _put(self, entry: Delivery) -> Delivery:
        self._entries[entry.execution_id] = self.changed[entry.execution_id] = entry
        return entry
