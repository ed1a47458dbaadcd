"""The manifest of a batch: what is asked, running, done and set aside, in one SQLite file in the output folder.

One driver at a time works on it; anybody may read it meanwhile. A row is claimed by a worker for a time (its lease) and
goes back when that has passed. What is told as done is on the disk: the commit that says so is synced.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..messages import Stop
from .records import Asked, Claim, FileRecord, Held

FILE = "manifest.sqlite"
ASKED, RUNNING, DONE, ASIDE = "asked", "running", "done", "set aside"
MOST_FAILURES, MOST_LOSSES = 3, 6
"""Times that a row fails, or that a worker ends while it paints that row alone, before the row is set aside."""
LEASE_SECONDS = 120.0
COMMIT_SECONDS = 0.1
"""How long a synced commit waits for more rows that are finished."""
LATER = 1_000_000_000_000
"""Added to the position of a row that comes back: what was not tried yet goes first."""

CLAIM = 'key, line, "values", models, text, name, failures, losses'
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows(
  key TEXT PRIMARY KEY, position INTEGER, line INTEGER, run INTEGER, name TEXT COLLATE NOCASE UNIQUE, "values" TEXT,
  models TEXT, text TEXT, need INTEGER, state TEXT, worker TEXT, lease REAL, failures INTEGER DEFAULT 0,
  losses INTEGER DEFAULT 0, finished REAL, seconds REAL, measured TEXT, error TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON rows(state, position);
CREATE INDEX IF NOT EXISTS alike ON rows(state, models, position);
CREATE INDEX IF NOT EXISTS twins ON rows(state, models, text, position);
CREATE TABLE IF NOT EXISTS files(key TEXT, number INTEGER, name TEXT, sha256 TEXT, bytes INTEGER,
  PRIMARY KEY(key, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bad(line INTEGER, reason TEXT);
CREATE TABLE IF NOT EXISTS workers(name TEXT PRIMARY KEY, state TEXT, doing TEXT, since REAL, pictures INTEGER)
  WITHOUT ROWID;
"""


class Manifest:
    """The manifest in ``folder``; with ``read_only`` nothing is changed and nothing has to be free."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder, self.path = folder, folder / FILE
        self._lock = threading.RLock()
        self._committing = threading.Lock()
        self._finished: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        if read_only and not self.path.is_file():
            raise Stop(f"There is no batch in {folder}: it has no {FILE}. Give the folder that --out named.")
        address = f"{self.path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
        try:
            self._db = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=30.0)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise Stop(f"{self.path} cannot be opened ({error}). Give another output folder.") from None

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
        db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
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

    # What is asked

    def begin_list(self) -> int:
        """Start reading a list of rows; returns the number of this run."""
        with self.writing() as db:
            db.execute("DELETE FROM bad")
        run = self.get("run", 0) + 1
        self.set("run", run)
        return run

    def ask(self, run: int, rows: Iterable[tuple[int, Asked]]) -> list[tuple[int, int]]:
        """Add rows (position, row); known ones stay. Returns (line, line of the same picture) of twins."""
        twins = []
        with self.writing() as db:
            for position, row in rows:
                known = db.execute("SELECT run, line FROM rows WHERE key=?", (row.key,)).fetchone()
                if known and known[0] == run:
                    twins.append((row.line, known[1]))
                elif known:
                    db.execute(
                        "UPDATE rows SET run=?, position=?, line=?, models=?, text=?, need=? WHERE key=?",
                        (run, position, row.line, row.models, row.text, row.need, row.key),
                    )
                else:
                    given = json.dumps(row.values, ensure_ascii=False)
                    values = (row.key, position, row.line, run, self._name(db, row), given)
                    db.execute(
                        'INSERT INTO rows(key, position, line, run, name, "values", models, text, need, state) '
                        "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (*values, row.models, row.text, row.need, ASKED),
                    )
        return twins

    def _name(self, db: sqlite3.Connection, row: Asked) -> str:
        taken = row.plain and (
            db.execute("SELECT 1 FROM rows WHERE name=?", (row.name,)).fetchone()
            or any(self.folder.glob(f"{_literal(row.name)}.*"))
        )
        return row.name if row.plain and not taken else f"{row.name}_{row.key[:10]}"

    def report_bad(self, rows: Iterable[tuple[int, str]]) -> None:
        """Note lines that cannot be painted, and why."""
        with self.writing() as db:
            db.executemany("INSERT INTO bad VALUES(?, ?)", rows)

    def end_list(self, run: int) -> int:
        """Forget what the list no longer asks for and is not done; returns how many rows that were."""
        with self.writing() as db:
            return db.execute("DELETE FROM rows WHERE run<>? AND state<>?", (run, DONE)).rowcount

    def ask_again(self, keys: Iterable[str]) -> None:
        """Rows whose files are gone, or were set aside, are painted anew."""
        with self.writing() as db:
            for key in keys:
                db.execute("DELETE FROM files WHERE key=?", (key,))
                db.execute("UPDATE rows SET state=?, failures=0, losses=0, worker=NULL WHERE key=?", (ASKED, key))

    # What is running

    def claim(
        self, worker: str, memory: int | None, held: Held | None = None, others: Iterable[Held] = (), alone: bool = True
    ) -> Claim | None:
        """A row for ``worker`` that fits ``memory`` bytes (None: any); suspects only for one that would be ``alone``.

        First one with the models and texts that it has loaded (``held``), then one of its models that shares no text
        with ``others``, then any of its models; then one whose models, or texts, no other worker holds, then any.
        """
        others = list(others)
        tries: list[tuple[str, Sequence[Any]]] = [("", ())]
        if others:
            models, texts = list({other.models for other in others}), list({other.text for other in others})
            tries.insert(0, (f" AND text NOT IN ({_marks(texts)})", texts))
            tries.insert(0, (f" AND models NOT IN ({_marks(models)})", models))
        if held:
            texts = list({other.text for other in others if other.models == held.models})
            same = [(" AND models=? AND text=?", held)]
            same += [(f" AND models=? AND text NOT IN ({_marks(texts)})", [held.models, *texts])] if texts else []
            tries = [*same, (" AND models=?", [held.models]), *tries]
        fits, size = ("", ()) if memory is None else (" AND need<=?", (memory,))
        fits += "" if alone else " AND losses=0"
        with self.writing() as db:
            for condition, values in tries:
                row = db.execute(
                    f"SELECT {CLAIM} FROM rows WHERE state=?{condition}{fits} ORDER BY position LIMIT 1",
                    (ASKED, *values, *size),
                ).fetchone()
                if row:
                    db.execute(
                        "UPDATE rows SET state=?, worker=?, lease=? WHERE key=?",
                        (RUNNING, worker, time.time() + LEASE_SECONDS, row[0]),
                    )
                    return _claim(row)
        return None

    def take_up(self, worker: str) -> list[Claim]:
        """The rows that ``worker`` was given by a driver that is gone; from now on they are its own again."""
        with self.writing() as db:
            lease = time.time() + LEASE_SECONDS
            db.execute("UPDATE rows SET lease=? WHERE state=? AND worker=?", (lease, RUNNING, worker))
        found = self.read(f"SELECT {CLAIM} FROM rows WHERE state=? AND worker=?", RUNNING, worker)
        return [_claim(row) for row in found]

    def renew(self, key: str) -> None:
        """The worker of a row lives: its lease begins anew."""
        with self.writing() as db:
            db.execute("UPDATE rows SET lease=? WHERE key=? AND state=?", (time.time() + LEASE_SECONDS, key, RUNNING))

    def give_back(self, key: str, lost: bool = False) -> None:
        """A row that nobody works on any more; ``lost`` ones were with a worker that ended, and go to the end.

        The first loss makes it a suspect and proves nothing: another row of that worker may have been at fault.
        """
        with self.writing() as db:
            db.execute(
                "UPDATE rows SET state=?, worker=NULL, losses=losses+?, position=position+? WHERE key=? AND state=?",
                (ASKED, int(lost), LATER * lost, key, RUNNING),
            )
            db.execute(
                "UPDATE rows SET state=?, error=? WHERE key=? AND losses>? AND state=?",
                (ASIDE, f"{MOST_LOSSES} workers ended while they painted it alone.", key, MOST_LOSSES, ASKED),
            )

    def give_back_others(self, workers: Iterable[str]) -> None:
        """Rows of workers that are not among ``workers`` go back: whoever held them is gone."""
        names = list(workers)
        with self.writing() as db:
            db.execute(
                f"UPDATE rows SET state=?, worker=NULL WHERE state=? AND worker NOT IN ({_marks(names)})",
                (ASKED, RUNNING, *names),
            )

    def give_back_expired(self) -> None:
        """Rows whose worker has not been heard of for a lease go back."""
        with self.writing() as db:
            db.execute("UPDATE rows SET state=?, worker=NULL WHERE state=? AND lease<?", (ASKED, RUNNING, time.time()))

    def fail(self, key: str, text: str) -> bool:
        """Note a failure; True where the row is set aside for it."""
        with self.writing() as db:
            db.execute(
                "UPDATE rows SET failures=failures+1, error=?, worker=NULL, position=position+?, "
                "state=CASE WHEN failures+1>=? THEN ? ELSE ? END WHERE key=? AND state=?",
                (text, LATER, MOST_FAILURES, ASIDE, ASKED, key, RUNNING),
            )
            return db.execute("SELECT state FROM rows WHERE key=?", (key,)).fetchone()[0] == ASIDE

    # What is done

    def note_files(self, key: str, files: Iterable[FileRecord]) -> bool:
        """Tell what the files of a row will be, before they are written; False where the row is done already."""
        with self.writing() as db:
            if db.execute("SELECT 1 FROM rows WHERE key=? AND state=?", (key, DONE)).fetchone():
                return False
            db.execute("DELETE FROM files WHERE key=?", (key,))
            db.executemany(
                "INSERT INTO files VALUES(?, ?, ?, ?, ?)",
                [(key, number, file.name, file.sha256, file.bytes) for number, file in enumerate(files, 1)],
            )
        return True

    def finish(
        self,
        key: str,
        worker: str,
        seconds: float | None,
        measured: Any = None,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Tell that every file of the row is on the disk, once ``sync`` has made their names durable.

        Rows that are finished within a moment share one synced commit.
        """
        told = None if measured is None else json.dumps(measured)
        self._finished.put((DONE, worker, seconds, told, time.time(), key))
        with self._committing:
            rows = [self._finished.get()] if not self._finished.empty() else []
            if rows:
                time.sleep(COMMIT_SECONDS)
                while not self._finished.empty():
                    rows.append(self._finished.get())
                sync()
                with self.writing(durable=True) as db:
                    db.executemany(
                        "UPDATE rows SET state=?, worker=COALESCE(NULLIF(?, ''), worker), seconds=?, measured=?, "
                        "finished=?, error=NULL WHERE key=?",
                        rows,
                    )

    def files(self, key: str) -> list[FileRecord]:
        """The files of a row, as they are or will be."""
        return [
            FileRecord(*row)
            for row in self.read("SELECT name, sha256, bytes FROM files WHERE key=? ORDER BY number", key)
        ]

    def counts(self) -> dict[str, int]:
        """How many rows are in each state, and ``bad`` lines."""
        found = dict(self.read("SELECT state, COUNT(*) FROM rows GROUP BY state"))
        bad = self.read("SELECT COUNT(*) FROM bad")[0][0]
        return {**{state: found.get(state, 0) for state in (ASKED, RUNNING, DONE, ASIDE)}, "bad": bad}

    def show_workers(self, workers: Iterable[tuple[str, str, str, float, int]]) -> None:
        """Replace what ``status`` tells of the workers: name, state, what it does, since when, pictures."""
        with self.writing() as db:
            db.execute("DELETE FROM workers")
            db.executemany("INSERT INTO workers VALUES(?, ?, ?, ?, ?)", workers)


def _claim(row: tuple[Any, ...]) -> Claim:
    return Claim(row[0], row[1], json.loads(row[2]), *row[3:])


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
