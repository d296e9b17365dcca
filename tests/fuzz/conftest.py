"""A real server for generated requests, and a session that lets only harmless programs through to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

KEY = "a-key-for-fuzzing"

_SECONDS = 50.0
"""For any one answer. Only to fail where the server hangs, never to measure."""


def harmless(body: Any) -> Any:
    """Return a generated body with every program in it replaced by one that does nothing.

    Whatever is no program stays as it was generated, and so does a program that the server has to refuse.
    ``pass`` and ``true`` read no input and ignore their arguments. Variables get names that mean nothing to any
    interpreter or shell, and whatever could be a URL leads to a port of this machine where nobody listens.
    """
    if not isinstance(body, dict):
        return body  # refused by every operation
    safe = dict(body)
    for field, program in (("code", "pass"), ("command", "true")):
        if isinstance(safe.get(field), str) and safe[field].strip():
            safe[field] = program
    if isinstance(safe.get("callback_url"), str) and ":" in safe["callback_url"]:
        safe["callback_url"] = "http://127.0.0.1:9/"
    for field in ("env", "env_vars"):
        if isinstance(safe.get(field), dict):
            safe[field] = {f"FUZZ_{name}" if name else "": value for name, value in safe[field].items()}
    return safe


class HarmlessSession(requests.Session):
    """The only way from the generator to the server; it looks at what is really sent."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Make the body harmless, put in the key or token, and delete what a create made."""
        assert request.url is not None
        assert request.url.startswith(self._server.url)
        if request.body:
            self._replace_programs(request)
        if "/vm/" in request.url:
            request.headers["Authorization"] = f"Bearer {self._server.token}"
        else:
            request.headers["X-API-Key"] = KEY
        options["timeout"] = _SECONDS
        response = super().send(request, **options)
        if (request.method, response.status_code) == ("POST", 201):
            self._server.call("DELETE", f"/v1/sandboxes/{response.json()['id']}")
        return response

    @staticmethod
    def _replace_programs(request: requests.PreparedRequest) -> None:
        raw = request.body
        try:
            body = json.loads(raw if isinstance(raw, bytes | str) else b"")
        except ValueError:
            return  # no JSON, no program: the server reads nothing else
        request.prepare_body(json.dumps(harmless(body)).encode(), None)


class Server:
    """A server of its own process with one sandbox that stays, and others that may be harmed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._plain = requests.Session()
        body = self.call("POST", "/v1/sandboxes", {"template_name": "code-interpreter"})
        self.sandbox_id: str = body["id"]
        self.token: str = body["auth_token"]
        self.file = "/workspace/kept"
        self.call("POST", f"/vm/{self.sandbox_id}/files/write", {"path": self.file, "content": "x"})
        self._victim = ""
        self._job = ""

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Make a request of our own; returns the answer's body."""
        headers = {"X-API-Key": KEY}
        if path.startswith("/vm/"):
            headers["Authorization"] = f"Bearer {self.token}"
        answer = self._plain.request(method, self.url + path, json=body, headers=headers, timeout=_SECONDS)
        shown: dict[str, Any] = answer.json()
        return shown

    def victim(self) -> str:
        """Return a sandbox that may be stopped or deleted."""
        if not self._victim or self.call("GET", f"/v1/sandboxes/{self._victim}").get("status") != "running":
            if self._victim:
                self.call("DELETE", f"/v1/sandboxes/{self._victim}")
            self._victim = self.call("POST", "/v1/sandboxes", {"template_name": "base"})["id"]
        return self._victim

    def job(self) -> str:
        """Return a job that is there; it may be killed and removed."""
        agent = f"/vm/{self.sandbox_id}"
        if not self._job or "status" not in self.call("GET", f"{agent}/execute/processes/{self._job}"):
            started = self.call("POST", f"{agent}/execute/background", {"code": "print('said')"})
            self._job = started["process_id"]
        return self._job

    def cursor(self) -> str:
        """Return what a list can go on from."""
        cursor: str = self.call("GET", f"/vm/{self.sandbox_id}/execute/processes")["cursor"]
        return cursor

    @property
    def is_well(self) -> bool:
        """Whether it still runs code."""
        answer = self.call("POST", f"/vm/{self.sandbox_id}/execute", {"code": "print(6 * 7)"})
        return answer.get("stdout") == "42\n"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as ``asyncsandbox serve`` starts it."""
    state: Path = tmp_path_factory.mktemp("state")
    options = ["--isolation", "none", "--port", "0", "--state-dir", str(state), "--json"]
    popen = subprocess.Popen(
        [sys.executable, "-m", "asyncsandbox", "serve", *options],
        env={**os.environ, "ASYNCSANDBOX_API_KEY": KEY},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert popen.stdout is not None
    try:
        yield Server(json.loads(popen.stdout.readline())["url"])
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.stdout.close()
        popen.wait(_SECONDS)


@pytest.fixture(scope="session")
def harmless_session(server: Server) -> Iterator[HarmlessSession]:
    """The way to the server."""
    with HarmlessSession(server) as session:
        yield session


@pytest.fixture
def make_harmless() -> Any:
    """What is done to every body before it is sent."""
    return harmless
