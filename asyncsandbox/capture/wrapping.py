"""What is sent so that a job's output is kept."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Final

from asyncsandbox import protocol
from asyncsandbox.errors import InvalidRequestError

__all__ = ["OUTPUT_LIMIT", "wrap"]

OUTPUT_LIMIT: Final = 10 * 1024 * 1024
"""Bytes kept of each stream, half of its head and half of its tail."""

_LANGUAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("python", "python3", "py"), "python"),
    **dict.fromkeys(("javascript", "js", "node", "nodejs"), "javascript"),
    **dict.fromkeys(("bash", "sh", "shell"), "bash"),
    **dict.fromkeys(("go", "golang"), "go"),
}

_SENT: Final = ("timeout", "env", "name", "workdir", "working_dir")


_RUNNER: Final = importlib.resources.files(__package__).joinpath("runner.py").read_text(encoding="utf-8")


def wrap(path: str, body: Mapping[str, Any], *, key: str, inline: int) -> dict[str, Any]:
    """Return the body of a start that keeps its output.

    Args:
        path: of the start: code, or a command.
        body: the start as it would be without this.
        key: the start's key; names the directory.
        inline: bytes of each stream's end that come with the result.

    Raises:
        InvalidRequestError: an unknown language.
    """
    env = body.get("env") or {}
    spec: dict[str, Any] = {
        "key": key,
        "limit": OUTPUT_LIMIT,
        "inline": inline,
        "literal": "TMPDIR" in env,  # then it is the program's, not the sandbox's
        "stdin": body.get("stdin_base64"),
        "files": body.get("files", {}),
        "own_directory": body.get("own_directory", False),
    }
    sent = {name: body[name] for name in _SENT if name in body}
    if path != protocol.BACKGROUND:
        spec["argv"] = [body["command"], *body.get("args", ())]
        return {**sent, "command": "python3", "args": ["-c", _program(spec)]}
    language = _LANGUAGES.get(str(body["language"]).lower())
    if language is None:
        known = ", ".join(dict.fromkeys(_LANGUAGES.values()))
        raise InvalidRequestError(
            f"language {body['language']!r} is not known here; use one of: {known}", code="INVALID_REQUEST"
        )
    code = base64.b64encode(body["code"].encode(errors="surrogatepass")).decode()
    spec |= {"code": code, "language": language, "args": body.get("args", [])}
    return {**sent, "language": "python", "code": _program(spec)}


def _program(spec: Mapping[str, Any]) -> str:
    payload = base64.b64encode(json.dumps(spec).encode()).decode()
    return f'{_RUNNER}\n\nmain("{payload}")\n'
