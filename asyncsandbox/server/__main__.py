"""``python -m asyncsandbox.server``: the embedded server."""

from __future__ import annotations

import sys

from asyncsandbox.server.embedded import main

if __name__ == "__main__":
    sys.exit(main())
