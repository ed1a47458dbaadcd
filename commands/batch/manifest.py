"""The manifest of a batch: what is asked, running, done and set aside, in one SQLite file in the output folder.

One driver at a time works on it; anybody may read it meanwhile. A row is claimed by a worker for a time (its lease) and
goes back when that has passed. What is told as done is on the disk: the commit that says so is synced.
"""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .database import Database
from .records import Asked, Claim, FileRecord, Held

ASKED, RUNNING, DONE, ASIDE = "asked", "running", "done", "set aside"
MOST_FAILURES, MOST_LOSSES = 3, 6
"""Times that a row fails, or that a worker ends while it paints that row alone, before the row is set aside."""
LEASE_SECONDS = 120.0
COMMIT_SECONDS = 0.1
"""How long a synced commit waits for more rows that are finished."""
LATER = 1_000_000_000_000
"""Added to the position of a row that comes back: what was not tried yet goes first."""
ENDINGS = (".png", ".latent", ".jpg", ".jpeg", ".webp")

CLAIM = 'key, line, "values", models, text, name, failures, losses'
HELD = "key=? AND worker=? AND state=?"
"""A row as long as it is a worker's: after its lease it may be another one's."""


class Manifest(Database):
    """The manifest in ``folder``; with ``read_only`` nothing is changed and nothing has to be free."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        super().__init__(folder, read_only)
        self._committing = threading.Lock()
        self._finished: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

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
        """The name of a row's files; that of the user where nobody has it, whatever letters a disk takes for equal."""
        if row.plain and not any(os.path.lexists(self.folder / f"{row.name}{ending}") for ending in ENDINGS):
            taken = db.execute("SELECT 1 FROM rows WHERE name=?", (row.name,)).fetchone()
            if not taken and not row.name.isascii():
                taken = not db.execute("INSERT OR IGNORE INTO folded VALUES(?)", (row.name.casefold(),)).rowcount
            if not taken:
                return row.name
        name = f"{row.name}_{row.key[:10]}"
        taken = db.execute("SELECT 1 FROM rows WHERE name=?", (name,)).fetchone()
        return f"{row.name}_{row.key}" if taken else name

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
                db.execute(
                    "UPDATE rows SET state=?, failures=0, losses=0, refused='', worker=NULL WHERE key=?", (ASKED, key)
                )

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
        fits += " AND instr(refused, ?)=0" + ("" if alone else " AND losses=0")
        with self.writing() as db:
            for condition, values in tries:
                claim = _take(db, worker, condition + fits, (*values, *size, _line(worker)))
                if claim:
                    return claim
        return None

    def claim_refused(
        self, worker: str, memory: int | None, others: Iterable[tuple[str, int | None]], alone: bool = True
    ) -> Claim | None:
        """A row that failed at ``worker`` before, and at each of the ``others`` (name, memory) that it fits."""
        condition, values = " AND instr(refused, ?)>0", [_line(worker)]
        for name, room in others:
            condition += f" AND (instr(refused, ?)>0{'' if room is None else ' OR need>?'})"
            values += [_line(name)] if room is None else [_line(name), room]
        condition += ("" if memory is None else " AND need<=?") + ("" if alone else " AND losses=0")
        values += [] if memory is None else [memory]
        if not self.read(f"SELECT 1 FROM rows WHERE state=?{condition} LIMIT 1", ASKED, *values):
            return None
        with self.writing() as db:
            return _take(db, worker, condition, values)

    def take_up(self, worker: str) -> list[Claim]:
        """The rows that ``worker`` was given by a driver that is gone; from now on they are its own again."""
        with self.writing() as db:
            db.execute("UPDATE rows SET lease=? WHERE state=? AND worker=?", (_lease(), RUNNING, worker))
        found = self.read(f"SELECT {CLAIM} FROM rows WHERE state=? AND worker=?", RUNNING, worker)
        return [Claim(row[0], row[1], json.loads(row[2]), *row[3:], taken_up=True) for row in found]

    def renew(self, key: str, worker: str) -> bool:
        """The worker of a row lives: its lease begins anew; False where the row is its own no more."""
        with self.writing() as db:
            changed = db.execute(f"UPDATE rows SET lease=? WHERE {HELD}", (_lease(), key, worker, RUNNING))
            return changed.rowcount > 0

    def give_back(self, key: str, worker: str, loss: str = "") -> None:
        """A row that ``worker`` works on no more; with a ``loss``, the reason, it goes to the end.

        The first loss makes it a suspect and proves nothing: another row of that worker may have been at fault.
        """
        reason = f"{MOST_LOSSES} times its worker was lost while it painted nothing else, at last so: {loss}"
        with self.writing() as db:
            db.execute(
                f"UPDATE rows SET state=?, worker=NULL, losses=losses+?, position=position+? WHERE {HELD}",
                (ASKED, bool(loss), LATER * bool(loss), key, worker, RUNNING),
            )
            db.execute(
                "UPDATE rows SET state=?, error=? WHERE key=? AND losses>? AND state=?",
                (ASIDE, reason, key, MOST_LOSSES, ASKED),
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
            db.execute(
                "UPDATE rows SET state=?, worker=NULL WHERE state=? AND lease<?", (ASKED, RUNNING, time.monotonic())
            )

    def fail(self, key: str, worker: str, text: str) -> bool:
        """Note a failure at ``worker``, which gets the row last from now on; True where it is set aside for it."""
        with self.writing() as db:
            db.execute(
                "UPDATE rows SET failures=failures+1, error=?, worker=NULL, position=position+?, refused=refused||?, "
                f"state=CASE WHEN failures+1>=? THEN ? ELSE ? END WHERE {HELD}",
                (text, LATER, _line(worker), MOST_FAILURES, ASIDE, ASKED, key, worker, RUNNING),
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

    def find_differing(self, listing: Callable[[], Iterable[tuple[str, int]]]) -> list[tuple[str, str, int]]:
        """Files of rows that are done (key, name, bytes) which ``listing`` has not, or with another size.

        It is asked once, and kept by SQLite, so that the number of files costs no memory.
        """
        if not self.read("SELECT 1 FROM rows WHERE state=? LIMIT 1", DONE):
            return []
        with self.writing() as db:
            db.execute("CREATE TEMP TABLE listed(name TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID")
            db.executemany("INSERT OR IGNORE INTO listed VALUES(?, ?)", listing())
        found = self.read(
            "SELECT rows.key, files.name, files.bytes FROM rows JOIN files USING(key) "
            "LEFT JOIN listed ON listed.name=files.name WHERE state=? AND listed.bytes IS NOT files.bytes",
            DONE,
        )
        with self.writing() as db:
            db.execute("DROP TABLE listed")
        return found

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


def _take(db: sqlite3.Connection, worker: str, condition: str, values: Sequence[Any]) -> Claim | None:
    """The first row that is asked for and fits ``condition``, for ``worker``."""
    row = db.execute(
        f"SELECT {CLAIM} FROM rows WHERE state=?{condition} ORDER BY position LIMIT 1", (ASKED, *values)
    ).fetchone()
    if row is None:
        return None
    db.execute("UPDATE rows SET state=?, worker=?, lease=? WHERE key=?", (RUNNING, worker, _lease(), row[0]))
    return Claim(row[0], row[1], json.loads(row[2]), *row[3:])


def _lease() -> float:
    """Until when a row is its worker's, by the clock of this process: every driver begins leases anew."""
    return time.monotonic() + LEASE_SECONDS


def _line(worker: str) -> str:
    """How the name of a worker stands in a list of them."""
    return f"\n{worker}\n"


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))
