"""A served instance as people start it, and the official clients as their registries have them.

Which client needs what is in contract 4 and 5. Nothing of a client is changed; the one wrapper, for commands of
the CLI that ignore the base URL, is `hopx_with_base_url.py` (contract 5.1 (a)).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports are deprecated ones of the libraries that it stands on
    import hopx_ai

KEY = "a-key-for-official-clients"

HERE = Path(__file__).parent

PATIENCE = 50.0
"""Seconds for what takes a moment: only to fail, never to measure."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect tests of what is not there to fail, and forgive the clients what they leave open (contract 4.1)."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"))


@pytest.fixture(scope="session", autouse=True)
def _leavings() -> Iterator[None]:
    """Collect what the clients left open while their warnings are still ignored."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``asyncsandbox serve`` on a port of its own; returns its URL."""
    state_dir = tmp_path_factory.mktemp("state")
    options = ["--port", "0", "--isolation", "none", "--state-dir", str(state_dir), "--json"]
    popen = subprocess.Popen(
        [sys.executable, "-m", "asyncsandbox", "serve", *options],
        env={**os.environ, "ASYNCSANDBOX_API_KEY": KEY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert popen.stdout is not None
    with popen.stdout:
        try:
            yield json.loads(popen.stdout.readline())["url"]
        finally:
            popen.terminate()
            assert popen.wait(PATIENCE) == 0


@pytest.fixture
def place(base_url: str) -> dict[str, str]:
    """What every call of a class method of the Python SDK needs (contract 5.1)."""
    return {"base_url": base_url, "api_key": KEY}


# --- the Python SDK -----------------------------------------------------------------------------------------


async def _hang_up(sandbox: hopx_ai.AsyncSandbox) -> None:
    """Close the connections that the client has no method for."""
    for client in (sandbox._client, sandbox._agent_client):
        if client is not None:
            await client.close()


@pytest.fixture
async def sandbox(place: dict[str, str]) -> AsyncIterator[hopx_ai.AsyncSandbox]:
    """A sandbox of the asynchronous class."""
    sandbox = await hopx_ai.AsyncSandbox.create("code-interpreter", **place)
    yield sandbox
    with contextlib.suppress(hopx_ai.NotFoundError):
        await sandbox.kill()
    await _hang_up(sandbox)


@pytest.fixture
def sync_sandbox(place: dict[str, str]) -> Iterator[hopx_ai.Sandbox]:
    """A sandbox of the synchronous class."""
    sandbox = hopx_ai.Sandbox.create("code-interpreter", **place)
    yield sandbox
    with contextlib.suppress(hopx_ai.NotFoundError):
        sandbox.kill()


# --- the JavaScript SDK -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node_checks(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run every check of the JavaScript SDK in one child; returns what each line of it says, by name."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "checks.mjs"):
        shutil.copy(HERE / name, directory)
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=directory,
        check=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    ran = subprocess.run(
        [node, "checks.mjs", base_url, KEY],
        cwd=directory,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, lines
    return {line["check"]: line for line in lines}


# --- the command line ---------------------------------------------------------------------------------------


class Hopx:
    """The official command line, in a home directory of its own."""

    def __init__(self, python: str, home: Path, base_url: str) -> None:
        self._python = python
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HOPX_BASE_URL": base_url,
            "HOPX_API_KEY": KEY,
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def run(self, *args: str, wrapped: bool = False, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command; returns its exit status and what it wrote.

        Args:
            args: of the command.
            wrapped: whether it is one of those that ignore the base URL.
            stdin: what it reads.
        """
        program = [str(HERE / "hopx_with_base_url.py")] if wrapped else ["-m", "hopx_cli"]
        return subprocess.run(
            [self._python, *program, *args],
            env=self._env,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            text=True,
        )

    def ok(self, *args: str, wrapped: bool = False, stdin: str = "") -> str:
        """Run a command and insist on success; returns its stdout."""
        ran = self.run(*args, wrapped=wrapped, stdin=stdin)
        assert ran.returncode == 0, (args, ran.stdout, ran.stderr)
        return ran.stdout

    def json(self, *args: str, wrapped: bool = False) -> Any:
        """Run a command and insist on success; returns what it said as JSON."""
        out = self.ok("--output", "json", *args, wrapped=wrapped)
        return json.loads(out[min(out.find(mark) for mark in "[{" if mark in out) :])


def _interpreters() -> Iterator[str]:
    """Every interpreter that may be new enough for the command line."""
    yield sys.executable
    for version in ("3.14", "3.13", "3.12"):
        yield f"python{version}"
        root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        yield from map(str, sorted(root.glob(f"{version}.*/bin/python")))


def _is_new_enough(python: str) -> bool:
    try:
        ran = subprocess.run(
            [python, "-c", "import sys, venv; print(sys.version_info >= (3, 12))"],
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
    except OSError:
        return False
    return ran.returncode == 0 and ran.stdout.strip() == b"True"


@pytest.fixture(scope="session")
def hopx(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Hopx:
    """The command line in a virtual environment of its own: it wants a newer Python than the SDK does."""
    python = next(filter(_is_new_enough, _interpreters()), None)
    if python is None:
        pytest.skip("hopx-cli needs Python 3.12 or newer, and there is none")
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())
    directory = tmp_path_factory.mktemp("cli")
    subprocess.run([python, "-m", "venv", str(directory / "venv")], check=True, timeout=300)
    own = str(directory / "venv" / "bin" / "python")
    packages = project["dependency-groups"]["official-cli"]
    subprocess.run([own, "-m", "pip", "install", "-q", *packages], check=True, timeout=300)
    return Hopx(own, directory, base_url)


# --- waiting ------------------------------------------------------------------------------------------------


@pytest.fixture
def until() -> Callable[..., Any]:
    """Call something until what it returns fulfils a condition; one that never does fails the test."""

    def until(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
        limit = time.monotonic() + PATIENCE
        seen = look()
        while not holds(seen):
            assert time.monotonic() < limit, seen
            time.sleep(0.02)
            seen = look()
        return seen

    return until


@pytest.fixture
def async_until() -> Callable[..., Any]:
    """Await something until what it returns fulfils a condition; one that never does fails the test."""

    async def until(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = await look()
                if holds(seen):
                    return seen
                await asyncio.sleep(0.02)

    return until
