"""How a stream's head and tail share one spool file: pure arithmetic, for the writer and the readers.

A stream has logical offsets: bytes that the job wrote. The first `head` of them are at their own place in the
file; the rest goes round in the `tail` bytes after that. Until the first byte is overwritten the file is
simply the plain output. From then on a small *cut file* beside it says what is still there.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator

__all__ = ["Cut", "Layout", "cut_path"]

_CUT = struct.Struct("<4QI")


def cut_path(path: str) -> str:
    """Return where the cut file of the spool file `path` is."""
    return f"{path}.ring"


class Layout:
    """Where the bytes of one stream go.

    Attributes:
        head: how many of the first bytes are kept.
        tail: how many of the last bytes are kept.
    """

    __slots__ = ("head", "tail")

    def __init__(self, head: int, tail: int) -> None:
        self.head = head
        self.tail = tail

    @classmethod
    def of_limit(cls, limit: int) -> Layout:
        """Return the layout that keeps `limit` bytes: the first half and the last half."""
        return cls(limit - limit // 2, limit // 2)

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield ``(start, stop, place)`` for each stretch of the logical range that is whole in the file."""
        while start < stop:
            if start < self.head:
                place, end = start, min(stop, self.head)
            else:
                place = self.head + (start - self.head) % self.tail
                end = min(stop, start + self.head + self.tail - place)
            yield start, end, place
            start = end


class Cut:
    """What a stream still has, once its middle was dropped.

    The writer raises `low` before it overwrites anything and `total` after it wrote, so that
    ``[0, layout.head)`` and ``[low, total)`` are good at every moment.

    Attributes:
        layout: where the bytes are.
        total: bytes that the job wrote.
        low: the first logical offset after the head that is still there; never more than `total` for readers.
    """

    SIZE = _CUT.size

    __slots__ = ("layout", "low", "total")

    def __init__(self, layout: Layout, *, total: int, low: int) -> None:
        self.layout = layout
        self.total = total
        self.low = low

    def pack(self) -> bytes:
        """Return the content of the cut file."""
        fields = (self.layout.head, self.layout.tail, self.total, self.low)
        return _CUT.pack(*fields, _check(fields))

    @classmethod
    def unpack(cls, raw: bytes) -> Cut | None:
        """Return what `raw` says; None when it was read in the middle of a write."""
        if len(raw) != _CUT.size:
            return None
        head, tail, total, low, check = _CUT.unpack(raw)
        if check != _check((head, tail, total, low)):
            return None
        return cls(Layout(head, tail), total=total, low=min(low, total))


def _check(fields: tuple[int, ...]) -> int:
    return binascii.crc32(repr(fields).encode())
