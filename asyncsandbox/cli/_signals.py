"""Running a command's coroutine so that Ctrl-C and SIGTERM end it in good order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final, NoReturn

import typer

from asyncsandbox.cli._errors import SIGNAL_BASE
from asyncsandbox.cli._output import note, show_cursor

__all__ = ["run_command"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `work` and leave with the exit status that it returns.

    The first signal cancels it: it stops what it started, says so, and the status is 128 and the signal's
    number. The second ends the process at once; an embedded server sees that and ends by itself.

    Raises:
        typer.Exit: always, unless `work` raises.
    """
    raise typer.Exit(asyncio.run(_supervise(work)))


async def _supervise(work: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            _leave_at_once(number)
        task.cancel()

    # SIGHUP is ignored under nohup, and stays so.
    caught = [number for number in _SIGNALS if number != signal.SIGHUP or not _ignored(number)]
    for number in caught:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return SIGNAL_BASE + received[0]
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _leave_at_once(number: int) -> NoReturn:
    show_cursor()
    note("ended at once")
    os._exit(SIGNAL_BASE + number)
