"""What a notebook would show of a run, and that the run itself does not notice."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncsandbox.server import richresults
from asyncsandbox.server.engine import rich_runner

PNG = b"\x89PNG\r\n\x1a\n"

PROGRAMS = {
    "an empty one": "",
    "only a docstring": "'doc'",
    "a docstring that is used": "'doc'\nprint(__doc__)\n__doc__",
    "a value": "x = 1\nx",
    "who it is": """
import sys, __main__
print(__name__, __file__ == sys.argv[0], __main__.__dict__ is globals(), sorted(vars(__main__)))
print(sys.argv[1:], getattr(sys, 'orig_argv', 'none')[1:], sys.path, __builtins__, __spec__, type(__loader__))
vars()""",
    "both streams": "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.stdout.write('more')",
    "an error": "def f():\n    return 1 / 0\nprint('before')\nf()",
    "an error in its middle": "import os\nraise KeyError('x')\n1",
    "a chain of errors": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e",
    "a group of errors": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "an interruption": "raise KeyboardInterrupt",
    "no Python": "x = 1\ndef f(:\n  pass",
    "no Python either": "x = 1\nreturn 5",
    "no Python, with a warning": "x = '\\d'\nx is 1\ndef f(:\n  pass",
    "a null character": "x = 1\0",
    "a wrong indentation": "if True:\nx",
    "an exit": "import sys\nsys.exit(3)",
    "an exit with words": "raise SystemExit('words')",
    "a hard exit": "import os\nprint('x')\nos._exit(4)",
    "a signal": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "a thread that lasts": """
import threading, time
def f():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print('thread')
threading.Thread(target=f).start()
print('main')""",
    "an error in a thread": """
import threading
t = threading.Thread(target=lambda: 1 / 0, name='t')
t.start()
t.join()""",
    "what is done at the end": "import atexit\natexit.register(print, 'bye')\nprint('hi')\n5",
    "an own hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_frame.f_lineno)\n1 / 0",
    "an own hook that fails": "import sys\nsys.excepthook = lambda *a: sys.exit(7)\n1 / 0",
    "what is left of an error": """
import atexit, sys, traceback
atexit.register(lambda: print(len(traceback.extract_tb(sys.last_traceback)), sys.excepthook is sys.__excepthook__))
1 / 0""",
    "a future": "from __future__ import annotations\ndef f(x: nowhere): ...\nf.__annotations__",
    "a copy of itself": """
import os
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
print('parent' if pid else 'child')
7""",
    "processes": """
import multiprocessing
def f(x):
    return x * x
if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(pool.map(f, [1, 2, 3]))""",
    "a class that is pickled": """
import pickle
class A: pass
print(type(pickle.loads(pickle.dumps(A()))) is A)""",
    "an own json": "import sys\nsys.modules['json'] = None\n[1]",
    "a warning": "import warnings\nwarnings.warn('careful')\nx = 1\nx is 1",
    "a finalizer": "class A:\n    def __del__(self): print('gone')\na = A()\nA()",
    "its own source": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "a fatal repr": "class A:\n    def __repr__(self): raise SystemExit(9)\nA()",
    "arguments, unread input": "import sys\nprint(sys.argv[1:], sys.stdin.read())",
}


def _run(arguments: list[str], folder: Path, *, measured: bool) -> tuple[int, str, str]:
    # A forked child of a measured program may leave with a traceback of the measuring, on the program's stderr.
    kept = {name: value for name, value in os.environ.items() if measured or not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-u", *arguments, "a", "b c"],
        cwd=folder,
        # MPLBACKEND is the one thing that a program finds; here both do.
        env={**kept, "MPLBACKEND": "Agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_does_what_it_does_by_itself(program: str, tmp_path: Path) -> None:
    """Output, tracebacks and the exit code, byte for byte."""
    path = tmp_path / "program.py"
    path.write_text(program)
    alone = _run([str(path)], tmp_path, measured=False)
    arguments = [rich_runner.__file__, str(tmp_path / "kept"), str(path)]
    assert (
        _run(arguments, tmp_path, measured="multiprocessing" not in program and "fork" not in program)
        == alone
    )


async def _run_code(box: Any, code: str, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = await box.ok("POST", "/execute", json={"code": code, "timeout": 50, **fields})
    return body


RICH = {"result", "png", "html", "svg", "markdown", "json", "dataframe", "display", "omitted"}


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("x = 6\nx * 7", "42"),
        ("'text'", "'text'"),
        ("import math\n(\n    math.floor(2.5),\n)", "(2,)"),
        ("(x := 5)", "5"),
        ("type('A', (), {'__repr__': lambda a: '\\ud800'})()", "\\ud800"),
        ("print(1)", None),
        ("5;", None),
        ("x = 5", None),
        ("if True:\n    5", None),
        ("5\nraise SystemExit(1)", None),
        ("class A:\n    def __repr__(self):\n        return 1 / 0\nA()", None),
    ],
)
async def test_the_last_expression_is_the_result(box: Any, code: str, result: str | None) -> None:
    """As its repr, and only where a notebook would show one."""
    body = await _run_code(box, code)
    assert body.get("result") == result
    assert RICH & body.keys() == ({"result"} if result is not None else set())


async def test_representations_are_the_contract_s_fields(box: Any) -> None:
    """What a class gives; what it gives of another type, or fails at, is not there."""
    body = await _run_code(
        box,
        """
class A:
    def __repr__(self): return "A()"
    def _repr_html_(self): return "<b>a</b>"
    def _repr_svg_(self): return ("<svg/>", {"width": 1})
    def _repr_markdown_(self): return None
    def _repr_json_(self): return {"a": [1, None]}
    def _repr_png_(self): return b"png"
A()""",
    )
    shown = {name: body.get(name) for name in RICH if name in body}
    png = base64.b64encode(b"png").decode()
    assert shown == {
        "result": "A()",
        "html": "<b>a</b>",
        "svg": "<svg/>",
        "json": {"a": [1, None]},
        "png": png,
    }
    assert (body["success"], body["stdout"], body["stderr"]) == (True, "", "")


async def test_what_is_too_large_is_left_out_and_said(box: Any) -> None:
    """The program succeeded all the same."""
    body = await _run_code(
        box,
        """
class A:
    def __repr__(self): return "x" * 9_000_000
    def _repr_html_(self): return "<b>a</b>"
A()""",
    )
    assert (body["success"], body["omitted"], body["html"]) == (True, ["result"], "<b>a</b>")
    assert "result" not in body


async def test_only_an_awaited_run_of_python_is_rich(box: Any) -> None:
    """Background jobs and other languages are as plain as ever."""
    job = await box.end(await box.start("import sys\nprint(sys.orig_argv[2] == sys.argv[0])\n5"))
    assert job["stdout"] == "True\n"
    assert not RICH & job.keys()
    assert not RICH & (await _run_code(box, "echo 5", language="bash")).keys()
    assert (await box.ok("GET", "/health"))["features"]["rich_output"] is True


async def test_nothing_is_left_of_a_run(box: Any) -> None:
    """Neither the runner nor what it kept; the program finds itself where it always was."""
    await _run_code(box, "5")
    code = "import os, sys\nsorted(name.partition('.')[2] for name in os.listdir(os.path.dirname(__file__)))"
    assert (await _run_code(box, code))["result"] == "['py', 'runner.py']"
    own = await _run_code(box, "import os, helper\n(helper.x, os.listdir())", files={"helper.py": "eCA9IDE="})
    assert own["result"].startswith("(1, [")
    assert "runner" not in own["result"]


async def test_tables_come_as_html_and_data(box: Any) -> None:
    """Only of who imported pandas."""
    pytest.importorskip("pandas")
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', None]})"
    body = await _run_code(box, code)
    assert body["dataframe"] == {"columns": ["a", "b"], "index": [0, 1], "data": [[1, "x"], [2, None]]}
    assert "<td>x</td>" in body["html"]
    assert body["result"].split() == ["a", "b", "0", "1", "x", "1", "2", "NaN"] or "None" in body["result"]
    large = await _run_code(box, "import pandas as pd\npd.DataFrame({'a': range(100_001)})")
    assert (large["omitted"], "dataframe" in large, "html" in large) == (["dataframe"], False, True)


def _pictures(body: dict[str, Any]) -> int:
    pictures = [item["png"] for item in body.get("display", [])] or [body[n] for n in ("png",) if n in body]
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    assert body.get("png") == (pictures[0] if pictures else None)
    return len(pictures)


@pytest.mark.parametrize(
    ("code", "pictures"),
    [
        ("plt.plot([1, 2])", 1),
        ("plt.plot([1, 2])\nplt.show()", 1),
        ("for n in range(3):\n    plt.plot([1, n])\n    plt.show()\n    plt.close()", 3),
        ("plt.plot([1])\nplt.figure()\nplt.plot([2])\nplt.figure()", 2),
        ("plt.plot([1])\nplt.close()", 0),
        ("plt.plot([1])\nraise SystemExit", 1),
        ("plt.plot([1])\nplt.show()\n1 / 0", 1),
        ("plt.plot([1])\n1 / 0", 0),
        ("from matplotlib.figure import Figure\nf = Figure()\nf.subplots().plot([1])\nf", 1),
    ],
)
def test_figures_come_as_pictures(code: str, pictures: int, tmp_path: Path) -> None:
    """Those that were shown and those that are left open, each once; an empty one is none."""
    pytest.importorskip("matplotlib")
    path, kept = tmp_path / "program.py", tmp_path / "kept"
    path.write_text(f"import matplotlib.pyplot as plt\n{code}")
    _, stdout, stderr = _run([rich_runner.__file__, str(kept), str(path)], tmp_path, measured=True)
    assert _pictures(richresults.read(kept)) == pictures
    assert stdout == ""
    assert ("Traceback" in stderr) == ("1 / 0" in code)


async def test_figures_come_with_the_answer(box: Any) -> None:
    """No screen is needed, and no word about that is said."""
    pytest.importorskip("matplotlib")
    code = (
        "import matplotlib.pyplot as plt\nfor n in (1, 2):\n    plt.figure()\n    plt.plot([n])\nplt.show()"
    )
    body = await _run_code(box, code)
    assert (body["success"], body["stdout"], _pictures(body)) == (True, "", 2)
    assert "non-interactive" not in body["stderr"]


def test_a_file_that_the_runner_did_not_write_is_harmless(tmp_path: Path) -> None:
    """A sandbox may put there what it likes."""
    kept = tmp_path / "kept"
    assert richresults.read(kept) == {}
    for junk in (
        b"",
        b"x",
        b"result",
        b"result 5\nab",
        b"result -1\nab",
        b"result x\nab",
        b"\n" * 9,
        b"a" * 99,
    ):
        kept.write_bytes(junk)
        assert richresults.read(kept) == {}, junk
    kept.write_bytes(
        b"success 4\ntruejson 3\nNaNdataframe 1\n{json 9\n" + b"[" * 9 + b"result 2\n\xff1svg 9\ncut"
    )
    assert richresults.read(kept) == {"result": "\ufffd1"}
    kept.write_bytes(b"json 200000\n" + b"[" * 200_000 + b"html 1\nx")
    assert richresults.read(kept) == {"html": "x"}


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    """The server reads with its own rights, and would wait for a pipe."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"result 6\nsecret")
    assert richresults.read(secret) == {"result": "secret"}
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        assert richresults.read(tmp_path / name) == {}, name


async def test_a_killed_run_has_no_rich_fields(box: Any) -> None:
    """Nor has one that ran too long."""
    body = await _run_code(box, "import os\nos.kill(os.getpid(), 9)\n5")
    assert (body["signal"], RICH & body.keys()) == (9, set())
    status, late = await box.call("POST", "/execute", json={"code": "while True: pass", "timeout": 0.2})
    assert (status, late["code"]) == (408, "EXECUTION_TIMEOUT")
    assert not RICH & json.loads(json.dumps(late)).keys()
