"""Start the official command line with ``HOPX_BASE_URL`` as the default of every method of its SDK.

``hopx run`` and ``hopx system`` drop the base URL and ask the hosted service; this is the first of the two ways
that contract 5.1 gives to take them elsewhere.
"""

from __future__ import annotations

import os

from hopx_ai import AsyncSandbox, Sandbox
from hopx_cli.main import app

for _class in (Sandbox, AsyncSandbox):
    for _member in vars(_class).values():
        _defaults = getattr(getattr(_member, "__func__", _member), "__kwdefaults__", None)
        if _defaults and "base_url" in _defaults:
            _defaults["base_url"] = os.environ["HOPX_BASE_URL"]

app()
