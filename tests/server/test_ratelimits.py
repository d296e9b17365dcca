"""Limits of requests, through HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from asyncsandbox import protocol

KEY = {"X-API-Key": "a-key-for-tests"}


async def _ask(api: Any, method: str, path: str, **options: Any) -> tuple[int, dict[str, str], Any]:
    async with api.session.request(method, api.base + path, **options) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.read() and await response.json()


def _bearer(box: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {box.token}"}


async def test_without_limits_nothing_is_said_of_them(api: Any, box: Any) -> None:
    """They are off by default."""
    for path, headers in (("/v1/sandboxes", KEY), (f"/vm/{box.id}/env", _bearer(box))):
        _status, told, _body = await _ask(api, "GET", path, headers=headers)
        assert protocol.decode_rate_limit(told) is None


async def test_an_agent_s_requests_are_limited_for_each_sandbox(servers: Any) -> None:
    """Every answer tells what is left; the one too many is refused in all three ways of the contract."""
    async with servers.connect(servers.tcp(rate_limit="agent=3/h")) as api:
        box, other = await api.create(), await api.create()
        path = f"/vm/{box.id}/env"
        for remaining in (2, 1, 0):
            status, headers, _body = await _ask(api, "GET", path, headers=_bearer(box))
            left = protocol.decode_rate_limit(headers)
            assert left is not None
            assert (status, left.limit, left.remaining) == (200, 3, remaining)
            assert left.reset is not None
            assert time.time() < left.reset <= time.time() + 3601
        status, headers, body = await _ask(api, "GET", path, headers=_bearer(box))
        assert (status, body["code"]) == (429, "RATE_LIMIT_EXCEEDED")
        assert 0 < body["retry_after"] <= 3600
        assert headers["retry-after"] == str(body["retry_after"])
        assert body["details"]["retry_after_seconds"] == body["retry_after"]
        assert f"{body['retry_after']} s" in body["error"] == body["message"]
        left = protocol.decode_rate_limit(headers)
        assert left is not None
        assert (left.limit, left.remaining) == (3, 0)
        assert (await other.call("GET", "/env"))[0] == 200
        assert (await api.call("GET", f"/v1/sandboxes/{box.id}"))[0] == 200


async def test_what_is_refused_was_not_started(servers: Any) -> None:
    """The check comes before the handler: a client may send it again without fear."""
    async with servers.connect(servers.tcp(rate_limit="agent=2/h")) as api:
        box = await api.create()
        job = await box.start("pass", key="k")
        assert (await box.start("pass", key="k"))["process_id"] == job["process_id"]
        status, _body = await box.call("POST", "/execute/background", json={"code": "pass"})
        assert status == 429
        text = (await api.ok("GET", "/metrics/prometheus")).decode()
        assert 'asyncsandbox_job_starts_total{kind="code"} 1.0' in text


async def test_creates_have_a_limit_of_their_own(servers: Any) -> None:
    """And count as requests of the control plane, but not when they are refused."""
    async with servers.connect(servers.tcp(rate_limit="control=4/h,create=1/h")) as api:
        body = {"template_name": "base"}
        status, headers, _body = await _ask(api, "POST", "/v1/sandboxes", json=body, headers=KEY)
        left = protocol.decode_rate_limit(headers)
        assert left is not None
        assert (status, left.limit, left.remaining) == (201, 1, 0)
        for _ in range(3):
            status, _headers, answer = await _ask(api, "POST", "/v1/sandboxes", json=body, headers=KEY)
            assert (status, answer["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
            assert answer["error"]["details"]["retry_after_seconds"] == answer["retry_after"]
        for remaining in (2, 1, 0):
            status, headers, answer = await _ask(api, "GET", "/v1/sandboxes", headers=KEY)
            left = protocol.decode_rate_limit(headers)
            assert left is not None
            assert (status, left.limit, left.remaining) == (200, 4, remaining)
        assert len(answer["data"]) == 1
        assert (await api.call("GET", "/v1/sandboxes"))[0] == 429


async def test_who_is_not_let_in_uses_up_nothing(servers: Any) -> None:
    """Without the key or the token nobody can lock out who has it; health stays open."""
    async with servers.connect(servers.tcp(rate_limit="control=2/h,agent=1/h")) as api:
        box = await api.create()
        for _ in range(5):
            assert (await _ask(api, "GET", "/v1/sandboxes", headers={"X-API-Key": "wrong"}))[0] == 401
            assert (await _ask(api, "GET", f"/vm/{box.id}/env"))[0] == 401
            assert (await _ask(api, "GET", "/health"))[0] == 200
        assert (await api.call("GET", "/v1/sandboxes"))[0] == 200
        assert (await box.call("GET", "/env"))[0] == 200


async def test_refusals_and_downloads_tell_of_the_limit_too(servers: Any) -> None:
    """Whatever comes of a request that was let in, the headers are there."""
    async with servers.connect(servers.tcp(rate_limit="agent=100/h")) as api:
        box = await api.create()
        await box.ok("POST", "/files/write", json={"path": "/workspace/f", "content": "x"})
        for path, expected in (
            ("/files/read?path=none", 404),
            ("/nothing", 404),
            ("/files/download?path=f", 200),
        ):
            url = f"{api.base}/vm/{box.id}{path}"
            async with api.session.get(url, headers=_bearer(box)) as response:
                assert response.status == expected, path
                headers = {name.lower(): value for name, value in response.headers.items()}
                assert protocol.decode_rate_limit(headers) is not None, path


@pytest.mark.parametrize(("path", "served"), [("/v1/sandboxes", 200), ("/v1/nothing", 404)])
async def test_a_new_window_lets_in_again(servers: Any, until: Any, path: str, served: int) -> None:
    """Whoever waits for as long as he was told is served, on paths that do not exist too."""
    async with servers.connect(servers.tcp(rate_limit="control=1/s")) as api:

        async def answers(expected: int) -> bool:
            return (await _ask(api, "GET", path, headers=KEY))[0] == expected

        async with asyncio.timeout(50):
            while not await answers(429):
                pass
        await until(lambda: answers(served))
