"""The control plane: sandboxes, tokens, templates (contract 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import attrs

from asyncsandbox.errors import ProtocolError
from asyncsandbox.models import SandboxInfo, TemplateInfo
from asyncsandbox.protocol._messages import IDEMPOTENCY_KEY, Request, get
from asyncsandbox.protocol._scalars import as_number, as_seconds, as_text, first_of, unix_time

__all__ = [
    "FEATURES",
    "TokenGrant",
    "create_sandbox",
    "decode_features",
    "decode_sandbox",
    "decode_template",
    "decode_templates",
    "decode_token",
    "list_sandboxes",
    "rows_of",
    "sandbox_path",
    "template_path",
]

FEATURES: Final[Mapping[str, int]] = {
    "idempotency": 1,  # Idempotency-Key on starts and creates
    "since": 1,  # GET /execute/processes?since=CURSOR
    "record": 1,  # GET and DELETE /execute/processes/{id}
    "output": 1,  # GET /execute/processes/{id}/output
    "inputs": 1,  # args, stdin, files and own_directory in a start
    "webhooks": 1,  # process_id of what calls back, which is listed; GET /execute/async/{execution_id}
}
"""Ours: what this version of the server announces."""


@attrs.frozen(kw_only=True)
class TokenGrant:
    """A token for a sandbox's agent. `expires_at` is Unix time; None when the server did not say."""

    token: str = attrs.field(repr=False)
    expires_at: float | None = None


def create_sandbox(
    *,
    template: str,
    timeout_seconds: float | None,
    env: Mapping[str, str] | None,
    internet_access: bool,
    key: str | None,
) -> Request:
    """``POST /v1/sandboxes`` (contract 1.3). Repeatable only with a key, where keys are announced (ours)."""
    body: dict[str, Any] = {"internet_access": internet_access}
    body["template_id" if template.isdecimal() else "template_name"] = template
    if timeout_seconds is not None:
        body["timeout_seconds"] = as_seconds(timeout_seconds)
    if env:
        body["env_vars"] = dict(env)
    headers = {} if key is None else {IDEMPOTENCY_KEY: key}
    return Request(
        method="POST", path="/v1/sandboxes", json=body, headers=headers, repeatable=key is not None
    )


def sandbox_path(sandbox_id: str, action: str = "") -> str:
    """Return the control plane's path of one sandbox."""
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}{action}"


def list_sandboxes(*, cursor: str | None) -> Request:
    """``GET /v1/sandboxes`` (contract 1.6)."""
    return get("/v1/sandboxes", limit="100", **({} if cursor is None else {"cursor": cursor}))


def decode_sandbox(body: Mapping[str, Any]) -> SandboxInfo:
    """Read a sandbox object (contract 1.4).

    Raises:
        ProtocolError: it has no id.
    """
    sandbox_id = first_of(body, "id", "sandbox_id")
    if not isinstance(sandbox_id, str):
        raise ProtocolError("the server described a sandbox without an id", detail="id is missing")
    return SandboxInfo(
        id=sandbox_id,
        status=str(body.get("status") or "running"),
        template=as_text(body.get("template_name")) or "",
        created_at=unix_time(body.get("created_at")),
        expires_at=unix_time(body.get("expires_at")),
        timeout_seconds=as_number(body.get("timeout_seconds")),
        internet_access=body.get("internet_access")
        if isinstance(body.get("internet_access"), bool)
        else None,
        public_host=as_text(first_of(body, "public_host", "direct_url")),
    )


def decode_token(body: Mapping[str, Any]) -> TokenGrant | None:
    """Read the token of a create or refresh reply (contract 1.4); None when there is none."""
    token = body.get("auth_token")
    if not isinstance(token, str) or not token:
        return None
    return TokenGrant(token=token, expires_at=unix_time(body.get("token_expires_at")))


def rows_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the objects of a page (contract 1.6); a null list is an empty one.

    Raises:
        ProtocolError: no list of objects.
    """
    rows = body.get("data")
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ProtocolError("the server sent a page whose data is no list of objects", detail="data")
    return rows


def decode_template(body: Mapping[str, Any]) -> TemplateInfo:
    """Read a template object (contract 1.5).

    Raises:
        ProtocolError: it has no name.
    """
    if not body.get("name"):
        raise ProtocolError("the server described a template without a name", detail="name is missing")
    return TemplateInfo(
        id=str(body.get("id", "")),
        name=str(body["name"]),
        display_name=str(body.get("display_name") or body["name"]),
        description=str(body.get("description") or ""),
    )


def decode_templates(body: Mapping[str, Any]) -> list[TemplateInfo]:
    """Read the list of templates (contract 1.5); a null list is an empty one."""
    return [decode_template(row) for row in rows_of(body) if row.get("name")]


def template_path(name: str) -> str:
    """Return the control plane's path of one template, named or numbered."""
    return f"/v1/templates/{quote(name, safe='')}"


def decode_features(body: Mapping[str, Any]) -> dict[str, int]:
    """Read which of our extensions a server announces, from ``/health`` or a sandbox object; {} for none."""
    features = body.get("features")
    ours = features.get("asyncsandbox") if isinstance(features, Mapping) else None
    if not isinstance(ours, Mapping):
        return {}
    return {str(name): version for name, version in ours.items() if isinstance(version, int)}
