"""What jobs wrote, wherever it lies: with the record when it is little, else in the spool file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

from asyncsandbox.models import StreamName
from asyncsandbox.server import spool
from asyncsandbox.server.engine import Engine
from asyncsandbox.server.ledger import Ledger
from asyncsandbox.server.records import JobKind, JobRecord

__all__ = ["SMALL_OUTPUT", "Outputs", "Pair", "Piece"]

log = logging.getLogger(__name__)

SMALL_OUTPUT: Final = 16 * 1024
"""Bytes of a stream up to which a list holds it."""

_READ_SIZE: Final = 1024 * 1024

Pair = tuple[bytes | None, bytes | None]
"""stdout and stderr; None = not here."""

_NOTHING: Final[Pair] = (None, None)


@attrs.frozen(kw_only=True)
class Piece:
    """A piece of output.

    Attributes:
        data: the bytes.
        offset: where they really start.
        next_offset: where to go on.
        size: bytes written so far.
        eof: whether nothing will follow.
    """

    data: bytes
    offset: int
    next_offset: int
    size: int
    eof: bool


class Outputs:
    """Reads output of jobs.

    Args:
        ledger: has what was kept with records.
        engine: knows where the spool files are.
    """

    def __init__(self, ledger: Ledger, engine: Engine) -> None:
        self._ledger = ledger
        self._engine = engine
        self._held: dict[str, Pair] = {}

    def hold(self, process_id: str, pair: Pair) -> None:
        """Keep the output of an execution until its answer; it is never stored."""
        self._held[process_id] = pair

    def release(self, process_id: str) -> None:
        """Forget it."""
        self._held.pop(process_id, None)

    def sizes(self, record: JobRecord) -> tuple[int, int]:
        """Return how much a job has spooled; what cannot be read counts as nothing."""
        stdout, stderr = self._paths(record)
        return _spooled(stdout), _spooled(stderr)

    def small(self, records: Iterable[JobRecord], *, budget: int) -> dict[str, tuple[JobRecord, Pair]]:
        """Return records with their output as far as it is small, until `budget` bytes are used up.

        Of a running job that is the end of what it has written so far, and its record says how much that is.
        """
        chosen = list(records)
        kept = self._ledger.outputs([record.process_id for record in chosen if record.finished])
        rows: dict[str, tuple[JobRecord, Pair]] = {}
        for record in chosen:
            shown, pair = record, _NOTHING
            if budget > 0:
                shown, pair = self._small(record, kept.get(record.process_id, _NOTHING))
                budget -= sum(len(data) for data in pair if data is not None)
            rows[record.process_id] = (shown, pair)
        return rows

    def is_spooled(self, record: JobRecord, stream: StreamName) -> bool:
        """Whether reading a stream of a finished job means reading a file."""
        return self._kept(record, stream) is None

    def read(self, record: JobRecord, stream: StreamName, *, offset: int, limit: int) -> Piece:
        """Return a piece of one stream. Blocks for as long as the disk does.

        Args:
            record: of the job.
            stream: which.
            offset: where to start; negative = so many bytes before the end.
            limit: at most so many bytes.
        """
        kept = self._kept(record, stream)
        if kept is not None:
            start = min(max(0, offset if offset >= 0 else len(kept) + offset), len(kept))
            data = kept[start : start + limit]
            stop = start + len(data)
            return Piece(data=data, offset=start, next_offset=stop, size=len(kept), eof=stop == len(kept))
        path = str(self._engine.output_path(record.sandbox_id, record.process_id, stream))
        if offset < 0:
            offset = max(0, spool.tail(path, 0).size + offset)
        got = spool.read(path, offset=offset, limit=limit)
        eof = record.finished and got.next_offset >= got.size
        return Piece(data=got.data, offset=got.offset, next_offset=got.next_offset, size=got.size, eof=eof)

    def whole(self, record: JobRecord, stream: StreamName) -> bytes:
        """Return all that is kept of one stream of a finished job. Blocks for as long as the disk does."""
        pieces: list[bytes] = []
        offset = 0
        while True:
            piece = self.read(record, stream, offset=offset, limit=_READ_SIZE)
            pieces.append(piece.data)
            if piece.eof or piece.next_offset <= offset:
                return b"".join(pieces)
            offset = piece.next_offset

    def _small(self, record: JobRecord, kept: Pair) -> tuple[JobRecord, Pair]:
        info = record.info
        if record.finished:
            return record, (
                self._small_stream(record, "stdout", info.stdout_size or 0, kept[0]),
                self._small_stream(record, "stderr", info.stderr_size or 0, kept[1]),
            )
        if not record.launched:
            return record, (b"", b"")
        stdout, stderr = (spool.tail(path, SMALL_OUTPUT) for path in self._paths(record))
        info = attrs.evolve(info, stdout_size=stdout.size, stderr_size=stderr.size)
        return attrs.evolve(record, info=info), (stdout.data, stderr.data)

    def _small_stream(
        self, record: JobRecord, stream: StreamName, size: int, kept: bytes | None
    ) -> bytes | None:
        if size == 0:
            return b""
        if kept is not None or size > SMALL_OUTPUT:
            return kept
        path = self._engine.output_path(record.sandbox_id, record.process_id, stream)
        return spool.read(str(path), offset=0, limit=SMALL_OUTPUT).data

    def _kept(self, record: JobRecord, stream: StreamName) -> bytes | None:
        if not record.finished:
            return None
        size = record.info.stdout_size if stream == "stdout" else record.info.stderr_size
        if size == 0:
            return b""
        process_id = record.process_id
        if record.kind is JobKind.EXECUTION:
            pair = self._held.get(process_id, _NOTHING)
        else:
            pair = self._ledger.outputs([process_id]).get(process_id, _NOTHING)
        return pair[0 if stream == "stdout" else 1]

    def _paths(self, record: JobRecord) -> tuple[str, str]:
        where: list[Path] = [
            self._engine.output_path(record.sandbox_id, record.process_id, "stdout"),
            self._engine.output_path(record.sandbox_id, record.process_id, "stderr"),
        ]
        return str(where[0]), str(where[1])


def _spooled(path: str) -> int:
    try:
        return spool.tail(path, 0).size
    except OSError:
        log.exception("the output of a job cannot be read")
        return 0
