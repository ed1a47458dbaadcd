"""A batch from its files to its results: the function behind the command, for scripts too."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import Stop, WrongUsage, say
from ..places import PACK
from ..workflow.api_prompt import convert, is_prompt
from ..workflow.inputs import UnknownInput
from . import sheets
from .address import Refused, Unreachable
from .database import FILE
from .driver import Driver
from .local import Comfy
from .lock import driving
from .manifest import ASIDE, DONE, Manifest
from .progress import ProgressLine, count_line
from .records import Asked
from .results import TABLE, ObjectStore, OutputFolder, Results, as_stop
from .rows import BadRow, Expander, Expansion, Row, read_rows
from .template import NAME, PRIORS, Template
from .workers import LocalPool, NamedPool, Pool

WORKFLOW = PACK / "workflows" / "Stable Cascade - text to image.json"
CHUNK = 1000
NO_ROWS = "Write a row for each, as docs/batch.md shows."
NO_DRAFTS = "Keep the .latent files that are to be finished in it."
ASK_SECONDS = 2.0
"""Between two times that servers are asked for their nodes."""
WORK = ".work"
"""Folder, inside the output folder, of the servers that the batch starts."""


@dataclass(frozen=True)
class Batch:
    """What is asked; the fields are the options of the command, see docs/batch.md."""

    rows: Path
    out: Path
    workflow: Path | None = None
    servers: str | None = None
    ray: str | None = None
    workers: int | None = None
    comfyui: str | None = None
    comfyui_flags: tuple[str, ...] = ()
    count: int = 1
    batched: bool = False
    seeds: Sequence[int] = ()
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    wildcards: Path | None = None
    shard: tuple[int, int] | None = None
    any_card: bool = False
    patience: float = 600.0
    stages: str = ""
    store: str | None = None
    sheet: int = 512
    retry: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: rows by state, the files beside the pictures."""

    folder: Path
    counts: dict[str, int]
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether every row of the list is painted."""
        return not any(count for state, count in self.counts.items() if state != DONE)

    def describe(self) -> str:
        """One line."""
        names = ", ".join(path.name for path in self.files[:3])
        return f"{count_line(self.counts, 0.0)}: {self.folder} ({names})"


def run_batch(batch: Batch, pool: Pool | None = None) -> Outcome:
    """Paint what is asked and not done yet. Raises ``Stop`` where it cannot go on, and keeps all that is painted.

    ``pool``: workers of another kind than the options name.
    """
    if batch.count < 1:
        raise WrongUsage(f"--count {batch.count} is too few. Give 1 or more.")
    if batch.workers is not None and batch.workers < 1:
        raise WrongUsage(f"--workers {batch.workers} is too few. Give 1 or more.")
    if batch.sheet < 0:
        raise WrongUsage(f"--sheet {batch.sheet} is no number of pictures. Give 0 for none, or more.")
    if batch.rows.resolve() == (batch.out / TABLE).resolve():
        raise Stop(f"The list {batch.rows} would be written over by the batch's own {TABLE}. Give it another name.")
    if batch.stages == "ba" and batch.rows.resolve() == batch.out.resolve():
        raise Stop(f"{batch.out} holds the drafts. Give another --out for what --stages ba paints.")
    source = _Source(batch)
    try:
        batch.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Stop(f"The output folder {batch.out} cannot be made ({error.strerror}). Give another --out.") from None
    manifest = Manifest(batch.out)
    try:
        with driving(manifest):
            return _run(batch, source, manifest, pool)
    except sqlite3.Error as error:
        raise as_stop(manifest, error) from error
    finally:
        manifest.close()


def _run(batch: Batch, source: _Source, manifest: Manifest, pool: Pool | None) -> Outcome:
    results = Results(manifest, open_store(manifest, batch.store))
    pool = pool or make_pool(batch)
    try:
        template = _template(source.workflow(), batch, pool)
        manifest.set("workflow", source.workflow())
        written, gone = results.recover()  # before the list: what it no longer asks for is not painted anew
        _ask(batch, manifest, template, source)
        if batch.retry:
            manifest.ask_again([key for (key,) in manifest.read("SELECT key FROM rows WHERE state=?", ASIDE)])
        if written or gone:
            say(
                f"{written} pictures were written before the last stop; {gone} are gone and are painted anew where the "
                "list still asks for them."
            )
        driver = Driver(
            manifest, results, pool, template, priors=source.priors, any_card=batch.any_card, patience=batch.patience
        )
        progress = ProgressLine(manifest)
        try:
            driver.run(lambda one: progress.show(lambda: [worker.describe() for worker in list(one.workers.values())]))
        finally:
            progress.end()
    finally:
        pool.close()
    files: list[Path] = []
    try:
        files.append(sheets.write_table(manifest))
        if batch.sheet:
            files += sheets.write_sheets(manifest, results.store, batch.sheet)
    except OSError as error:
        say(f"The table or a sheet cannot be written ({error}). Close it where it is open; the same command writes it.")
    return Outcome(manifest.folder, manifest.counts(), tuple(files))


class _Source:
    """Where rows and workflow come from: a list and a file, or the folder of an earlier run of Stage C."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.priors = batch.rows if batch.stages == "ba" else None
        if self.priors is None and not batch.rows.is_file():
            raise Stop(f"There is no list of rows {batch.rows}. Give the path of a .csv, .jsonl or .txt file.")
        if self.priors is not None and not (self.priors / FILE).is_file():
            raise Stop(
                f"{batch.rows} is no folder of drafts: --stages ba finishes what --stages c painted. Give the folder "
                "that its --out named."
            )
        self._drafts = Manifest(self.priors, read_only=True) if self.priors else None

    def workflow(self) -> dict[str, Any]:
        """The content of the workflow file."""
        path = self.batch.workflow
        if self._drafts and path is None:
            return self._drafts.get("workflow")
        path = path or WORKFLOW
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise Stop(
                f"The workflow {path} cannot be read ({error.strerror}). Give the path of a workflow file."
            ) from None
        except ValueError as error:
            raise Stop(f"The workflow {path} is no JSON ({error}). Save it again from ComfyUI.") from None

    def rows(self, first_seed: int) -> Iterator[Row | BadRow]:
        """Every picture that is asked for."""
        if self._drafts:
            yield from self._read_chosen()
            return
        batch = self.batch
        folder = batch.wildcards or batch.rows.parent / "wildcards"
        expander = Expander(Expansion(batch.grid, batch.seeds, batch.count, folder, first_seed, batch.batched))
        for row in read_rows(batch.rows):
            if isinstance(row, BadRow):
                yield row
            else:
                row.values.pop(PRIORS, None)  # only a folder of drafts has it
                yield from expander.expand(row)

    def _read_chosen(self) -> Iterator[Row]:
        """The drafts whose latent is still in the folder."""
        query = (
            'SELECT rows.key, line, rows.name, "values", files.name, sha256 FROM rows JOIN files USING(key) '
            "WHERE state=? AND files.name LIKE '%.latent' ORDER BY position, number"
        )
        for _, group in itertools.groupby(self._drafts.iterate(query, DONE), key=lambda item: item[0]):
            files = list(group)
            if all((self.priors / file[4]).is_file() for file in files):
                _, line, name, values, *_ = files[0]
                yield Row(line, {**json.loads(values), NAME: name, PRIORS: [[file[4], file[5]] for file in files]})


def open_store(manifest: Manifest, address: str | None) -> OutputFolder:
    """The object store at ``address``, or the output folder."""
    return ObjectStore(address) if address else OutputFolder(manifest.folder)


def make_pool(batch: Batch) -> Pool:
    """The workers that the options name."""
    if batch.servers and batch.ray:
        raise WrongUsage("--servers and --ray name two kinds of workers. Give one of them.")
    if batch.servers:
        return NamedPool(batch.servers)
    comfy = Comfy.find(batch.comfyui, batch.comfyui_flags)
    if batch.ray:
        from .cluster import RayPool

        return RayPool(batch.ray, comfy, batch.workers)
    return LocalPool(comfy, batch.out / WORK, batch.workers)


def _template(data: dict[str, Any], batch: Batch, pool: Pool) -> Template:
    """The workflow as a template. The API format needs no server; a saved workflow waits for one that knows its nodes.

    One that will never answer (``Stop``) is not waited for.
    """
    if is_prompt(data):
        return Template(convert(data, {}), None, batch.stages)
    limit, waits = time.monotonic() + batch.patience, False
    while True:
        problems: dict[str, Exception] = {}
        for painter in pool.refresh():
            try:
                painter.connect(threading.Event())
                nodes = painter.describe_nodes()
            except Exception as error:
                problems[painter.name] = error
                continue
            try:
                return Template(convert(data, nodes), data, batch.stages)
            except Stop:
                raise
            except Exception as error:  # what it tells is of no use; another one may tell it better
                problems[painter.name] = error
        if len(problems) == 1 and isinstance(next(iter(problems.values())), Stop):
            raise next(iter(problems.values()))
        told = "; ".join(f"{name}: {error}" for name, error in problems.items()) or "none is named"
        may_come = not problems or any(isinstance(error, (Unreachable, Refused)) for error in problems.values())
        if not may_come or time.monotonic() >= limit:
            raise Stop(
                f"No server tells its nodes, which a saved workflow needs ({told}). Start one, or give the workflow in "
                "the API format."
            )
        if not waits:
            say(f"No server tells its nodes yet ({told}). Waiting {batch.patience:.0f} s for one.")
        waits = True
        time.sleep(min(ASK_SECONDS, max(0.0, limit - time.monotonic())))


def _ask(batch: Batch, manifest: Manifest, template: Template, source: _Source) -> None:
    """Put every row of the list into the manifest, and say what is wrong with the others."""
    run = manifest.begin_list()
    position = twins = bad = 0
    rows = iter(source.rows(template.first_seed))
    while chunk := list(itertools.islice(rows, CHUNK)):
        asked: list[tuple[int, Asked]] = []
        wrong: list[tuple[int, str]] = []
        for row in chunk:
            position += 1
            try:
                if isinstance(row, BadRow):
                    raise ValueError(row.reason)
                one = template.ask(row)
                if batch.shard is None or int(one.key[:8], 16) % batch.shard[1] == batch.shard[0] - 1:
                    asked.append((position, one))
            except UnknownInput as error:
                if batch.rows.suffix.lower() == ".csv":
                    raise Stop(f"{batch.rows.name}: {error}") from None
                wrong.append((row.line, str(error)))
            except ValueError as error:
                wrong.append((row.line, str(error)))
        for line, first in manifest.ask(run, asked):
            twins += 1
            if twins <= 5:
                say(f"line {line} asks for the same picture as line {first}: it is painted once.")
        manifest.report_bad(wrong)
        for line, reason in wrong[: max(0, 10 - bad)]:
            say(f"line {line} is bad and left out: {reason}")
        bad += len(wrong)
    if not position:
        raise Stop(f"{batch.rows} asks for no picture. {NO_ROWS if source.priors is None else NO_DRAFTS}")
    left = manifest.end_list(run)
    if left:
        say(f"{left} rows that were not painted yet are no longer in the list.")
