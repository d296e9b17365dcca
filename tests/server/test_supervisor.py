"""The supervisor as a process, spoken to over its socket: what becomes of real jobs."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsandbox.server import spool
from asyncsandbox.server.launcher import bootstrap
from asyncsandbox.server.launcher.procfs import JOB_VARIABLE, SANDBOX_VARIABLE, marked_processes, read_stat
from asyncsandbox.server.launcher.timers import Timers

PATIENCE = 40.0
SANDBOX = f"sb-test-{os.getpid()}"
MIB = 1024 * 1024


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that another process does."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Return whether a process runs, zombies left out."""
    stat = read_stat(pid)
    return stat is not None and stat.alive


def read_pid(path: Path) -> int:
    """Return the pid that a job writes into a file, once it is there."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name} with a pid")
    return int(path.read_text())


class Supervised:
    """A supervisor and the server's end of its socket."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        self.messages: list[dict[str, Any]] = []
        self.stray: list[dict[str, Any]] = []
        self._incoming = b""
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        self.log = (directory / "supervisor.log").open("wb")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(bootstrap.__file__), str(theirs.fileno()), SANDBOX, *flags],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )

    def send(self, *messages: dict[str, Any]) -> None:
        """Send messages in one piece."""
        self.socket.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def spec(self, job_id: str, *argv: str, **fields: Any) -> dict[str, Any]:
        """Return a start message."""
        env = {"PATH": os.environ["PATH"], SANDBOX_VARIABLE: SANDBOX, JOB_VARIABLE: job_id}
        return {
            "op": "start",
            "id": job_id,
            "argv": argv,
            "env": env,
            "cwd": str(self.directory),
            "stdin": None,
            "stdout": self.spool(job_id),
            "stderr": self.spool(job_id, "stderr"),
            "timeout": 300.0,
            "output_limit": 10 * MIB,
            "grace": 5.0,
        } | fields

    def start(self, job_id: str, *argv: str, **fields: Any) -> None:
        """Start a job."""
        self.send(self.spec(job_id, *argv, **fields))

    def shell(self, job_id: str, script: str, **fields: Any) -> None:
        """Start a job that bash runs."""
        self.start(job_id, "bash", "-c", script, **fields)

    def python(self, job_id: str, script: str, **fields: Any) -> None:
        """Start a job that Python runs."""
        self.start(job_id, sys.executable, "-I", "-S", "-c", script, **fields)

    def spool(self, job_id: str, stream: str = "stdout") -> str:
        """Return the path of a stream's spool file."""
        return str(self.directory / f"{job_id}.{stream}")

    def receive(self) -> dict[str, Any]:
        """Return the next message, whatever it is."""
        while b"\n" not in self._incoming:
            data = self.socket.recv(MIB)
            assert data, "the supervisor hung up"
            self._incoming += data
        line, _, self._incoming = self._incoming.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        self.messages.append(message)
        return message

    def expect(self, op: str, job_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Return the first message of that kind; those before it may come in any order and are kept."""
        wanted = {"op": op, **fields} | ({"id": job_id} if job_id else {})
        for message in self.stray:
            if wanted.items() <= message.items():
                self.stray.remove(message)
                return message
        while not wanted.items() <= (message := self.receive()).items():
            self.stray.append(message)
        return message

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job."""
        return self.expect("ended", job_id)

    def output(self, end: dict[str, Any], stream: str = "stdout") -> bytes:
        """Return all that a job wrote, wherever it is."""
        inline = end[stream]["inline"]
        if inline is not None:
            return base64.b64decode(inline)
        path = self.spool(end["id"], stream)
        pieces, offset = [], 0
        while (piece := spool.read(path, offset=offset, limit=MIB)).data:
            pieces.append(piece.data)
            offset = piece.next_offset
        return b"".join(pieces)

    def touch(self, name: str) -> None:
        """Give jobs the sign that they wait for."""
        (self.directory / name).touch()

    def appears(self, name: str) -> None:
        """Wait for the sign that a job gives."""
        wait_until((self.directory / name).exists, f"file {name}")

    def close(self) -> None:
        """Hang up and wait until the supervisor is gone."""
        self.socket.close()
        self.process.wait(PATIENCE)
        self.log.close()


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Return what starts supervisors that are ready; in the end they are all gone."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Supervised:
            running = Supervised(tmp_path, *flags)
            stack.callback(running.close)
            running.expect("ready")
            return running

        yield start


@pytest.fixture
def supervised(supervise: Supervise, tmp_path: Path) -> Iterator[Supervised]:
    """A supervisor that has nothing to complain of."""
    running = supervise()
    yield running
    running.close()
    assert (tmp_path / "supervisor.log").read_text() == ""


def facts(end: dict[str, Any]) -> tuple[int | None, int | None, str]:
    """Return exit code, signal and reason."""
    return end["exit_code"], end["signal"], end["reason"]


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_is_the_process_own(supervised: Supervised, code: int) -> None:
    """The exit code of the main process is reported as it is."""
    supervised.shell("j", f"exit {code}")
    assert facts(supervised.ended("j")) == (code, None, "exit")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_death_by_signal_has_no_exit_code(supervised: Supervised, number: int) -> None:
    """A job that a signal ended has that signal and no invented exit code."""
    supervised.shell("j", f"kill -{int(number)} $$; sleep 1000")
    assert facts(supervised.ended("j")) == (None, number, "signal")


def test_started_names_the_process_before_its_end(supervised: Supervised) -> None:
    """A start is told with the pid, before the end, and the end is not earlier than the start."""
    supervised.shell("j", "echo $$")
    started, end = supervised.expect("started", "j"), supervised.ended("j")
    assert supervised.output(end) == f"{started['pid']}\n".encode()
    assert started["at"] <= end["at"]


def test_small_output_makes_no_file(supervised: Supervised) -> None:
    """A short job's output comes with its end, and nothing of it is left on disk."""
    supervised.shell("j", "echo out; echo err >&2")
    end = supervised.ended("j")
    assert (supervised.output(end), supervised.output(end, "stderr")) == (b"out\n", b"err\n")
    if end["stdout"]["inline"] is not None:
        assert not Path(supervised.spool("j")).exists()


def test_silent_job_makes_no_file(supervised: Supervised) -> None:
    """A job that writes nothing makes no file, however long it runs."""
    supervised.shell("j", "while [ ! -e go ]; do sleep 0.01; done")
    supervised.expect("busy", "j", busy=False)
    supervised.touch("go")
    end = supervised.ended("j")
    assert end["stdout"] == end["stderr"] == {"size": 0, "inline": ""}
    assert not Path(supervised.spool("j")).exists()


def test_running_job_is_readable(supervised: Supervised) -> None:
    """What a running job wrote appears in its spool file while it runs."""
    supervised.shell("j", "echo one; while [ ! -e go ]; do sleep 0.01; done; echo two")
    wait_until(lambda: spool.read(supervised.spool("j"), offset=0, limit=10).data == b"one\n", "first line")
    supervised.touch("go")
    end = supervised.ended("j")
    assert end["stdout"] == {"size": 8, "inline": None}
    assert supervised.output(end) == b"one\ntwo\n"


def test_unknown_program_is_refused(supervised: Supervised) -> None:
    """A program that is not there is refused by name, and leaves nothing."""
    supervised.start("j", "no-such-program-at-all")
    refused = supervised.expect("refused", "j")
    assert refused["message"] == "the program 'no-such-program-at-all' was not found"


def test_missing_working_directory_is_refused(supervised: Supervised) -> None:
    """A working directory that is not there is refused by name."""
    supervised.start("j", "true", cwd="/no/such/directory")
    message = supervised.expect("refused", "j")["message"]
    assert "working directory '/no/such/directory'" in message


def test_unusable_start_values_are_refused(supervised: Supervised, tmp_path: Path) -> None:
    """A file that is no program, a missing stdin file, a null byte and too long arguments are refused."""
    (tmp_path / "plain").write_text("hello")
    supervised.start("plain", str(tmp_path / "plain"))
    supervised.start("stdin", "cat", stdin=str(tmp_path / "none"))
    supervised.start("null", "echo", "a\0b")
    supervised.start("long", "echo", "x" * (4 * MIB))
    assert "it may not be executed" in supervised.expect("refused", "plain")["message"]
    assert "the standard input" in supervised.expect("refused", "stdin")["message"]
    assert "null byte" in supervised.expect("refused", "null")["message"]
    assert "too long" in supervised.expect("refused", "long")["message"]
    supervised.start("after", "true")
    assert facts(supervised.ended("after")) == (0, None, "exit")


def test_stdin_is_the_file(supervised: Supervised, tmp_path: Path) -> None:
    """A job reads its stdin file to the end."""
    (tmp_path / "input").write_bytes(b"\x00\xff hello")
    supervised.start("j", "cat", stdin=str(tmp_path / "input"))
    assert supervised.output(supervised.ended("j")) == b"\x00\xff hello"


def test_without_stdin_is_end_of_file(supervised: Supervised) -> None:
    """A job without stdin reads the end of file at once."""
    supervised.start("j", "cat")
    assert facts(supervised.ended("j")) == (0, None, "exit")


def test_output_is_bytes(supervised: Supervised) -> None:
    """Bytes that are no UTF-8 come back as they were written."""
    supervised.shell("j", r"printf '\xff\xfe\x00\x80'")
    assert supervised.output(supervised.ended("j")) == b"\xff\xfe\x00\x80"


def test_reopened_stderr_keeps_earlier_output(supervised: Supervised) -> None:
    """Writing through /dev/stderr and /dev/stdout destroys nothing."""
    supervised.shell("j", "echo a >&2; echo b > /dev/stderr; echo c; echo d > /dev/stdout; echo e >&2")
    end = supervised.ended("j")
    assert supervised.output(end, "stderr") == b"a\nb\ne\n"
    assert supervised.output(end) == b"c\nd\n"


def test_closed_output_is_not_the_end(supervised: Supervised) -> None:
    """A job that closes its output goes on and ends with its own exit code."""
    supervised.shell("j", "echo x; exec >&- 2>&-; while [ ! -e go ]; do sleep 0.01; done; exit 7")
    supervised.expect("busy", "j", busy=False)
    assert not any(message["op"] == "ended" for message in supervised.messages)
    supervised.touch("go")
    end = supervised.ended("j")
    assert facts(end) == (7, None, "exit")
    assert supervised.output(end) == b"x\n"


def test_five_megabytes_are_kept_whole(supervised: Supervised) -> None:
    """Output below the limit is the plain file."""
    supervised.python("j", "import os\nfor n in range(80): os.write(1, bytes([n]) * 65536)")
    end = supervised.ended("j")
    expected = b"".join(bytes([n]) * 65536 for n in range(80))
    assert end["stdout"] == {"size": len(expected), "inline": None}
    assert Path(supervised.spool("j")).read_bytes() == expected
    assert not spool.is_cut(supervised.spool("j"))


def test_flood_is_bounded_with_exact_head_and_tail(supervised: Supervised) -> None:
    """200 MB leave a file of the limit's size, its first and last halves exact, and a small supervisor."""
    blocks, limit = 3200, 10 * MIB
    script = f"import os\nfor n in range({blocks}): os.write(1, n.to_bytes(8, 'big') * 8192)"
    supervised.python("j", script, output_limit=limit)
    end = supervised.ended("j")
    path = supervised.spool("j")
    size, half = blocks * 65536, limit // 2
    assert end["stdout"] == {"size": size, "inline": None}
    assert Path(path).stat().st_size == limit
    assert spool.is_cut(path)
    head = b"".join(n.to_bytes(8, "big") * 8192 for n in range(half // 65536))
    last = b"".join(n.to_bytes(8, "big") * 8192 for n in range(blocks - half // 65536, blocks))
    piece = spool.read(path, offset=0, limit=limit)
    assert (piece.data, piece.next_offset, piece.size) == (head, size - half, size)
    assert spool.read(path, offset=half, limit=limit).data == last
    assert spool.tail(path, 1000).data == last[-1000:]
    assert peak_memory(supervised.process.pid) < 60 * MIB


def peak_memory(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_flood_does_not_deafen(supervised: Supervised) -> None:
    """While jobs write without end, others start, run and end, and the floods can be killed."""
    for n in range(3):
        supervised.start(f"flood-{n}", "yes", output_limit=MIB)
    supervised.shell("j", "echo heard")
    assert supervised.output(supervised.ended("j")) == b"heard\n"
    for n in range(3):
        supervised.send({"op": "kill", "id": f"flood-{n}"})
        assert supervised.ended(f"flood-{n}")["reason"] == "killed"


def test_output_limits_may_be_tiny(supervised: Supervised) -> None:
    """A limit below the inline limit, of one byte or of none, holds too."""
    kept = {}
    for limit in (0, 1, 10):
        supervised.shell(f"j{limit}", "printf 0123456789abcdef", output_limit=limit)
        end = supervised.ended(f"j{limit}")
        assert end["stdout"] == {"size": 16, "inline": None}
        kept[limit] = supervised.output(end)
    assert kept == {0: b"", 1: b"0", 10: b"01234bcdef"}


def test_unwritable_spool_ends_the_job(supervise: Supervise, tmp_path: Path) -> None:
    """A job whose output cannot be kept is ended, and never passes for one that is fine."""
    supervised = supervise()
    supervised.shell("j", "echo x; sleep 1000", stdout=str(tmp_path / "none" / "stdout"))
    assert facts(supervised.ended("j")) == (None, signal.SIGTERM, "unknown")
    supervised.close()
    assert "the output of job j cannot be kept" in (tmp_path / "supervisor.log").read_text()


def test_full_disk_ends_the_job(supervise: Supervise, tmp_path: Path) -> None:
    """A full disk is the reason of the end, told in the log once, also when the job was over before."""
    supervised = supervise()
    supervised.start("flood", "yes", stdout="/dev/full")
    end = supervised.ended("flood")
    assert facts(end) == (None, signal.SIGTERM, "disk_full")
    assert end["stdout"]["size"] == 0
    supervised.start("short", "head", "-c", "20000", "/dev/zero", stdout="/dev/full")
    assert supervised.ended("short")["reason"] == "disk_full"
    supervised.close()
    assert (tmp_path / "supervisor.log").read_text().count("cannot be kept") == 2


@pytest.mark.parametrize("timeout", [1e9, math.inf])
def test_time_may_be_endless(supervised: Supervised, timeout: float) -> None:
    """A time-out of decades, or none, is no trouble."""
    supervised.shell("j", "while [ ! -e go ]; do sleep 0.01; done", timeout=timeout)
    supervised.expect("busy", "j", busy=False)
    supervised.touch("go")
    assert facts(supervised.ended("j")) == (0, None, "exit")


def test_timers_forget_what_was_taken_back() -> None:
    """Time-outs of jobs that have ended do not pile up, and are not made."""
    timers, called = Timers(), []
    kept = timers.call_later(-1, lambda: called.append("kept"))
    for _ in range(10_000):
        timers.cancel(timers.call_later(86_400, lambda: called.append("lost")))
    assert len(timers) < 300
    timers.cancel(timers.call_later(-1, lambda: called.append("lost")))
    timers.run_due()
    timers.cancel(kept)
    timers.cancel(None)
    assert called == ["kept"]


def test_time_out_ends_with_reason(supervised: Supervised) -> None:
    """A job over its time is ended by SIGTERM, for the reason timeout."""
    supervised.start("j", "sleep", "1000", timeout=0.2)
    assert facts(supervised.ended("j")) == (None, signal.SIGTERM, "timeout")


def test_time_out_with_trapped_term_keeps_the_exit_code(supervised: Supervised) -> None:
    """A job that leaves by itself when its time is over has its own exit code, and the reason timeout."""
    script = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done"
    supervised.shell("j", script, timeout=2.0, grace=60.0)
    end = supervised.ended("j")
    assert facts(end) == (0, None, "timeout")
    assert supervised.output(end) == b"bye\n"


def test_ignored_term_is_followed_by_kill(supervised: Supervised) -> None:
    """A job that ignores SIGTERM is killed after its grace."""
    supervised.shell("j", "trap '' TERM; touch ready; while :; do sleep 0.01; done", grace=0.1)
    supervised.appears("ready")
    supervised.send({"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (None, signal.SIGKILL, "killed")


def test_no_grace_kills_at_once(supervised: Supervised) -> None:
    """Without grace the first signal is SIGKILL."""
    supervised.shell("j", "trap '' TERM; touch ready; while :; do sleep 0.01; done", grace=0)
    supervised.appears("ready")
    supervised.send({"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (None, signal.SIGKILL, "killed")


def test_kill_during_grace_changes_nothing(supervised: Supervised) -> None:
    """Kills during the grace neither shorten it nor change the reason; there is one end."""
    supervised.shell(
        "j", "trap 'touch term; sleep 0.1; exit 5' TERM; touch ready; while :; do sleep 0.01; done"
    )
    supervised.appears("ready")
    supervised.send({"op": "kill", "id": "j"})
    supervised.appears("term")
    supervised.send({"op": "kill", "id": "j"}, {"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (5, None, "killed")
    supervised.start("next", "true")
    supervised.ended("next")
    assert [message["op"] for message in supervised.messages if message.get("id") == "j"].count("ended") == 1


def test_kill_of_finished_and_unknown_does_nothing(supervised: Supervised) -> None:
    """A kill that comes too late, or for nobody, is not answered."""
    supervised.start("j", "true")
    assert facts(supervised.ended("j")) == (0, None, "exit")
    supervised.send({"op": "kill", "id": "j"}, {"op": "kill", "id": "nobody"})
    supervised.start("next", "true")
    supervised.ended("next")
    assert [message["op"] for message in supervised.messages if message.get("id") == "j"].count("ended") == 1


ESCAPE = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        with open("escaped.new", "w") as file:
            print(os.getpid(), file=file)
        os.rename("escaped.new", "escaped")
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists("escaped"): time.sleep(0.001)
"""


def test_children_that_left_the_session_end_with_the_job(supervised: Supervised, tmp_path: Path) -> None:
    """A child that double forks, leaves the session and ignores SIGTERM is gone when the end is told."""
    supervised.python("j", ESCAPE + "print('main over')")
    end = supervised.ended("j")
    assert not is_alive(read_pid(tmp_path / "escaped"))
    assert facts(end) == (0, None, "exit")
    assert supervised.output(end) == b"main over\n"


def test_kill_reaches_children_that_left_the_session(supervised: Supervised, tmp_path: Path) -> None:
    """A kill ends the whole tree of a running job."""
    supervised.python("j", ESCAPE + "time.sleep(1000)", grace=0.2)
    escaped = read_pid(tmp_path / "escaped")
    supervised.send({"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (None, signal.SIGTERM, "killed")
    assert not is_alive(escaped)


def test_children_get_the_term_too(supervised: Supervised, tmp_path: Path) -> None:
    """SIGTERM goes once to each process of the tree, also to one in a session of its own."""
    child = "trap 'echo term >> terms; exit' TERM; echo $$ > child; while :; do sleep 0.01; done"
    supervised.shell("j", f"setsid bash -c {shlex.quote(child)} & trap 'wait; exit 3' TERM; wait; wait")
    read_pid(tmp_path / "child")
    supervised.send({"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (3, None, "killed")
    assert (tmp_path / "terms").read_text() == "term\n"


HOP = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open("hopping", "w").close()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if os.fork(): os._exit(0)
        if sys.argv[1] == "session": os.setsid()
    os._exit(0)
while not os.path.exists("hopping"): time.sleep(0.001)
"""


@pytest.mark.parametrize("kind", ["group", "session"])
def test_processes_that_never_stay_are_caught(supervised: Supervised, kind: str) -> None:
    """A process that forks and ends all the time, parentless, is gone when the end of its job is told."""
    supervised.start("j", sys.executable, "-I", "-S", "-c", HOP, kind)
    assert facts(supervised.ended("j")) == (0, None, "exit")
    assert not any(marked_processes(SANDBOX) for _ in range(10))


def test_many_jobs_with_escaping_children_leave_nothing(supervised: Supervised) -> None:
    """Children that leave the session as their parents end are all gone, and nobody else's end is delayed."""
    names = [f"j{n}" for n in range(100)]
    for name in names:
        supervised.shell(name, "setsid sleep 1000 & (setsid sleep 1000 &) & exit 4")
    assert {facts(supervised.ended(name)) for name in names} == {(4, None, "exit")}
    assert not marked_processes(SANDBOX)


def test_daemon_that_holds_stdout_does_not_hang_the_end(supervised: Supervised, tmp_path: Path) -> None:
    """An escaped daemon without the marks delays no end, and is gone with the sandbox at the latest."""
    supervised.shell("j", "setsid env -i bash -c 'sleep 1000 & echo $! > daemon'; echo done")
    end = supervised.ended("j")
    assert facts(end) == (0, None, "exit")
    assert supervised.output(end) == b"done\n"
    daemon = read_pid(tmp_path / "daemon")
    supervised.send({"op": "stop"})
    supervised.process.wait(PATIENCE)
    assert not is_alive(daemon)


def test_jobs_do_not_reach_each_other(supervised: Supervised) -> None:
    """The end of one job leaves the processes of another alone, escaped ones too."""
    supervised.python("stays", ESCAPE.replace("escaped", "stays") + "time.sleep(1000)")
    stays = read_pid(supervised.directory / "stays")
    supervised.python("goes", ESCAPE)
    supervised.ended("goes")
    assert is_alive(stays)
    supervised.send({"op": "kill", "id": "stays"})
    supervised.ended("stays")
    assert not is_alive(stays)


def test_pause_stops_every_process_and_the_clock(supervised: Supervised, tmp_path: Path) -> None:
    """While paused the whole tree stands still and no time-out strikes; then the rest of the time counts."""
    supervised.python("tree", ESCAPE + "time.sleep(1000)")
    escaped = read_pid(tmp_path / "escaped")
    main = supervised.expect("started", "tree")["pid"]
    supervised.send(supervised.spec("timed", "sleep", "1000", timeout=0.3), {"op": "pause"})
    timed = supervised.expect("started", "timed")["pid"]
    for pid in (main, escaped, timed):
        wait_until(lambda pid=pid: state(pid) == "T", "a stopped process")
    time.sleep(0.6)  # twice the time-out: it must not strike
    supervised.send({"op": "resume"})
    resumed_at = time.time()
    assert supervised.ended("timed")["at"] >= resumed_at
    for pid in (main, escaped):
        wait_until(lambda pid=pid: state(pid) == "S", "a process that goes on")


def state(pid: int) -> str:
    """Return the state letter of a process."""
    stat = read_stat(pid)
    return "" if stat is None else stat.state


def test_kill_while_paused_ends_the_job(supervised: Supervised, tmp_path: Path) -> None:
    """A paused job that is killed hears SIGTERM and ends while the others stay paused."""
    supervised.shell("j", "trap 'exit 9' TERM; echo $$ > ready; while :; do sleep 0.01; done")
    supervised.start("other", "sleep", "1000")
    read_pid(tmp_path / "ready")
    supervised.send({"op": "pause"}, {"op": "pause"}, {"op": "kill", "id": "j"})
    assert facts(supervised.ended("j")) == (9, None, "killed")
    assert state(supervised.expect("started", "other")["pid"]) == "T"
    supervised.send({"op": "resume"}, {"op": "resume"}, {"op": "kill", "id": "other"})
    assert facts(supervised.ended("other")) == (None, signal.SIGTERM, "killed")


@pytest.mark.parametrize("farewell", ["stop", "close"])
def test_end_of_the_server_ends_everything_and_keeps_output(
    supervise: Supervise, tmp_path: Path, farewell: str
) -> None:
    """When the server stops or dies, every process dies and what was written is in the spool."""
    supervised = supervise()
    supervised.shell(
        "small", "echo small; echo more >&2; touch small; trap '' TERM; while :; do sleep 0.01; done"
    )
    supervised.python("tree", ESCAPE + "os.write(1, b'x' * 40_000); open('big', 'w'); time.sleep(1000)")
    pids = [
        read_pid(tmp_path / "escaped"),
        *(supervised.expect("started", job)["pid"] for job in ("small", "tree")),
    ]
    supervised.appears("small")
    supervised.appears("big")
    if farewell == "stop":
        supervised.send({"op": "stop"})
        assert supervised.process.wait(PATIENCE) == 0
    supervised.close()
    assert supervised.process.returncode == 0
    assert not any(is_alive(pid) for pid in pids)
    assert Path(supervised.spool("small")).read_bytes() == b"small\n"
    assert Path(supervised.spool("small", "stderr")).read_bytes() == b"more\n"
    assert Path(supervised.spool("tree")).read_bytes() == b"x" * 40_000


def test_paused_jobs_end_with_the_server(supervise: Supervise, tmp_path: Path) -> None:
    """Stopped processes do not survive their server."""
    supervised = supervise()
    supervised.send(supervised.spec("j", "sleep", "1000"), {"op": "pause"})
    pid = supervised.expect("started", "j")["pid"]
    supervised.close()
    assert not is_alive(pid)


def test_stray_signals_do_not_end_the_supervisor(supervised: Supervised) -> None:
    """SIGINT, SIGTERM, SIGHUP and SIGQUIT do nothing to the supervisor; jobs do not inherit that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        supervised.process.send_signal(number)
    supervised.shell("j", "grep -E 'Sig(Ign|Blk)' /proc/self/status")
    output = supervised.output(supervised.ended("j")).decode()
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0]


def test_jobs_do_not_inherit_what_the_server_ignores_or_blocks(supervise: Supervise) -> None:
    """A server may be started in the background of a shell, or under nohup; its jobs behave all the same."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGUSR1)}
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        supervised = supervise()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        for number, handler in before.items():
            signal.signal(number, handler)
    supervised.shell("j", "grep -E 'Sig(Ign|Blk)' /proc/self/status")
    output = supervised.output(supervised.ended("j")).decode()
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0]


def test_jobs_inherit_three_descriptors_and_the_file_limit(supervised: Supervised) -> None:
    """A job has stdin, stdout and stderr, nothing of the supervisor's, and the limit that the server had."""
    supervised.shell("j", "cd /proc/self/fd && echo *; ulimit -n")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    output = supervised.output(supervised.ended("j")).decode().split("\n")
    assert {name for name in output[0].split() if int(name) <= 100} <= {"0", "1", "2", "3"}
    assert output[1] == str(soft)


def test_environment_is_exactly_what_was_given(supervised: Supervised) -> None:
    """A job sees the environment of its spec and nothing else."""
    supervised.start("j", "/usr/bin/env", env={"A": "1", "B": "zwei € \udcff"})
    assert supervised.output(supervised.ended("j")) == "A=1\nB=zwei € ".encode() + b"\xff\n"


def test_a_thousand_jobs_run_at_once(supervised: Supervised) -> None:
    """A thousand sleeping jobs run together, all are told to be idle, and all can be killed."""
    names = [f"j{n}" for n in range(1000)]
    supervised.send(*(supervised.spec(name, "sleep", "1000") for name in names))
    pids = [supervised.expect("started", name)["pid"] for name in names]
    for name in names:
        supervised.expect("busy", name, busy=False)
    assert all(is_alive(pid) for pid in pids)
    supervised.send(*({"op": "kill", "id": name} for name in names))
    assert {supervised.ended(name)["signal"] for name in names} == {signal.SIGTERM}


def test_load_is_told_when_it_changes(supervised: Supervised) -> None:
    """A sleeper becomes idle, busy when it computes, idle when it sleeps again; only changes are told."""
    script = """
import os, time
def wait(name):
    while not os.path.exists(name): time.sleep(0.02)
wait("go")
while not os.path.exists("enough"): pass
wait("end")
"""
    supervised.python("j", script)
    supervised.expect("busy", "j", busy=False)
    supervised.touch("go")
    supervised.expect("busy", "j", busy=True)
    supervised.touch("enough")
    supervised.expect("busy", "j", busy=False)
    supervised.touch("end")
    supervised.ended("j")
    told = [message["busy"] for message in supervised.messages if message["op"] == "busy"]
    assert told == [False, True] * (len(told) // 2) + [False] * (len(told) % 2)


def test_load_of_children_counts(supervised: Supervised) -> None:
    """A shell that waits for a child which computes is busy."""
    burn = f"{sys.executable} -I -S -c 'while True: pass'"
    supervised.shell("j", f"while [ ! -e go ]; do sleep 0.05; done; {burn} & wait")
    supervised.expect("busy", "j", busy=False)
    supervised.touch("go")
    supervised.expect("busy", "j", busy=True)
    supervised.send({"op": "kill", "id": "j"})
    supervised.ended("j")


def test_sweep_ends_what_a_killed_supervisor_left(supervise: Supervise, tmp_path: Path) -> None:
    """A new supervisor of the same sandbox ends the processes of one that was killed, and no others."""
    first = supervise()
    first.python("j", ESCAPE + "time.sleep(1000)")
    left = [read_pid(tmp_path / "escaped"), first.expect("started", "j")["pid"]]
    first.process.kill()
    first.process.wait(PATIENCE)
    first.close()
    stranger = subprocess.Popen(["sleep", "1000"], env={SANDBOX_VARIABLE: "another"})
    try:
        assert all(map(is_alive, left))
        second = supervise("sweep")
        assert not any(map(is_alive, left))
        assert is_alive(stranger.pid)
        second.close()
    finally:
        stranger.kill()
        stranger.wait()


def test_slow_reader_loses_no_message(supervised: Supervised) -> None:
    """Ends wait for a server that does not listen, and the supervisor goes on."""
    count = 300
    supervised.send(*(supervised.spec(f"j{n}", "head", "-c", "8000", "/dev/zero") for n in range(count)))
    supervised.send(supervised.spec("last", "touch", "last"))
    supervised.appears("last")
    ends = [supervised.ended(f"j{n}") for n in range(count)]
    assert all(end["stdout"]["size"] == 8000 and supervised.output(end) == bytes(8000) for end in ends)


def test_broken_server_cannot_leave_jobs_behind(supervise: Supervise, tmp_path: Path) -> None:
    """A message that makes no sense ends the supervisor, and with it every job."""
    supervised = supervise()
    supervised.start("j", "sleep", "1000")
    pid = supervised.expect("started", "j")["pid"]
    supervised.socket.sendall(b"nonsense\n")
    assert supervised.process.wait(PATIENCE) == 1
    assert not is_alive(pid)
    assert "JSONDecodeError" in (tmp_path / "supervisor.log").read_text()
