"""Templates: named Python environments that sandboxes are made from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from asyncsandbox.server import refusals

__all__ = ["DEFAULT_TEMPLATE", "Template", "TemplateError", "Templates"]

DEFAULT_TEMPLATE: Final = "code-interpreter"

_ALIASES: Final = ("base", "python")
"""Other names of the default template. The TypeScript CLI asks for "python" (contract 5.4)."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_ASK_SECONDS: Final = 20.0


class TemplateError(ValueError):
    """A template was configured that cannot be used."""


@attrs.frozen(kw_only=True)
class Template:
    """One environment.

    Attributes:
        id: a number as text, as the hosted service has them.
        name: what a create asks for.
        description: for people.
        python: path of its interpreter.
    """

    id: str
    name: str
    description: str
    python: str

    @property
    def bin_dir(self) -> Path:
        """Where its commands are."""
        return Path(self.python).parent


def _interpreter(name: str, path: str) -> str:
    """Return the interpreter behind a path, as it names itself.

    A shim of a version manager costs ten times as much at every job as what it stands for; the interpreter of
    a virtual environment names its own place there, which is what makes its packages found.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        place = place / "bin" / "python"
    if not place.is_file() or not os.access(place, os.X_OK):
        raise TemplateError(
            f"template {name!r}: {path} is no virtual environment and no interpreter ({place} cannot be run)"
        )
    try:
        answer = subprocess.run(  # noqa: S603 - the path is the operator's own
            [str(place), "-I", "-c", "import sys; print(sys.executable)"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise TemplateError(
            f"template {name!r}: {place} does not run as a Python interpreter: {exc}"
        ) from exc
    return answer.stdout.strip() or str(place)


class Templates:
    """The templates of one server.

    Args:
        extra: ``{name: path of a virtual environment or of an interpreter}``.

    Raises:
        TemplateError: a name or path that cannot be used.
    """

    def __init__(self, extra: Mapping[str, str]) -> None:
        paths = {DEFAULT_TEMPLATE: sys.executable}
        for name, path in extra.items():
            if not _NAME.fullmatch(name):
                raise TemplateError(
                    f"{name!r} is no name for a template; use letters, digits, '.', '_' and '-'"
                )
            paths[name] = _interpreter(name, path)
        self._by_name = {
            name: Template(id=str(number), name=name, description=f"Python at {python}", python=python)
            for number, (name, python) in enumerate(paths.items(), 1)
        }
        self._by_word = {template.id: template for template in self._by_name.values()} | self._by_name
        for alias in _ALIASES:
            self._by_word.setdefault(alias, self._by_name[DEFAULT_TEMPLATE])

    def __iter__(self) -> Iterator[Template]:
        return iter(self._by_name.values())

    def find(self, word: str) -> Template:
        """Return a template by name, alias or id.

        Raises:
            NotFoundError: there is none; the message names those that are.
        """
        template = self._by_word.get(word)
        if template is None:
            names = ", ".join(self._by_name)
            raise refusals.not_found(f"there is no template {word!r} here; there are: {names}")
        return template
