"""A thousand short programs at once, against the ways that the standard library offers.

Run it with ``ASYNCSANDBOX_ISOLATION=none nox -s bench``, options after ``--``. All ways take turns, so that
what else the machine does falls on all of them alike; every answer is checked. Ratios are medians divided by
our median: above 1 means that we were faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from _harness import environment, progress

from asyncsandbox import AsyncSandboxError, Client, as_completed

_PLAIN_IN_FLIGHT: Final = 2
_ASYNC_IN_FLIGHT: Final = 4

Answers = dict[int, str]


def _program(n: int) -> str:
    return f"print({n} ** 2)"


async def as_jobs(count: int) -> Answers:
    """Start them all as background jobs of one sandbox and read each as it ends. Server start included."""
    async with Client("embedded") as client, client.create_sandbox() as sandbox:
        jobs = await sandbox.start_all(map(_program, range(count)))
        place = {job: n for n, job in enumerate(jobs)}
        return {place[job]: job.result().stdout async for job in as_completed(jobs)}


async def as_plain_processes(count: int) -> Answers:
    """Keep two `subprocess.Popen` children going, in input order: no event loop, the least there can be."""
    return await asyncio.to_thread(_plain, count)


def _plain(count: int) -> Answers:
    running: list[tuple[int, subprocess.Popen[str]]] = []
    answers: Answers = {}
    for n in range(count):
        if len(running) == _PLAIN_IN_FLIGHT:
            oldest, process = running.pop(0)
            answers[oldest] = process.communicate()[0]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
            [sys.executable, "-u", "-c", _program(n)], stdout=subprocess.PIPE, text=True
        )
        running.append((n, process))
    answers.update((n, process.communicate()[0]) for n, process in running)
    return answers


async def as_asyncio_processes(count: int) -> Answers:
    """Give each a task with a `create_subprocess_exec` under a semaphore, as programs commonly do."""
    room = asyncio.Semaphore(_ASYNC_IN_FLIGHT)

    async def run(n: int) -> tuple[int, str]:
        async with room:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-u", "-c", _program(n), stdout=subprocess.PIPE
            )
            output, _ = await process.communicate()
        return n, output.decode()

    return dict(await asyncio.gather(*map(run, range(count))))


WAYS: Final[dict[str, Callable[[int], Awaitable[Answers]]]] = {
    "asyncsandbox": as_jobs,
    f"subprocess.Popen, {_PLAIN_IN_FLIGHT} in flight": as_plain_processes,
    f"create_subprocess_exec, {_ASYNC_IN_FLIGHT} in flight": as_asyncio_processes,
}


async def _timed(way: Callable[[int], Awaitable[Answers]], count: int) -> float:
    begun = time.perf_counter()
    answers = await way(count)
    seconds = time.perf_counter() - begun
    wrong = [n for n in range(count) if answers.get(n) != f"{n**2}\n"]
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {count} answers are wrong or missing, the first for n={wrong[0]}"
        )
    return seconds


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with progress("fan-out", rounds * len(WAYS)) as step:
        for _ in range(rounds):
            for name, way in WAYS.items():
                seconds[name].append(asyncio.run(_timed(way, count)))
                step(f"{name}: {seconds[name][-1]:.2f} s")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print one JSON object, and return the exit status."""
    parser = argparse.ArgumentParser(prog="fan_out", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    try:
        seconds = measure(arguments.jobs, arguments.rounds)
    except (AsyncSandboxError, RuntimeError) as exc:
        print(f"fan_out: {exc}", file=sys.stderr)
        return 1
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians["asyncsandbox"]
    result = {
        "benchmark": "fan_out",
        "jobs": arguments.jobs,
        "seconds": seconds,
        "medians": medians,
        "ratios": {name: median / ours for name, median in medians.items()},
        **environment(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
