"""How `run` tells what becomes of its jobs: as they are, as JSON lines, or as progress and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from asyncsandbox.cli._errors import Status, status_of_error, status_of_result
from asyncsandbox.cli._following import pass_through
from asyncsandbox.cli._inputs import Item
from asyncsandbox.cli._output import (
    ProgressBar,
    note,
    print_json,
    print_table,
    seconds,
    visible,
    write_output,
)
from asyncsandbox.cli._records import end_of, info_fields, result_fields
from asyncsandbox.errors import APIError, SandboxClosedError
from asyncsandbox.jobs import Job
from asyncsandbox.models import JobResult, JobState
from asyncsandbox.waiting import as_completed

__all__ = [
    "LineReport",
    "Outcome",
    "PassThrough",
    "Report",
    "TableReport",
    "note_refusals",
    "outcome_fields",
    "status_of_run",
    "status_of_starts",
]

_KEYS: Final = tuple(result_fields(JobResult(process_id="", state=JobState.LOST)))

REFUSED: Final = "refused"
"""The state, for people and programs, of what was never accepted as a job."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one argument of `run`.

    Attributes:
        item: the argument.
        job: its job; None when it was refused.
        error: why it was refused.
    """

    item: Item
    job: Job | None = None
    error: Exception | None = None

    @property
    def result(self) -> JobResult | None:
        """How the job ended; None when it has not, or there is none."""
        return self.job.result() if self.job is not None and self.job.done else None


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON: always the same keys, null for what there is not."""
    fields: dict[str, Any] = dict.fromkeys(_KEYS)
    if (result := outcome.result) is not None:
        fields |= result_fields(result)
    elif outcome.job is not None:
        fields |= {key: value for key, value in info_fields(outcome.job.info).items() if key in fields}
    else:
        fields["state"] = REFUSED
    error = None if outcome.error is None else str(outcome.error)
    return {**fields, "name": _name(outcome), "file": outcome.item.file, "error": error}


def _name(outcome: Outcome) -> str | None:
    return None if outcome.item.spec is None else outcome.item.spec.name


def status_of_starts(outcomes: Sequence[Outcome]) -> Status:
    """Return the exit status of starting alone: an error's own when everything was refused."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        return status_of_error(errors[0])
    return Status.FAILED if errors else Status.OK


def status_of_run(outcomes: Sequence[Outcome]) -> int:
    """Return the exit status of a run: one program's own, or for several whether all completed."""
    if not any(outcome.job for outcome in outcomes):
        return status_of_starts(outcomes)
    results = [outcome.result for outcome in outcomes]
    if len(results) == 1 and results[0] is not None:
        return status_of_result(results[0])
    return Status.OK if all(result is not None and result.ok for result in results) else Status.FAILED


def _by_job(outcomes: Iterable[Outcome]) -> Mapping[Job, Outcome]:
    return {outcome.job: outcome for outcome in outcomes if outcome.job is not None}


def note_refusals(outcomes: Iterable[Outcome]) -> None:
    """Say, a line each, what was refused and why."""
    for outcome in outcomes:
        if outcome.error is not None:
            note(
                f"{_short(outcome.item.label)}: {outcome.error}" if outcome.item.file else str(outcome.error)
            )


class Report(Protocol):
    """Tells of outcomes while they come about."""

    async def watch(self, outcomes: Sequence[Outcome]) -> None:
        """Tell of each end, until all jobs have ended."""

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Tell what is still to be told, whether all jobs have ended or not."""


class PassThrough:
    """One program: what it writes is what the command writes."""

    async def watch(self, outcomes: Sequence[Outcome]) -> None:
        """Write the job's output as it comes."""
        note_refusals(outcomes)
        for job in _by_job(outcomes):
            try:
                await pass_through(job.follow())
            except SandboxClosedError:
                pass  # the job went with its sandbox; its result says so
            except APIError as exc:
                if exc.code != "NOT_SUPPORTED":
                    raise
                # A server with only the published contract shows output when the job has ended.
                result = await job.wait()
                await write_output("stdout", result.stdout_bytes)
                await write_output("stderr", result.stderr_bytes)
            await job.wait()

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Say how the job ended, where its own output and exit status do not."""
        for outcome in outcomes:
            result = outcome.result
            if result is None or result.ok:
                continue
            if result.state is not JobState.FAILED or result.exit_code is None:
                note(f"the job {_how(result)}")


class LineReport:
    """JSON: an object for each outcome, as it is known."""

    def __init__(self) -> None:
        self._told: set[Item] = set()

    async def watch(self, outcomes: Sequence[Outcome]) -> None:
        """Print each outcome as its job ends; what was refused comes first."""
        for outcome in outcomes:
            if outcome.job is None:
                self._tell(outcome)
        by_job = _by_job(outcomes)
        async for job in as_completed(by_job):
            self._tell(by_job[job])

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Print what was not printed yet."""
        for outcome in outcomes:
            if outcome.item not in self._told:
                self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._told.add(outcome.item)
        print_json(outcome_fields(outcome))


class TableReport:
    """For people: progress while the jobs run, a table in input order at the end."""

    async def watch(self, outcomes: Sequence[Outcome]) -> None:
        """Show each end as it is known."""
        note_refusals(outcomes)
        by_job = _by_job(outcomes)
        with ProgressBar(len(by_job)) as progress:
            async for job in as_completed(by_job):
                result = job.result()
                label = _short(by_job[job].item.label)
                progress.ended(f"{label} {_how(result)} {seconds(result.duration)}", ok=result.ok)

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """Print the table and count the states."""
        if not outcomes:
            return
        print_table(("NAME", "STATE", "EXIT", "DURATION", "LAST LINE"), map(_row, outcomes))
        counts: dict[str, int] = {}
        for outcome in outcomes:
            state = _state(outcome)
            counts[state] = counts.get(state, 0) + 1
        note(f"{len(outcomes)} jobs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def _state(outcome: Outcome) -> str:
    return REFUSED if outcome.job is None else outcome.job.state.value


def _row(outcome: Outcome) -> tuple[str, ...]:
    label, result = _short(outcome.item.label), outcome.result
    if result is None:
        return (label, _state(outcome), "", "", visible(str(outcome.error or "")))
    text = result.stdout.rstrip() if result.ok else result.stderr.rstrip() or result.stdout.rstrip()
    last = visible(text.rpartition("\n")[2])
    exit_text = end_of(result.exit_code, result.signal)
    return (label, result.state.value, exit_text, seconds(result.duration), last)


def _short(label: str) -> str:
    longest = 40
    line = visible(label)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _how(result: JobResult) -> str:
    """Return how a job ended, as the rest of a sentence about it."""
    limit = "" if result.timeout is None else f" of {result.timeout:g} s"
    ends = {
        JobState.COMPLETED: "completed",
        JobState.TIMED_OUT: f"ran longer than its time-out{limit}",
        JobState.KILLED: "was killed",
        JobState.LOST: f"was lost: {result.output_error or 'its server no longer knows it'}",
    }
    if result.state in ends:
        return ends[result.state]
    if result.signal is not None:
        return f"was ended by {end_of(None, result.signal)}"
    if result.exit_code is not None:
        return f"failed with exit code {result.exit_code}"
    return f"failed: {result.end_reason.value if result.end_reason else 'no reason is known'}"
