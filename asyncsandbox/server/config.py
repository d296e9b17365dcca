"""What a server is told at its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import attrs

from asyncsandbox.server.rates import Rate, Scope

__all__ = ["DEFAULT_GRACE", "DEFAULT_OUTPUT_LIMIT", "Isolation", "ServerConfig", "default_state_dir"]

Isolation = Literal["bwrap", "none"]

DEFAULT_OUTPUT_LIMIT: Final = 10 * 1024 * 1024
"""Bytes kept of each stream of a job."""

DEFAULT_GRACE: Final = 2.0
"""Seconds that a job gets between SIGTERM and SIGKILL."""


def default_state_dir() -> Path:
    """Return where a served instance keeps its records: the user's state directory, as XDG says."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "asyncsandbox"


@attrs.frozen(kw_only=True)
class ServerConfig:
    """One server's settings.

    Attributes:
        state_dir: where records and sandboxes live; one server at a time.
        api_key: what the control plane asks for.
        isolation: "bwrap", or "none" for plain processes with the user's own rights.
        templates: ``{name: path of a virtual environment or of an interpreter}``, beside
            ``code-interpreter``, the Python that runs the server.
        max_running: at most so many jobs run at once; None = as many as do not fight for the cores.
        public_url: what clients reach the server by; None = as each request's own Host says.
        grace: seconds between SIGTERM and SIGKILL when a job is ended.
        output_limit: bytes kept of each stream of a job, half of its head and half of its tail.
        slots: busy jobs at once; None = by the number of cores.
        rates: how often callers may ask; empty = as often as they like.
        callback_floor: bound of the first gap between two tries to deliver a callback, seconds.
        callback_cap: bound of the longest such gap, seconds.
    """

    state_dir: Path
    api_key: str = attrs.field(repr=False)
    isolation: Isolation = "bwrap"
    templates: Mapping[str, str] = attrs.field(factory=dict)
    max_running: int | None = None
    public_url: str | None = None
    grace: float = DEFAULT_GRACE
    output_limit: int = DEFAULT_OUTPUT_LIMIT
    slots: int | None = None
    rates: Mapping[Scope, Rate] = attrs.field(factory=dict)
    callback_floor: float = 0.5
    callback_cap: float = 60.0
