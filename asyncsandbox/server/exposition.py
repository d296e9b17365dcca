"""Metrics as Prometheus text, put together from tables and tallies whenever somebody asks.

Nothing global: each answer has a registry of its own. prometheus-client belongs to the extra ``local``, and is
imported with the first question; ask `asyncsandbox.server.extras` first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from asyncsandbox import _version
from asyncsandbox.models import JobState
from asyncsandbox.server.records import JobKind, SandboxRecord, SandboxStatus
from asyncsandbox.server.state import Server
from asyncsandbox.server.tally import BUCKETS, RouteTally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["CONTENT_TYPE", "describe_sandbox", "describe_server"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every version of Prometheus reads."""


def describe_server(server: Server) -> bytes:
    """Return the metrics of a whole server."""
    return _text(
        itertools.chain(
            _about(server), _sandboxes(server), _jobs(server), _runs(server), _requests(server.tally)
        )
    )


def describe_sandbox(server: Server, sandbox: SandboxRecord) -> bytes:
    """Return the metrics of one sandbox."""
    return _text(_labelled(_one_sandbox(server, sandbox), sandbox=sandbox.id))


class _Collector:
    """Hands metrics to a registry, which wants an object to ask."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _text(metrics: Iterable[Metric]) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - of the extra local

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    return generate_latest(registry)


def _gauge(name: str, about: str, values: Mapping[str, float] | float, *, label: str = "") -> Metric:
    """Return a metric with one value, or with one for each value of a label."""
    from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - of the extra local

    if not isinstance(values, Mapping):
        return GaugeMetricFamily(name, about, value=values)
    family = GaugeMetricFamily(name, about, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counter(name: str, about: str, values: Mapping[str, float] | float, *, label: str = "") -> Metric:
    """Return the same for what only grows; ``_total`` is added to its name."""
    from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415 - of the extra local

    if not isinstance(values, Mapping):
        return CounterMetricFamily(name, about, value=values)
    family = CounterMetricFamily(name, about, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _labelled(metrics: Iterable[Metric], **labels: str) -> Iterator[Metric]:
    """Put labels on every sample: to Prometheus all sandboxes of a server are one target by their address."""
    for metric in metrics:
        metric.samples = [sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples]
        yield metric


def _about(server: Server) -> Iterator[Metric]:
    from prometheus_client.metrics_core import InfoMetricFamily  # noqa: PLC0415 - of the extra local

    what = {"version": _version.__version__, "instance": server.ledger.instance}
    yield InfoMetricFamily("asyncsandbox_server", "The server that answers", value=what)
    yield _gauge("asyncsandbox_start_time_seconds", "When the server started, Unix time", server.started_at)


def _sandboxes(server: Server) -> Iterator[Metric]:
    counts = {status.value: 0 for status in SandboxStatus if status is not SandboxStatus.DELETED}
    for sandbox in server.sandboxes.listed():
        counts[sandbox.status.value] += 1
    yield _gauge("asyncsandbox_sandboxes", "Sandboxes by status", counts, label="status")


def _jobs(server: Server) -> Iterator[Metric]:
    states = server.ledger.jobs.count_states()
    yield _gauge(
        "asyncsandbox_jobs",
        "Jobs whose records are kept, by state",
        {state.value: states[state] for state in JobState},
        label="state",
    )
    admission = server.admission
    yield _gauge("asyncsandbox_queue_length", "Jobs that wait to be started", admission.waiting)
    yield _gauge("asyncsandbox_busy_jobs", "Running jobs that want a core", admission.wanting)
    yield _gauge("asyncsandbox_busy_slots", "Busy jobs beyond which none is started", admission.slots)


def _runs(server: Server) -> Iterator[Metric]:
    runs = server.jobs.tally
    yield _counter(
        "asyncsandbox_job_starts",
        "Jobs and executions accepted, by kind",
        {kind.value: runs.accepted[kind] for kind in JobKind},
        label="kind",
    )
    yield _counter("asyncsandbox_processes_started", "Jobs whose process was made", runs.started)
    yield _counter(
        "asyncsandbox_job_ends",
        "Jobs and executions that ended, by state",
        {state.value: runs.ended[state] for state in JobState if state.finished},
        label="state",
    )
    yield _counter("asyncsandbox_output_bytes", "Bytes that ended jobs wrote", runs.output_bytes)


def _requests(tallies: Iterable[tuple[str, str, RouteTally]]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - of the extra local
        CounterMetricFamily,
        HistogramMetricFamily,
    )

    requests = CounterMetricFamily(
        "asyncsandbox_http_requests",
        "Requests by method, route and class of status",
        labels=["method", "route", "status"],
    )
    seconds = HistogramMetricFamily(
        "asyncsandbox_http_request_duration_seconds",
        "Seconds until an answer was there",
        labels=["method", "route"],
    )
    bounds = [*map(repr, BUCKETS), "+Inf"]
    for method, route, tally in tallies:
        for number, count in enumerate(tally.classes):
            if count:
                requests.add_metric([method, route, f"{number}xx"], count)
        below = itertools.accumulate(tally.buckets)
        seconds.add_metric([method, route], list(zip(bounds, below, strict=True)), tally.seconds)
    yield requests
    yield seconds


def _one_sandbox(server: Server, sandbox: SandboxRecord) -> Iterator[Metric]:
    from prometheus_client.metrics_core import SummaryMetricFamily  # noqa: PLC0415 - of the extra local

    runs = server.jobs.tally.of_sandbox(sandbox.id)
    states = dict.fromkeys((state.value for state in JobState), 0)
    for job in server.ledger.jobs.of_sandbox(sandbox.id):
        states[job.info.state.value] += 1
    prefix = "asyncsandbox_sandbox"
    yield _gauge(f"{prefix}_uptime_seconds", "Since it was made", time.time() - sandbox.created_at)
    yield _counter(f"{prefix}_requests", "Requests to its agent", server.requests[sandbox.id])
    yield _counter(f"{prefix}_errors", "Requests refused or failed", server.errors[sandbox.id])
    yield _gauge(f"{prefix}_jobs", "Jobs whose records are kept, by state", states, label="state")
    yield _counter(f"{prefix}_executions", "Jobs and executions accepted", runs.accepted)
    yield SummaryMetricFamily(
        f"{prefix}_execution_duration_seconds",
        "How long jobs and executions ran",
        count_value=runs.measured,
        sum_value=runs.seconds,
    )
