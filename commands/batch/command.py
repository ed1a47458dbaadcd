"""``studio.py batch``: its command line."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from ..messages import Stop, WrongUsage, say
from .manifest import Manifest
from .progress import describe_status
from .results import Results
from .rows import parse_grid, parse_seeds
from .run import Batch, open_store, run_batch
from .stagewise import STAGES

EXAMPLES = """for example:
  studio.py batch prompts.txt --out pictures                              one prompt a line, here
  studio.py batch rows.csv --workflow my.json --out pictures --count 4    four seeds of each row
  studio.py batch rows.jsonl --out pictures --servers http://10.0.0.7:8188,http://10.0.0.8:8188
  studio.py batch rows.csv --out pictures --ray auto                      every card of a Ray cluster
  studio.py batch status pictures                                         from another terminal
  studio.py batch rows.csv --out pictures --check                         are all there, and as painted?
  studio.py batch rows.csv --out drafts --stages c                        Stage C alone: small files, small pictures
  studio.py batch drafts --out finals --stages ba                         finish the drafts whose .latent you kept

The same command goes on after any stop. docs/batch.md tells the rest.
Exit codes: 0 all is painted, 1 it failed (the text says why), 2 wrong usage, 3 rows are bad, set aside or missing,
130 it was stopped."""
WRONG_USAGE, INCOMPLETE = 2, 3
DAMAGED = (
    "Put a copy of manifest.sqlite in its place. Without one, move it away: then the pictures are painted again, into "
    "another --out if those that are there are to stay."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="studio.py batch",
        description="Many pictures, on the ComfyUI servers at hand; nothing is painted twice.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("rows", metavar="ROWS", help="a .csv, .jsonl or .txt file; a folder of drafts for --stages ba")
    made.add_argument("--out", metavar="DIR", required=True, help="where pictures and manifest go")
    made.add_argument("--workflow", metavar="FILE", help="a saved workflow or its API format (default: text to image)")
    rows = made.add_argument_group("rows")
    rows.add_argument("--count", type=int, default=1, metavar="N", help="pictures of each row, of consecutive seeds")
    rows.add_argument("--batched", action="store_true", help="paint the N of --count as one batch of ComfyUI")
    rows.add_argument("--seeds", type=parse_seeds, default=[], metavar="1,2,10-13", help="each row with each of these")
    rows.add_argument(
        "--grid", type=parse_grid, action="append", default=[], metavar="NAME=A,B", help="each row with each choice"
    )
    rows.add_argument("--wildcards", metavar="DIR", help="NAME.txt for __NAME__ (default: wildcards beside ROWS)")
    rows.add_argument("--shard", type=parse_shard, metavar="I/N", help="paint the I-th of N parts of the rows")
    where = made.add_argument_group("workers (default: a ComfyUI on each card of this machine)")
    where.add_argument("--servers", metavar="URL,URL", help="running servers, or @FILE with one a line, read again")
    where.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster: its address, or auto")
    where.add_argument("--workers", type=int, metavar="N", help="how many ComfyUI to start (default: one a card)")
    where.add_argument("--comfyui", metavar="DIR", help="the ComfyUI to start (default: the one that holds this pack)")
    where.add_argument(
        "--comfyui-flags", default="", metavar="FLAGS", help="more for it; write --comfyui-flags=--lowvram"
    )
    where.add_argument("--any-card", action="store_true", help="use cards too small for a row's largest network, too")
    where.add_argument(
        "--patience", type=parse_patience, default=600.0, metavar="S", help="seconds to wait for a first worker"
    )
    more = made.add_argument_group("more")
    more.add_argument("--stages", choices=STAGES, default="", help="c: Stage C alone; ba: finish latents of a folder")
    more.add_argument("--store", metavar="URL", help="put the files into an object store by fsspec, such as s3://b/dir")
    more.add_argument("--sheet", type=int, default=512, metavar="N", help="pictures on contact sheets at most; 0: none")
    more.add_argument("--retry", action="store_true", help="try rows again that were set aside")
    more.add_argument(
        "--check", action="store_true", help="paint nothing; prove that every row is there and as painted"
    )
    return made


def parse_shard(text: str) -> tuple[int, int]:
    """``2/8`` as (2, 8)."""
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise WrongUsage(f"--shard {text} is no part. Write --shard 2/8 for the second of eight parts.")
    return int(first), int(last)


def parse_patience(text: str) -> float:
    """Seconds, from 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise WrongUsage(f"--patience {text} is no time. Write seconds, such as --patience 60.")
    return seconds


def split_flags(text: str, windows: bool = os.name == "nt") -> tuple[str, ...]:
    """The flags in one text; quotes hold a path with spaces together, and Windows keeps its backslashes."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if windows:
        lexer.escape = ""
    try:
        return tuple(lexer)
    except ValueError:
        raise WrongUsage(
            f"--comfyui-flags {text} has a quote without its second one. Write it, or leave it out."
        ) from None


def main(arguments: Sequence[str]) -> int:
    """Run one command in this process; returns its exit code."""
    try:
        if not arguments:
            parser().print_help()
            return 0
        if arguments[0] == "status":
            return show_status(arguments[1:])
        options = parser().parse_args(arguments)
        return check(options) if options.check else paint(options)
    except Stop as stop:
        say(f"studio.py batch: {stop}")
        return WRONG_USAGE if isinstance(stop, WrongUsage) else 1
    except sqlite3.Error as error:
        say(f"studio.py batch: the manifest cannot be read ({error}). {DAMAGED}")
        return 1
    except KeyboardInterrupt:
        say("Stopped. Every finished picture is kept; the same command goes on.")
        return 130


def tell(text: str) -> None:
    """An answer, on stdout."""
    sys.stdout.write(text + "\n")


def show_status(arguments: Sequence[str]) -> int:
    """Tell how far the batch in the one folder that is named is."""
    made = argparse.ArgumentParser(
        prog="studio.py batch status",
        description="How far a batch is and what its workers do, also while it runs; nothing is changed.",
    )
    made.add_argument("folder", metavar="DIR", help="the folder that --out named")
    manifest = Manifest(Path(made.parse_args(arguments).folder).expanduser(), read_only=True)
    try:
        tell(describe_status(manifest))
    finally:
        manifest.close()
    return 0


def check(options: argparse.Namespace) -> int:
    """Prove that the batch is whole."""
    manifest = Manifest(Path(options.out).expanduser(), read_only=True)
    try:
        wrong = 0
        for sentence in Results(manifest, open_store(manifest, options.store)).check():
            wrong += 1
            tell(sentence)
        counts = manifest.counts()
        tell(f"{counts['done']} rows are done; {'nothing is' if not wrong else f'{wrong} things are'} wrong.")
    finally:
        manifest.close()
    return INCOMPLETE if wrong else 0


def paint(options: argparse.Namespace) -> int:
    """Paint what is asked; returns the exit code."""
    batch = Batch(
        rows=Path(options.rows).expanduser(),
        out=Path(options.out).expanduser(),
        workflow=Path(options.workflow).expanduser() if options.workflow else None,
        servers=options.servers,
        ray=options.ray,
        workers=options.workers,
        comfyui=options.comfyui,
        comfyui_flags=split_flags(options.comfyui_flags),
        count=options.count,
        batched=options.batched,
        seeds=tuple(options.seeds),
        grid=dict(options.grid),
        wildcards=Path(options.wildcards).expanduser() if options.wildcards else None,
        shard=options.shard,
        any_card=options.any_card,
        patience=options.patience,
        stages=options.stages,
        store=options.store,
        sheet=options.sheet,
        retry=options.retry,
    )
    outcome = run_batch(batch)
    tell(outcome.describe())
    return 0 if outcome.complete else INCOMPLETE
