"""The process that makes, times and ends the jobs of one sandbox.

One per sandbox, single-threaded, standard library only: it is started without site-packages and imports
nothing of the server but its sibling modules. It ends with the server: when its socket closes, every job
dies and every byte that was held in memory goes to the spool files.

Messages, one JSON object a line:

- in: ``start`` (the fields of `LaunchSpec`), ``kill`` (id), ``consumed`` (id, stdout, stderr), ``type`` (id,
  data: base64), ``resize`` (id, cols, rows), ``pause``, ``resume``, ``stop``
- out: ``ready``; ``started`` (id, pid, at); ``refused`` (id, message); ``busy`` (id, busy); ``wrote`` (id);
  ``typed`` (id, count); ``ended`` (id, exit_code, signal, reason, at, stdout, stderr: each {size, inline:
  base64 or null})
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from asyncsandbox.server.launcher.channel import Channel, ChannelClosedError, Message
from asyncsandbox.server.launcher.load import Load, LoadMeter
from asyncsandbox.server.launcher.procfs import (
    ProcessTable,
    become_subreaper,
    let_go,
    marked_processes,
    signal_process,
)
from asyncsandbox.server.launcher.pump import Pipe, Pump
from asyncsandbox.server.launcher.sink import Sink
from asyncsandbox.server.launcher.spawn import RefusedError, raise_file_limit, spawn, spawn_in_terminal
from asyncsandbox.server.launcher.terminal import Terminal
from asyncsandbox.server.launcher.timers import Timer, Timers

__all__ = ["main"]

_MESSAGES_PER_TURN = 8
_MATURE = 0.1
_SETTLE_INTERVAL = 0.005
_FEED_AGAIN = 0.01  # until a terminal that took nothing is tried again
_WINDOW_SHARE = 4  # a streamed job is held back long before the kept tail would lose what was not read
_GIVE_UP = 5.0
_END_WITHIN = 4.0  # less than a server waits for its supervisor
_PAUSE_PASSES = 20
_CLEAN_LOOKS = 2  # one may fall into the middle of a fork or an exec
_HEARD = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_RESTORED = {signal.SIGPIPE, signal.SIGXFSZ}  # Python ignores them, and gives them back to what it starts
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _StopError(Exception):
    """The server asked for the end."""


class _Job:
    """A job whose end was not told yet.

    Attributes:
        id: the job's id.
        pid: its main process; its own until `status` is set.
        stdout: the pipe of its stdout.
        stderr: the pipe of its stderr.
        deadline: when its time is over, monotonic.
        left: seconds that remained when the sandbox was paused.
        timer: what happens next by itself: the deadline, later the end of the grace.
        grace: seconds between SIGTERM and SIGKILL.
        cause: why we ended it; None when we did not.
        spoiled: why its output could not be kept, which then is no plain end; None when it could.
        status: what the kernel said of its end; None while it runs.
        ended_at: Unix time of that.
        give_up: when to wait no longer for what will not die, monotonic.
        load: what it was seen to use.
    """

    __slots__ = (
        "cause",
        "deadline",
        "ended_at",
        "give_up",
        "grace",
        "id",
        "left",
        "load",
        "pid",
        "spoiled",
        "status",
        "stderr",
        "stdout",
        "timer",
    )

    def __init__(
        self, job_id: str, pid: int, *, stdout: Pipe, stderr: Pipe, timeout: float, grace: float
    ) -> None:
        self.id = job_id
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.deadline = time.monotonic() + timeout
        self.left = timeout
        self.timer: Timer | None = None
        self.grace = grace
        self.cause: str | None = None
        self.spoiled: str | None = None
        self.status: int | None = None
        self.ended_at = 0.0
        self.give_up = 0.0
        self.load = Load(job_id, pid)


class Supervisor:
    """Runs the jobs of one sandbox, in turns: listen, act on what is due, settle what has ended."""

    def __init__(self, channel: Channel, *, file_limit: tuple[int, int]) -> None:
        self._channel = channel
        self._file_limit = file_limit
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._table = ProcessTable()
        self._pump = Pump(self._selector, self._timers)
        self._meter = LoadMeter(self._table, self._timers, self._report_load)
        self._inbox: deque[Message] = deque()
        self._jobs: dict[str, _Job] = {}
        self._by_pid: dict[int, _Job] = {}
        self._over: dict[str, _Job] = {}
        self._doomed: list[tuple[_Job, str]] = []
        self._paused = False
        self._look_again = False
        self._settle_armed = False
        self._wakeup = _wakeup_pipe()
        self._handlers: dict[str, Callable[[Message], None]] = {
            "start": self._start,
            "kill": self._kill,
            "consumed": self._consumed,
            "type": self._type,
            "resize": self._resize,
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop,
        }

    def run(self) -> None:
        """Serve until the server says stop or is gone; then end everything."""
        self._selector.register(self._channel.sock, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._channel.send("ready")
        try:
            while True:
                self._turn()
        except (_StopError, ChannelClosedError):
            pass
        finally:  # whatever went wrong here: no job outlives its supervisor
            self._end_everything()

    def _turn(self) -> None:
        self._channel.flush()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._channel.waiting else 0)
        if self._selector.get_key(self._channel.sock).events != wanted:
            self._selector.modify(self._channel.sock, wanted)
        for key, _ in self._selector.select(0 if self._inbox else self._timers.until_next()):
            self._take(key)
        for _ in range(min(_MESSAGES_PER_TURN, len(self._inbox))):
            message = self._inbox.popleft()
            self._handlers[message["op"]](message)
        self._timers.run_due()
        self._end_doomed()
        if self._look_again:
            self._settle()

    def _take(self, key: selectors.SelectorKey) -> None:
        if isinstance(key.data, Pipe):
            self._pump.readable(key.data)
        elif key.fileobj is self._channel.sock:
            self._inbox.extend(self._channel.receive())
        else:
            os.read(self._wakeup, 4096)
            self._reap()

    # What the server asks for.

    def _start(self, message: Message) -> None:
        job_id, at = message["id"], time.time()
        try:
            pid, stdout, stderr = self._spawn(message)
        except RefusedError as exc:
            self._channel.send("refused", id=job_id, message=str(exc))
            return
        job = _Job(
            job_id,
            pid,
            stdout=stdout,
            stderr=stderr,
            timeout=message["timeout"],
            grace=message["grace"],
        )
        self._channel.send("started", id=job_id, pid=job.pid, at=at)
        if message.get("streamed"):
            wrote = functools.partial(self._channel.send, "wrote", id=job_id)
            for pipe in (stdout, stderr):
                pipe.stream(max(1, message["output_limit"] // _WINDOW_SHARE), wrote)
        self._jobs[job_id] = self._by_pid[job.pid] = job
        self._table.add(job_id, job.pid)
        self._meter.add(job.load)
        self._pump.add(job.stdout)
        self._pump.add(job.stderr)
        self._watch_deadline(job)
        self._timers.call_later(_MATURE, functools.partial(self._mature, job))

    def _spawn(self, message: Message) -> tuple[int, Pipe, Pipe]:
        """Make a job's main process; return its pid and the pipes of its stdout and stderr."""
        argv, env, cwd = message["argv"], message["env"], message["cwd"]
        broken = functools.partial(self._spool_failed, message["id"])
        out, err = (Sink(message[name], message["output_limit"]) for name in ("stdout", "stderr"))
        if message.get("terminal") is not None:
            pid, master = spawn_in_terminal(
                argv, env=env, cwd=cwd, size=message["terminal"], file_limit=self._file_limit
            )
            return pid, Terminal(master, out, broken), Pipe(None, err, broken)
        spawned = spawn(argv, env=env, cwd=cwd, stdin=message["stdin"], file_limit=self._file_limit)
        return spawned.pid, Pipe(spawned.stdout, out, broken), Pipe(spawned.stderr, err, broken)

    def _consumed(self, message: Message) -> None:
        job = self._jobs.get(message["id"])
        if job is not None:
            self._pump.consumed(job.stdout, message["stdout"])
            self._pump.consumed(job.stderr, message["stderr"])

    def _type(self, message: Message) -> None:
        terminal = self._terminal(message)
        if terminal is not None:
            waiting = terminal.waiting
            terminal.type(base64.b64decode(message["data"]))
            if not waiting:
                self._feed(message["id"], terminal)

    def _feed(self, job_id: str, terminal: Terminal) -> None:
        count = terminal.feed()
        if count:
            self._channel.send("typed", id=job_id, count=count)
        if terminal.waiting:
            self._timers.call_later(_FEED_AGAIN, functools.partial(self._feed, job_id, terminal))

    def _resize(self, message: Message) -> None:
        terminal = self._terminal(message)
        if terminal is not None:
            terminal.resize(message["cols"], message["rows"])

    def _terminal(self, message: Message) -> Terminal | None:
        job = self._jobs.get(message["id"])
        return job.stdout if job is not None and isinstance(job.stdout, Terminal) else None

    def _kill(self, message: Message) -> None:
        job = self._jobs.get(message["id"])
        if job is not None:
            self._doomed.append((job, "killed"))

    def _pause(self, _message: Message) -> None:
        if self._paused:
            return
        self._paused = True
        now = time.monotonic()
        for job in self._running():
            job.left = job.deadline - now
            self._timers.cancel(job.timer)
        self._stop_processes()

    def _resume(self, _message: Message) -> None:
        if not self._paused:
            return
        self._paused = False
        now = time.monotonic()
        self._table.refresh()
        for stat in self._table.living(""):
            signal_process(stat, signal.SIGCONT)
        for job in self._running():
            job.deadline = now + job.left
            self._watch_deadline(job)
            self._signal_tree(job, signal.SIGCONT)

    def _stop(self, _message: Message) -> None:
        raise _StopError

    # What is due.

    def _watch_deadline(self, job: _Job) -> None:
        doom = functools.partial(self._doomed.append, (job, "timeout"))
        job.timer = self._timers.call_at(job.deadline, doom)

    def _mature(self, job: _Job) -> None:
        if job.id in self._jobs:
            job.stdout.spill()
            job.stderr.spill()

    def _report_load(self, job_id: str, busy: bool) -> None:
        self._channel.send("busy", id=job_id, busy=busy)

    def _spool_failed(self, job_id: str, exc: OSError) -> None:
        job = self._jobs[job_id]
        job.spoiled = "disk_full" if exc.errno in _NO_SPACE else "unknown"
        _log(f"the output of job {job_id} cannot be kept: {exc}")
        self._doomed.append((job, job.spoiled))

    # Processes.

    def _running(self) -> list[_Job]:
        """Return the jobs that run and were not told to end."""
        return [job for job in self._by_pid.values() if job.cause is None]

    def _signal_tree(self, job: _Job, number: int) -> None:
        """Signal the tree of a job whose main process was not reaped: its number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, number)
        for stat in self._table.living(job.id):
            if stat.group != job.pid:
                signal_process(stat, number)

    def _stop_processes(self) -> None:
        stopped: set[tuple[int, int]] = set()
        jobs = self._running()
        for job in jobs:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, signal.SIGSTOP)
        for _ in range(_PAUSE_PASSES):  # what is not stopped yet may make another one meanwhile
            self._table.refresh()
            found = [
                stat for job_id in ("", *(job.id for job in jobs)) for stat in self._table.living(job_id)
            ]
            new = [stat for stat in found if (stat.pid, stat.start) not in stopped]
            if not new:
                return
            for stat in new:
                signal_process(stat, signal.SIGSTOP)
                stopped.add((stat.pid, stat.start))

    def _end_doomed(self) -> None:
        if not self._doomed:
            return
        doomed = self._doomed.copy()
        self._doomed.clear()
        self._reap()  # one that has ended by itself keeps its own reason
        self._table.refresh()
        for job, cause in doomed:
            if job.status is None and job.cause is None:
                job.cause = cause
                self._timers.cancel(job.timer)
                self._terminate(job)

    def _terminate(self, job: _Job) -> None:
        if job.grace > 0:
            # An interactive shell ignores SIGTERM; SIGHUP is what a terminal says when it goes away.
            hang_up = isinstance(job.stdout, Terminal)
            self._signal_tree(job, signal.SIGHUP if hang_up else signal.SIGTERM)
            if self._paused:
                self._signal_tree(job, signal.SIGCONT)
            job.timer = self._timers.call_later(job.grace, functools.partial(self._finish_off, job))
        else:
            self._signal_tree(job, signal.SIGKILL)

    def _finish_off(self, job: _Job) -> None:
        self._reap()
        if job.status is None:
            self._table.refresh()
            self._signal_tree(job, signal.SIGKILL)

    def _reap(self) -> bool:
        """Take note of every process that has ended; return whether there is no child left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if os.WIFSTOPPED(status):
                let_go(pid, os.WSTOPSIG(status))
                continue
            self._look_again = True
            job = self._by_pid.pop(pid, None)
            if job is None:
                self._table.reaped(pid)
                continue
            job.status, job.ended_at = status, time.time()
            job.give_up = time.monotonic() + _GIVE_UP
            self._timers.cancel(job.timer)
            self._meter.remove(job.load)
            self._over[job.id] = job

    # Ends.

    def _settle(self) -> None:
        """Kill what jobs left behind, and tell of the end of those that left nothing."""
        self._look_again = False
        if not self._over:
            return
        self._table.refresh()
        for job in list(self._over.values()):
            for stat in self._table.living(job.id):
                signal_process(stat, signal.SIGKILL)
            if self._table.empty(job.id):
                self._finish(job)
            elif time.monotonic() > job.give_up:
                _log(f"processes of job {job.id} do not die")
                self._finish(job)
        if self._over and not self._settle_armed:
            self._settle_armed = True
            self._timers.call_later(_SETTLE_INTERVAL, self._settle_soon)

    def _settle_soon(self) -> None:
        self._settle_armed = False
        self._look_again = True

    def _finish(self, job: _Job) -> None:
        assert job.status is not None
        self._pump.drain(job.stdout)
        self._pump.drain(job.stderr)
        del self._over[job.id], self._jobs[job.id]
        self._table.remove(job.id, job.pid)
        code = os.waitstatus_to_exitcode(job.status)
        self._channel.send(
            "ended",
            id=job.id,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            reason=job.cause or job.spoiled or ("exit" if code >= 0 else "signal"),
            at=job.ended_at,
            stdout=_stream_end(job.stdout.sink),
            stderr=_stream_end(job.stderr.sink),
        )

    def _end_everything(self) -> None:
        until = time.monotonic() + _END_WITHIN
        while time.monotonic() < until:
            self._table.refresh()
            for job in self._by_pid.values():
                self._signal_tree(job, signal.SIGKILL)
            for job_id in ("", *self._over):
                for stat in self._table.living(job_id):
                    signal_process(stat, signal.SIGKILL)
            if self._reap() and not self._table.living(""):
                break
            time.sleep(_SETTLE_INTERVAL)
        for job in self._jobs.values():
            for pipe in (job.stdout, job.stderr):
                self._pump.drain(pipe)
                pipe.spill()


def _stream_end(sink: Sink) -> dict[str, object]:
    inline = sink.inline
    return {"size": sink.size, "inline": None if inline is None else base64.b64encode(inline).decode()}


def _wakeup_pipe() -> int:
    """Return the reading end of a pipe that becomes readable whenever a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Handlers that do nothing, and not SIG_IGN: that would be handed down to the jobs. So would what whoever
    # started the server had ignored or blocked: a background job of a shell ignores SIGINT and SIGQUIT.
    for number in (_HEARD | _ignored()) - _RESTORED:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return reading


def _ignored() -> set[signal.Signals]:
    """Return the signals that this process was told to ignore."""
    return {
        number
        for number in signal.valid_signals()
        if isinstance(number, signal.Signals) and signal.getsignal(number) is signal.SIG_IGN
    }


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - its stderr is the sandbox's log file


def _sweep(sandbox_id: str) -> None:
    """Kill what an earlier supervisor of this sandbox, itself killed, left behind."""
    until, clean = time.monotonic() + _GIVE_UP, 0
    while clean < _CLEAN_LOOKS and time.monotonic() < until:
        left = marked_processes(sandbox_id)
        clean = 0 if left else clean + 1
        for stat in left:
            signal_process(stat, signal.SIGKILL)
        time.sleep(_SETTLE_INTERVAL)


def main(arguments: Sequence[str]) -> None:
    """Supervise: ``FD SANDBOX_ID [sweep]``.

    Args:
        arguments: the inherited descriptor of the socket to the server; the sandbox's id; "sweep" to end what
            an earlier supervisor left first.
    """
    descriptor, sandbox_id, *flags = arguments
    sock = socket.socket(fileno=int(descriptor))
    sock.set_inheritable(False)
    become_subreaper()
    if "sweep" in flags:
        _sweep(sandbox_id)
    Supervisor(Channel(sock), file_limit=raise_file_limit()).run()
