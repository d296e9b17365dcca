"""Runs one job on a server that keeps no output, and keeps its output and its end in files.

This file is not imported: its text is sent as the code of a background job, with a call of `main` below it.
So it is one piece, needs nothing but the standard library of Python 3.8, and its process is what the server
calls the job. The program itself is a child; what it writes is passed on as it comes, and kept: the first and
the last half of a limit. When it has ended, ``result`` is there, whole, and the process ends as the program
did, by the same exit code or the same signal.
"""

import base64
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

_CHUNK = 65536
_PATIENCE = (
    2.0  # seconds to wait for output after the end; whoever still holds the other end is no part of it
)
_GO = 'go=$1 src=$2 bin=$3; shift 3; "$go" build -o "$bin" "$src" && exec "$bin" "$@"'
_SUFFIXES = {"python": ".py", "javascript": ".js", "bash": ".sh", "go": ".go"}
_TOOLS = {"javascript": "node", "bash": "bash", "go": "go"}


class _RefusedError(Exception):
    """The program cannot be run; the message says why, for people."""


class _Stream:
    """Passes on what comes out of a pipe, and keeps the first and the last half of `limit` bytes."""

    def __init__(self, pipe, path, echo, limit):
        self._pipe = pipe
        self._file = open(path, "wb", buffering=0)
        self._echo = echo
        self._half = limit // 2
        self._tail = bytearray()
        self._lock = threading.Lock()
        self.size = 0
        self.head = 0
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while True:
            try:
                data = os.read(self._pipe.fileno(), _CHUNK)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self._keep(data)
            self._pass_on(data)

    def _keep(self, data):
        self.size += len(data)
        room = max(0, self._half - self.head)
        if room and self.error is None:
            try:
                self._file.write(data[:room])
            except OSError as exc:
                self.error = str(exc)
            self.head += len(data[:room])
        self._tail += data[room:]
        del self._tail[: max(0, len(self._tail) - self._half)]

    def _pass_on(self, data):
        while data and self._echo is not None:
            try:
                data = data[os.write(self._echo, data) :]
            except OSError:
                self._echo = None

    def end(self, inline):
        """Finish the file and return what is to be known of it, with its last `inline` bytes."""
        self.thread.join(_PATIENCE)
        with self._lock:
            self._half = 0  # whatever comes now is too late
            tail = bytes(self._tail)
            if self.error is None:
                try:
                    self._file.write(tail)
                except OSError as exc:
                    self.error = str(exc)
            last = tail
            if len(last) < inline:
                with open(self._file.name, "rb") as kept:
                    size = kept.seek(0, os.SEEK_END)
                    kept.seek(max(0, size - inline))
                    last = kept.read()
            return {
                "size": self.size,
                "head": self.head,
                "tail": len(tail),
                "end": base64.b64encode(last[-inline:]).decode(),
                "error": self.error,
            }


def _write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def _command(spec, home):
    """Return the command line that runs the job."""
    if "argv" in spec:
        return spec["argv"]
    language = spec["language"]
    script = os.path.join(home, "program" + _SUFFIXES[language])
    _write(script, base64.b64decode(spec["code"]))
    if language == "python":
        return [sys.executable or "python3", "-u", script] + spec["args"]
    tool = shutil.which(_TOOLS[language])
    if tool is None:
        raise _RefusedError(
            f"language {language!r} cannot run here: {_TOOLS[language]!r} is not on the PATH of this sandbox"
        )
    if language == "go":
        return ["/bin/sh", "-c", _GO, "sh", tool, script, script + ".bin"] + spec["args"]
    return [tool, script] + spec["args"]


def _directory(spec, home):
    """Return where the job runs, with its files in it."""
    cwd = os.path.join(home, "work") if spec["own_directory"] else os.getcwd()
    os.makedirs(cwd, exist_ok=True)
    for path, data in spec["files"].items():
        _write(os.path.join(cwd, path), base64.b64decode(data))
    return cwd


def _environment(spec, cwd):
    env = dict(os.environ)
    variable = {"python": "PYTHONPATH", "javascript": "NODE_PATH"}.get(spec.get("language"))
    if variable is not None:  # the program does not lie where it runs, but imports from there as if it did
        env[variable] = os.pathsep.join(filter(None, [cwd, env.get(variable)]))
    return env


def _prepare_child():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed when this process is


def _start(spec, home, cwd):
    stdin = subprocess.DEVNULL
    if spec["stdin"] is not None:
        _write(os.path.join(home, "stdin"), base64.b64decode(spec["stdin"]))
        stdin = open(os.path.join(home, "stdin"), "rb")
    argv = _command(spec, home)
    try:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=_environment(spec, cwd),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_prepare_child,
        )
    except OSError as exc:
        raise _RefusedError(f"{argv[0]!r} cannot be started: {exc.strerror}") from exc


def _publish(home, result):
    path = os.path.join(home, "result")
    with open(path + ".new", "w") as file:
        json.dump(result, file)
    os.replace(path + ".new", path)


def _end_as(code):
    """End this process as the program ended."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _run(spec, home):
    started = time.time()
    cwd = _directory(spec, home)
    child = _start(spec, home, cwd)
    # A server that ends only this process ends the program, too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: child.send_signal(got))
    streams = {
        name: _Stream(pipe, os.path.join(home, name), echo, spec["limit"])
        for name, pipe, echo in (("stdout", child.stdout, 1), ("stderr", child.stderr, 2))
    }
    code = child.wait()
    ended = time.time()
    result = {name: stream.end(spec["inline"]) for name, stream in streams.items()}
    result.update(code=code, started_at=started, ended_at=ended, cwd=cwd)
    return result, code


def main(payload):
    """Run the job that `payload`, base64 of JSON, describes."""
    spec = json.loads(base64.b64decode(payload))
    temporary = "/tmp" if spec["literal"] else os.environ.get("TMPDIR") or "/tmp"
    home = os.path.join(temporary, ".asyncsandbox", spec["key"])
    os.makedirs(home, mode=0o700, exist_ok=True)
    try:
        result, code = _run(spec, home)
    except _RefusedError as exc:
        result, code = {"refused": str(exc)}, 127
        os.write(2, (str(exc) + "\n").encode())
    _publish(home, result)
    _end_as(code)
