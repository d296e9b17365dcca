"""The environment variables that the jobs of one sandbox start with."""

from __future__ import annotations

from collections.abc import Mapping

from asyncsandbox import protocol
from asyncsandbox.agent import Agent
from asyncsandbox.errors import InvalidRequestError
from asyncsandbox.protocol import Request

__all__ = ["Environment"]


class Environment:
    """Variables of a sandbox. A change holds for jobs that are started after it.

    Protocol: ``/env`` (agent API 3.2; contract 2.11).
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def get_all(self) -> dict[str, str]:
        """Return all variables."""
        reply = await self._agent.call(protocol.get("/env"), what="reading the environment")
        variables = protocol.json_object(reply).get("env_vars")
        return dict(variables) if isinstance(variables, Mapping) else {}

    async def get(self, name: str, default: str | None = None) -> str | None:
        """Return one variable; `default` when it is not set."""
        return (await self.get_all()).get(name, default)

    async def update(self, variables: Mapping[str, str]) -> None:
        """Set some variables and keep the others."""
        await self._send("PATCH", variables)

    async def set(self, name: str, value: str) -> None:
        """Set one variable."""
        await self.update({name: value})

    async def set_all(self, variables: Mapping[str, str]) -> None:
        """Set these variables and drop all others."""
        await self._send("PUT", variables)

    async def delete(self, name: str) -> None:
        """Drop one variable; one that is not set is fine.

        Not atomic: the contract has no call for one variable, so this reads all and writes the rest back.
        """
        variables = await self.get_all()
        if variables.pop(name, None) is not None:
            await self.set_all(variables)

    async def clear(self) -> None:
        """Drop all variables."""
        await self._agent.call(
            Request(method="DELETE", path="/env", repeatable=True), what="clearing the environment"
        )

    async def _send(self, method: str, variables: Mapping[str, str]) -> None:
        if not isinstance(variables, Mapping):
            raise InvalidRequestError(f"variables are given as a mapping, not as {type(variables).__name__}")
        for name, value in variables.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise InvalidRequestError(
                    f"environment variables are strings, but {name!r} is to be a {type(value).__name__}"
                )
        body = {"env_vars": dict(variables)}
        request = Request(method=method, path="/env", json=body, repeatable=True)
        await self._agent.call(request, what="changing the environment")
