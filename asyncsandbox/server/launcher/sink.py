"""Where one stream of one job goes: memory while it is little, then its spool file."""

from __future__ import annotations

import os

from asyncsandbox.server.launcher.ring import Cut, Layout, cut_path

__all__ = ["INLINE_LIMIT", "Sink"]

INLINE_LIMIT = 16 * 1024


class Sink:
    """Takes the bytes of a stream in order and keeps the first and the last half of `limit`.

    Files are opened for each write: a thousand running jobs would hold two thousand descriptors otherwise.

    Attributes:
        size: bytes that came; after a failure, those that are safe.
    """

    __slots__ = ("_held", "_layout", "_limit", "_path", "_spilled", "_stored", "size")

    def __init__(self, path: str, limit: int) -> None:
        self.size = 0
        self._path = path
        self._limit = limit
        self._layout = Layout.of_limit(limit)
        self._held = bytearray()
        self._stored = 0
        self._spilled = False

    @property
    def inline(self) -> bytes | None:
        """All that came, when no file was made; None otherwise."""
        return None if self._stored else bytes(self._held)

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            OSError: the spool file cannot be written.
        """
        if not data:
            return
        self.size += len(data)
        if self._spilled:
            self._store(data)
            return
        self._held += data
        if len(self._held) > min(INLINE_LIMIT, self._limit):
            self.spill()

    def spill(self) -> None:
        """Put what is held into the file, and from now on everything that comes.

        Raises:
            OSError: the spool file cannot be written.
        """
        self._spilled = True
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            self._store(held)

    def _store(self, data: bytes) -> None:
        start, stop = self._stored, self._stored + len(data)
        try:
            if stop <= self._limit:
                self._put(start, [(start, stop)], data)
            else:
                self._overwrite(start, stop, data)
        except OSError:
            self.size = start
            raise
        self._stored = stop

    def _overwrite(self, start: int, stop: int, data: bytes) -> None:
        layout = self._layout
        low = max(layout.head, stop - layout.tail)
        # Readers must learn that old bytes go before they go, and of new ones only once they are there.
        self._publish(Cut(layout, total=start, low=low))
        self._put(start, [(start, min(stop, layout.head)), (max(start, low), stop)], data)
        self._publish(Cut(layout, total=stop, low=low))

    def _put(self, base: int, ranges: list[tuple[int, int]], data: bytes) -> None:
        view = memoryview(data)
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for start, stop in ranges:
                for first, last, place in self._layout.runs(start, stop):
                    _write_all(fd, view[first - base : last - base], place)
        finally:
            os.close(fd)

    def _publish(self, cut: Cut) -> None:
        fd = os.open(cut_path(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, memoryview(cut.pack()), 0)
        finally:
            os.close(fd)


def _write_all(fd: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(fd, data, place)
        data = data[written:]
        place += written
