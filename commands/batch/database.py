"""The file behind a manifest: SQLite with short transactions, for one writer of many threads and any reader."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from ..messages import Stop

FILE = "manifest.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows(
  key TEXT PRIMARY KEY, position INTEGER, line INTEGER, run INTEGER, name TEXT COLLATE NOCASE UNIQUE, "values" TEXT,
  models TEXT, text TEXT, need INTEGER, state TEXT, worker TEXT, lease REAL, failures INTEGER DEFAULT 0,
  losses INTEGER DEFAULT 0, finished REAL, seconds REAL, measured TEXT, error TEXT, refused TEXT DEFAULT '')
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON rows(state, position);
CREATE INDEX IF NOT EXISTS alike ON rows(state, models, position);
CREATE INDEX IF NOT EXISTS twins ON rows(state, models, text, position);
CREATE TABLE IF NOT EXISTS files(key TEXT, number INTEGER, name TEXT, sha256 TEXT, bytes INTEGER,
  PRIMARY KEY(key, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folded(name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bad(line INTEGER, reason TEXT);
CREATE TABLE IF NOT EXISTS workers(name TEXT PRIMARY KEY, state TEXT, doing TEXT, since REAL, pictures INTEGER)
  WITHOUT ROWID;
"""


def address_of(path: PurePath) -> str:
    """The address of a file for SQLite, which takes no server in it: a Windows share is a path of two slashes."""
    address = (path.resolve() if isinstance(path, Path) else path).as_uri()
    return address if address.startswith("file:///") else address.replace("file://", "file:////", 1)


class Database:
    """The manifest's file in ``folder``; with ``read_only`` nothing is changed and nothing has to be free."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder, self.path = folder, folder / FILE
        self._lock = threading.RLock()
        if read_only and not self.path.is_file():
            raise Stop(f"There is no batch in {folder}: it has no {FILE}. Give the folder that --out named.")
        address = f"{address_of(self.path)}{'?mode=ro' if read_only else ''}"
        try:
            self._db = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=30.0)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
                if "refused" not in {column[1] for column in self._db.execute("PRAGMA table_info(rows)")}:
                    self._db.execute("ALTER TABLE rows ADD COLUMN refused TEXT DEFAULT ''")
        except sqlite3.DatabaseError as error:
            raise Stop(
                f"{self.path} cannot be opened ({error}). Put a copy in its place, or give another --out."
            ) from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def writing(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; ``durable`` ones, and all before them, survive a power cut."""
        with self._lock:
            if durable:
                self._db.execute("PRAGMA synchronous=FULL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            finally:
                if durable:
                    self._db.execute("PRAGMA synchronous=NORMAL")

    def read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def iterate(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query one by one, over a connection of its own: for lists of any length."""
        db = sqlite3.connect(f"{address_of(self.path)}?mode=ro", uri=True, timeout=30.0)
        try:
            yield from db.execute(query, values)
        finally:
            db.close()

    # What the whole batch is

    def get(self, name: str, default: Any = None) -> Any:
        """A fact about the whole batch."""
        found = self.read("SELECT value FROM meta WHERE name=?", name)
        return json.loads(found[0][0]) if found else default

    def set(self, name: str, value: Any) -> None:
        """Note a fact about the whole batch."""
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, json.dumps(value)))
