"""The driver of a batch: hands rows to workers, writes what they paint, and stops at once without losing anything."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ...stages.units import GIB
from ..messages import Stop, say
from .address import Refused, Unreachable
from .lock import beat, drives
from .manifest import ASKED, MOST_FAILURES, RUNNING, Manifest
from .records import Claim, Held
from .results import Results, as_stop
from .server import Job, Lost, NotPainted, Stopped, prompt_id
from .template import PRIORS, Template
from .workers import Painter, Pool, Worker

HEADROOM = 1.5 * GIB
"""Bytes of a card's memory that are wanted beside the largest network, to call it fitting."""
PAUSE, TICK, LOST_SECONDS, KEEP_SECONDS, AWAY_SECONDS, END_SECONDS = 0.3, 0.25, 1.0, 5.0, 5.0, 8.0
MOST_DOUBLINGS = 8
"""How often the wait for a worker that loses rows and paints none becomes twice as long."""


class Driver:
    """One run over the rows that the manifest asks for.

    priors: the folder of the Stage C latents, for the stages B and A. any_card: rows go to cards that are too small for
    their largest network, too. patience: seconds without any worker after which the batch gives up.
    """

    def __init__(
        self,
        manifest: Manifest,
        results: Results,
        pool: Pool,
        template: Template,
        *,
        priors: Path | None = None,
        any_card: bool = False,
        patience: float = 600.0,
    ) -> None:
        self.manifest, self.results, self.pool, self.template = manifest, results, pool, template
        self.priors, self.any_card, self.patience = priors, any_card, patience
        self.workers: dict[str, Worker] = {}
        self.threads: list[threading.Thread] = []
        self.problem: Stop | None = None
        self._stop = threading.Event()

    def run(self, show: Callable[[Driver], None] = lambda driver: None) -> None:
        """Paint until nothing is asked; ``show`` is called several times a second.

        Raises ``Stop`` where it cannot go on. However it ends: rows that were being painted are asked again.
        """
        try:
            self._refresh(first=True)
            kept = seen = time.monotonic()
            while not self._stop.is_set():
                counts = self._open()
                show(self)
                if not counts:
                    break
                if time.monotonic() - kept > KEEP_SECONDS:
                    kept = time.monotonic()
                    self._keep()
                if any(worker.useful for worker in self.workers.values()):
                    seen = time.monotonic()
                self._check_hope(seen)
                time.sleep(TICK)
        except sqlite3.Error as error:
            self._give_up(error)
        finally:
            self._stop.set()
            self._end()
        if self.problem:
            raise self.problem

    def _open(self) -> int:
        return self.manifest.read(
            "SELECT COUNT(*) FROM (SELECT 1 FROM rows WHERE state IN (?, ?) LIMIT 1)", ASKED, RUNNING
        )[0][0]

    def _refresh(self, first: bool = False) -> None:
        """Let workers join and leave."""
        painters = {painter.name: painter for painter in self.pool.refresh()}
        if first:
            self.manifest.give_back_others(painters)
        for name, worker in list(self.workers.items()):
            worker.leaving = worker.leaving or name not in painters
            if worker.leaving and not worker.doing:
                del self.workers[name]
        for name, painter in painters.items():
            if name not in self.workers:
                self._hire(painter)

    def _hire(self, painter: Painter) -> None:
        worker = Worker(painter, taken_up=self.manifest.take_up(painter.name))
        self.workers[painter.name] = worker
        for number in range(painter.slots):
            thread = threading.Thread(target=self._work, args=(worker,), name=f"{painter.name}/{number}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def _keep(self) -> None:
        """What has to happen every few seconds."""
        beat(self.manifest)
        self.manifest.give_back_expired()
        self.manifest.show_workers([worker.describe() for worker in list(self.workers.values())])
        self._refresh()

    def _check_hope(self, seen: float) -> None:
        """Raise ``Stop`` where no worker is left that could paint what is asked."""
        workers = list(self.workers.values())
        if workers and all(worker.state == "broken" for worker in workers):
            raise Stop(f"No worker is left. {workers[0].name}: {workers[0].error}")
        if time.monotonic() - seen > self.patience:
            names = (
                ", ".join(f"{worker.name} ({worker.error or worker.loss or worker.state})" for worker in workers)
                or "none is named"
            )
            raise Stop(
                f"No worker was there and painted for {self.patience:.0f} s: {names}. Start one and give the same "
                "command again."
            )
        able = [worker for worker in workers if worker.state != "broken"]
        ready = [worker for worker in able if worker.state == "ready"]
        if len(ready) == len(able) > 0 and not any(worker.doing for worker in workers):
            sizes = [self._room(worker) for worker in ready]
            if None not in sizes:
                least = self.manifest.read("SELECT MIN(need) FROM rows WHERE state=?", ASKED)[0][0]
                if least is not None and least > max(sizes):
                    raise Stop(
                        f"The rows that are left need {(least + HEADROOM) / GIB:.1f} GiB of a card's memory for their "
                        f"largest network, and the largest card has {(max(sizes) + HEADROOM) / GIB:.1f}. Choose the "
                        "lite models in the workflow, or give --any-card: ComfyUI then moves weights in and out."
                    )

    def _room(self, worker: Worker) -> int | None:
        return None if self.any_card or worker.memory is None else int(worker.memory - HEADROOM)

    # One worker

    def _work(self, worker: Worker) -> None:
        """One slot of a worker: claim, paint, write, until there is nothing more or the worker leaves."""
        try:
            while not (self._stop.is_set() or worker.leaving):
                if not self._connect(worker):
                    if worker.state == "broken":
                        return
                    self._stop.wait(AWAY_SECONDS)
                    continue
                claim = self._claim(worker)
                if claim is None:
                    self._stop.wait(PAUSE)
                else:
                    self._paint(worker, claim)
        except Stopped:
            pass
        except Exception as error:
            self._give_up(error)

    def _connect(self, worker: Worker) -> bool:
        with worker.lock:
            if worker.state == "broken":
                return False
            try:
                worker.painter.connect(self._stop)
                if worker.state != "ready":
                    self._meet(worker)
                worker.state, worker.error = "ready", ""
                return True
            except (Unreachable, Refused) as silence:
                worker.state, worker.error = "away", str(silence)
            except Stop as end:
                worker.state, worker.error = "broken", str(end)
                say(f"{worker.name}: {end}")
        return False

    def _meet(self, worker: Worker) -> None:
        """Ask a worker that is new, or back, what it has. Raises ``Stop`` for one that cannot paint this workflow."""
        worker.memory = worker.painter.memory()
        lacking = worker.painter.lacks(self.template.classes)
        if lacking:
            raise Stop(
                f"its ComfyUI has no {', '.join(lacking)}, which the workflow needs. Install this pack there, and what "
                "else the workflow uses, or leave it out."
            )

    def _claim(self, worker: Worker) -> Claim | None:
        with worker.lock:
            if worker.alone:
                return None
            claim = None
            while worker.taken_up and claim is None:
                claim = worker.taken_up.pop()
                if not self.manifest.renew(claim.key, worker.name):  # it was away for long, and others have the row
                    claim = None
            if claim is None:
                others = [other.held for other in list(self.workers.values()) if other is not worker and other.held]
                room, alone = self._room(worker), not worker.doing
                claim = self.manifest.claim(worker.name, room, worker.held, others, alone)
                if claim is None:
                    claim = self.manifest.claim_refused(worker.name, room, self._ready_beside(worker), alone)
            if claim:
                worker.held = Held(claim.models, claim.text)
                worker.doing[claim.key] = (claim.name, time.time())
                worker.alone = claim.suspect
            return claim

    def _ready_beside(self, worker: Worker) -> list[tuple[str, int | None]]:
        """Name and room of the other workers that are ready."""
        others = [one for one in list(self.workers.values()) if one is not worker and one.state == "ready"]
        return [(one.name, self._room(one)) for one in others]

    def _paint(self, worker: Worker, claim: Claim) -> None:
        """Paint one row and write it, or say what happened instead."""
        key, pause = claim.key, 0.0
        try:
            painted = worker.painter.paint(self._job(claim), self._stop, lambda: self.manifest.renew(key, worker.name))
            self.results.save(claim, painted.pictures, worker.name, painted.seconds)
            worker.pictures, worker.misses, worker.loss = worker.pictures + 1, 0, ""
        except NotPainted as failure:
            if self.manifest.fail(key, worker.name, str(failure)):
                say(f"line {claim.line} failed {MOST_FAILURES} times and is set aside: {failure}")
        except Lost as loss:
            worker.state, worker.error, worker.loss = "away", str(loss), str(loss)
            self.manifest.give_back(key, worker.name, str(loss))
            if claim.suspect and worker.pictures:  # one that paints others is a witness against this row
                worker.painter.excuse()
            else:
                worker.misses += 1
            pause = LOST_SECONDS * 2 ** min(worker.misses // 2, MOST_DOUBLINGS)
        except Stopped:
            self.manifest.give_back(key, worker.name)
            raise
        finally:
            with worker.lock:
                worker.doing.pop(key, None)
                worker.alone = worker.alone and not claim.suspect
        self._stop.wait(pause)

    def _job(self, claim: Claim) -> Job:
        uploads = {}
        for name, digest in claim.values.get(PRIORS, ()):
            try:
                data = (self.priors / name).read_bytes()
            except OSError as error:
                raise NotPainted(f"{name} cannot be read ({error.strerror}).") from None
            if hashlib.sha256(data).hexdigest() != digest:
                raise NotPainted(f"{name} is not the Stage C latent that was painted. Paint it again with --stages c.")
            uploads[f"cascade_{digest[:24]}.latent"] = data
        filled = self.template.fill(claim.values, claim.key, tuple(uploads))
        return Job(prompt_id(claim.key, claim.failures), filled, uploads, claim.again)

    def _give_up(self, error: Exception) -> None:
        """End the batch for a reason that no other worker can help with."""
        if isinstance(error, Stop):
            self.problem = self.problem or error
        elif isinstance(error, sqlite3.Error):
            self.problem = self.problem or as_stop(self.manifest, error)
        else:
            self.problem = self.problem or Stop(
                f"The batch stopped at a fault of its own ({type(error).__name__}: {error})."
            )
        self._stop.set()

    def _end(self) -> None:
        """Let every thread give its row back, then the pool."""
        limit = time.monotonic() + END_SECONDS
        for thread in self.threads:
            thread.join(max(0.0, limit - time.monotonic()))
        self.pool.close()
        try:
            if drives(self.manifest):
                self.manifest.give_back_others(())
        except sqlite3.Error as error:
            self._give_up(error)
