"""Input that makes no sense, at every operation of the document: a refusal in words, never a 5xx."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from asyncsandbox.server.openapi import AGENT_OPERATIONS, CONTROL_OPERATIONS, document

# Programs that do nothing, and a port where nobody listens: whatever else of a body is accepted, this is used.
_HARMLESS = {
    "code": "pass",
    "command": "true",
    "path": "/workspace/f",
    "content": "",
    "template_name": "code-interpreter",
    "timeout_seconds": 900,
    "callback_url": "http://127.0.0.1:9/",
}

_HUGE = 10**400
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 0.5, 1e308, _HUGE, -_HUGE, float("inf"), float("-inf"), float("nan"),
    "", " ", "\0", "\ud800", "..", "/", "x" * 5000, "0o7", "ünï",
    [], [None], ["\0"], ["\ud800"], [[]],
    {}, {"": ""}, {"=": "x"}, {"A\0": "x"}, {"A": "\0"}, {"A": "\ud800"}, {"\ud800": "eA=="}, {"..": "eA=="},
    {"/etc/x": "eA=="}, {"a": "eA==", "a/b": "eA=="}, {"a": "!"}, {"x" * 300: "eA=="},
)  # fmt: skip

_BODIES = (
    b"", b" ", b"null", b"[]", b'"x"', b"1", b"NaN", b"{", b"\xff\xfe", b"\0",
    b'{"code":' * 50_000, b'{"a":' + b"[" * 100_000,
    json.dumps(_HARMLESS).encode("utf-16"), json.dumps(_HARMLESS).encode("utf-32"),
    b'{"\\ud800": "\\udfff"}', b'{"timeout": 1e400}', b'{"timeout": ' + b"9" * 5000 + b"}",
)  # fmt: skip


def _place(box: Any, path: str) -> str:
    return re.sub(r"\{\w+\}", "base", path.replace("{id}", box.id))


async def _clean(api: Any, method: str, path: str, body: Any) -> None:
    if (method, path) == ("POST", "/v1/sandboxes") and isinstance(body, dict) and "auth_token" in body:
        await api.call("DELETE", f"/v1/sandboxes/{body['id']}")


def _fields(operation: Any) -> list[str]:
    content = operation.body["content"].get("application/json")
    if content is None:
        return []
    return _properties(content["schema"])


def _properties(schema: Any) -> list[str]:
    if "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    inherited = [name for part in schema.get("allOf", ()) for name in _properties(part)]
    return [*inherited, *schema.get("properties", ())]


_WITH_BODY = [
    pytest.param(operation, agent, id=operation.route)
    for agent, operations in ((False, CONTROL_OPERATIONS), (True, AGENT_OPERATIONS))
    for operation in operations
    if operation.body is not None
]
_WITH_QUERY = [
    pytest.param(operation, agent, id=operation.route)
    for agent, operations in ((False, CONTROL_OPERATIONS), (True, AGENT_OPERATIONS))
    for operation in operations
    if any(parameter["in"] == "query" for parameter in operation.parameters)
]


@pytest.mark.parametrize(("operation", "agent"), _WITH_BODY)
async def test_odd_values_of_every_field_are_taken_or_refused(
    api: Any, box: Any, operation: Any, agent: bool
) -> None:
    """One field odd, the others sensible: 2xx or 4xx, as the document says."""
    call = box.call if agent else api.call
    path = _place(box, operation.path)

    async def send(field: str, value: Any) -> None:
        # The harmless programs stay what is run, whatever else is odd.
        if field in ("code", "command") and isinstance(value, str):
            return
        data = json.dumps({**_HARMLESS, field: value})
        status, body = await call(operation.method, path, data=data)
        assert status < 500, (field, value, body)
        await _clean(api, operation.method, path, body)

    for field in _fields(operation):
        for value in _VALUES:
            await send(field, value)


@pytest.mark.parametrize(("operation", "agent"), _WITH_BODY)
async def test_odd_bodies_are_refused(api: Any, box: Any, operation: Any, agent: bool) -> None:
    """No JSON, no object, other encodings, other content types."""
    call = box.call if agent else api.call
    path = _place(box, operation.path)
    types = ("application/json", "text/plain; charset=no-such", "multipart/form-data", "x", "")
    for body in _BODIES:
        for content_type in types if len(body) < 1000 else types[:1]:
            headers = {"Content-Type": content_type}
            status, answer = await call(operation.method, path, data=body, headers=headers)
            assert status < 500, (body[:80], content_type, answer)
            await _clean(api, operation.method, path, answer)


@pytest.mark.parametrize(("operation", "agent"), _WITH_QUERY)
async def test_odd_queries_are_taken_or_refused(api: Any, box: Any, operation: Any, agent: bool) -> None:
    """NUL bytes, bytes that are no UTF-8, numbers of any length."""
    call = box.call if agent else api.call
    path = _place(box, operation.path)
    for parameter in operation.parameters:
        for text in (
            "",
            "%00",
            "%ff",
            "%ED%A0%80",
            "1" * 5000,
            "-1",
            "1e9",
            "٣",
            "%2e%2e%2f",
            "x" * 5000,
            "9" * 30,
        ):
            status, body = await call(operation.method, f"{path}?{parameter['name']}={text}")
            assert status < 500, (parameter["name"], text, body)


@pytest.mark.parametrize("word", ["%00", "%ff", "%2F", "x" * 5000, "%ED%A0%80", "٣", "%0d%0a", "{id}"])
async def test_odd_ids_are_unknown(api: Any, box: Any, word: str) -> None:
    """Of sandboxes, jobs and templates: 404, or 405 where another route is meant."""
    for method, path in (
        ("GET", "/v1/sandboxes/{}"),
        ("DELETE", "/v1/sandboxes/{}"),
        ("GET", "/v1/templates/{}"),
        ("GET", "/vm/{}/env"),
    ):
        status, body = await api.call(method, path.format(word))
        assert status in (400, 404, 405), body
    for method, path in (("GET", "/execute/processes/{}"), ("POST", "/execute/kill/{}")):
        status, body = await box.call(method, path.format(word))
        assert status in (400, 404, 405), body


_FORM_HEAD = b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\nf\r\n--b\r\n'
_FORMS = {
    "an unknown transfer encoding": _FORM_HEAD
    + b'Content-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: 8-bit\r\n\r\nx\r\n--b--\r\n',
    "no end": _FORM_HEAD + b'Content-Disposition: form-data; name="file"\r\n\r\nx',
    "no disposition": b"--b\r\n\r\nx\r\n--b--\r\n",
    "an unknown charset": b'--b\r\nContent-Disposition: form-data; name="path"\r\n'
    b"Content-Type: text/plain; charset=no-such\r\n\r\nf\r\n--b--\r\n",
    "a path that is no UTF-8": b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\n\xff\r\n--b--\r\n',
    "a bad length": b'--b\r\nContent-Disposition: form-data; name="path"\r\nContent-Length: x\r\n\r\nf\r\n--b--\r\n',
    "a wrong length": b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Length: 99\r\n\r\nf\r\n--b--\r\n',
    "another boundary": b"--c\r\n\r\nx\r\n--c--\r\n",
    "a form in a form": b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
    "a form without a boundary in a form": b"--b\r\nContent-Type: multipart/mixed\r\n\r\nx\r\n--b--\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", _FORMS)
async def test_odd_forms_are_refused(box: Any, kind: str) -> None:
    """The message says that the form cannot be read, or what is missing in it."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    status, body = await box.call("POST", "/files/upload", data=_FORMS[kind], headers=headers)
    assert status == 400, body
    assert "form" in body["message"]
    assert (await box.ok("GET", "/files/list"))["files"] == []


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 99,
        "multipart/",
    ],
)
async def test_a_form_without_a_usable_boundary_is_refused(box: Any, content_type: str) -> None:
    """Its parts cannot be told apart."""
    headers = {"Content-Type": content_type}
    status, body = await box.call("POST", "/files/upload", data=b"--b\r\n\r\nx\r\n--b--\r\n", headers=headers)
    assert status == 400, body


async def test_the_server_is_well_after_all_of_this(box: Any) -> None:
    """Many odd requests at once leave nothing behind that hurts the next one."""
    odd = [box.call("POST", "/execute", data=b'{"code": "pass", "timeout": 1e400}') for _ in range(20)]
    assert {status for status, _body in await asyncio.gather(*odd)} == {400}
    assert (await box.ok("POST", "/execute", json={"code": "print(1)"}))["stdout"] == "1\n"
