"""What `run` is to run: files, the text of programs, standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from asyncsandbox.errors import InvalidRequestError
from asyncsandbox.models import JobSpec

__all__ = ["Item", "read_items"]

_LANGUAGES: Final = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".sh": "bash",
    ".bash": "bash",
    ".go": "go",
}

_STDIN: Final = "-"

_FILE_NAME: Final = re.compile(rf"[\w./~+-]+({'|'.join(re.escape(suffix) for suffix in _LANGUAGES)})")
"""What is meant as the name of a file, there or not: no program that does anything looks like this."""


@attrs.frozen(kw_only=True, eq=False)
class Item:
    """One argument of `run`. The same program given twice is two items.

    Attributes:
        label: what to call it for people.
        file: the path that was given; None for code and for standard input.
        spec: what to start; None when it cannot be.
        error: why it cannot be.
    """

    label: str
    file: str | None = None
    spec: JobSpec | None = None
    error: InvalidRequestError | None = None


def read_items(sources: Sequence[str], *, language: str | None, name: str | None) -> list[Item]:
    """Read every argument. One that cannot be run holds back no other: it says why in its `error`.

    Args:
        sources: paths, programs, or ``-``.
        language: of all of them; None = as each file's name says, else "python".
        name: of all of them; None = each file's own.
    """
    return [_read_item(source, language=language, name=name) for source in sources]


def _read_item(source: str, *, language: str | None, name: str | None) -> Item:
    file = source if source != _STDIN and _names_file(source) else None
    label = name or _label(source, file)
    try:
        if file is not None:
            spec = JobSpec(_read_file(file), language=language or _guess(file), name=label)
        else:
            code = _decode(sys.stdin.buffer.read()) if source == _STDIN else source
            spec = JobSpec(code, language=language, name=name)
    except InvalidRequestError as exc:
        return Item(label=label, file=file, error=exc)
    return Item(label=label, file=file, spec=spec)


def _label(source: str, file: str | None) -> str:
    if source == _STDIN:
        return "stdin"
    return source.strip() or "code" if file is None else Path(file).name or file


def _names_file(source: str) -> bool:
    return os.path.exists(source) or _FILE_NAME.fullmatch(source) is not None  # noqa: PTH110 - no path may raise


def _read_file(path: str) -> str:
    try:
        return _decode(Path(path).read_bytes())
    except OSError as exc:
        raise InvalidRequestError(f"cannot be read: {exc.strerror}") from exc


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"is no UTF-8 text: {exc.reason} at byte {exc.start}") from exc


def _guess(path: str) -> str:
    language = _LANGUAGES.get(Path(path).suffix.lower())
    if language is None:
        known = " ".join(_LANGUAGES)
        raise InvalidRequestError(f"its name says no language ({known}); give --language")
    return language
