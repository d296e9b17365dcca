"""Shell commands in one sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import InvalidRequestError
from asyncsandbox.jobs import Job
from asyncsandbox.models import DEFAULT_TIMEOUT, ExecutionResult, JobSpec
from asyncsandbox.protocol import Request
from asyncsandbox.starting import Starter
from asyncsandbox.streaming import RunStream

__all__ = ["Commands", "run_to_end"]

_REPLY_GRACE: Final = 30.0
"""Seconds beyond a run's own time-out in which a stock server must have answered."""

_QUEUE_GRACE: Final = 300.0
"""The same for ours, where a run may wait for its turn first."""


class Commands:
    """Runs commands in a sandbox: a line for ``bash``, or a program with `args` and no shell."""

    def __init__(self, agent: Agent, starter: Starter) -> None:
        self._agent = agent
        self._starter = starter

    @staticmethod
    def _body(
        command: str,
        *,
        args: Sequence[str] | None,
        timeout: float,
        env: Mapping[str, str] | None,
        working_dir: str | None,
        name: str | None = None,
    ) -> dict[str, object]:
        if timeout is None:
            raise InvalidRequestError("a command's timeout is a number of seconds, not None")
        if not isinstance(command, str) or not command.strip():
            raise InvalidRequestError(
                "the command is empty; give a line for the shell, or a program and args="
            )
        # A spec checks the rest just as it does for code.
        spec = JobSpec(command, args=args or (), timeout=timeout, env=env, working_dir=working_dir, name=name)
        return protocol.encode_command(
            command,
            args=None if args is None else spec.args,
            timeout=DEFAULT_TIMEOUT if spec.timeout is None else spec.timeout,
            env=spec.env,
            working_dir=working_dir,
            name=name,
        )

    async def run(
        self,
        command: str,
        *,
        args: Sequence[str] | None = None,
        timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> ExecutionResult:
        """Run a command, wait for its end, and return what it gave. Another exit code than 0 raises nothing.

        Args:
            command: a line for ``bash -c``; with `args`, a program.
            args: the program's arguments; None = `command` is a shell line.
            timeout: seconds that it may run.
            env: variables for this run, on top of the sandbox's.
            working_dir: where it runs; None = ``/workspace``.

        Cancellation: our server ends the command; others let it run to its end.

        Protocol: ``POST /commands/run`` (agent API 3.2; contract 2.7).
        """
        body = self._body(command, args=args, timeout=timeout, env=env, working_dir=working_dir)
        request = Request(method="POST", path="/commands/run", json=body, lane="hold")
        return await run_to_end(self._agent, request, timeout=timeout, what="running a command")

    def stream(
        self,
        command: str,
        *,
        args: Sequence[str] | None = None,
        timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> RunStream:
        """Run a command and read its output as it is written. Arguments as for `run`.

        Returns:
            An async iterator of `StreamOutput`s and a last `StreamResult`, and a context manager that ends the
            command when it is left; see `RunStream`.

        Protocol: WebSocket ``/commands/stream`` (agent API 3.2 without shapes; contract 2.7, 2.8).
        """
        body = self._body(command, args=args, timeout=timeout, env=env, working_dir=working_dir)
        frame = protocol.command_frame(body)
        return RunStream(
            self._agent, protocol.COMMAND_STREAM, frame, timeout=timeout, what="streaming a command"
        )

    async def run_background(
        self,
        command: str,
        *,
        args: Sequence[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        name: str | None = None,
    ) -> Job:
        """Start a command as a background job and return its handle. Arguments as for `run`, and `name`.

        Protocol: ``POST /commands/background`` (agent API 3.2; contract 2.7).
        """
        body = self._body(command, args=args, timeout=timeout, env=env, working_dir=working_dir, name=name)
        return await self._starter.start("/commands/background", body, spec=None)


async def run_to_end(agent: Agent, request: Request, *, timeout: float, what: str) -> ExecutionResult:
    """Send a request that is answered when the run has ended, and read the answer.

    Raises:
        APIError: the server refused to run it. That it ran too long, or failed, is a result.
    """
    grace = _QUEUE_GRACE if await agent.announces("record") else _REPLY_GRACE
    reply = await agent.call(request, what=what, timeout=timeout + grace, accept=(protocol.RUN_TIMED_OUT,))
    if reply.status == protocol.RUN_TIMED_OUT:
        result = protocol.decode_execution_timeout(reply, timeout=timeout)
        if result is None:
            raise protocol.decode_error(reply, what=what)
        return result
    return protocol.decode_execution(reply, timeout=timeout)
