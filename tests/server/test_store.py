"""Records on disk: what goes in comes out, and nothing half."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from asyncsandbox.errors import APIError, ConflictError, InvalidRequestError
from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.server.jobtable import Ending, JobTable
from asyncsandbox.server.keys import KEY_LIFE, KeyTable, body_digest
from asyncsandbox.server.records import JobKind, Launch, SandboxStatus
from asyncsandbox.server.sandboxtable import SandboxTable
from asyncsandbox.server.store import Store, StoreError

_DONE = Ending(
    state=JobState.FAILED,
    reason=EndReason.SIGNAL,
    at=3.5,
    signal=9,
    stdout=b"\xff",
    stdout_size=1,
    stderr_size=99,
)


class _Tables:
    """All tables, saved together."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        stored = self.store.load()
        self.instance = stored.instance
        self.jobs = JobTable(stored.jobs, stored.tombstones, next_seq=stored.next_seq)
        self.sandboxes = SandboxTable(stored.sandboxes, stored.tokens)
        self.keys = KeyTable(stored.keys)

    def save(self) -> None:
        self.store.save(
            jobs=self.jobs.changes,
            sandboxes=self.sandboxes.changes,
            keys=self.keys.changed,
            next_seq=self.jobs.next_seq,
        )

    def reopen(self, path: Path) -> _Tables:
        self.save()
        self.store.close()
        return _Tables(path)

    def add(self, process_id: str, sandbox_id: str = "s") -> None:
        info = JobInfo(
            process_id=process_id, sandbox_id=sandbox_id, name="n", timeout=1.5, state=JobState.QUEUED
        )
        launch = Launch(argv=["a", "b"], env={"K": "v"}, cwd="/", stdin="/in", inputs=["/x"])
        self.jobs.add(info, kind=JobKind.COMMAND, launch=launch)


def test_everything_survives(tmp_path: Path) -> None:
    """Records, output, tokens, keys and the number of the next change."""
    path = tmp_path / "records"
    tables = _Tables(path)
    sandbox = tables.sandboxes.add(
        id="s", template="t", template_id="1", created_at=1.0, env={"A": "1"}, status=SandboxStatus.PAUSED
    )
    token, _expires = tables.sandboxes.grant("s", now=10.0)
    tables.add("queued")
    tables.add("done")
    tables.jobs.mark_launched("done")
    tables.jobs.finish("done", _DONE)
    tables.keys.record("s", "key", "digest", "done")
    before = tables.jobs.of_sandbox("s")
    again = tables.reopen(path)
    assert again.instance == tables.instance
    assert again.jobs.next_seq == tables.jobs.next_seq
    assert again.jobs.of_sandbox("s") == before
    assert again.sandboxes.get("s") == sandbox
    assert again.sandboxes.opens(token, "s", now=11.0)
    assert again.keys.find("s", "key", "digest") == "done"
    assert again.store.outputs(["done", "queued"]) == {"done": (b"\xff", None)}
    again.store.close()


def test_removals_survive(tmp_path: Path) -> None:
    """A record goes with its output; that it was removed is remembered."""
    path = tmp_path / "records"
    tables = _Tables(path)
    tables.add("a")
    tables.jobs.finish("a", _DONE)
    tables = tables.reopen(path)
    tables.jobs.remove("a")
    tables = tables.reopen(path)
    assert tables.jobs.get("a") is None
    assert tables.jobs.is_removed("s", "a")
    assert tables.store.outputs(["a"]) == {}
    tables.store.close()


def test_a_dropped_sandbox_leaves_no_row(tmp_path: Path) -> None:
    """Jobs, output, removals, tokens and keys go with it."""
    path = tmp_path / "records"
    tables = _Tables(path)
    tables.sandboxes.add(id="s", template="t", template_id="1", created_at=1.0)
    tables.sandboxes.grant("s", now=1.0)
    for name in ("a", "b"):
        tables.add(name)
        tables.jobs.finish(name, _DONE)
    tables.keys.record("s", "key", "digest", "a")
    tables = tables.reopen(path)
    tables.jobs.remove("a")
    tables = tables.reopen(path)
    tables.jobs.drop_sandbox("s")
    tables.sandboxes.remove("s")
    tables.keys.forget_scope("s")
    tables.save()
    tables.store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        names = ["sandboxes", "tokens", "jobs", "outputs", "keys", "tombstones"]
        assert [db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names] == [0] * 6
    db.close()


def test_a_failed_save_writes_nothing(tmp_path: Path) -> None:
    """And the next one works."""
    path = tmp_path / "records"
    tables = _Tables(path)
    tables.add("a")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tables.store._db.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(StoreError, match="cannot be written"):
        tables.save()
    other.execute("ROLLBACK")
    assert other.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    other.close()
    tables.save()
    tables.store.close()


def test_records_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    """The message says what to do."""
    path = tmp_path / "records"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"format 99.*newer version"):
        Store(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Nothing in it is touched."""
    path = tmp_path / "records"
    path.write_text("this is a text, and has been one for longer than any header of a database is")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(path)
    assert path.read_text().startswith("this is a text")


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    """A record that cannot be read is not guessed at."""
    path = tmp_path / "records"
    tables = _Tables(path)
    tables.add("a")
    tables.save()
    tables.store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE jobs SET info = '{'")
    db.close()
    store = Store(path)
    with pytest.raises(StoreError, match="cannot be read"):
        store.load()
    store.close()


def test_a_key_gives_the_same_answer_and_no_other() -> None:
    """Another body is refused; so is a key for something that was removed."""
    keys = KeyTable()
    digest, other = body_digest({"a": 1, "b": 2}), body_digest({"a": 2})
    assert digest == body_digest({"b": 2, "a": 1})
    assert keys.find("s", "k", digest) is None
    keys.record("s", "k", digest, "job")
    assert keys.find("s", "k", digest) == "job"
    assert keys.find("elsewhere", "k", digest) is None
    with pytest.raises(ConflictError) as conflict:
        keys.find("s", "k", other)
    assert conflict.value.code == "IDEMPOTENCY_CONFLICT"
    keys.mark_gone("job", 100.0)
    with pytest.raises(APIError) as gone:
        keys.find("s", "k", digest)
    assert (gone.value.status, gone.value.code) == (410, "GONE")


def test_no_key_is_no_promise() -> None:
    """Two starts without one are two starts."""
    keys = KeyTable()
    keys.record("s", None, "d", "job")
    assert keys.find("s", None, "d") is None
    assert keys.changed == {}


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_senseless_key_is_refused(key: str) -> None:
    """Empty ones would collapse what does not belong together."""
    with pytest.raises(InvalidRequestError, match="Idempotency-Key"):
        KeyTable().find("s", key, "d")


def test_keys_are_forgotten_a_day_after_what_they_made() -> None:
    """Not before, and a start that failed takes its key along."""
    keys = KeyTable()
    for name in ("a", "b"):
        keys.record("s", name, "d", name)
    keys.mark_gone("a", 0.0)
    keys.mark_gone("b", KEY_LIFE)
    with pytest.raises(APIError):
        keys.find("s", "a", "d")
    keys.mark_gone("nothing", KEY_LIFE + 1)
    assert keys.find("s", "a", "d") is None
    keys.record("s", "c", "d", "c")
    keys.forget("c")
    keys.forget("c")
    assert keys.find("s", "c", "d") is None
    assert keys.changed["s", "c"] is None


def test_tokens_open_their_own_sandbox_until_they_expire() -> None:
    """Earlier ones stay good beside later ones; expired ones are dropped at the next grant."""
    table = SandboxTable()
    table.add(id="s", template="t", template_id="1", created_at=0.0)
    first, expires = table.grant("s", now=0.0)
    second, _ = table.grant("s", now=1.0)
    assert table.opens(first, "s", now=2.0)
    assert table.opens(second, "s", now=2.0)
    assert not table.opens(first, "other", now=2.0)
    assert not table.opens("guess", "s", now=2.0)
    assert not table.opens(first, "s", now=expires)
    table.changes_saved()
    table.grant("s", now=expires)
    assert None in table.changes.tokens.values()
    assert first not in repr(table.changes)
