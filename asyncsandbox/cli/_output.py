"""What the commands print: notes, JSON lines, tables, progress, and the output of jobs as it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from asyncsandbox.models import StreamName

__all__ = [
    "ProgressBar",
    "discard_stdout",
    "note",
    "print_json",
    "print_line",
    "print_table",
    "seconds",
    "show_cursor",
    "visible",
    "write_output",
]

_PIPED_WIDTH: Final = 160
"""Columns where no terminal says how many there are: wide enough for what other programs will read."""

_GAP: Final = 2
"""Blanks between the columns of a table."""

_PIECE: Final = 4096
"""POSIX: a pipe that can be written to takes at least so much without blocking."""


class _Console(Console):
    """A console that leaves a closed pipe to whoever called, instead of ending the process inside a library."""

    def on_broken_pipe(self) -> None:
        """Pass the `BrokenPipeError` on. Called while it is handled."""
        raise  # noqa: PLE0704


def _console(*, stderr: bool = False) -> Console:
    console = _Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


def note(message: str) -> None:
    """Say something to the person at the terminal, on stderr. Nobody there to hear it is no error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"asyncsandbox: {message}\n")
        sys.stderr.flush()


def print_line(text: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    print_line(json.dumps(fields))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without lines. Where there is not room for all, only the last column is shortened."""
    cells = [[Text(cell) for cell in row] for row in rows]
    widths = [max([len(column), *(row[i].cell_len for row in cells)]) for i, column in enumerate(columns)]
    console = _console()
    before = sum(width + _GAP for width in widths[:-1])
    last = max(console.width - before, len(columns[-1]))
    console.width = max(console.width, before + last)  # a narrow terminal wraps what nothing may shorten
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in cells:
        row[-1].truncate(last, overflow="ellipsis")
        table.add_row(*row)
    console.print(table)


def visible(text: str) -> str:
    """Return `text` on one line, without anything that could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def seconds(value: float | None) -> str:
    """Return a duration for people; "" for None."""
    return "" if value is None else f"{value:.2f} s"


def show_cursor() -> None:
    """Undo what a progress bar that was torn away may have done to the terminal."""
    _console(stderr=True).show_cursor()


def discard_stdout() -> None:
    """Let everything that is still to be printed vanish: its reader is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


class ProgressBar:
    """Live progress on stderr: a bar where there is a terminal, else one line for each job that ended."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        console = _console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
        self._task = TaskID(0)
        self._failed = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("jobs", total=self._total)
        return self

    def ended(self, line: str, *, ok: bool) -> None:
        """Count one more job that has ended."""
        self._done += 1
        self._failed += not ok
        if self._bar is None:
            note(f"[{self._done}/{self._total}] {line}")
            return
        what = f"jobs, {self._failed} not completed" if self._failed else "jobs"
        self._bar.update(self._task, completed=self._done, description=what)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


async def write_output(stream: StreamName, data: bytes) -> None:
    """Write what a job wrote to the same stream of ours, byte for byte.

    A slow reader slows this down, but never the event loop: a signal still gets through.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    fd = (sys.stdout if stream == "stdout" else sys.stderr).fileno()
    view = memoryview(data)
    while view:
        await _writable(fd)
        view = view[os.write(fd, view[:_PIECE]) :]


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_writer(fd, wake)
    except PermissionError:
        return  # a regular file, which epoll does not take: it can always be written to
    try:
        await ready
    finally:
        loop.remove_writer(fd)
