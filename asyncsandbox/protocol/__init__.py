"""The wire, as pure functions: values to requests, replies to values, refusals to errors.

The client and the server both import this module, so that what one writes the other reads. Sources are named
beside the facts: *O* the published OpenAPI files (control plane 2025-10-21, agent 3.2.8), *D* the published
documentation, *V* observed by running the official clients, *ours* an extension that a server announces in
``GET /health`` as ``features.asyncsandbox = {name: version}`` and that is used only where announced.
"""

from asyncsandbox.protocol._control import (
    FEATURES,
    TokenGrant,
    create_sandbox,
    decode_features,
    decode_sandbox,
    decode_template,
    decode_templates,
    decode_token,
    list_sandboxes,
    rows_of,
    sandbox_path,
    template_path,
)
from asyncsandbox.protocol._errors import decode_error, encode_error, retry_after
from asyncsandbox.protocol._files import decode_files
from asyncsandbox.protocol._messages import IDEMPOTENCY_KEY, FormPart, Lane, Reply, Request, get, json_object
from asyncsandbox.protocol._processes import (
    EOF_HEADER,
    NEXT_OFFSET_HEADER,
    OFFSET_HEADER,
    PROCESSES,
    ProcessList,
    ProcessRow,
    decode_output,
    decode_process,
    decode_processes,
    encode_process,
    kill,
    list_processes,
    process_path,
    read_output,
)
from asyncsandbox.protocol._running import (
    BACKGROUND,
    RUN_TIMED_OUT,
    decode_execution,
    decode_execution_timeout,
    decode_started,
    encode_code,
    encode_command,
    needs_inputs,
    start,
)
from asyncsandbox.protocol._scalars import timestamp, unix_time
from asyncsandbox.protocol._system import METRICS, SYSTEM_PROCESSES, decode_metrics, decode_system_processes

__all__ = [
    "BACKGROUND",
    "EOF_HEADER",
    "FEATURES",
    "IDEMPOTENCY_KEY",
    "METRICS",
    "NEXT_OFFSET_HEADER",
    "OFFSET_HEADER",
    "PROCESSES",
    "RUN_TIMED_OUT",
    "SYSTEM_PROCESSES",
    "FormPart",
    "Lane",
    "ProcessList",
    "ProcessRow",
    "Reply",
    "Request",
    "TokenGrant",
    "create_sandbox",
    "decode_error",
    "decode_execution",
    "decode_execution_timeout",
    "decode_features",
    "decode_files",
    "decode_metrics",
    "decode_output",
    "decode_process",
    "decode_processes",
    "decode_sandbox",
    "decode_started",
    "decode_system_processes",
    "decode_template",
    "decode_templates",
    "decode_token",
    "encode_code",
    "encode_command",
    "encode_error",
    "encode_process",
    "get",
    "json_object",
    "kill",
    "list_processes",
    "list_sandboxes",
    "needs_inputs",
    "process_path",
    "read_output",
    "retry_after",
    "rows_of",
    "sandbox_path",
    "start",
    "template_path",
    "timestamp",
    "unix_time",
]
