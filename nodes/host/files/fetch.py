"""From the values of a loader to files on this computer: what is missing is told, and fetched if that is wanted.

While a node runs, the client that queued it gets two kinds of messages over its websocket:

``cascade_studio.plan``, once, when files are missing::

    {"node": "12", "prompt_id": "…", "state": "fetches" | "asks" | "refuses",
     "text": "2 files are missing, …", "plan": {
        "found": [{"key", "name", "path", "how", "verified"}],
        "missing": [{"key", "name", "url", "target", "bytes", "about", "here", "sha256", "provenance", "licence",
                     "note"}],
        "to_come": bytes, "spaces": [{"folder", "needed", "free"}]}}

"asks" and "refuses" mean that the node stops with the same text as its error ('missing_files' is "ask" or "never", or
networking is off); nothing is fetched then.

``cascade_studio.progress``, four times a second while files come, and once with "finished" true (also after an error)::

    {"node": "12", "prompt_id": "…", "file": "stage_c_bf16.safetensors", "done": bytes, "total": bytes or 0,
     "speed": bytes a second, "left": seconds or null, "note": "", "text": "stage_c_bf16.safetensors: 41 % of …",
     "finished": false}

Both texts also go to the host's own text under a node, so that they are seen without any extension; so does what the node
tells when it is done, which is its ``ui`` output ``{"text": [lines]}``. Which choices of a file input would be fetched is
told by the list ``published`` in the input's definition (``/object_info``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from server import PromptServer

from ....stages.errors import WrongFile
from ...checkpoints import plan as planning
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE, Entry, Preset
from ...checkpoints.errors import CheckpointError
from ...checkpoints.fetch import Result, fetch_plan
from ...checkpoints.find import bundled_path, layout_fits
from ...checkpoints.presets import suited
from ...checkpoints.progress import Progress
from ...checkpoints.settings import Settings
from .. import machine
from . import names

log = logging.getLogger(__name__)

DOWNLOAD, ASK, NEVER = MODES = ("download", "ask", "never")
OWN, AUTOMATIC = "files below", "automatic"
PLAN, PROGRESS = "cascade_studio.plan", "cascade_studio.progress"

Values = Mapping[str, "str | Entry"]
"""What each file input holds: a name, an entry of the catalogue, or a word that is no file."""


@dataclass
class Ready:
    """What a loader works with. paths: by input, the words that are no files as they are; lines: what to tell."""

    paths: dict[str, str]
    lines: list[str] = field(default_factory=list)


def presets() -> list[str]:
    """Choices of the preset input; those whose bundled files are not in the pack are left out."""
    known = names.known()
    whole = [
        preset
        for preset in known.presets.values()
        if all(bundled_path(known.entries[key]).is_file() for key in preset.entries if known.entries[key].bundled)
    ]
    return [OWN, AUTOMATIC, *(preset.title for preset in whole)]


def applied(preset: str, chosen: Mapping[str, str]) -> tuple[dict[str, str | Entry], str]:
    """The values of the file inputs under a preset, and a line on which it is."""
    if preset == OWN:
        return dict(chosen), ""
    try:
        found, reason = automatic() if preset == AUTOMATIC else (names.catalogue().preset(preset), "")
    except CheckpointError as error:
        raise WrongFile(str(error)) from None
    entries = names.catalogue().entries
    values = {role: entries.get(value, value) for role, value in found.inputs.items() if role in chosen}
    return {**chosen, **values}, f"Preset {found.title}{f': {reason}' if reason else ''}."


def automatic() -> tuple[Preset, str]:
    """The preset for this machine: of those that suit it the first whose files are all here, else the first."""
    keys, reason = suited(machine.describe_machine())
    known, finder = names.catalogue(), names.finder(comfy.model_management.throw_exception_if_processing_interrupted)
    for key in keys:
        if all(finder.find(known.entries[entry]) for entry in known.presets[key].entries):
            return known.presets[key], reason
    return known.presets[keys[0]], reason


def stamps(preset: str, chosen: Mapping[str, str | None]) -> str:
    """Changes whenever a file that the loader uses does."""
    known = names.known()
    if preset == OWN:
        return names.stamps(chosen)
    found = (
        [known.presets[key] for key in suited(machine.describe_machine())[0]]
        if preset == AUTOMATIC
        else [one for one in known.presets.values() if preset in (one.title, one.key)]
    )
    used = [
        {role: known.entries.get(value, value) for role, value in one.inputs.items() if role in chosen} for one in found
    ]
    return "|".join([preset, *map(names.stamps, used)])


def ready(node: str | None, chosen: Values, missing_files: str = DOWNLOAD, line: str = "") -> Ready:
    """Find the file of every input of ``node``, and have what is missing fetched, asked about or refused.

    Raises :class:`WrongFile` with a sentence; the host's own exception when it is interrupted.
    """
    known, made, wanted = names.known(), Ready({}, [line] if line else []), {}
    for role, value in chosen.items():
        entry = value if isinstance(value, Entry) else known.named(role, value or "")
        here = value if value in (NONE, FROM_CHECKPOINT) else at_once(role, value, entry)
        if here is not None:
            made.paths[role] = here
        elif entry is not None:
            wanted[role] = entry
        else:
            names.catalogue()  # says so if the user's own cannot be read: the name may stand there
            raise WrongFile(names.missing(role, value))
    try:
        places = provide(node, list(dict.fromkeys(wanted.values())), missing_files, made.lines) if wanted else {}
    except CheckpointError as error:
        raise WrongFile(str(error)) from None
    made.paths.update((role, places[entry.key]) for role, entry in wanted.items())
    return made


def at_once(role: str, value: str | Entry, entry: Entry | None) -> str | None:
    """The path of a file that needs no search: it has the very name, or is where the host lists a known one."""
    path = None if isinstance(value, Entry) else names.local(role, value)
    if path is None and entry is not None:
        path = names.listed(role, entry)
        path = path if path and (entry.bundled or layout_fits(entry, Path(path))) else None
    return path


def provide(node: str | None, entries: list[Entry], missing_files: str, lines: list[str]) -> dict[str, str]:
    """Paths of ``entries`` by key, after fetching what is missing; ``lines`` gets what was fetched."""
    stop = comfy.model_management.throw_exception_if_processing_interrupted
    plan = planning.make_plan(entries, names.finder(stop), names.roots())
    places = {found.entry.key: str(found.path) for found in plan.found}
    if plan.missing:
        settings = Settings.from_environment()
        if missing_files != DOWNLOAD:
            refuse(node, plan, missing_files)
        state = "refuses" if settings.offline else "fetches"
        send(node, PLAN, {"state": state, "text": plan.describe(), "plan": plan.as_json()})
        results = fetch(node, plan, settings)
        for result in results:
            places[result.entry.key] = str(result.path)
            names.note_fetched(result.entry, result.path)
        lines.append(f"All of this was fetched:\n{plan.describe()}")
        lines += [
            f"{result.path.name} is unverified: neither the catalogue nor the official host has told its hash."
            for result in results
            if not result.verified
        ]
    return places


def refuse(node: str | None, plan: planning.Plan, missing_files: str) -> None:
    """Stop with the plan and what can be done."""
    asks = missing_files == ASK
    advised = (
        f"'missing_files' is set to '{ASK}': set it to '{DOWNLOAD}' and queue again to fetch them."
        if asks
        else f"'missing_files' is set to '{NEVER}', so nothing is fetched."
    )
    text = f"{plan.describe()}\n{advised}\n{plan.by_hand()}"
    send(node, PLAN, {"state": "asks" if asks else "refuses", "text": text, "plan": plan.as_json()})
    raise WrongFile(text)


def fetch(node: str | None, plan: planning.Plan, settings: Settings) -> list[Result]:
    """Fetch what is missing under one bar of the node, by bytes over all files."""
    bar, last = comfy.utils.ProgressBar(max(1, plan.to_come), node_id=node), Progress("", 0, 0, 0.0, None)

    def show(moment: Progress) -> None:
        nonlocal last
        last = moment
        send(node, PROGRESS, {**vars(moment), "text": moment.describe(), "finished": False})
        bar.update_absolute(moment.done, moment.total or moment.done + 1)

    def interrupted() -> bool:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return False

    try:
        return fetch_plan(plan, settings, show, interrupted, names.hashes())
    finally:
        if last.file:
            send(node, PROGRESS, {**vars(last), "text": last.describe(), "finished": True})


def send(node: str | None, event: str, message: dict[str, Any]) -> None:
    """A message to the client that queued ``node``, and its text to the host's own place for it."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        client = getattr(server, "client_id", None)
        prompt = getattr(server, "last_prompt_id", None)
        server.send_sync(event, {"node": node, "prompt_id": prompt, **message}, client)
        server.send_progress_text(message["text"], node, client)


def told(node: str | None, made: Ready, *models: Any) -> dict[str, Any]:
    """What a loader shows: files that were fetched, and for each of ``models`` its number format and why."""
    text = "\n".join([*made.lines, *(machine.describe_choice(model) for model in models)])
    server = getattr(PromptServer, "instance", None)
    if text and server is not None and node is not None:
        server.send_progress_text(text, node, getattr(server, "client_id", None))
    return {"text": [text]} if text else {}
