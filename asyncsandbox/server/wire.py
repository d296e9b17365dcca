"""The server's half of the wire, as pure functions: request bodies to orders, records to replies.

What both sides share is in `asyncsandbox.protocol`; sources are named as there.
"""

from __future__ import annotations

import base64
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from asyncsandbox import protocol
from asyncsandbox.models import JobSpec
from asyncsandbox.server import refusals
from asyncsandbox.server.engine import CodeOrder, CommandOrder
from asyncsandbox.server.records import SandboxRecord
from asyncsandbox.server.sandboxes import CreateOrder, Grant
from asyncsandbox.server.templates import DEFAULT_TEMPLATE, Template

__all__ = [
    "decode_code",
    "decode_command",
    "decode_create",
    "decode_env",
    "decode_seconds",
    "encode_entry",
    "encode_grant",
    "encode_sandbox",
    "encode_template",
]

REGION: Final = "local"

_LONGEST: Final = 10 * 365 * 24 * 3600.0
"""Seconds that anything may be asked to last. Clocks and calendars have an end, and nobody means more."""


# --- request bodies -----------------------------------------------------------------------------------------


def _string(body: Mapping[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise refusals.invalid(f"{field} must be a string, not {_kind(value)}")
    if value is not None:
        _check_characters(value, field)
    return value


def _check_characters(text: str, field: str) -> None:
    """Refuse half a character: it can neither reach a process nor be told to a client."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise refusals.invalid(f"{field} holds a lone surrogate, which is no character") from None


def _flag(body: Mapping[str, Any], field: str, *, default: bool) -> bool:
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refusals.invalid(f"{field} must be true or false, not {value!r}")
    return value


def _kind(value: object) -> str:
    """Return the type of a JSON value as JSON names it, with the value where that is short."""
    names = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null", str: "a string"}
    return names.get(type(value), f"the number {value!r}")


def _mapping(body: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    value = body.get(field)
    if value is not None and not isinstance(value, dict):
        raise refusals.invalid(f"{field} must be an object of strings, not {_kind(value)}")
    return value


def _bytes(value: object, field: str) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except ValueError:
        pass
    raise refusals.invalid(f"{field} must be base64 text")


def _strings(body: Mapping[str, Any], field: str) -> list[str] | None:
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refusals.invalid(f"{field} must be an array of strings")
    if any("\0" in item for item in value):
        raise refusals.invalid(f"{field} holds a NUL character, which no argument can")
    for item in value:
        _check_characters(item, field)
    return value


def _timeout(body: Mapping[str, Any], default: float) -> Any:
    """Return a job's time-out for `JobSpec` to check, which knows no upper limit."""
    given = body.get("timeout")
    if isinstance(given, int | float) and given > _LONGEST:
        raise refusals.invalid(f"timeout must be at most {_LONGEST:.0f} seconds (ten years)")
    return default if given is None else given


def _working_dir(body: Mapping[str, Any]) -> str | None:
    """Read either spelling; the SDKs send `workdir`, D documents `working_dir` (contract 2b)."""
    given = _string(body, "workdir")
    return _string(body, "working_dir") if given is None else given


def decode_code(body: Mapping[str, Any], *, timeout: float) -> CodeOrder:
    """Read a start of code (contract 2.2, 2.3). `args`, `stdin_base64`, `files`, `own_directory` are ours.

    Args:
        body: of the request.
        timeout: seconds where it names none.

    Raises:
        InvalidRequestError: a field that makes no sense; the message names it.
    """
    if body.get("code") is None:
        raise refusals.invalid(
            "code is missing; give the text of the program to run", code="MISSING_PARAMETER"
        )
    files = _mapping(body, "files") or {}
    stdin = body.get("stdin_base64")
    spec = JobSpec(
        body["code"],
        language=_string(body, "language") or "python",
        timeout=_timeout(body, timeout),
        env=_mapping(body, "env"),
        name=_string(body, "name"),
        working_dir=_working_dir(body),
        stdin=None if stdin is None else _bytes(stdin, "stdin_base64"),
        args=_strings(body, "args") or (),
        files={path: _bytes(data, f"files[{path!r}]") for path, data in files.items()},
    )
    return CodeOrder(spec=spec, own_directory=_flag(body, "own_directory", default=False))


def decode_command(body: Mapping[str, Any], *, timeout: float) -> CommandOrder:
    """Read a command (contract 2.7): run directly with `args`, by a shell without.

    Args:
        body: of the request.
        timeout: seconds where it names none.

    Raises:
        InvalidRequestError: a field that makes no sense; the message names it.
    """
    command = _string(body, "command")
    if command is None or not command.strip() or "\0" in command:
        raise refusals.invalid("command must be the command line to run", code="MISSING_PARAMETER")
    args = _strings(body, "args")
    # A spec checks everything but the command itself in the one way that there is.
    checked = JobSpec(command, timeout=_timeout(body, timeout), env=_mapping(body, "env"))
    return CommandOrder(
        argv=["/bin/sh", "-c", command] if args is None else [command, *args],
        text=command if args is None else shlex.join([command, *args]),
        env=checked.env or {},
        working_dir=_working_dir(body),
        timeout=timeout if checked.timeout is None else checked.timeout,
        name=_string(body, "name"),
    )


def decode_create(body: Mapping[str, Any]) -> CreateOrder:
    """Read a create (contract 1.3).

    Raises:
        InvalidRequestError: a field that makes no sense; the message names it.
    """
    template = body.get("template_id")
    if isinstance(template, int) and not isinstance(template, bool):
        template = str(template)  # O tolerates numbers
    if template is None:
        template = _string(body, "template_name")
    if not isinstance(template, str) or not template:
        raise refusals.invalid(
            f"template_name or template_id is missing; {DEFAULT_TEMPLATE!r} is always there",
            code="MISSING_PARAMETER",
        )
    seconds = body.get("timeout_seconds")
    return CreateOrder(
        template=template,
        timeout_seconds=None if seconds is None else decode_seconds(body, "timeout_seconds"),
        internet_access=_flag(body, "internet_access", default=False),
        env=decode_env(body),
    )


def decode_seconds(body: Mapping[str, Any], field: str) -> float:
    """Read a length of time.

    Raises:
        InvalidRequestError: it is no number above 0, or is more than ten years.
    """
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
        raise refusals.invalid(
            f"{field} must be a number of seconds above 0 and up to {_LONGEST:.0f} (ten years), not {value!r}"
        )
    return float(value)


def decode_env(body: Mapping[str, Any]) -> dict[str, str]:
    """Read `env_vars` (contract 1.3, 2.11).

    Raises:
        InvalidRequestError: it does not map strings to strings.
    """
    return dict(JobSpec("pass", env=_mapping(body, "env_vars")).env or {})


# --- replies ------------------------------------------------------------------------------------------------


def _seconds(value: float | None) -> int | float | None:
    return int(value) if value is not None and value == int(value) else value


def encode_grant(grant: Grant) -> dict[str, Any]:
    """Return a token as creates and refreshes tell it: both fields, always (contract 1.4)."""
    return {"auth_token": grant.token, "token_expires_at": protocol.timestamp(grant.expires_at)}


def encode_sandbox(record: SandboxRecord, *, host: str, resources: Mapping[str, int]) -> dict[str, Any]:
    """Return a sandbox object with the types that official clients need (contract 1.4).

    Args:
        record: of the sandbox.
        host: the URL of its agent.
        resources: what it has: ``vcpu``, ``memory_mb`` and ``disk_mb``, all three or nothing.
    """
    body: dict[str, Any] = {
        "id": record.id,
        "object": "sandbox",
        "status": record.status.value,
        "public_host": host,
        "direct_url": host,
        "organization_id": 1,
        "template_id": record.template_id,
        "template_name": record.template,
        "region": REGION,
        "resources": dict(resources),
        "internet_access": record.internet_access,
        "live_mode": False,
        "created_at": protocol.timestamp(record.created_at),
        "features": {"asyncsandbox": dict(protocol.FEATURES)},
    }
    if record.timeout_seconds is not None:
        body["timeout_seconds"] = _seconds(record.timeout_seconds)
    if record.expires_at is not None:
        body["expires_at"] = protocol.timestamp(record.expires_at)
    return body


def encode_template(template: Template) -> dict[str, Any]:
    """Return a template object. Contract 1.5: what is unknown is left out, never null."""
    return {
        "id": template.id,
        "object": "template",
        "name": template.name,
        "display_name": template.name,
        "description": template.description,
        "category": "code",
        "language": "python",
        "is_active": True,
        "is_public": True,
        "features": [],
        "tags": [],
    }


def encode_entry(path: Path, shown: str) -> dict[str, Any]:
    """Return one row of a directory listing, with both spellings of the disputed fields (contract 2.10).

    Raises:
        OSError: it is gone.
    """
    facts = path.lstat()
    is_dir = stat.S_ISDIR(facts.st_mode)
    modified = protocol.timestamp(facts.st_mtime)
    return {
        "name": path.name,
        "path": shown,
        "size": facts.st_size,
        "is_directory": is_dir,
        "is_dir": is_dir,
        "permissions": stat.filemode(facts.st_mode),
        "modified_time": modified,
        "modified": modified,
    }
