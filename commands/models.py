"""`dev.py models`: the checkpoints without a graph — list them, plan, fetch and verify, for people and for scripts.

Exit codes: 0 all is well, 1 it failed (the text says why), 2 wrong usage, 3 files are missing (plan) or wrong (verify).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from tools.cache import cache_root  # noqa: E402
from tools.messages import Stop, say, speak_plainly  # noqa: E402

if TYPE_CHECKING:
    from tools.env import Setup

EXAMPLES = """for example:
  dev.py models list                                       presets, files, sizes
  dev.py models plan lite-bf16 --to ComfyUI/models         what is here, what is missing, what it takes
  dev.py models get lite-bf16 --to ComfyUI/models          fetch it; the same command goes on after a stop
  dev.py models get stage_a_ft_hq --to ComfyUI/models      one file
  dev.py models get all-in-one --to DIR --endpoint URL     from a mirror of Hugging Face
  dev.py models plan mine --to DIR --catalogue own.json    files of a catalogue of your own
  dev.py models verify ComfyUI/models                      every checkpoint there by its hash

The files of the preset cascade-mini come with the pack; nothing is fetched for them.
CASCADE_STUDIO_OFFLINE, HF_ENDPOINT, HF_TOKEN and proxies are in web/docs/files.md."""
PACKAGE = "cascade_studio"
MISSING = 3


def name_pack() -> None:
    """Make the pack importable as a package without its ``__init__``, which needs ComfyUI."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(REPOSITORY)]
        package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
        sys.modules[PACKAGE] = package


def run_models(set_up: Callable[[], Setup], arguments: list[str]) -> int:
    """Run one command: ``list`` right here, the others in the environment, which has what they need."""
    options = parser().parse_args(arguments)
    if options.command == "list":
        return main(arguments)
    return set_up().run("commands/models.py", *arguments)


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
        prog="dev.py models", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    folder = "a ComfyUI models folder, or the folder of a ComfyUI"
    commands.add_parser("list", parents=[common], help="every preset and file that is known")
    plan = commands.add_parser(
        "plan", parents=[common, chosen], help="what of it is here, what is missing, what it takes"
    )
    plan.add_argument("--to", metavar="DIR", help=f"{folder} (default: that of COMFYUI_PATH)")
    get = commands.add_parser("get", parents=[common, chosen, net], help="fetch what is missing")
    get.add_argument("--to", metavar="DIR", required=True, help=folder)
    verify = commands.add_parser("verify", parents=[common], help="check every checkpoint below a folder by its hash")
    verify.add_argument("folder", metavar="DIR")
    return made


def main(arguments: list[str]) -> int:
    """Run one command in this process; returns its exit code."""
    options = parser().parse_args(arguments)
    name_pack()
    from cascade_studio.nodes.checkpoints.errors import CheckpointError, Interrupted

    try:
        return COMMANDS[options.command](options)
    except Interrupted as stopped:
        say(str(stopped))
        return 130
    except (CheckpointError, Stop) as error:
        if options.json:
            out({"error": str(error)})
        say(f"dev.py models: {error}")
        return 1


def out(answer: Any) -> None:
    """What the command answers, on stdout."""
    sys.stdout.write((answer if isinstance(answer, str) else json.dumps(answer, indent=1, ensure_ascii=False)) + "\n")


def show_list(options: argparse.Namespace) -> int:
    from cascade_studio.nodes.checkpoints import catalogue, disk

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


def models_folder(given: str | None) -> Path:
    """The models folder that ``--to`` or COMFYUI_PATH means."""
    given = given or os.environ.get("COMFYUI_PATH")
    if not given:
        raise Stop("Say where the models are: --to DIR, a ComfyUI models folder, or set COMFYUI_PATH.")
    folder = Path(given).expanduser().resolve()
    return folder / "models" if (folder / "models").is_dir() and (folder / "main.py").is_file() else folder


def the_plan(options: argparse.Namespace) -> tuple[Any, Any]:
    from cascade_studio.nodes.checkpoints import catalogue, find, plan
    from cascade_studio.nodes.checkpoints.hashes import HashCache

    known = catalogue.load(options.catalogue)
    roots, hashes = find.models_roots(models_folder(options.to)), HashCache(cache_root() / "hashes.json")
    finder = find.Finder(find.with_bundled(roots, known.entries.values()), hashes, find.hub_folders(os.environ))
    return plan.make_plan(known.choose(options.what), finder, roots), hashes


def show_plan(options: argparse.Namespace) -> int:
    plan, _ = the_plan(options)
    out(plan.as_json() if options.json else plan.describe())
    return MISSING if plan.missing else 0


def get(options: argparse.Namespace) -> int:
    from cascade_studio.nodes.checkpoints import fetch, settings
    from cascade_studio.nodes.checkpoints.addresses import check_url

    if options.endpoint:
        check_url(options.endpoint, "address in --endpoint")
    chosen = settings.Settings.from_environment(endpoint=options.endpoint)
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
        if self.width:
            say("")


def verify(options: argparse.Namespace) -> int:
    from cascade_studio.nodes.checkpoints import catalogue, verify as check
    from cascade_studio.nodes.checkpoints.hashes import HashCache

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

if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
