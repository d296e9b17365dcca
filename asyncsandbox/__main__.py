"""The command ``asyncsandbox``, and ``python -m asyncsandbox``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from asyncsandbox import cli  # noqa: PLC0415 - it is an extra, and may be missing
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit(
            f"asyncsandbox: the command line needs {exc.name}, which is not installed: "
            "pip install 'asyncsandbox[cli]'"
        )
    cli.main()


if __name__ == "__main__":
    main()
