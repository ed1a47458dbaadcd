"""`studio.py models`: the checkpoints without a graph — list them, plan, fetch and verify, for people and for scripts.

Exit codes: 0 all is well, 1 it failed (the text says why), 2 wrong usage, 3 files are missing (plan) or wrong (verify).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .messages import Stop, say
from .places import cache_root, models_folder

EXAMPLES = """for example:
  studio.py models list                                     presets, files, sizes
  studio.py models plan lite-bf16 --to ComfyUI/models       what is here, what is missing, what it takes
  studio.py models get lite-bf16 --to ComfyUI/models        fetch it; the same command goes on after a stop
  studio.py models get stage_a_ft_hq --to ComfyUI/models    one file
  studio.py models get all-in-one --to DIR --endpoint URL   from a mirror of Hugging Face
  studio.py models plan mine --to DIR --catalogue own.json  files of a catalogue of your own
  studio.py models verify ComfyUI/models                    every checkpoint there by its hash

The files of the preset cascade-mini come with the pack; nothing is fetched for them.
CASCADE_STUDIO_OFFLINE, HF_ENDPOINT, HF_TOKEN and proxies are in web/docs/files.md."""
MISSING = 3


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--catalogue", metavar="FILE", help="a catalogue of your own, added to ours")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("what", nargs="+", metavar="PRESET", help="a preset, a file's key or a file's name")
    net = argparse.ArgumentParser(add_help=False)
    net.add_argument(
        "--endpoint", metavar="URL", help="a mirror of Hugging Face (default: HF_ENDPOINT, or the hub itself)"
    )
    made = argparse.ArgumentParser(
        prog="studio.py models",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    folder = "a ComfyUI models folder, or the folder of a ComfyUI"
    commands.add_parser("list", parents=[common], help="every preset and file that is known")
    plan = commands.add_parser(
        "plan", parents=[common, chosen], help="what of it is here, what is missing, what it takes"
    )
    plan.add_argument(
        "--to", metavar="DIR", help=f"{folder} (default: the ComfyUI that holds this pack, or COMFYUI_PATH)"
    )
    get = commands.add_parser("get", parents=[common, chosen, net], help="fetch what is missing")
    get.add_argument("--to", metavar="DIR", help=f"{folder} (default: as for plan)")
    verify = commands.add_parser("verify", parents=[common], help="check every checkpoint below a folder by its hash")
    verify.add_argument("folder", metavar="DIR")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run one command in this process; returns its exit code."""
    options = parser().parse_args(arguments)
    from ..nodes.checkpoints.errors import CheckpointError, Interrupted

    try:
        return COMMANDS[options.command](options)
    except Interrupted as stopped:
        say(str(stopped))
        return 130
    except (CheckpointError, Stop) as error:
        if options.json:
            out({"error": str(error)})
        say(f"studio.py models: {error}")
        return 1


def out(answer: Any) -> None:
    """What the command answers, on stdout."""
    sys.stdout.write((answer if isinstance(answer, str) else json.dumps(answer, indent=1, ensure_ascii=False)) + "\n")


def show_list(options: argparse.Namespace) -> int:
    """``models list``: presets and files of the catalogue."""
    from ..nodes.checkpoints import catalogue, disk

    known = catalogue.load(options.catalogue)
    if options.json:
        out(
            {
                "presets": {p.key: {"title": p.title, "inputs": dict(p.inputs)} for p in known.presets.values()},
                "files": [as_json(entry) for entry in known.entries.values()],
            }
        )
        return 0
    out("Presets:")
    for preset in known.presets.values():
        size = sum(known.entries[key].size or 0 for key in preset.entries)
        words = disk.in_words(size) if any(known.entries[key].url for key in preset.entries) else "bundled"
        out(f"  {preset.key:16} {words:>8}  {preset.title}")
    out("Files:")
    for entry in known.entries.values():
        size = disk.in_words(entry.size) if entry.size else "?" if entry.url else "bundled"
        remark = "" if entry.sha256 or entry.bundled else "  (no hash known)"
        place = f"{entry.bundled}/" if entry.bundled else ""
        out(f"  {entry.key:38} {size:>8}  {place}{entry.folder}/{entry.relative}{remark}")
    return 0


def as_json(entry: Any) -> dict[str, Any]:
    """A catalogue entry for scripts."""
    names = (
        "key",
        "role",
        "name",
        "folder",
        "subfolder",
        "url",
        "bundled",
        "bytes",
        "about",
        "sha256",
        "provenance",
        "note",
    )
    return {**{name: getattr(entry, name) for name in names}, "licence": entry.licence.describe()}


def the_plan(options: argparse.Namespace) -> tuple[Any, Any]:
    """What ``models plan`` and ``models get`` are about: the plan, and the hashes that are known."""
    from ..nodes.checkpoints import catalogue, find, plan
    from ..nodes.checkpoints.hashes import HashCache

    known = catalogue.load(options.catalogue)
    roots, hashes = find.models_roots(models_folder(options.to)), HashCache(cache_root() / "hashes.json")
    finder = find.Finder(find.with_bundled(roots, known.entries.values()), hashes, find.hub_folders(os.environ))
    return plan.make_plan(known.choose(options.what), finder, roots), hashes


def show_plan(options: argparse.Namespace) -> int:
    """``models plan``: what is here, what is missing, and how much that is."""
    plan, _ = the_plan(options)
    out(plan.as_json() if options.json else plan.describe())
    return MISSING if plan.missing else 0


def get(options: argparse.Namespace) -> int:
    """``models get``: fetch what the plan misses."""
    from ..nodes.checkpoints import fetch, settings
    from ..nodes.checkpoints.addresses import check_url

    if options.endpoint:
        check_url(options.endpoint, "address in --endpoint")
    chosen = settings.FetchSettings.from_environment(endpoint=options.endpoint)
    plan, hashes = the_plan(options)
    say(plan.describe())
    line = Line()
    try:
        results = fetch.fetch_plan(plan, chosen, line.show, hashes=hashes)
    except KeyboardInterrupt:
        say("Stopped. What is here is kept; the next try goes on from it.")
        return 130
    finally:
        line.end()
    for result in results:
        say(
            f"{result.path}: "
            + (
                f"complete, SHA-256 as the {result.verified} says"
                if result.verified
                else "complete but unverified: nobody who is trusted has told its hash"
            )
        )
    if options.json:
        found = {f.entry.key: str(f.path) for f in plan.found} | {r.entry.key: str(r.path) for r in results}
        out(
            {
                "files": found,
                "fetched": [
                    {"key": r.entry.key, "path": str(r.path), "bytes": r.fetched, "verified": r.verified or None}
                    for r in results
                ],
            }
        )
    return 0


class Line:
    """Progress on stderr: a line that changes on a terminal, a new one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.moving, self.shown, self.width = sys.stderr.isatty(), 0.0, 0

    def show(self, moment: Any) -> None:
        """Tell how far a download is: in place on a terminal, else every ten seconds."""
        from time import monotonic

        text = moment.describe()
        if self.moving:
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)
        elif monotonic() - self.shown >= 10:
            self.shown = monotonic()
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if self.width:
            say("")


def verify(options: argparse.Namespace) -> int:
    """``models verify``: hold the checkpoints in a folder against the catalogue."""
    from ..nodes.checkpoints import catalogue, verify as check
    from ..nodes.checkpoints.hashes import HashCache

    folder = Path(options.folder).expanduser().resolve()
    if not folder.is_dir():
        raise Stop(f"{folder} is no folder. Give the folder whose checkpoints are to be checked.")
    verdicts = []
    for verdict in check.check_folder(folder, catalogue.load(options.catalogue), HashCache()):
        verdicts.append(verdict)
        if not options.json:
            out(f"{verdict.state:11} {verdict.path}: {verdict.text}")
    if options.json:
        out([{"path": str(v.path), "state": v.state, "key": v.key, "text": v.text} for v in verdicts])
    elif not verdicts:
        out(f"There are no checkpoints below {folder}.")
    return MISSING if any(verdict.state == check.WRONG for verdict in verdicts) else 0


COMMANDS = {"list": show_list, "plan": show_plan, "get": get, "verify": verify}
