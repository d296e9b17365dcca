"""Starts the supervisor without site-packages: ``python -I -S bootstrap.py FD SANDBOX_ID [sweep]``.

The packages above `supervisor` import what is not there (attrs) and what is not needed. Bare packages with
the same names and paths take their place, so that its modules have one name, here and in the server.
"""

from __future__ import annotations

import sys
import types

if __name__ == "__main__":
    # No pathlib: importing it would take longer than all the rest here.
    directory = __file__.rpartition("/")[0]
    for name in ("asyncsandbox.server.launcher", "asyncsandbox.server", "asyncsandbox"):
        package = types.ModuleType(name)
        package.__path__ = [directory]
        sys.modules[name] = package
        directory = directory.rpartition("/")[0]

    from asyncsandbox.server.launcher.supervisor import main

    main(sys.argv[1:])
