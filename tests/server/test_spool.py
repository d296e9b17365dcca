"""The spool: what a sink keeps is what a reader gets, at every moment."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsandbox.server import spool
from asyncsandbox.server.launcher.ring import Cut, Layout, cut_path
from asyncsandbox.server.launcher.sink import INLINE_LIMIT, Sink


def read_all(path: str, step: int) -> list[tuple[int, bytes]]:
    """Read a stream to its end in steps; return the pieces with their offsets, joined where they meet."""
    found: list[tuple[int, bytes]] = []
    offset = 0
    while (piece := spool.read(path, offset=offset, limit=step)).data:
        assert len(piece.data) <= step
        if found and found[-1][0] + len(found[-1][1]) == piece.offset:
            found[-1] = (found[-1][0], found[-1][1] + piece.data)
        else:
            found.append((piece.offset, piece.data))
        offset = piece.next_offset
    return found


def expected_pieces(data: bytes, limit: int) -> list[tuple[int, bytes]]:
    """Return what is kept of `data`: the model."""
    if len(data) <= limit:
        return [(0, data)] if data else []
    head, tail = limit - limit // 2, limit // 2
    low = max(head, len(data) - tail)
    kept = [(0, data[:head])] + ([(low, data[low:])] if tail else [])
    if low == head:
        kept = [(0, data)]
    return [piece for piece in kept if piece[1]]


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 60), max_size=30),
    limit=st.integers(0, 64),
    step=st.integers(1, 100),
    spill_after=st.integers(0, 30),
)
def test_kept_are_head_and_tail(sizes: list[int], limit: int, step: int, spill_after: int) -> None:
    """Whatever is written in whatever pieces, the first and last halves of the limit are read back."""
    data = bytes(n % 251 for n in range(sum(sizes)))
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/stream"
        sink, done = Sink(path, limit), 0
        for n, size in enumerate(sizes):
            if n == spill_after:
                sink.spill()
            sink.write(data[done : done + size])
            done += size
        assert sink.size == len(data)
        if (inline := sink.inline) is not None:
            assert inline == data
            assert not Path(path).exists()
            sink.spill()
        assert read_all(path, step) == expected_pieces(data, limit)
        assert spool.is_cut(path) == (len(data) > limit)
        assert spool.read(path, offset=0, limit=1).size == len(data)
        if Path(path).exists():
            assert Path(path).stat().st_size <= limit


def test_little_stays_in_memory_and_much_goes_to_the_file(tmp_path: Path) -> None:
    """No file is made up to the inline limit; the next byte makes one with everything in it."""
    path = str(tmp_path / "stream")
    sink = Sink(path, 10 * INLINE_LIMIT)
    sink.write(b"x" * INLINE_LIMIT)
    assert sink.inline == b"x" * INLINE_LIMIT
    assert not Path(path).exists()
    sink.write(b"y")
    assert sink.inline is None
    assert Path(path).read_bytes() == b"x" * INLINE_LIMIT + b"y"


def test_missing_file_is_an_empty_stream(tmp_path: Path) -> None:
    """A job that wrote nothing has no file, and reads as nothing."""
    path = str(tmp_path / "none")
    nothing = spool.SpoolPiece(data=b"", offset=0, next_offset=0, size=0)
    assert spool.read(path, offset=5, limit=10) == spool.tail(path, 10) == nothing
    assert not spool.is_cut(path)
    spool.remove(path)


def test_reads_of_a_plain_file_are_slices(tmp_path: Path) -> None:
    """Below the limit offset and limit mean what they say; beyond the end there is nothing."""
    path = str(tmp_path / "stream")
    spool.write(path, b"0123456789")
    piece = spool.read(path, offset=2, limit=3)
    assert (piece.data, piece.offset, piece.next_offset, piece.size) == (b"234", 2, 5, 10)
    piece = spool.read(path, offset=50, limit=3)
    assert (piece.data, piece.offset, piece.next_offset, piece.size) == (b"", 10, 10, 10)
    assert spool.tail(path, 4).data == b"6789"
    assert spool.tail(path, 40).data == b"0123456789"
    assert spool.tail(path, 0).data == b""


def test_reads_in_the_cut_go_on_after_it(tmp_path: Path) -> None:
    """The head ends a piece; an offset in the dropped middle becomes the first byte of the tail."""
    path = str(tmp_path / "stream")
    sink = Sink(path, 10)
    sink.write(b"0123456789abcdefghij")
    piece = spool.read(path, offset=3, limit=100)
    assert (piece.data, piece.offset, piece.next_offset) == (b"34", 3, 15)
    piece = spool.read(path, offset=5, limit=3)
    assert (piece.data, piece.offset, piece.next_offset) == (b"fgh", 15, 18)
    assert spool.read(path, offset=9, limit=100).data == b"fghij"
    assert spool.tail(path, 3).data == b"hij"
    assert spool.tail(path, 8).data == b"fghij"
    assert spool.tail(path, 18).data == b"fghij"
    assert spool.tail(path, 0).data == b""


def test_write_replaces_and_remove_removes(tmp_path: Path) -> None:
    """A stored inline output is private; removing takes the cut file along."""
    path = str(tmp_path / "stream")
    sink = Sink(path, 4)
    sink.write(b"0123456789")
    assert spool.is_cut(path)
    spool.remove(path)
    assert list(tmp_path.iterdir()) == []
    spool.write(path, b"new")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["stream"]


def test_damaged_cut_file_is_an_error(tmp_path: Path) -> None:
    """A cut file that makes no sense is not taken for a good one."""
    path = str(tmp_path / "stream")
    spool.write(path, b"x")
    Path(cut_path(path)).write_bytes(bytes(Cut.SIZE))
    with pytest.raises(OSError, match="is damaged"):
        spool.read(path, offset=0, limit=1)
    assert Cut.unpack(b"short") is None


def test_empty_cut_file_says_nothing(tmp_path: Path) -> None:
    """A cut file without content is one that the writer has just made: the stream is still plain."""
    path = str(tmp_path / "stream")
    spool.write(path, b"0123456789")
    Path(cut_path(path)).touch()
    assert spool.read(path, offset=2, limit=3).data == b"234"
    assert spool.tail(path, 3).data == b"789"
    assert not spool.is_cut(path)


def test_interrupted_write_reads_as_before_it(tmp_path: Path) -> None:
    """A writer that died after it gave up old bytes, and before it told of new ones, leaves no wrong byte."""
    path = str(tmp_path / "stream")
    sink = Sink(path, 10)
    sink.write(b"0123456789")
    sink.spill()
    Path(cut_path(path)).write_bytes(Cut(Layout(5, 5), total=10, low=13).pack())
    piece = spool.read(path, offset=5, limit=10)
    assert (piece.data, piece.offset, piece.next_offset, piece.size) == (b"", 10, 10, 10)
    assert spool.read(path, offset=0, limit=10).data == b"01234"


@pytest.mark.parametrize("limit", [4096, 64 * 1024])
def test_reader_never_sees_overwritten_bytes(tmp_path: Path, limit: int) -> None:
    """While a writer overwrites as fast as it can, each byte that is read is the one of its offset."""
    path = str(tmp_path / "stream")
    # The byte at an offset is its number of blocks of 1,021 bytes, so that each lap of the ring differs.
    period = b"".join(bytes([n]) * 1021 for n in range(256))
    source = period + period
    total, chunk = 24 * 1024 * 1024, 5000
    finished = threading.Event()

    def flood() -> None:
        sink = Sink(path, limit)
        sink.spill()
        for offset in range(0, total, chunk):
            begin = offset % len(period)
            sink.write(source[begin : begin + chunk])
        finished.set()

    writer = threading.Thread(target=flood)
    writer.start()
    offset, looks = 0, 0
    try:
        while not finished.is_set():
            piece = spool.read(path, offset=offset, limit=3000)
            begin = piece.offset % len(period)
            assert piece.data == source[begin : begin + len(piece.data)]
            assert offset <= piece.offset
            assert piece.next_offset >= piece.offset + len(piece.data)
            tail = spool.tail(path, 500)
            begin = tail.offset % len(period)
            assert tail.data == source[begin : begin + len(tail.data)]
            offset = piece.next_offset
            looks += 1
    finally:
        writer.join()
    assert looks
