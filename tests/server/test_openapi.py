"""The server's OpenAPI document is what the server does. Every answer in this directory is compared with it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openapi_spec_validator
import pytest
from aiohttp import web

from asyncsandbox.server import absent
from asyncsandbox.server.app import make_app
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.openapi import agent_document, document
from asyncsandbox.server.state import Server

_METHODS = ("get", "put", "post", "patch", "delete")


def _operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operations[method]
        for path, operations in document()["paths"].items()
        for method in _METHODS
        if method in operations
    }


_OPERATIONS = _operations()
_CLOSED = [place for place, operation in _OPERATIONS.items() if operation["security"]]


def test_the_documents_are_openapi() -> None:
    """Both, by the specification's own schema."""
    openapi_spec_validator.validate(document())
    openapi_spec_validator.validate(agent_document("sb_1"))


def test_every_route_is_documented_and_nothing_else(tmp_path: Path) -> None:
    """A route without its row, or a row without its route, is named here.

    HEAD comes with every GET, and what is always refused is compared with the published files elsewhere.
    """
    config = ServerConfig(state_dir=tmp_path, api_key="k")
    routes = make_app(cast("Server", SimpleNamespace(config=config))).router.routes()
    refused = {
        route.handler for route in (*absent.routes, *absent.agent_routes) if isinstance(route, web.RouteDef)
    }
    served = {
        (route.method, route.resource.canonical)
        for route in routes
        if route.resource and route.method != "HEAD" and route.handler not in refused
    }
    assert served - _OPERATIONS.keys() == set(), "not in the document"
    assert _OPERATIONS.keys() - served == set(), "documented, not served"


def test_every_operation_has_a_name_of_its_own() -> None:
    """Generators make functions of them."""
    names = [operation["operationId"] for operation in _OPERATIONS.values()]
    assert len(set(names)) == len(names)


async def test_the_documents_are_served_to_anybody(api: Any, box: Any) -> None:
    """No key, no token: whoever has neither cannot know how to get one."""
    async with api.session.get(f"{api.base}/openapi.json") as response:
        assert (response.status, await response.json()) == (200, document())
    async with api.session.get(f"{api.base}/vm/{box.id}/openapi.json") as response:
        assert (response.status, await response.json()) == (200, agent_document(box.id))


def test_an_agent_s_document_has_the_contract_s_paths() -> None:
    """Relative to the agent's address."""
    shown = agent_document("sb_1")
    assert shown["servers"] == [{"url": "/vm/sb_1"}]
    assert "/execute/background" in shown["paths"]
    assert not any("sandbox_id" in path for path in shown["paths"])


@pytest.mark.parametrize(("method", "path"), _CLOSED)
async def test_what_is_documented_as_closed_is_closed(api: Any, box: Any, method: str, path: str) -> None:
    """Neither a missing nor a wrong key or token opens it."""
    place = re.sub(r"\{\w+\}", "x", path.replace("{sandbox_id}", box.id))
    for headers in ({}, {"Authorization": "Bearer wrong", "X-API-Key": "wrong"}):
        async with api.session.request(method, api.base + place, headers=headers) as response:
            assert response.status == 401, await response.text()


async def test_answers_carry_the_request_s_id(api: Any, box: Any) -> None:
    """Good ones, refusals and those that are sent in pieces."""
    await box.ok("POST", "/files/write", json={"path": "f", "content": "x"})
    headers = {"Authorization": f"Bearer {box.token}"}
    for path in ("/health", "/nothing", "/files/download?path=f"):
        async with api.session.get(f"{api.base}/vm/{box.id}{path}", headers=headers) as response:
            assert len(response.headers["X-Request-ID"]) == 16
    listed = await api.ok("GET", "/v1/sandboxes")
    assert len(listed["request_id"]) == 16


async def test_a_refused_method_says_which_are_allowed(api: Any) -> None:
    """As HTTP asks for (RFC 9110, 15.5.6)."""
    headers = {"X-API-Key": "a-key-for-tests"}
    async with api.session.patch(f"{api.base}/v1/sandboxes", headers=headers) as response:
        assert response.status == 405
        assert {word.strip() for word in response.headers["Allow"].split(",")} >= {"GET", "POST"}
        assert (await response.json())["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health", 200, {"status": "healthy", "instance": "i"}),
        ("GET", "/health", 200, {"status": "ok", "instance": "i", "features": {"asyncsandbox": {}}}),
        ("GET", "/health", 418, {}),
        ("GET", "/nothing", 200, {}),
        ("GET", "/vm/sb_1/env", 200, {"env_vars": {"A": 1}, "count": 1, "timestamp": "2026-01-02T03:04:05Z"}),
        ("GET", "/vm/sb_1/env", 200, {"env_vars": {}, "count": 0, "timestamp": "yesterday"}),
    ],
)
def test_an_answer_that_is_not_as_documented_is_found(
    check_answer: Any, method: str, path: str, status: int, body: dict[str, Any]
) -> None:
    """A missing or wrong field, an unknown status, an unknown path: the comparison sees each."""
    good = {"env_vars": {"A": "1"}, "count": 1, "timestamp": "2026-01-02T03:04:05Z"}
    check_answer("GET", "/vm/sb_1/env", 200, good)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_answer(method, path, status, body)
