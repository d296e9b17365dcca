"""Names on the wire of servers without idempotency keys: the user's own, and the key that tells a start apart.

Ours. Such a server keeps nothing of a start but its name, so the name carries the key: ``build~4f21…``. The
output of the job is kept in files below that key (`asyncsandbox.capture`).
"""

from __future__ import annotations

import re
import uuid
from typing import Final

__all__ = ["mark_name", "new_start_key", "unmark_name"]

_MARKED: Final = re.compile(r"(?s)(.*)~([0-9a-f]{32})")


def new_start_key() -> str:
    """Return a key that nobody else has."""
    return uuid.uuid4().hex


def mark_name(name: str | None, key: str) -> str:
    """Return the name to send."""
    return f"{name or ''}~{key}"


def unmark_name(name: str | None) -> tuple[str | None, str | None]:
    """Return the user's own name and the key; None for what is not there."""
    match = None if name is None else _MARKED.fullmatch(name)
    return (name, None) if match is None else (match[1] or None, match[2])
