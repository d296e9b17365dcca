"""Everything that the README shows is run, as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

import asyncsandbox
from asyncsandbox import errors
from asyncsandbox.commands import Commands
from asyncsandbox.files import Files

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text()
_SERVE = "asyncsandbox serve --isolation none --port 8080"
_KEY = "choose-one"


@attrs.frozen
class _Block:
    """A fenced block: the heading that it stands under, its language, its text."""

    section: str
    language: str
    text: str


def _blocks() -> Iterator[_Block]:
    section = ""
    for match in re.finditer(
        r"^## (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        _README,
        re.MULTILINE | re.DOTALL,
    ):
        if match["heading"]:
            section = match["heading"]
        else:
            yield _Block(section, match["language"], match["text"])


_BLOCKS = list(_blocks())


def _block(section: str, language: str, containing: str = "") -> str:
    found = [
        block.text
        for block in _BLOCKS
        if (block.section, block.language) == (section, language) and containing in block.text
    ]
    assert len(found) == 1, f"{len(found)} {language} blocks with {containing!r} under {section!r}"
    return found[0]


def _environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with our commands on the PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", **variables}


def _shell(script: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Run the README's `serve` on any free port, with its records in `folder`; give its URL."""
    assert _SERVE in _block("Which server", "sh")
    command = [*_SERVE.replace("8080", "0").split(), "--json", "--state-dir", str(folder / "state")]
    server = subprocess.Popen(
        command,
        env=_environment(ASYNCSANDBOX_API_KEY=_KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["url"]
    finally:
        server.terminate()
        server.communicate()


def _every_square_is_there(output: str) -> None:
    results = [line.split() for line in output.splitlines()]
    assert sorted(int(result) for _, result in results) == [n**2 for n in range(1000)]
    assert len({process_id for process_id, _ in results}) == 1000


def _the_job_is_followed(output: str) -> None:
    # A piece may end anywhere, so that the name of the stream may stand in the middle of a line.
    assert "hello 0\nhello 1\nhello 2\n" in output.replace("stdout ", "")
    assert re.search(r"^completed 0 \d+\.\d+$", output, re.MULTILINE)


def _files_come_back(output: str) -> None:
    assert output.split("\n")[:-1] == [f"b'CASE {n}: typed'" for n in range(4)]


def _streams_and_callbacks_arrive(output: str) -> None:
    assert output.startswith("0\n1\n2\ncompleted")
    assert "42\r\n" in output.replace("\n", "\r\n").replace("\r\r", "\r")
    assert output.endswith("['0\\n', '1\\n', '2\\n']\n")


def _both_kinds_of_runs_are_there(output: str) -> None:
    first, *rest = output.splitlines()
    assert first == "hello you"
    assert sorted(map(int, rest)) == [n**2 for n in range(10)]


@pytest.mark.parametrize(
    ("section", "holds"),
    [
        ("", _every_square_is_there),
        ("A background job from start to end", _the_job_is_followed),
        ("Inputs and files", _files_come_back),
        ("Streams, terminals, callbacks", _streams_and_callbacks_arrive),
        ("Coming from hopx-ai", _both_kinds_of_runs_are_there),
    ],
)
def test_a_python_example_does_what_it_says(
    section: str, holds: Callable[[str], None], tmp_path: Path
) -> None:
    """Each is a whole program: it runs as a file of its own, with warnings as errors."""
    program = tmp_path / "example.py"
    program.write_text(_block(section, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-u", str(program)],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    holds(done.stdout)


def test_the_names_in_the_table_are_ours() -> None:
    """Whoever comes from hopx-ai finds in our classes what the right column says."""
    table = _README.partition("| `AsyncSandbox` | here |\n")[2].partition("\n\n")[0]
    ours = {name for row in table.splitlines() for name in re.findall(r"`\.?([\w.]+)", row.split(" | ")[1])}
    things = [*vars(asyncsandbox).values(), Files, Commands]
    public = {name for thing in things for name in dir(thing)} | set(dir(asyncsandbox))
    parameters = {"api_key", "base_url", "template", "timeout"}
    objects = {"commands", "files", "job", "result", "sandbox", "await"}
    assert {word for name in ours for word in name.split(".")} - public <= parameters | objects


def test_the_first_example_is_short() -> None:
    """It fits where people look first."""
    assert len(_block("", "python").splitlines()) < 15


def test_programs_run_from_the_command_line(tmp_path: Path) -> None:
    """One gives its output, several an object each."""
    (tmp_path / "hello.py").write_text("print('hello')")
    (tmp_path / "a.py").write_text("print('a')")
    (tmp_path / "b.sh").write_text("echo b")
    script = _block("Command line", "sh", "hello.py")
    first, *rest = _shell(script, tmp_path, ASYNCSANDBOX_ISOLATION="none").splitlines()
    assert first == "hello"
    assert sorted(json.loads(line)["stdout"] for line in rest) == ["42\n", "a\n", "b\n"]


def test_jobs_that_stay_are_looked_after_from_the_command_line(tmp_path: Path) -> None:
    """Started, listed, followed, waited for, killed and removed on a served instance."""
    (tmp_path / "train.py").write_text("print('epoch 1')")
    with _served(tmp_path) as url:
        script = _block("Command line", "sh", "--background")
        output = _shell(script, tmp_path, ASYNCSANDBOX_URL=url, ASYNCSANDBOX_API_KEY=_KEY)
        left = _shell(
            "asyncsandbox sandbox list --json", tmp_path, ASYNCSANDBOX_URL=url, ASYNCSANDBOX_API_KEY=_KEY
        )
    assert "epoch 1\n" in output
    assert "completed" in output
    assert left == ""


@pytest.mark.parametrize("session", ["humaneval", "tests"])
def test_each_of_the_two_commands_is_one_line_that_nox_understands(session: str) -> None:
    """CI runs the one for the tests as it stands here; both name sessions that there are."""
    script = _block("Two commands", "sh", f"-s {session}")
    assert script == (
        "python3 -m venv .venv && .venv/bin/pip install -q nox && "
        f"ASYNCSANDBOX_ISOLATION=none .venv/bin/nox -s {session}\n"
    )
    assert f"\ndef {session}(session: nox.Session)" in (_ROOT / "noxfile.py").read_text()


def test_every_block_is_run() -> None:
    """A block that is added here gets a test, too."""
    shown = [(block.section, block.language) for block in _BLOCKS if block.language]
    assert shown == [
        ("", "python"),
        ("Two commands", "sh"),
        ("Two commands", "sh"),
        ("Install", "sh"),  # what the environment of these tests was made with
        ("A background job from start to end", "python"),
        ("Inputs and files", "python"),
        ("Streams, terminals, callbacks", "python"),
        ("Which server", "sh"),
        ("Coming from hopx-ai", "py"),  # theirs, which needs their package
        ("Coming from hopx-ai", "python"),
        ("Command line", "sh"),
        ("Command line", "sh"),
    ]


def test_the_tree_of_errors_is_the_real_one() -> None:
    """The README and the module draw the same tree."""
    tree = next(block.text for block in _BLOCKS if block.section == "Errors")
    assert textwrap.indent(tree, "    ") in (errors.__doc__ or "")
