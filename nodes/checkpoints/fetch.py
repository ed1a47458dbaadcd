"""Fetching what a plan lists: from the first byte to a checked file under its name, or nothing under that name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...stages.errors import WrongFile
from ...stages.files.durable import hash_file
from ...stages.files.json_text import BadJson, parse_json
from . import disk
from .addresses import through
from .catalogue import Entry
from .errors import BadFile, CheckpointError, DiskFull, FetchFailed, Interrupted, Offline, SourceFailed
from .find import layout_fits, size_fits
from .hashes import HashCache, InOrderHash
from .http import RangeClient
from .lock import locked
from .partial import Partial, bytes_here, tidy
from .plan import DownloadPlan, Missing, by_hand
from .progress import DownloadMoment, Meter
from .settings import OFFLINE, FetchSettings
from .transfer import Transfer

log = logging.getLogger(__name__)

ROUNDS = 2
"""How often a file is fetched from its beginning when what arrived was bad."""
SLICE = 16 << 20


@dataclass(frozen=True)
class Result:
    """A file that is here now.

    fetched: bytes that came over the network; verified: what its hash agrees with ("catalogue" or "official host"), ""
    if nobody who is trusted has told one.
    """

    entry: Entry
    path: Path
    fetched: int
    verified: str


def fetch_plan(
    plan: DownloadPlan,
    settings: FetchSettings,
    progress: Callable[[DownloadMoment], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    hashes: HashCache | None = None,
) -> list[Result]:
    """Fetch every missing file of ``plan``, one after the other; nothing is asked of the network if none is missing.

    ``progress`` is told four times a second; ``cancelled`` is asked at least twice a second, and may raise by itself.
    Raises a :class:`CheckpointError`: its text says what happened, what was kept and what to do.
    """
    for found in plan.found:
        tidy(found.path)
    if not plan.missing:
        return []
    if settings.offline:
        raise Offline(
            f"{plan.count_missing()} missing and networking is switched off ({OFFLINE} or "
            f"HF_HUB_OFFLINE is set). Unset it, or fetch them yourself:\n{plan.by_hand()}"
        )
    plan.check_space(settings.spare)
    log.info("%s", plan.describe())
    meter = Meter({item.entry.key: item.entry.size or 0 for item in plan.missing}, progress)
    client, received, results = RangeClient(settings), 0, []
    for item in plan.missing:
        job = _Job(item, client, meter, cancelled or (lambda: False), received)
        results.append(job.run())
        received = job.received
        if hashes and job.digest:
            hashes.remember(results[-1].path, job.digest)
    return results


def sources(entry: Entry, settings: FetchSettings) -> list[str]:
    """Where a file is asked for: its address through the endpoint, through the mirrors, then its own mirrors."""
    places = [through(entry.url, endpoint) for endpoint in (settings.endpoint, *settings.mirrors)]
    return list(dict.fromkeys([*places, *entry.mirrors]))


class _Job:
    """One file's way to its place."""

    def __init__(
        self, item: Missing, client: RangeClient, meter: Meter, cancelled: Callable[[], bool], received: int
    ) -> None:
        self.item, self.entry, self.client, self.meter, self.cancelled = item, item.entry, client, meter, cancelled
        self.received = self._begun = received
        self.digest = ""
        self._transfer: Transfer | None = None

    def run(self) -> Result:
        target = self.item.target
        try:
            Path(disk.system_path(target.parent)).mkdir(parents=True, exist_ok=True)
            with locked(target, self._wait):
                tidy(target)
                if target.exists():
                    return self._take_meanwhile()
                begun = self._begun
                result = self._rounds()
                return replace(result, fetched=self.received - begun)
        except OSError as error:
            if disk.is_full(error):
                raise DiskFull(f"The disk of {target.parent} is full. Make room there and start again.") from None
            raise FetchFailed(
                f"{target} cannot be written ({error.strerror or error}). Check the folder's "
                "permissions, or choose another folder."
            ) from error

    def _check(self) -> None:
        if self.cancelled():
            raise Interrupted(
                f"Fetching {self.entry.name} was stopped. What is here is kept; the next try goes on from it."
            )

    def _wait(self) -> None:
        """Another process fetches the file: show how far it is."""
        self._check()
        self.meter.note = "another process fetches it"
        here = bytes_here(self.item.target, self.entry.bytes)
        self.meter.show(self.entry.key, self.entry.name, here, None, self._begun)

    def _take_meanwhile(self) -> Result:
        """Another process has fetched the file while this one waited, or somebody has put one there."""
        target, entry = self.item.target, self.entry
        right = size_fits(entry, target.stat().st_size)
        if right and entry.sha256:
            right = hash_file(disk.system_path(target), self._check) == entry.sha256
        elif right:
            right = layout_fits(entry, target)
        if not right:
            raise FetchFailed(
                f"Meanwhile another file is at {target}; it stays as it is. Start again: the download "
                "then gets another name."
            )
        size, self.meter.note = target.stat().st_size, ""
        self.meter.show(entry.key, entry.name, size, size, self._begun, at_once=True)
        return Result(entry, target, 0, "catalogue" if entry.sha256 else "")

    def _rounds(self) -> Result:
        for number in range(ROUNDS):
            partial = Partial(self.item.target)
            keeper = _Keeper(partial, self.client.settings)
            try:
                self._bring(partial, keeper, number)
                problem = self._problem(partial, keeper)
                keeper.stop()
                if not problem:
                    return self._finish(partial)
                bad = partial.set_aside()
                log.warning("%s: %s It was set aside as %s and is not used.", self.entry.name, problem, bad.name)
            finally:
                keeper.stop()
                partial.leave()
                partial.clear_if_empty()
                self.received = self._begun = self._begun + partial.received
        raise BadFile(
            f"{self.entry.name} arrived damaged {ROUNDS} times: {problem} It was set aside as {bad} and is "
            f"not used; you can delete it. Try later, or another mirror. {by_hand(self.item)}"
        )

    def _bring(self, partial: Partial, keeper: _Keeper, number: int) -> None:
        """Fetch what is missing from the first source that has it."""
        places = sources(self.entry, self.client.settings)
        # What one server sent wrongly is asked of the next one first.
        places = places[number % len(places) :] + places[: number % len(places)]
        reasons = []
        for url in places:
            self._transfer = Transfer(self.entry, url, partial, self.client)
            try:
                self._transfer.run(lambda: self._tick(partial, keeper))
                return partial.save()
            except SourceFailed as failure:
                log.info("%s: %s", self.entry.name, failure)
                reasons.append(str(failure))
            finally:
                self._transfer = None
        kept = ""
        if partial.present:
            kept = f" {disk.in_words(partial.present)} of it are kept; the next try goes on from there."
        raise FetchFailed(
            f"{self.entry.name} could not be fetched. {' '.join(dict.fromkeys(reasons))}{kept} {by_hand(self.item)}"
        )

    def _tick(self, partial: Partial, keeper: _Keeper, note: str = "") -> None:
        self._check()
        keeper.check()
        self.meter.note = note or (self._transfer.note if self._transfer else "")
        self.meter.show(self.entry.key, self.entry.name, partial.present, partial.size, self._begun + partial.received)

    def _problem(self, partial: Partial, keeper: _Keeper) -> str:
        """What is wrong with the complete file; "" if it is good."""
        while not keeper.hashed.wait(0.1):
            self._tick(partial, keeper, "checking")
        self.digest, (expected, teller) = keeper.digest, self._choose_digest(partial)
        if self.entry.bytes and not expected and partial.size != self.entry.bytes:
            return f"It has {partial.size:,} bytes instead of {self.entry.bytes:,}."
        if expected and self.digest != expected:
            return f"Its SHA-256 is {self.digest} instead of {expected}."
        return self._format_problem(partial.path, teller == "catalogue")

    def _choose_digest(self, partial: Partial) -> tuple[str | None, str]:
        """The hash to trust and who told it. The official host knows better than somebody's copy."""
        if partial.official_hash and self.entry.provenance in (None, "copy"):
            return partial.official_hash, "official host"
        return self.entry.sha256, "catalogue" if self.entry.sha256 else ""

    def _format_problem(self, path: Path, in_catalogue: bool) -> str:
        if self.entry.name.lower().endswith(".json"):
            try:
                parse_json(Path(disk.system_path(path)).read_bytes())
                return ""
            except BadJson:
                return "It is not valid JSON."
        from ...stages.files.header import read_header

        try:
            read_header(disk.system_path(path))
        except WrongFile as error:
            return str(error)
        if not in_catalogue and not layout_fits(self.entry, path, any_suffix=True):
            return f"It does not hold what '{self.entry.role}' needs."
        return ""

    def _finish(self, partial: Partial) -> Result:
        target, verified = self.item.target, self._choose_digest(partial)[1]
        self.meter.note = ""
        self.meter.show(
            self.entry.key, self.entry.name, partial.present, partial.size, self._begun + partial.received, at_once=True
        )
        if target.exists():
            raise FetchFailed(
                f"Meanwhile another file is at {target}; it stays as it is. Start again: the download "
                "then gets another name."
            )
        partial.publish()
        if verified:
            log.info("%s is complete; its SHA-256 is that of the %s.", target, verified)
        else:
            log.warning(
                "%s is complete but unverified: neither the catalogue nor the official host told its hash.", target
            )
        return Result(self.entry, target, 0, verified)


class _Keeper:
    """A thread that makes bytes safe and hashes them in order while others arrive."""

    def __init__(self, partial: Partial, settings: FetchSettings) -> None:
        self.partial, self.settings = partial, settings
        self.hashed = threading.Event()
        self.digest = ""
        self._hash, self._generation = InOrderHash(partial.path), partial.generation
        self._stopped, self._error = threading.Event(), None
        self._thread = threading.Thread(target=self._keep, daemon=True, name=f"keep {partial.target.name}")
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread met."""
        if self._error:
            raise self._error

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _keep(self) -> None:
        try:
            while not self._stopped.is_set():
                # A kill costs 5 % of a file at the most, or 256 kB of a small one, also where the disk is slow.
                most = min(max((self.partial.size or 0) // 50, 256 << 10), 256 << 20)
                self.partial.most_at_stake = most
                if self.partial.due(min(most // 2, 32 << 20), self.settings.checkpoint_seconds):
                    self.partial.save()
                if not self._hash_on():
                    self._stopped.wait(0.02)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asks
            self._error = error if isinstance(error, (OSError, CheckpointError)) else RuntimeError(str(error))

    def _hash_on(self) -> bool:
        """Hash a little more; whether there was something to do."""
        if self._generation != self.partial.generation:
            self._generation = self.partial.generation
            self._hash.restart()
            self.hashed.clear()
        prefix, before = self.partial.prefix, self._hash.position
        finished = self._hash.advance(prefix, SLICE)
        if finished and self.partial.complete and not self.hashed.is_set() and self._hash.position == self.partial.size:
            self.digest = self._hash.hexdigest()
            self.hashed.set()
        return self._hash.position > before
