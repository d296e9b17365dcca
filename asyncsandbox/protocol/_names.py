"""Names on the wire of servers without idempotency keys: the user's own, and the key that tells a start apart.

Ours. Such a server keeps nothing of a start but its name, so the name carries the key: ``build~4f21…``. A key
that begins with ``c`` belongs to a job whose output is kept in files (`asyncsandbox.capture`).
"""

from __future__ import annotations

import re
import uuid
from typing import Final

__all__ = ["CAPTURED", "mark_name", "new_start_key", "unmark_name"]

CAPTURED: Final = "c"

_MARKED: Final = re.compile(rf"(?s)(.*)~({CAPTURED}?[0-9a-f]{{32}})")


def new_start_key(*, captured: bool) -> str:
    """Return a key that nobody else has."""
    return f"{CAPTURED if captured else ''}{uuid.uuid4().hex}"


def mark_name(name: str | None, key: str) -> str:
    """Return the name to send."""
    return f"{name or ''}~{key}"


def unmark_name(name: str | None) -> tuple[str | None, str | None]:
    """Return the user's own name and the key; None for what is not there."""
    match = None if name is None else _MARKED.fullmatch(name)
    return (name, None) if match is None else (match[1] or None, match[2])
