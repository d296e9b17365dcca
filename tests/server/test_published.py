"""The published OpenAPI files against this server: what they promise is answered, or refused for a written reason.

``published/`` holds both files (control plane 2025-10-21, agent 3.2.8) without their prose.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest

from asyncsandbox.server.openapi import agent_document, document

_FILES = {
    name: json.loads((Path(__file__).parent / "published" / f"{name}.json").read_text())
    for name in ("public", "agent")
}
_OURS = {"public": document(), "agent": agent_document("sb_1")}

_NO_DESKTOP = "no screen: outside of what a sandbox for code needs (contract 2.11)"
_NO_UPDATE = "the agent is part of the server (contract 2.11)"
_NO_SHAPES = "its messages are described nowhere (contract 2.8)"
_NO_BUILDS = "templates are the operator's Python environments; nothing is built (contract 5.4)"

_WITHOUT: dict[tuple[str, str], str] = {
    ("GET", "/stream"): _NO_SHAPES,
    ("GET", "/stream/ipython"): _NO_SHAPES,
    ("POST", "/v1/templates/build"): _NO_BUILDS,
    ("GET", "/v1/templates/build/{buildID}/logs"): _NO_BUILDS,
    ("GET", "/v1/templates/build/{buildID}/status"): _NO_BUILDS,
    ("POST", "/v1/templates/files/upload-link"): _NO_BUILDS,
}
"""Operations that are refused, and why. Those of whole areas are added below."""

_LEFT_OUT: dict[str, str] = {
    "go_version": "the agent is no Go program",
    "node_id": "there is one machine",
    "preview_url": "nothing in a sandbox is published",
    "auth_token": "in the answers to a create and to a refresh only (contract 1.4)",
    "token_expires_at": "beside auth_token only",
    "build_id": "nothing is built",
    "docs_url": "there is no page about a local environment",
    "icon": "there is none",
    "status": "of a build",
    "organization_id": "templates have no owner; null breaks an official client (contract 1.5)",
    "fluent_api_config": "nothing is built",
    "popularity_score": "nobody counts",
    "default_resources": "a sandbox has what the machine has",
    "max_resources": "a sandbox has what the machine has",
    "min_resources": "a sandbox has what the machine has",
    "created_at": "a template is there since the server's start",
    "updated_at": "a template is there since the server's start",
    "png": "only where the code made one",
    "html": "only where the code made some",
    "json": "only where the code made some",
    "svg": "only where the code made one",
    "markdown": "only where the code made some",
    "result": "only where the code ended in an expression",
}
"""Fields of published answers that are not sent, and why."""


def _published() -> list[tuple[str, str, str]]:
    return [
        (file, method.upper(), path)
        for file, content in _FILES.items()
        for path, operations in content["paths"].items()
        for method in operations
    ]


for _file, _method, _path in _published():
    if _path.startswith("/desktop/"):
        _WITHOUT[_method, _path] = _NO_DESKTOP
    if _path.startswith("/update/"):
        _WITHOUT[_method, _path] = _NO_UPDATE


def _anonymous(path: str) -> str:
    """Return a path without the names of its variable parts."""
    return "/".join("{}" if part[:1] == "{" else part for part in path.split("/"))


def _ours(file: str) -> set[tuple[str, str]]:
    return {
        (method.upper(), _anonymous(path))
        for path, operations in _OURS[file]["paths"].items()
        for method in operations
    }


_ALWAYS_REFUSED = ("DELETE", "/v1/templates/{templateID}")
"""There, but its answer is 403 for every template."""


def _is_socket(file: str, method: str, path: str) -> bool:
    return "101" in _FILES[file]["paths"][path][method.lower()]["responses"]


_ANSWERED = [place for place in _published() if place[1:] not in _WITHOUT]
_REFUSED = [place for place in _published() if place[1:] in _WITHOUT]


def test_every_published_operation_is_documented_or_left_out_for_a_reason() -> None:
    """And never both: a reason that has become untrue is named here too."""
    documented = {(file, *place) for file in _FILES for place in _ours(file)}
    for file, method, path in _ANSWERED:
        assert (file, method, _anonymous(path)) in documented, f"{method} {path} is neither there nor excused"
    for file, method, path in _REFUSED:
        assert (file, method, _anonymous(path)) not in documented, f"{method} {path} needs no excuse any more"
    assert _WITHOUT.keys() <= {place[1:] for place in _published()}


@pytest.mark.parametrize(("file", "method", "path"), _REFUSED)
async def test_what_is_left_out_is_refused_in_words(
    api: Any, box: Any, file: str, method: str, path: str
) -> None:
    """At once and for good: official clients would send again what was answered with a 5xx."""
    call = api.call if file == "public" else box.call
    status, body = await call(method, path.format(buildID="b-1"), json={} if method == "POST" else None)
    assert (status, bool(body["code"]), bool(body["message"])) == (404, True, True)
    assert "404" not in body["message"], "it does not say why"
    if path.startswith("/desktop/"):
        assert body["code"] == "DESKTOP_NOT_AVAILABLE"


async def test_a_template_is_not_deleted(api: Any) -> None:
    """All of them are the operator's, whatever they are called by."""
    for name, status, code in (
        ("1", 403, "FORBIDDEN"),
        ("base", 403, "FORBIDDEN"),
        ("no", 404, "RESOURCE_NOT_FOUND"),
    ):
        got, body = await api.call("DELETE", f"/v1/templates/{name}")
        assert (got, body["code"]) == (status, code)


# --- answers ------------------------------------------------------------------------------------------------


def _schema(file: str, method: str, path: str) -> dict[str, Any] | None:
    responses = _FILES[file]["paths"][path][method.lower()]["responses"]
    for status, response in responses.items():
        if status.startswith("2"):
            return response.get("content", {}).get("application/json", {}).get("schema")
    return None


def _resolve(file: str, schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = _FILES[file]["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _without_nulls(value: Any) -> Any:
    """Drop nulls: the published types know none, the published texts do (contract 2.4)."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _missing(file: str, schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    """Return the published fields that an answer lacks without an excuse; null is an answer."""
    schema = _resolve(file, schema)
    if isinstance(value, list):
        return [
            name for item in value for name in _missing(file, schema.get("items", {}), item, f"{where}[]")
        ]
    if not isinstance(value, dict):
        return []
    missing = []
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            missing += _missing(file, inner, value[name], f"{where}.{name}")
        elif name not in _LEFT_OUT and not (name == "request_id" and where):
            missing.append(f"{where}.{name}")
    return missing


async def _options(box: Any, method: str, path: str) -> dict[str, Any]:
    """Return what a call needs to succeed, fields that the published files know alone."""
    await box.ok("POST", "/files/write", json={"path": "/workspace/f", "content": "x"})
    bodies: dict[str, dict[str, Any]] = {
        "/v1/sandboxes": {
            "template_name": "code-interpreter",
            "timeout_seconds": 900,
            "env_vars": {"A": "1"},
        },
        "/v1/sandboxes/{id}/timeout": {"timeout_seconds": 900},
        "/execute": {
            "code": "print(1)",
            "language": "python",
            "timeout": 30,
            "env": {},
            "workdir": "/workspace",
        },
        "/execute/background": {
            "code": "print(1)",
            "language": "python",
            "timeout": 30,
            "env": {},
            "name": "n",
        },
        "/commands/run": {
            "command": "echo",
            "args": ["x"],
            "timeout": 30,
            "workdir": "/workspace",
            "env": {},
        },
        "/commands/background": {"command": "echo x"},
        "/env": {"env_vars": {"A": "1"}, "merge": True, "timestamp": "t"},
        "/files/write": {"path": "/workspace/g", "content": "x"},
        "/files/mkdir": {"path": "/workspace/d"},
    }
    if path == "/files/upload":
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(b"x"), filename="x")
        form.add_field("path", "/workspace/up")
        return {"data": form}
    if path.startswith("/files/") and method in ("GET", "DELETE"):
        return {"params": {"path": "/workspace" if path == "/files/list" else "/workspace/f"}}
    if path == "/execute/kill":
        job = await box.start("print(1)")
        return {"params": {"process_id": job["process_id"]}}
    if path in ("/execute/processes", "/processes"):
        await box.end(await box.start("print(1)", name="n"))
    return {"json": bodies[path]} if method in ("POST", "PUT", "PATCH") and path in bodies else {}


@pytest.mark.parametrize("path", [place[2] for place in _ANSWERED if _is_socket(*place)])
async def test_a_stream_is_refused_to_whoever_speaks_no_websocket(box: Any, path: str) -> None:
    """With 400, as published."""
    assert (await box.call("GET", path))[0] == 400


@pytest.mark.parametrize(
    ("file", "method", "path"),
    [place for place in _ANSWERED if place[1:] != _ALWAYS_REFUSED and not _is_socket(*place)],
)
async def test_answers_have_the_published_fields_and_types(
    api: Any, box: Any, file: str, method: str, path: str
) -> None:
    """Every field that the published schema names is sent, with its type, or is excused by name above."""
    call = api.ok if file == "public" else box.ok
    await api.ok("PUT", f"/v1/sandboxes/{box.id}/timeout", json={"timeout_seconds": 900})
    body = await call(method, path.format(id=box.id, name="base"), **await _options(box, method, path))
    if (method, path) == ("GET", "/v1/sandboxes"):
        body["data"] = [row for row in body["data"] if row["id"] == box.id]
    schema = _schema(file, method, path)
    if schema is None:
        return
    checked = {**schema, "components": _FILES[file]["components"]}
    validator = jsonschema_rs.Draft202012Validator(checked)
    assert [error.message for error in validator.iter_errors(_without_nulls(body))] == []
    assert _missing(file, schema, body) == []
    if (method, path) == ("POST", "/v1/sandboxes"):
        await api.ok("DELETE", f"/v1/sandboxes/{body['id']}")
