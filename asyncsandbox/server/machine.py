"""What the operating system says of this machine and of a sandbox's processes: the one place that asks psutil.

Everything that reads blocks for some milliseconds; call it in a thread. psutil belongs to the extra
``local``: ask `asyncsandbox.server.extras` first.
"""

from __future__ import annotations

import os
import platform
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    import psutil

__all__ = [
    "Machine",
    "ProcessSample",
    "Usage",
    "cpu_model",
    "encode_usage",
    "os_release",
    "processes_below",
]

_FIRST_SAMPLE: Final = 0.1
"""Seconds that the first look at the processors takes: their use is a difference of two looks."""

_FRESH: Final = 0.5
"""Seconds for which a look is good: over less time the clock's ticks are too coarse for a percentage."""


@attrs.frozen(kw_only=True)
class Usage:
    """How busy the machine is.

    Attributes:
        cpu_percent: of all processors together since the last look, 0 to 100.
        cores: processors.
        memory: bytes: ``total``, ``used``, ``free`` (unused), ``available`` (to be had without swapping).
        memory_percent: what is not available, 0 to 100.
        disk: bytes where sandboxes live: ``total``, ``used``, ``free``.
        disk_percent: what is used of what users may have, 0 to 100.
        uptime: seconds since the machine was started.
    """

    cpu_percent: float
    cores: int
    memory: Mapping[str, int]
    memory_percent: float
    disk: Mapping[str, int]
    disk_percent: float
    uptime: float


@attrs.frozen(kw_only=True)
class ProcessSample:
    """One process of the operating system.

    Attributes:
        pid: its id.
        parent: its parent's id.
        name: of its program.
        command: its command line, quoted for a shell; the name where it has none.
        user: whose it is; "" when that has no name.
        status: in the system's word, such as ``running`` or ``sleeping``.
        cpu_percent: processor time for its time of life, as ``ps`` counts; 100 is one processor.
        memory_bytes: resident memory.
        memory_percent: the same, of the machine's memory.
        threads: how many it has.
        started_at: Unix time.
    """

    pid: int
    parent: int
    name: str
    command: str
    user: str
    status: str
    cpu_percent: float
    memory_bytes: int
    memory_percent: float
    threads: int
    started_at: float


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Return how busy the machine is, in the names of both SDKs' types (contract 2.1); bytes and percent."""
    return {
        "cpu": {"usage_percent": usage.cpu_percent, "cores": usage.cores},
        "memory": {**usage.memory, "usage_percent": usage.memory_percent},
        "disk": {**usage.disk, "usage_percent": usage.disk_percent},
    }


class Machine:
    """Looks at the machine; keeps the last look at its processors. Any thread may ask.

    Args:
        directory: where sandboxes live.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._times: tuple[float, float] | None = None
        self._percent = 0.0
        self._looked_at = 0.0

    def usage(self) -> Usage:
        """Return how busy the machine is. Blocks."""
        import psutil  # noqa: PLC0415 - of the extra local

        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._directory))
        return Usage(
            cpu_percent=self._cpu_percent(),
            cores=os.cpu_count() or 1,
            memory={
                "total": memory.total,
                "used": memory.used,
                "free": memory.free,
                "available": memory.available,
            },
            memory_percent=memory.percent,
            disk={"total": disk.total, "used": disk.used, "free": disk.free},
            disk_percent=disk.percent,
            uptime=max(0.0, time.time() - psutil.boot_time()),
        )

    def _cpu_percent(self) -> float:
        with self._lock:
            if self._times is None:
                self._times, self._looked_at = _cpu_times(), time.monotonic()
                time.sleep(_FIRST_SAMPLE)
            elif time.monotonic() - self._looked_at < _FRESH:
                return self._percent
            before, self._times = self._times, _cpu_times()
            busy, total = (now - then for now, then in zip(self._times, before, strict=True))
            if total > 0:
                self._percent = round(min(max(100.0 * busy / total, 0.0), 100.0), 1)
            self._looked_at = time.monotonic()
            return self._percent


def _cpu_times() -> tuple[float, float]:
    """Return seconds that the processors were busy, and all seconds."""
    import psutil  # noqa: PLC0415 - of the extra local

    times = psutil.cpu_times()._asdict()
    # Linux counts the time of guests in user and nice already.
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return total - times["idle"] - times.get("iowait", 0.0), total


def cpu_model() -> str:
    """Return the name of the processors, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processes_below(top: int) -> list[ProcessSample]:
    """Return every process below another, that one left out, in the order of their ids. Blocks.

    One that ends meanwhile, or is not ours to look at, is left out.
    """
    import psutil  # noqa: PLC0415 - of the extra local

    try:
        found = psutil.Process(top).children(recursive=True)
    except psutil.Error:
        return []
    samples: list[ProcessSample] = []
    now = time.time()
    for process in sorted(found, key=lambda process: process.pid):
        try:
            with process.oneshot():
                samples.append(_sample(process, now))
        except psutil.Error:
            continue
    return samples


def _sample(process: psutil.Process, now: float) -> ProcessSample:
    name, argv, times = process.name(), process.cmdline(), process.cpu_times()
    born = process.create_time()
    return ProcessSample(
        pid=process.pid,
        parent=process.ppid(),
        name=name,
        command=shlex.join(argv) if argv else name,
        user=_user(process),
        status=process.status(),
        cpu_percent=round(100.0 * (times.user + times.system) / max(now - born, 0.01), 1),
        memory_bytes=process.memory_info().rss,
        memory_percent=round(process.memory_percent(), 2),
        threads=process.num_threads(),
        started_at=born,
    )


def _user(process: psutil.Process) -> str:
    try:
        return process.username()
    except KeyError:  # a number without a name
        return ""


def os_release() -> dict[str, str]:
    """Return the operating system's name and version, as it describes itself."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    uname = platform.uname()
    return {
        "name": release.get("NAME", uname.system),
        "version": release.get("VERSION_ID", uname.version),
        "kernel": uname.release,
        "arch": uname.machine,
        "hostname": uname.node,
    }
