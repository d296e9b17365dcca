"""What handlers work with: the parts of one server, put together once."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

import attrs
from aiohttp import web

from asyncsandbox.server.admission import Admission
from asyncsandbox.server.config import ServerConfig
from asyncsandbox.server.engine import Engine
from asyncsandbox.server.engine.local import LocalEngine
from asyncsandbox.server.jobs import JobEvents, Jobs
from asyncsandbox.server.launcher import LaunchEvents
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.machine import Machine
from asyncsandbox.server.outputs import Outputs
from asyncsandbox.server.sandboxes import Sandboxes
from asyncsandbox.server.store import Store
from asyncsandbox.server.tally import RequestTally
from asyncsandbox.server.templates import Templates
from asyncsandbox.server.webhooks import DeliveryPolicy, Webhooks

__all__ = ["SERVER", "Server"]

_SLOTS_PER_CORE: Final = 2
"""A job that reads or writes for a moment leaves its core to another; more only pushes each other about."""


@attrs.frozen(kw_only=True)
class Server:
    """The parts of one server.

    Attributes:
        config: its settings.
        templates: what sandboxes are made from.
        ledger: all records.
        engine: where sandboxes live.
        outputs: what jobs wrote.
        jobs: what runs.
        sandboxes: what it runs in.
        webhooks: who is told of ends.
        resources: what a sandbox has here: all that the machine has.
        started_at: Unix time.
        requests: calls of each sandbox's agent.
        errors: those of them that were refused or failed.
        admission: who waits to start.
        machine: what it runs on.
        tally: every request, by its route.
        streams: open WebSockets of each sandbox's agent.
    """

    config: ServerConfig
    templates: Templates
    ledger: Ledger
    engine: Engine
    outputs: Outputs
    jobs: Jobs
    sandboxes: Sandboxes
    webhooks: Webhooks
    resources: Mapping[str, int]
    admission: Admission
    machine: Machine
    tally: RequestTally = attrs.field(factory=RequestTally)
    started_at: float = attrs.field(factory=time.time)
    requests: Counter[str] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    streams: Counter[str] = attrs.field(factory=Counter)

    @classmethod
    def make(cls, config: ServerConfig) -> Server:
        """Put a server together on what its state directory holds, and go on where an earlier one stopped.

        Raises:
            TemplateError: a template cannot be used.
            StoreError: the records cannot be read.
            OSError: the state directory is not usable.
        """
        templates = Templates(config.templates)
        ledger = Ledger(Store(config.state_dir / "records.sqlite"))

        def events(sandbox_id: str) -> LaunchEvents:
            return JobEvents(jobs, sandbox_id)

        engine = LocalEngine(config, templates, events)
        outputs = Outputs(ledger, engine)
        slots = config.slots or _SLOTS_PER_CORE * (os.cpu_count() or 1)
        admission = Admission(slots=slots, max_running=config.max_running)
        jobs = Jobs(
            ledger=ledger,
            engine=engine,
            outputs=outputs,
            admission=admission,
            output_limit=config.output_limit,
        )
        sandboxes = Sandboxes(config=config, ledger=ledger, engine=engine, jobs=jobs, templates=templates)
        policy = DeliveryPolicy(floor=config.callback_floor, cap=config.callback_cap)
        webhooks = Webhooks(ledger, outputs, policy=policy)
        jobs.on_end = webhooks.job_ended
        webhooks.recover()
        sandboxes.recover()
        jobs.recover()
        return cls(
            config=config,
            templates=templates,
            ledger=ledger,
            engine=engine,
            outputs=outputs,
            jobs=jobs,
            sandboxes=sandboxes,
            webhooks=webhooks,
            resources=_resources(config),
            admission=admission,
            machine=Machine(config.state_dir),
        )

    async def close(self) -> None:
        """End every process and close the records. At the next start what ran is lost, the rest goes on."""
        await self.sandboxes.close()
        await self.engine.close()
        await self.webhooks.close()
        self.ledger.close()


SERVER: Final = web.AppKey("server", Server)


def _resources(config: ServerConfig) -> dict[str, int]:
    mebibyte = 1024 * 1024
    return {
        "vcpu": os.cpu_count() or 1,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mebibyte,
        "disk_mb": shutil.disk_usage(config.state_dir).total // mebibyte,
    }
