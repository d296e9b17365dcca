"""What there is to run: ``nox -l`` lists it, ``nox -s NAME -- OPTIONS`` runs one of them.

Every session makes a virtual environment of its own under ``.nox`` and installs what it needs there.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "venv"
nox.options.download_python = "never"
# A machine without one of the interpreters is no failure, in CI neither: the summary says "skipped".
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests"]

_PROJECT = nox.project.load_toml("pyproject.toml")
_OWN_PYTHON = ".".join(platform.python_version_tuple()[:2])
# The oldest, the newest, and the one that nox runs under: that is there for certain, and measures coverage.
_PYTHONS = sorted({"3.11", "3.13", _OWN_PYTHON}, key=lambda version: int(version.partition(".")[2]))
# What may differ between interpreters; one is enough for the rest: other people's libraries, documents, handlers.
_ELSEWHERE = (
    *("tests/unit", "tests/sdk"),
    *(
        f"tests/server/test_{name}.py"
        for name in ("agent", "jobs", "launcher", "lifetime", "store", "supervisor")
    ),
)


def _find_pyenv_interpreters() -> None:
    """Make interpreters known that pyenv has installed without making them global: its shims refuse those."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for python in _PYTHONS:
        for folder in sorted(versions.glob(f"{python}.*/bin")):
            os.environ["PATH"] += f"{os.pathsep}{folder}"


_find_pyenv_interpreters()


def _install(session: nox.Session, *groups: str, editable: bool = True) -> None:
    requirements = nox.project.dependency_groups(_PROJECT, *groups)
    session.install("-q", *(["-e"] if editable else []), ".[local,cli]", *requirements)


@nox.session(python=_PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every interpreter that is there, and measure coverage on one of them."""
    own = session.python == _OWN_PYTHON
    _install(session, "test", "bench", *(["rich"] if own else []))
    if session.posargs or not own:
        session.run("python", "-m", "pytest", *(session.posargs or _ELSEWHERE))
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest")
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install("-q", *nox.project.dependency_groups(_PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, as strictly as mypy can."""
    _install(session, "lint", "test", "bench")
    session.install("-q", "nox")
    session.run("mypy")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Send generated requests to a real server and compare the answers with its document; --long: for long."""
    _install(session, "test", "fuzz")
    long = "--long" in session.posargs
    options = [option for option in session.posargs if option != "--long"]
    env = {"ASYNCSANDBOX_FUZZ_EXAMPLES": "2000"} if long else {}
    session.run("python", "-m", "pytest", "tests/fuzz", *(["--timeout=0"] if long else []), *options, env=env)


@nox.session
def official(session: nox.Session) -> None:
    """Run the official clients, unmodified, against a served instance."""
    _install(session, "test", "official")
    session.run(
        "python",
        "-m",
        "pytest",
        "--timeout=400",
        "-Wignore::ResourceWarning",
        *(session.posargs or ["tests/official"]),
    )


@nox.session
def humaneval(session: nox.Session) -> None:
    """Run the 164 HumanEval problems as background jobs, and in other ways to compare with."""
    _install(session, "bench", editable=False)
    session.run("python", "benchmarks/humaneval.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure fan-out against the ways that asyncio and subprocess offer."""
    _install(session, editable=False)
    session.run("python", "benchmarks/fan_out.py", *session.posargs)
