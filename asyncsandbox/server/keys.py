"""Idempotency keys: which request made what, so that a repeat gets the same answer. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from asyncsandbox.server import refusals

__all__ = ["KEY_LIFE", "KeyEntry", "KeyTable", "body_digest"]

KEY_LIFE: Final = 24 * 3600.0
"""Seconds that a key is remembered beyond what it made."""

_LONGEST: Final = 255


def body_digest(body: Mapping[str, Any]) -> str:
    """Return what two equal bodies share, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@attrs.frozen(kw_only=True)
class KeyEntry:
    """One key that was used.

    Attributes:
        scope: what the key is unique in: a sandbox's id, or "" for creates.
        key: as the client made it.
        digest: of the body that came with it.
        target: the id of what it made.
        gone_at: when that was removed, Unix time; None while it is there.
    """

    scope: str
    key: str
    digest: str
    target: str
    gone_at: float | None = None


class KeyTable:
    """All keys of one server."""

    def __init__(self, entries: Iterable[KeyEntry] = ()) -> None:
        self._entries: dict[tuple[str, str], KeyEntry] = {}
        self._by_target: dict[str, KeyEntry] = {}
        self._by_scope: dict[str, set[str]] = {}
        self._gone: deque[KeyEntry] = deque()
        self.changed: dict[tuple[str, str], KeyEntry | None] = {}
        for entry in sorted(entries, key=lambda entry: entry.gone_at or 0.0):
            self._put(entry)

    def find(self, scope: str, key: str | None, digest: str) -> str | None:
        """Return the id of what this request made earlier; None when it is new.

        Raises:
            InvalidRequestError: the key is too long.
            ConflictError: the key came with another body.
            APIError: 410, what it made is gone.
        """
        if key is None:
            return None
        if not key or len(key) > _LONGEST:
            raise refusals.invalid(f"an Idempotency-Key has 1 to {_LONGEST} characters, not {len(key)}")
        entry = self._entries.get((scope, key))
        if entry is None:
            return None
        if entry.digest != digest:
            raise refusals.conflict(
                f"the Idempotency-Key {key!r} was used for another body; use a new key for a new request",
                code="IDEMPOTENCY_CONFLICT",
            )
        if entry.gone_at is not None:
            raise refusals.gone(
                f"what the Idempotency-Key {key!r} made ({entry.target}) was removed", code="GONE"
            )
        return entry.target

    def record(self, scope: str, key: str | None, digest: str, target: str) -> None:
        """Remember that a request made `target`. No key, nothing to remember."""
        if key is None:
            return
        entry = KeyEntry(scope=scope, key=key, digest=digest, target=target)
        self._put(entry)
        self.changed[scope, key] = entry

    def mark_gone(self, target: str, now: float) -> None:
        """Note that what a key made was removed; forget those removed long ago."""
        entry = self._by_target.pop(target, None)
        if entry is not None:
            entry = attrs.evolve(entry, gone_at=now)
            self._put(entry)
            self.changed[entry.scope, entry.key] = entry
        while self._gone and (self._gone[0].gone_at or 0.0) < now - KEY_LIFE:
            self._drop(self._gone.popleft())

    def forget(self, target: str) -> None:
        """Undo `record`: nothing was made after all."""
        entry = self._by_target.pop(target, None)
        if entry is not None:
            self._drop(entry)

    def forget_scope(self, scope: str) -> None:
        """Drop every key of a sandbox that is gone."""
        for key in tuple(self._by_scope.get(scope, ())):
            entry = self._entries[scope, key]
            self._by_target.pop(entry.target, None)
            self._drop(entry)

    def _put(self, entry: KeyEntry) -> None:
        self._entries[entry.scope, entry.key] = entry
        self._by_scope.setdefault(entry.scope, set()).add(entry.key)
        if entry.gone_at is None:
            self._by_target[entry.target] = entry
        else:
            self._gone.append(entry)

    def _drop(self, entry: KeyEntry) -> None:
        if self._entries.pop((entry.scope, entry.key), None) is None:
            return  # its scope went first
        self.changed[entry.scope, entry.key] = None
        keys = self._by_scope[entry.scope]
        keys.discard(entry.key)
        if not keys:
            del self._by_scope[entry.scope]
