"""The truth about sandboxes and the tokens that open them. Synchronous, no I/O."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from asyncsandbox.server.records import SandboxRecord

__all__ = ["TOKEN_LIFE", "SandboxChanges", "SandboxTable", "TokenRecord", "token_digest"]

TOKEN_LIFE: Final = 7 * 24 * 3600.0
"""Seconds that a token opens its sandbox. The JavaScript SDK wants more than an hour left at every call."""


def token_digest(token: str) -> str:
    """Return what is stored of a token: nobody can get in with it."""
    return hashlib.sha256(token.encode()).hexdigest()


@attrs.frozen(kw_only=True)
class TokenRecord:
    """One token of a sandbox's agent, as far as it is stored."""

    digest: str
    sandbox_id: str
    expires_at: float


@attrs.define
class SandboxChanges:
    """What a commit has to write. None = gone."""

    sandboxes: dict[str, SandboxRecord | None] = attrs.field(factory=dict)
    tokens: dict[str, TokenRecord | None] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sandboxes or self.tokens)


class SandboxTable:
    """Every sandbox of one server.

    Args:
        records: as they were stored.
        tokens: as they were stored.
    """

    def __init__(self, records: Iterable[SandboxRecord] = (), tokens: Iterable[TokenRecord] = ()) -> None:
        ordered = sorted(records, key=lambda record: record.added)
        self._records = {record.id: record for record in ordered}
        self._tokens = {token.digest: token for token in tokens}
        self._added = ordered[-1].added if ordered else 0
        self.changes = SandboxChanges()

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._records

    def __iter__(self) -> Iterator[SandboxRecord]:
        """Every sandbox, in the order of creation."""
        return iter(tuple(self._records.values()))

    def add(self, **values: Any) -> SandboxRecord:
        """Take in a new sandbox."""
        self._added += 1
        return self._put(SandboxRecord(added=self._added, **values))

    def get(self, sandbox_id: str) -> SandboxRecord | None:
        """Return a sandbox's record."""
        return self._records.get(sandbox_id)

    def change(self, sandbox_id: str, **values: Any) -> SandboxRecord:
        """Replace some of a sandbox's fields."""
        return self._put(attrs.evolve(self._records[sandbox_id], **values))

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox and its tokens."""
        del self._records[sandbox_id]
        self.changes.sandboxes[sandbox_id] = None
        for token in [token for token in self._tokens.values() if token.sandbox_id == sandbox_id]:
            self._drop(token)

    def grant(self, sandbox_id: str, *, now: float) -> tuple[str, float]:
        """Return a new token for a sandbox and when it expires. Earlier ones stay good (contract 1.8)."""
        for old in [token for token in self._tokens.values() if token.expires_at <= now]:
            self._drop(old)
        token = secrets.token_urlsafe(32)
        record = TokenRecord(digest=token_digest(token), sandbox_id=sandbox_id, expires_at=now + TOKEN_LIFE)
        self._tokens[record.digest] = self.changes.tokens[record.digest] = record
        return token, record.expires_at

    def opens(self, token: str, sandbox_id: str, *, now: float) -> bool:
        """Whether a token lets its bearer into a sandbox."""
        record = self._tokens.get(token_digest(token))
        return record is not None and record.sandbox_id == sandbox_id and record.expires_at > now

    def opened_by(self, token: str, *, now: float) -> str | None:
        """Return the sandbox that a token opens; None when it opens none."""
        record = self._tokens.get(token_digest(token))
        return record.sandbox_id if record is not None and record.expires_at > now else None

    def changes_saved(self) -> None:
        """Note that `changes` is on disk."""
        self.changes = SandboxChanges()

    def _put(self, record: SandboxRecord) -> SandboxRecord:
        self._records[record.id] = self.changes.sandboxes[record.id] = record
        return record

    def _drop(self, token: TokenRecord) -> None:
        del self._tokens[token.digest]
        self.changes.tokens[token.digest] = None
