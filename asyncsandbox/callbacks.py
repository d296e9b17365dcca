"""Starting runs that call back, and taking in the callbacks."""

from __future__ import annotations

import logging
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from asyncsandbox import protocol
from asyncsandbox._tasks import Tasks
from asyncsandbox.agent import Agent
from asyncsandbox.errors import InvalidRequestError
from asyncsandbox.jobs import Job
from asyncsandbox.models import JobSpec
from asyncsandbox.protocol import ProcessRow
from asyncsandbox.starting import CLEAN_UP_GRACE
from asyncsandbox.tracking import Cell
from asyncsandbox.transport import is_url
from asyncsandbox.watcher import Watcher

if TYPE_CHECKING:  # it brings a web server along, which only those load who have a receiver
    from asyncsandbox.sandbox import Sandbox
    from asyncsandbox.webhooks import ExpectedCallback, WebhookReceiver

__all__ = ["CallbackStarter"]

_log = logging.getLogger("asyncsandbox.webhooks")

_WHAT: Final = "starting a run that calls back"


class CallbackStarter:
    """Starts runs of one sandbox that call back when they have ended."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        agent: Agent,
        watcher: Watcher,
        tasks: Tasks,
        receiver: WebhookReceiver | None,
    ) -> None:
        self._sandbox = sandbox
        self._agent = agent
        self._watcher = watcher
        self._tasks = tasks
        self._receiver = receiver

    async def start(
        self, spec: JobSpec, *, url: str | None, headers: Mapping[str, str] | None, secret: str | None
    ) -> Job:
        """Start one run. See `Sandbox.run_code_async`."""
        _check(url, headers, secret)
        if url is None and self._receiver is None:
            raise InvalidRequestError(
                "callback_url= is missing: say where the server is to post, or make the client with "
                "webhook=WebhookReceiver(...); run_code_background needs neither"
            )
        if url is None and secret is not None:
            raise InvalidRequestError(
                "callback_signature_secret= goes with callback_url=; the client's receiver has its own"
            )
        body = protocol.encode_code(spec)
        if needed := protocol.needs_inputs(body):
            await self._agent.require("inputs", what=f"{_WHAT}, with {', '.join(needed)}")
        return await self._tasks.run_or_undo(
            self._send(spec, body, url, headers, secret), Job.kill, name=_WHAT, grace=CLEAN_UP_GRACE
        )

    async def _send(
        self,
        spec: JobSpec,
        body: Mapping[str, Any],
        url: str | None,
        headers: Mapping[str, str] | None,
        secret: str | None,
    ) -> Job:
        if url is not None or self._receiver is None:
            cell, _ = await self._accepted(spec, body, url or "", headers, secret)
            return self._job(cell, spec)
        expected = self._receiver.expect()
        try:
            cell, row = await self._accepted(spec, body, expected.url, headers, expected.secret)
        except BaseException:
            expected.cancel()
            raise
        cell.calls_back = True
        expected.bind(_taker(self._watcher, cell, row.execution_id, expected))
        return self._job(cell, spec)

    def _job(self, cell: Cell, spec: JobSpec) -> Job:
        return Job(cell, watcher=self._watcher, sandbox=self._sandbox, spec=spec)

    async def _accepted(
        self,
        spec: JobSpec,
        body: Mapping[str, Any],
        url: str,
        headers: Mapping[str, str] | None,
        secret: str | None,
    ) -> tuple[Cell, ProcessRow]:
        """Send a start; return the cell of its job and the row that acknowledged it."""
        agent, board = self._agent, self._watcher.board(self._agent)
        body = {**body, **protocol.encode_callback_request(url, headers=headers, secret=secret)}
        key = uuid.uuid4().hex if await agent.announces("idempotency") else None
        listed = await agent.announces("webhooks")
        ticket = board.begin_start()
        try:
            reply = await agent.call(protocol.start(protocol.ASYNC, body, key=key), what=_WHAT)
            row = protocol.decode_accepted(reply, sandbox_id=agent.sandbox_id)
            row = attrs.evolve(row, info=attrs.evolve(row.info, name=row.info.name or spec.name))
            cell = self._watcher.track(board, row, started=True, collect=spec.collect)
            cell.listed = listed
        finally:
            board.end_start(ticket)
        return cell, row


def _taker(watcher: Watcher, cell: Cell, execution_id: str | None, expected: ExpectedCallback) -> Any:
    """Return what takes in the callback of a job. It keeps nothing alive that nobody else does."""
    reference = weakref.ref(cell, lambda _gone: expected.cancel())

    def take(body: Mapping[str, Any]) -> None:
        cell = reference()
        if cell is None:
            return
        told = body.get("execution_id")
        if execution_id is not None and told is not None and told != execution_id:
            # Signed by our secret, posted to this job's URL, and about another: looking settles it.
            _log.warning("the callback for %s came to the URL of %s; it is ignored", told, execution_id)
            cell.calls_back = False
            return
        agent = cell.board.agent
        agent.channel.home.check()
        row = protocol.decode_callback(body, process_id=cell.process_id, sandbox_id=agent.sandbox_id)
        known = cell.info
        info = attrs.evolve(
            row.info,
            name=row.info.name or known.name,
            language=row.info.language or known.language,
            queued_at=known.queued_at if row.info.queued_at is None else row.info.queued_at,
            timeout=known.timeout if row.info.timeout is None else row.info.timeout,
        )
        watcher.called_back(cell, attrs.evolve(row, info=info))

    return take


def _check(url: object, headers: object, secret: object) -> None:
    if url is not None and not (isinstance(url, str) and is_url(url)):
        raise InvalidRequestError(f"callback_url must be an absolute http(s) URL, not {url!r}")
    if headers is not None and not (
        isinstance(headers, Mapping)
        and all(isinstance(name, str) and isinstance(value, str) for name, value in headers.items())
    ):
        raise InvalidRequestError("callback_headers must map strings to strings")
    if secret is not None and (not isinstance(secret, str) or not secret):
        raise InvalidRequestError("callback_signature_secret must be a string that is not empty")
