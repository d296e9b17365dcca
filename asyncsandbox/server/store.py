"""Records on disk: one SQLite file, one writer, one transaction per group of changes."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from asyncsandbox.models import EndReason, JobInfo, JobState
from asyncsandbox.server.deliveries import Callback, Delivery, DeliveryState
from asyncsandbox.server.jobtable import JobChanges, Tombstone
from asyncsandbox.server.keys import KeyEntry
from asyncsandbox.server.records import JobKind, JobRecord, Launch, SandboxRecord, SandboxStatus
from asyncsandbox.server.sandboxtable import SandboxChanges, TokenRecord

__all__ = ["Store", "StoreError", "Stored"]

_VERSION: Final = 1
_CHUNK: Final = 500

_BUSY_SECONDS: Final = 0.5
"""Nobody else writes here; whoever copies the file meanwhile must not stop the server for long."""

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sandboxes (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (
    digest TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
    process_id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, kind TEXT NOT NULL, added INTEGER NOT NULL,
    seq INTEGER NOT NULL, launched INTEGER NOT NULL, info TEXT NOT NULL, launch TEXT);
CREATE INDEX jobs_by_sandbox ON jobs (sandbox_id);
CREATE TABLE outputs (process_id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, stdout BLOB, stderr BLOB);
CREATE INDEX outputs_by_sandbox ON outputs (sandbox_id);
CREATE TABLE keys (
    scope TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, target TEXT NOT NULL, gone_at REAL,
    PRIMARY KEY (scope, key)) WITHOUT ROWID;
CREATE TABLE tombstones (
    sandbox_id TEXT NOT NULL, process_id TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, process_id)) WITHOUT ROWID;
"""

_LATER_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS deliveries (execution_id TEXT PRIMARY KEY, record TEXT NOT NULL, body BLOB)",
)
"""What came after format 1. An older version overlooks them, so the format stays the same."""

_REMOVE_JOB: Final = (
    "DELETE FROM jobs WHERE process_id = ?",
    "DELETE FROM outputs WHERE process_id = ?",
)

_DROP_SANDBOX: Final = (
    "DELETE FROM jobs WHERE sandbox_id = ?",
    "DELETE FROM outputs WHERE sandbox_id = ?",
    "DELETE FROM tombstones WHERE sandbox_id = ?",
)


class StoreError(RuntimeError):
    """The records could not be read or written."""


@attrs.frozen(kw_only=True)
class Stored:
    """Everything that was there at the start.

    Attributes:
        instance: id of this state, for as long as its directory lives.
        next_seq: the number of the next change.
    """

    instance: str
    next_seq: int
    sandboxes: Sequence[SandboxRecord]
    tokens: Sequence[TokenRecord]
    jobs: Sequence[JobRecord]
    tombstones: Sequence[Tombstone]
    keys: Sequence[KeyEntry]
    deliveries: Sequence[Delivery] = ()


def _dump(record: Any) -> str:
    return json.dumps(attrs.asdict(record), separators=(",", ":"))


def _sandbox(text: str) -> SandboxRecord:
    values = json.loads(text)
    return SandboxRecord(**{**values, "status": SandboxStatus(values["status"])})


def _job(row: sqlite3.Row) -> JobRecord:
    values = json.loads(row["info"])
    reason = values["end_reason"]
    values |= {
        "state": JobState(values["state"]),
        "end_reason": None if reason is None else EndReason(reason),
    }
    return JobRecord(
        info=JobInfo(**values),
        kind=JobKind(row["kind"]),
        added=row["added"],
        seq=row["seq"],
        launched=bool(row["launched"]),
        launch=None if row["launch"] is None else Launch(**json.loads(row["launch"])),
    )


def _delivery(text: str) -> Delivery:
    values = json.loads(text)
    values |= {"state": DeliveryState(values["state"]), "callback": Callback(**values["callback"])}
    return Delivery(**values)


def _job_row(record: JobRecord) -> tuple[object, ...]:
    return (
        record.process_id,
        record.sandbox_id,
        record.kind.value,
        record.added,
        record.seq,
        record.launched,
        _dump(record.info),
        None if record.launch is None else _dump(record.launch),
    )


class Store:
    """The file.

    Args:
        path: where it is, or is to be made.

    Raises:
        StoreError: it cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        except sqlite3.Error as exc:
            raise StoreError(f"the records in {path} cannot be opened: {exc}") from exc
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()
        except sqlite3.Error as exc:
            self._db.close()
            raise StoreError(f"the records in {path} cannot be opened: {exc}") from exc
        except StoreError:
            self._db.close()
            raise

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StoreError(
                f"the records in {self._path} have format {version}, and this version of asyncsandbox knows "
                f"{_VERSION}; use a newer version, or another state directory"
            )
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")
        for statement in _LATER_TABLES:
            self._db.execute(statement)
        meta = [("instance", secrets.token_hex(8)), ("next_seq", "1")]
        self._db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta)

    def load(self) -> Stored:
        """Return everything.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            meta = {row["name"]: row["value"] for row in self._all("meta")}
            return Stored(
                instance=meta["instance"],
                next_seq=int(meta["next_seq"]),
                sandboxes=[_sandbox(row["record"]) for row in self._all("sandboxes")],
                tokens=[TokenRecord(**row) for row in map(dict, self._all("tokens"))],
                jobs=[_job(row) for row in self._all("jobs")],
                tombstones=[Tombstone(**row) for row in map(dict, self._all("tombstones"))],
                keys=[KeyEntry(**row) for row in map(dict, self._all("keys"))],
                deliveries=[_delivery(row[0]) for row in self._db.execute("SELECT record FROM deliveries")],
            )
        except (sqlite3.Error, KeyError, TypeError, ValueError) as exc:
            raise StoreError(f"the records in {self._path} cannot be read: {exc}") from exc

    def save(
        self,
        *,
        jobs: JobChanges,
        sandboxes: SandboxChanges,
        keys: Mapping[tuple[str, str], KeyEntry | None],
        next_seq: int,
        deliveries: Mapping[str, Delivery | None] = MappingProxyType({}),
        bodies: Mapping[str, bytes | None] = MappingProxyType({}),
    ) -> None:
        """Write a group of changes: all of them or none.

        Raises:
            StoreError: nothing was written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._save_sandboxes(sandboxes)
                self._save_jobs(jobs)
                self._save_keys(keys)
                self._save_deliveries(deliveries, bodies)
                self._db.execute("UPDATE meta SET value = ? WHERE name = 'next_seq'", (str(next_seq),))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            raise StoreError(f"the records in {self._path} cannot be written: {exc}") from exc

    def outputs(self, process_ids: Sequence[str]) -> dict[str, tuple[bytes | None, bytes | None]]:
        """Return the output that was kept with records, ``{id: (stdout, stderr)}``.

        Raises:
            StoreError: it cannot be read.
        """
        found: dict[str, tuple[bytes | None, bytes | None]] = {}
        try:
            for start in range(0, len(process_ids), _CHUNK):
                chunk = process_ids[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT process_id, stdout, stderr FROM outputs WHERE process_id IN ({marks})"  # noqa: S608
                found.update({row[0]: (row[1], row[2]) for row in self._db.execute(query, chunk)})
        except sqlite3.Error as exc:
            raise StoreError(f"the output in {self._path} cannot be read: {exc}") from exc
        return found

    def callback_body(self, execution_id: str) -> bytes | None:
        """Return what a callback is to post; None when there is nothing.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            query = "SELECT body FROM deliveries WHERE execution_id = ?"
            row = self._db.execute(query, (execution_id,)).fetchone()
        except sqlite3.Error as exc:
            raise StoreError(f"a callback in {self._path} cannot be read: {exc}") from exc
        return None if row is None else row[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _all(self, table: str) -> Iterator[sqlite3.Row]:
        return iter(self._db.execute(f"SELECT * FROM {table}"))  # noqa: S608 - a name from this file

    def _many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        listed = list(rows)
        if listed:  # most commits touch one table
            self._db.executemany(statement, listed)

    def _save_sandboxes(self, changes: SandboxChanges) -> None:
        kept = {key: record for key, record in changes.sandboxes.items() if record is not None}
        self._many(
            "INSERT OR REPLACE INTO sandboxes VALUES (?, ?)", ((key, _dump(kept[key])) for key in kept)
        )
        self._many(
            "DELETE FROM sandboxes WHERE id = ?", ((key,) for key in changes.sandboxes if key not in kept)
        )
        granted = [token for token in changes.tokens.values() if token is not None]
        self._many(
            "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?)",
            ((token.digest, token.sandbox_id, token.expires_at) for token in granted),
        )
        self._many(
            "DELETE FROM tokens WHERE digest = ?",
            ((key,) for key, token in changes.tokens.items() if not token),
        )

    def _save_jobs(self, changes: JobChanges) -> None:
        self._many(
            "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            map(_job_row, changes.saved.values()),
        )
        self._many(
            "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)",
            ((key, changes.saved[key].sandbox_id, *pair) for key, pair in changes.outputs.items()),
        )
        removed = [(key,) for key in changes.removed]
        for statement in _REMOVE_JOB:
            self._many(statement, removed)
        self._many(
            "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)",
            ((stone.sandbox_id, stone.process_id, stone.seq) for stone in changes.removed.values()),
        )
        dropped = [(key,) for key in changes.dropped_sandboxes]
        for statement in _DROP_SANDBOX:
            self._many(statement, dropped)

    def _save_keys(self, changes: Mapping[tuple[str, str], KeyEntry | None]) -> None:
        kept = [entry for entry in changes.values() if entry is not None]
        self._many(
            "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)",
            ((entry.scope, entry.key, entry.digest, entry.target, entry.gone_at) for entry in kept),
        )
        self._many(
            "DELETE FROM keys WHERE scope = ? AND key = ?",
            (key for key, entry in changes.items() if not entry),
        )

    def _save_deliveries(
        self, changes: Mapping[str, Delivery | None], bodies: Mapping[str, bytes | None]
    ) -> None:
        self._many(
            "INSERT INTO deliveries (execution_id, record) VALUES (?, ?) "
            "ON CONFLICT (execution_id) DO UPDATE SET record = excluded.record",
            ((key, _dump(entry)) for key, entry in changes.items() if entry is not None),
        )
        self._many(
            "UPDATE deliveries SET body = ? WHERE execution_id = ?",
            ((body, key) for key, body in bodies.items()),
        )
        self._many(
            "DELETE FROM deliveries WHERE execution_id = ?",
            ((key,) for key, entry in changes.items() if entry is None),
        )
