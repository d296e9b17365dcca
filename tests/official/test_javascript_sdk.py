"""``@hopx-ai/sdk``, unmodified: `checks.mjs` runs it, and each of its checks is a test here (contract 4.2, 5.3)."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

_CHECKS = (
    "health_check",
    "templates",
    "info",
    "list_and_iter",
    "connect",
    "pause_and_resume",
    "connect_when_paused",
    "timeout_and_expiry",
    "tokens",
    "no_refresh_storm",
    "kill",
    "bad_key",
    "unknown_sandbox",
    "unknown_template",
    "unknown_process",
    "unknown_file",
    "forbidden_path",
    "bad_language",
    "execution_timeout",
    "run_code",
    "run_code_that_fails",
    "working_dir",
    "background",
    "many_in_the_background",
    "kill_process",
    "run_code_async",
    "run_code_stream",
    "watch_files",
    "terminal",
    "commands",
    "files",
    "file_bytes",
    "file_overwrite",
    "upload",
    "env",
    "cache",
    "agent",
    "system_processes",
)


@pytest.mark.parametrize("check", _CHECKS)
def test_javascript_sdk(node_checks: dict[str, dict[str, Any]], check: str) -> None:
    """The official JavaScript client finds what it needs."""
    line = node_checks[check]
    assert line["ok"], line.get("error")


def test_every_check_of_the_javascript_sdk_is_a_test(node_checks: dict[str, dict[str, Any]]) -> None:
    """No check of the program is forgotten here."""
    listed = {check if isinstance(check, str) else check.values[0] for check in _CHECKS}
    assert set(node_checks) == listed
