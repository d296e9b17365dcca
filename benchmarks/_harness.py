"""What the benchmarks share: versions of what was measured, progress for people, and JSON for programs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

__all__ = ["environment", "progress"]


def environment(*packages: str) -> dict[str, object]:
    """Return what a figure needs to be compared with another: versions, and the machine's size."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in ("asyncsandbox", "aiohttp", *packages)},
    }


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], object]]:
    """Yield a function to call with a note after each step; shows on standard error how far things are.

    A bar where there is a terminal and rich, else a line after each tenth.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 - comes with an extra
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    except ImportError:
        yield _plain(label, total)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


def _plain(label: str, total: int) -> Callable[[str], object]:
    done = 0

    def step(note: str) -> None:
        nonlocal done
        done += 1
        if done == total or done % max(1, total // 10) == 0:
            print(f"{label}: {done}/{total} {note}", file=sys.stderr, flush=True)

    return step
