"""Generated requests to a real server, against its own OpenAPI document.

No 5xx, no status and no field that the document does not know, no hang. What is sent follows from the document
alone, so a run can be repeated; ``ASYNCSANDBOX_FUZZ_EXAMPLES`` (``nox -s fuzz -- --long``) makes it longer.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from asyncsandbox.server.openapi import document

_EXAMPLES = int(os.environ.get("ASYNCSANDBOX_FUZZ_EXAMPLES", "40"))

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    missing_required_header,
    negative_data_rejection,
    unsupported_method,
]

_LONGEST_KEY = 255
_HARMFUL = ("/pause", "/stop", "/start", "/resume", "/timeout")

schema = schemathesis.openapi.from_dict(document())
schema.config.generation.update(with_security_parameters=False)


def _draw(value: object, sides: int) -> bool:
    """Throw a die that falls the same way in every run."""
    return zlib.crc32(repr(value).encode(errors="replace")) % sides == 0


def _aim(case: schemathesis.Case, server: Any) -> None:
    """Let most requests go to what is there; every eighth keeps the id that was generated."""
    harmful = case.method == "DELETE" or case.path.endswith(_HARMFUL)
    real = {
        "sandbox_id": lambda: server.sandbox_id,
        "id": lambda: server.victim() if harmful else server.sandbox_id,
        "process_id": server.job,
        "name": lambda: "base",
        "since": server.cursor,
        "path": lambda: server.file,
    }
    for name, value in (case.path_parameters or {}).items():
        if name in real and not _draw(value, 8):
            case.path_parameters[name] = real[name]()
    for name, value in (case.query or {}).items():
        # What was made wrong on purpose stays wrong, and nothing removes what other requests need.
        if name in ("since", "path") and isinstance(value, str) and not harmful and _draw(value, 2):
            case.query[name] = real[name]()
    key = (case.headers or {}).get("Idempotency-Key")
    if key and len(key) <= _LONGEST_KEY and not _draw(case.body, 4):
        del case.headers["Idempotency-Key"]  # the generator is fond of one word: most would be conflicts


@schema.parametrize()
@settings(
    max_examples=_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_the_server_answers_as_its_document_says(
    case: schemathesis.Case, server: Any, harmless_session: Any
) -> None:
    """Whatever the document allows, and much that it does not."""
    _aim(case, server)
    case.call_and_validate(base_url=server.url, session=harmless_session, checks=_CHECKS)


def test_the_server_is_well_after_all_of_this(server: Any) -> None:
    """It still runs code, in the sandbox that had all of the requests."""
    assert server.is_well


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (
            {"code": "import os; os.remove('x')", "env": {"BASH_ENV": "$(rm x)"}},
            {"code": "pass", "env": {"FUZZ_BASH_ENV": "$(rm x)"}},
        ),
        ({"command": "rm", "args": ["x"]}, {"command": "true", "args": ["x"]}),
        ({"command": "rm x", "env_vars": {"PATH": "."}}, {"command": "true", "env_vars": {"FUZZ_PATH": "."}}),
        ({"code": 5, "command": " ", "env": {"": ""}}, {"code": 5, "command": " ", "env": {"": ""}}),
        ({"callback_url": "https://example.org/x"}, {"callback_url": "http://127.0.0.1:9/"}),
        ({"callback_url": "no url"}, {"callback_url": "no url"}),
        (["rm"], ["rm"]),
    ],
)
def test_no_generated_program_is_ever_sent(make_harmless: Any, body: Any, sent: Any) -> None:
    """Not as code, not as a command, not as a variable that an interpreter obeys; and no other machine is called."""
    assert make_harmless(body) == sent
