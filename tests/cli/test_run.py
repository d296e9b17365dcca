"""`asyncsandbox run` in the foreground, on an embedded server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_KEYS = [
    *("ref", "process_id", "sandbox_id", "name", "state", "end_reason", "exit_code", "signal"),
    *("queued_at", "started_at", "ended_at", "duration", "timeout"),
    *("stdout", "stderr", "stdout_truncated", "stderr_truncated", "output_error", "file", "error"),
]


def test_one_program_is_passed_through_with_its_exit_code(program: Any) -> None:
    """What the job writes to each stream comes out of the same stream, and nothing else does."""
    done = program("run", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


def test_a_program_that_completes_ends_with_status_0(program: Any) -> None:
    """Success is silent but for the program's own output."""
    done = program("run", "print(6 * 7)")
    assert (done.status, done.out, done.err) == (0, "42\n", "")


def test_output_comes_while_the_job_runs(program: Any) -> None:
    """The first line can be read while the job still waits for what the reader does then."""
    go_on = program.directory / "go-on"
    code = f"import os, time\nprint('ready')\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\nprint('end')"
    running = program.start("run", code)
    assert running.line() == "ready"
    go_on.touch()
    done = running.end()
    assert (done.status, done.out) == (0, "end\n")


def test_death_by_a_signal_is_128_and_its_number(program: Any) -> None:
    """The status is what a shell would say, and a line names the signal."""
    done = program("run", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert done.status == 128 + signal.SIGSEGV
    assert done.err == "asyncsandbox: the job was ended by SIGSEGV\n"


def test_a_time_out_is_124_and_keeps_what_was_written(program: Any) -> None:
    """A job over its time-out has status 124, and its output so far is there."""
    done = program("run", "--timeout", "0.5", "import time; print('so far'); time.sleep(600)")
    assert (done.status, done.out) == (124, "so far\n")
    assert done.err == "asyncsandbox: the job ran longer than its time-out of 0.5 s\n"


def test_bytes_that_are_no_text_are_passed_through(program: Any) -> None:
    """Output is bytes: none is changed on the way."""
    done = program("run", "import sys; sys.stdout.buffer.write(bytes(range(256)))")
    assert done.raw == bytes(range(256))


def test_a_file_runs_in_the_language_of_its_name(program: Any) -> None:
    """An argument that is the name of a file is read, and its suffix says how it runs."""
    (program.directory / "hello.sh").write_text('echo "hello from $0" | sed "s/ from.*/ from bash/"\n')
    done = program("run", "hello.sh")
    assert (done.status, done.out) == (0, "hello from bash\n")


def test_a_language_that_is_given_wins(program: Any) -> None:
    """--language counts for code and for files of any name."""
    (program.directory / "notes.txt").write_text("echo $((6 * 7))\n")
    done = program("run", "--language", "bash", "notes.txt", "echo code", "--json")
    assert sorted(found["stdout"] for found in done.objects) == ["42\n", "code\n"]


def test_a_program_comes_from_standard_input(program: Any) -> None:
    """A dash stands for what is piped in."""
    done = program("run", "-", stdin=b"print('from stdin')\n")
    assert (done.status, done.out) == (0, "from stdin\n")


def test_variables_reach_the_job(program: Any) -> None:
    """--env may be repeated, and a value may hold an equals sign."""
    code = "import os; print(os.environ['A'], os.environ['B'])"
    done = program("run", "--env", "A=1", "-e", "B=x=y", code)
    assert done.out == "1 x=y\n"


def test_many_programs_end_in_a_table(program: Any) -> None:
    """Each argument is a row, in the order given, with how it ended and its last line."""
    (program.directory / "good.py").write_text("print('first')\nprint('last')\n")
    done = program("run", "good.py", "import sys; sys.exit('went wrong')", "print('fine')")
    header, *rows = [re.split(r" {2,}", line.rstrip()) for line in done.out.splitlines()]
    assert header == ["NAME", "STATE", "EXIT", "DURATION", "LAST LINE"]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("good.py", "completed", "0", "last"),
        ("import sys; sys.exit('went wrong')", "failed", "1", "went wrong"),
        ("print('fine')", "completed", "0", "fine"),
    ]
    assert "[3/3]" in done.err
    assert "asyncsandbox: 3 jobs: 2 completed, 1 failed" in done.err
    assert done.status == 1


def test_many_that_complete_end_with_status_0(program: Any) -> None:
    """Several jobs are a success when all of them are."""
    assert program("run", "print(1)", "print(2)").status == 0


def test_output_cannot_steer_the_terminal_through_the_table(program: Any) -> None:
    """Escape sequences in names and last lines are taken apart, and nothing is coloured under NO_COLOR."""
    done = program("run", "print('\\x1b[31mred')", "print('\x1b]0;title\x07')")
    assert "\x1b" not in done.out + done.err
    assert "\x07" not in done.out + done.err


def test_json_prints_an_object_for_each_job(program: Any) -> None:
    """Every line is an object, always with the same keys, and the output is in it."""
    (program.directory / "two.py").write_text("import sys; print(2, file=sys.stderr); sys.exit(4)\n")
    done = program("run", "--json", "print(1)", "two.py")
    by_file = {found["file"]: found for found in done.objects}
    assert [list(found) for found in done.objects] == [_KEYS, _KEYS]
    assert by_file[None] | {"state": "completed", "exit_code": 0, "stdout": "1\n"} == by_file[None]
    assert by_file["two.py"]["name"] == "two.py"
    assert by_file["two.py"]["end_reason"] == "exit"
    assert (by_file["two.py"]["exit_code"], by_file["two.py"]["stderr"]) == (4, "2\n")
    assert done.status == 1


def test_json_for_one_program_keeps_its_exit_status(program: Any) -> None:
    """--json changes what is printed, not what the status says."""
    done = program(
        "run", "--json", "--name", "answer", "--timeout", "20", "import sys; print(1); sys.exit(7)"
    )
    (found,) = done.objects
    assert (found["name"], found["timeout"], found["stdout"]) == ("answer", 20.0, "1\n")
    assert done.status == 7


def test_json_comes_as_each_job_ends(program: Any) -> None:
    """The object of a job that has ended can be read while another one waits for the reader."""
    go_on = program.directory / "go-on"
    waiting = f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)\nprint('late')"
    running = program.start("run", "--json", waiting, "print('early')")
    assert json.loads(running.line())["stdout"] == "early\n"
    go_on.touch()
    assert json.loads(running.end().out)["stdout"] == "late\n"


def test_what_is_refused_holds_back_no_other(program: Any) -> None:
    """Arguments that cannot run are told each with its reason; the rest runs."""
    (program.directory / "what.rb").write_text("puts 1\n")
    (program.directory / "latin.py").write_bytes(b"print('\xe9')\n")
    done = program("run", "print('ran')", "what.rb", "missing.py", "latin.py", "")
    lines = done.out.splitlines()
    assert ["refused" in line for line in lines] == [False, False, True, True, True, True]
    assert "ran" in lines[1]
    assert "asyncsandbox: what.rb: its name says no language" in done.err
    assert "asyncsandbox: missing.py: cannot be read: No such file or directory" in done.err
    assert "asyncsandbox: latin.py: is no UTF-8 text" in done.err
    assert "code is empty" in done.err
    assert "5 jobs: 1 completed, 4 refused" in done.err
    assert done.status == 1


def test_json_tells_what_was_refused(program: Any) -> None:
    """A refused argument is an object too, with its file and the reason."""
    done = program("run", "--json", "print(1)", "missing.py")
    refused, ran = sorted(done.objects, key=lambda found: found["state"], reverse=True)
    assert list(refused) == _KEYS
    assert (refused["state"], refused["file"]) == ("refused", "missing.py")
    assert "No such file" in refused["error"]
    assert ran["state"] == "completed"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing.py"], "missing.py: cannot be read: No such file or directory"),
        ([""], "code is empty"),
        (["--language", "cobol", "1"], "language 'cobol' is not known here; use one of: python"),
        (["--timeout", "-1", "1"], "timeout must be more than 0 seconds, not -1.0"),
        (["--template", "nosuch", "1"], "there is no template 'nosuch' here"),
        (["--sandbox", "sb_1", "1"], "--sandbox names a sandbox of a server"),
        (["."], ".: cannot be read: Is a directory"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_not_0(program: Any, args: list[str], words: str) -> None:
    """A mistake is told in one line that names it; there is no traceback."""
    done = program("run", *args)
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert done.status in (2, 4)
    assert done.out == ""


def test_isolation_must_be_chosen(program: Any) -> None:
    """Without a choice the way out is named; --isolation is one."""
    refused = program("run", "print(1)", ASYNCSANDBOX_ISOLATION="")
    assert refused.status == 2
    assert "isolation" in refused.err
    assert len(refused.err.splitlines()) == 1
    chosen = program("run", "--isolation", "none", "print(1)", ASYNCSANDBOX_ISOLATION="")
    assert (chosen.status, chosen.out) == (0, "1\n")


def test_a_reader_that_leaves_ends_the_job(program: Any, sleeper: Any, alive: Callable[[int], bool]) -> None:
    """As in a pipe to head: no traceback, status 141, and the job does not go on for nobody."""
    running = program.start("run", sleeper.code(before="print('x' * 1000)", then="print('y' * 1000)"))
    assert running.line() == "x" * 1000
    (pid,) = sleeper.pids()
    running.hang_up()
    done = running.end()
    assert done.status == 141
    assert "Traceback" not in done.err
    assert not alive(pid)


def test_json_to_a_reader_that_leaves_is_no_traceback(program: Any) -> None:
    """The same for objects that nobody reads."""
    go_on = program.directory / "go-on"
    waiting = f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)"
    running = program.start("run", "--json", "1", waiting)
    running.line()
    running.hang_up()
    go_on.touch()
    done = running.end()
    assert (done.status, done.err) == (141, "")


def test_nothing_is_left_behind(program: Any) -> None:
    """No process of the embedded server, and none of its directories, outlives the command."""
    assert program("run", "print(1)").status == 0
    left = [path for path in Path(program.directory).glob("asyncsandbox-*/*") if path.is_dir()]
    assert left == []


def test_progress_is_a_bar_on_a_terminal(program: Any) -> None:
    """On a terminal the progress is drawn in place, and stdout stays free of it."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        popen = subprocess.Popen(
            [sys.executable, "-m", "asyncsandbox", "run", "print(1)", "print(2)"],
            cwd=program.directory,
            env=program.env | {"TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        while piece := _read(screen):
            shown += piece
        out, _ = popen.communicate(timeout=50)
    assert popen.returncode == 0
    assert b"2/2" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert b"completed" in out
    assert b"\x1b" not in out


def _read(screen: Any) -> bytes:
    try:
        return screen.read(4096) or b""
    except OSError:
        return b""  # how Linux says that the other side was closed
