"""How a program in one of the four languages is run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from asyncsandbox.server import refusals

__all__ = ["LANGUAGES", "Language", "Toolchains", "find_language"]


@attrs.frozen(kw_only=True)
class Language:
    """One language.

    Attributes:
        name: what records say.
        suffix: of its script files.
        tool: the program that runs it, found on the server's ``PATH``; None = the template's Python.
        path_variable: the variable that names directories to import from; None = there is none.
        hint: what to install where `tool` is missing.
    """

    name: str
    suffix: str
    tool: str | None = None
    path_variable: str | None = None
    hint: str = ""


_PYTHON: Final = Language(name="python", suffix=".py", path_variable="PYTHONPATH")
_JAVASCRIPT: Final = Language(
    name="javascript", suffix=".js", tool="node", path_variable="NODE_PATH", hint="install Node.js"
)
_BASH: Final = Language(name="bash", suffix=".sh", tool="bash", hint="install bash")
_GO: Final = Language(name="go", suffix=".go", tool="go", hint="install the Go toolchain")

LANGUAGES: Final[Mapping[str, Language]] = {
    **dict.fromkeys(("python", "python3", "py"), _PYTHON),
    **dict.fromkeys(("javascript", "js", "node", "nodejs"), _JAVASCRIPT),
    **dict.fromkeys(("bash", "sh", "shell"), _BASH),
    **dict.fromkeys(("go", "golang"), _GO),
}
"""By every name that a client may use (contract 2.2)."""

_BUILD_AND_RUN: Final = 'go=$1 src=$2 bin=$3; shift 3; "$go" build -o "$bin" "$src" && exec "$bin" "$@"'
"""``go run`` hides the program's own exit code behind 1; a program that was built and exec'ed has its own."""


def find_language(word: str) -> Language:
    """Return a language by one of its names.

    Raises:
        InvalidRequestError: there is no such language here.
    """
    language = LANGUAGES.get(word.lower())
    if language is None:
        known = ", ".join(dict.fromkeys(language.name for language in LANGUAGES.values()))
        raise refusals.invalid(f"language {word!r} is not known here; use one of: {known}")
    return language


class Toolchains:
    """The programs that run the languages, found once."""

    def __init__(self) -> None:
        self._tools: dict[str, str] = {}

    def available(self) -> list[str]:
        """Return the names of the languages that can run here."""
        languages = dict.fromkeys(LANGUAGES.values())
        return [language.name for language in languages if language.tool is None or self._find(language.tool)]

    def argv(self, language: Language, *, python: str, script: str, args: Sequence[str]) -> list[str]:
        """Return the command line that runs a script.

        Args:
            language: of the script.
            python: the template's interpreter.
            script: its path.
            args: what follows it.

        Raises:
            InvalidRequestError: the toolchain is missing.
        """
        if language.tool is None:
            # Unbuffered, so that what a killed job printed is there.
            return [python, "-u", script, *args]
        tool = self._find(language.tool)
        if tool is None:
            have = ", ".join(self.available())
            raise refusals.invalid(
                f"language {language.name!r} cannot run here: {language.tool!r} is not on the server's PATH; "
                f"{language.hint}, or use one of: {have}"
            )
        if language is _GO:
            return ["/bin/sh", "-c", _BUILD_AND_RUN, "sh", tool, script, f"{script}.bin", *args]
        return [tool, script, *args]

    def _find(self, tool: str) -> str | None:
        """Return the real path of a tool: a version manager's shim would cost its start at every job."""
        if tool not in self._tools:
            found = shutil.which(tool)
            if found is None:
                return None
            self._tools[tool] = os.path.realpath(found)
        return self._tools[tool]
