"""Runs that call back when they have ended (contract 2.6)."""

from __future__ import annotations

from typing import Final

from asyncsandbox.server.openapi.operations import Operation, Reply, json_body
from asyncsandbox.server.openapi.running import IDEMPOTENCY_KEY
from asyncsandbox.server.openapi.schemas import (
    INTEGER,
    STRINGS,
    TEXT,
    TIME,
    choice,
    nullable,
    record,
    reference,
    with_note,
)

__all__ = ["OPERATIONS", "SCHEMAS"]

SCHEMAS: Final = {
    "CallbackRequest": {
        "allOf": [
            reference("CodeRequest"),
            record(
                {"callback_url": with_note(TEXT, "Absolute, http or https: where to post when it has ended")},
                {
                    "callback_headers": with_note(nullable(STRINGS), "Sent along"),
                    "callback_signature_secret": with_note(nullable(TEXT), "Signs what is posted"),
                },
            ),
        ]
    },
    "Delivery": record(
        {
            "execution_id": TEXT,
            "process_id": TEXT,
            "delivery_id": TEXT,
            "callback_url": TEXT,
            "state": choice(["waiting", "pending", "delivered", "given_up"]),
            "attempts": INTEGER,
            "last_status": nullable(INTEGER),
            "last_error": nullable(TEXT),
            "next_attempt_at": nullable(TIME),
            "expires_at": nullable(TIME),
            "delivered_at": nullable(TIME),
            "given_up_at": nullable(TIME),
        }
    ),
}

OPERATIONS: Final = (
    Operation(
        route="POST /execute/async",
        summary="Start code in the background and call back when it has ended",
        parameters=[IDEMPOTENCY_KEY],
        body=json_body(
            reference("CallbackRequest"),
            example={"code": "print(6 * 7)", "callback_url": "http://127.0.0.1:9/"},
        ),
        replies={
            200: Reply(
                description="It has been accepted",
                schema={"allOf": [reference("Started"), record({"callback_url": TEXT})]},
            )
        },
        refusals=(400, 403, 404, 409, 410),
    ),
    Operation(
        route="GET /execute/async/{execution_id}",
        summary="Say how far the callback of a run got (ours)",
        replies={200: Reply(description="What is known of it", schema=reference("Delivery"))},
    ),
)
