"""What jobs wrote, as it is, from a stream of events to our own streams."""

from __future__ import annotations

from collections.abc import AsyncIterable, Collection

from asyncsandbox.cli._output import note, write_output
from asyncsandbox.models import OutputEvent, StreamName

__all__ = ["pass_through"]


async def pass_through(
    events: AsyncIterable[OutputEvent], *, wanted: Collection[StreamName] = ("stdout", "stderr")
) -> None:
    """Write the wanted streams byte for byte, and say where the server had dropped something.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    expected: dict[StreamName, int] = dict.fromkeys(wanted, 0)
    dropped: dict[StreamName, int] = {}
    try:
        async for event in events:
            if event.stream not in expected:
                continue
            if event.offset > expected[event.stream]:
                dropped[event.stream] = dropped.get(event.stream, 0) + event.offset - expected[event.stream]
            expected[event.stream] = event.offset + len(event.data)
            await write_output(event.stream, event.data)
    finally:
        for stream, count in dropped.items():
            note(f"{stream} lacks {count} bytes in its middle: the job wrote more than its server keeps")
