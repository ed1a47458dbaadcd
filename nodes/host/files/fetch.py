"""From the values of a loader to files on this computer: what is missing is told, and fetched if that is wanted.

While a node runs, the client that queued it gets two kinds of messages over its websocket:

``cascade_studio.plan``, once, when files are missing::

    {"node": "12", "prompt_id": "…", "workflow": "id of the saved workflow or null",
     "state": "fetches" | "asks" | "refuses",
     "text": "2 files are missing, …", "plan": {
        "found": [{"key", "name", "path", "how", "verified"}],
        "missing": [{"key", "name", "url", "target", "bytes", "about", "here", "sha256", "provenance", "licence",
                     "note"}],
        "to_come": bytes, "spaces": [{"folder", "needed", "free"}]}}

"asks" and "refuses" mean that the node stops with the same text as its error ('missing_files' is "ask" or "never", or
"ask if large" and there is more than :data:`LARGE` to fetch, or networking is off); nothing is fetched then.

``cascade_studio.progress``, four times a second while files come, and once with "finished" true (also after an error)::

    {"node": "12", "prompt_id": "…", "workflow": "…", "file": "stage_c_bf16.safetensors", "done": bytes,
     "total": bytes or 0,
     "speed": bytes a second, "left": seconds or null, "note": "", "text": "stage_c_bf16.safetensors: 41 % of …",
     "finished": false}

Both texts also go to the host's own text under a node, so that they are seen without any extension; so does what the
node tells when it is done, which is its ``ui`` output ``{"text": [lines]}``. Which choices of a file input would be
fetched is told by the list ``published`` in the input's definition (``/object_info``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from server import PromptServer

from ....stages.errors import NotFetched, WrongFile
from ....stages.files.open import OpenedModels
from ...checkpoints.catalogue import FROM_CHECKPOINT, NONE, Entry, Preset
from ...checkpoints.errors import CheckpointError
from ...checkpoints.fetch import Result, fetch_plan
from ...checkpoints.find import layout_fits, locate_bundled
from ...checkpoints.plan import DownloadPlan, make_plan
from ...checkpoints.presets import rank_presets
from ...checkpoints.progress import DownloadMoment
from ...checkpoints.settings import FetchSettings
from .. import machine
from ..models.load import Parts
from ..report import state
from . import names, stamps
from .names import Library

log = logging.getLogger(__name__)

DOWNLOAD, ASK, NEVER, ASK_IF_LARGE = MODES = ("download", "ask", "never", "ask if large")
LARGE = 10**9
"""Bytes above which "ask if large" asks."""

OWN, AUTOMATIC, MINI = "files below", "automatic", "cascade-mini"
PLAN, PROGRESS = "cascade_studio.plan", "cascade_studio.progress"

Values = Mapping[str, "str | Entry"]
"""What each file input holds: a name, an entry of the catalogue, or a word that is no file."""


@dataclass
class FoundFiles:
    """What a loader works with. paths: by input, the words that are no files as they are; lines: what to tell.

    models: the files that were opened on the way; namesakes: by input, further files of the very same name.
    """

    paths: dict[str, str]
    lines: list[str] = field(default_factory=list)
    models: OpenedModels = field(default_factory=OpenedModels)
    namesakes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def parts(self) -> Parts:
        """The networks in the files."""
        return Parts(self.paths, self.models, self.namesakes)


def list_presets() -> list[str]:
    """Choices of the preset input; those whose bundled files are not in the pack are left out."""
    known = names.usable_catalogue()
    whole = [
        preset
        for preset in known.presets.values()
        if all(locate_bundled(known.entries[key]).is_file() for key in preset.entries if known.entries[key].bundled)
    ]
    return [OWN, AUTOMATIC, *(preset.title for preset in whole)]


def list_facts(role: str, published: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What an artist wants to know of files before they are fetched, by name."""
    wanted = set(published)
    return {
        entry.name: {
            "bytes": entry.size,
            "about": entry.bytes is None,
            "folder": f"models/{entry.folder}" + (f"/{entry.subfolder}" if entry.subfolder else ""),
            "licence": entry.licence.name,
        }
        for entry in names.usable_catalogue().for_role(role)
        if entry.name in wanted
    }


def list_preset_files() -> dict[str, dict[str, str]]:
    """By a preset's title, what it puts into each file input: a file's name, or the word of a choice that is none."""
    known = names.usable_catalogue()
    return {
        preset.title: {
            role: known.entries[key].name if key in known.entries else key for role, key in preset.inputs.items()
        }
        for preset in known.presets.values()
    }


def apply_preset(preset: str, chosen: Mapping[str, str], models: OpenedModels) -> tuple[dict[str, str | Entry], str]:
    """The values of the file inputs under a preset, and a line on which it is."""
    if preset == OWN:
        return dict(chosen), ""
    try:
        known = names.load_catalogue()
        found, reason = choose_preset(models) if preset == AUTOMATIC else (known.find_preset(preset), "")
    except CheckpointError as error:
        raise WrongFile(str(error)) from None
    values = {role: known.entries.get(value, value) for role, value in found.inputs.items() if role in chosen}
    return {**chosen, **values}, f"Preset {found.title}{f': {reason}' if reason else ''}."


def choose_preset(models: OpenedModels) -> tuple[Preset, str]:
    """The best preset whose files are all here: those that suit this machine first;
    Cascade Mini where there is none.
    """
    known, suiting, reason = names.usable_catalogue(), *rank_presets(machine.describe_machine())
    finder = names.finder(comfy.model_management.throw_exception_if_processing_interrupted, models)
    for key in order_presets(suiting):
        entries = [known.entries[entry] for entry in known.presets[key].entries]
        if all(locate_bundled(entry).is_file() if entry.bundled else finder.find(entry) for entry in entries):
            if key == MINI:
                reason = "no complete set of larger models is on this computer"
            return known.presets[key], reason if key in (*suiting, MINI) else "of the complete sets here"
    return known.presets[suiting[0]], reason


def order_presets(suiting: Sequence[str]) -> list[str]:
    """Keys of all presets in the order in which "automatic" looks for them."""
    known = names.usable_catalogue().presets
    keys = [key for key in dict.fromkeys([*suiting, *known]) if key in known and key != MINI]
    return [*keys, *([MINI] if MINI in known else [])]


def stamp_preset(preset: str, chosen: Mapping[str, str | None]) -> str:
    """Changes whenever a file that the loader uses does."""
    if preset == OWN:
        return names.stamp_all(chosen)
    known, library = names.usable_catalogue(), Library()
    keys = order_presets(rank_presets(machine.describe_machine())[0]) if preset == AUTOMATIC else list(known.presets)
    presets = [known.presets[key] for key in keys]
    if preset != AUTOMATIC:
        presets = [one for one in presets if preset in (one.title, one.key)]
    all_stamps = dict.fromkeys(
        library.stamp(role, known.entries.get(value, value))
        for one in presets
        for role, value in one.inputs.items()
        if role in chosen and value not in (NONE, FROM_CHECKPOINT)
    )
    return stamps.digest(preset, *all_stamps)


def find_files(node: str | None, chosen: Values, missing_files: str = DOWNLOAD, preset: str = OWN) -> FoundFiles:
    """Find the file of every input of ``node``, and have what is missing fetched, asked about or refused.

    Raises :class:`WrongFile` with a sentence; the host's own exception when it is interrupted.
    """
    library, made, wanted = Library(), FoundFiles({}), {}
    chosen, line = apply_preset(preset, chosen, made.models)
    made.lines += [line] if line else []
    for role, value in chosen.items():
        entry = value if isinstance(value, Entry) else library.catalogue.find_named(role, value or "")
        here = value if value in (NONE, FROM_CHECKPOINT) else find_at_once(library, role, value, entry, made.models)
        if here is not None:
            made.paths[role] = here
            if isinstance(value, str):
                made.namesakes[role] = library.find_namesakes(role, value)
        elif entry is not None:
            wanted[role] = entry
        else:
            names.load_catalogue()  # says so if the user's own cannot be read: the name may stand there
            raise WrongFile(names.describe_missing(role, value))
    try:
        entries = list(dict.fromkeys(wanted.values()))
        places = provide(node, entries, missing_files, made) if wanted else {}
    except CheckpointError as error:
        raise NotFetched(str(error)) from None
    made.paths.update((role, places[entry.key]) for role, entry in wanted.items())
    return made


def find_at_once(
    library: Library, role: str, value: str | Entry, entry: Entry | None, models: OpenedModels
) -> str | None:
    """The path of a file that needs no search: it has the very name, or is where the host lists a known one."""
    path = None if isinstance(value, Entry) else library.find_local(role, value)
    if path is None and entry is not None:
        path = library.find_known(role, entry)
        return path if path and (entry.bundled or layout_fits(entry, Path(path), models=models)) else None
    return path or library.find_alike(role, str(value))


def provide(node: str | None, entries: list[Entry], missing_files: str, made: FoundFiles) -> dict[str, str]:
    """Paths of ``entries`` by key, after fetching what is missing; ``made`` gets lines on what was fetched."""
    stop = comfy.model_management.throw_exception_if_processing_interrupted
    plan = make_plan(entries, names.finder(stop, made.models), names.find_roots())
    places = {found.entry.key: str(found.path) for found in plan.found}
    if plan.missing:
        settings = FetchSettings.from_environment()
        if missing_files not in (DOWNLOAD, ASK_IF_LARGE) or (missing_files == ASK_IF_LARGE and plan.to_come > LARGE):
            refuse_to_fetch(node, plan, missing_files)
        state = "refuses" if settings.offline else "fetches"
        send(node, PLAN, {"state": state, "text": plan.describe(), "plan": plan.as_json()})
        results = fetch(node, plan, settings)
        for result in results:
            places[result.entry.key] = str(result.path)
            stamps.note_fetched(result.entry, result.path)
        made.lines.append(f"All of this was fetched:\n{plan.describe()}")
        made.lines += [
            f"{result.path.name} is unverified: neither the catalogue nor the official host has told its hash."
            for result in results
            if not result.verified
        ]
    return places


def refuse_to_fetch(node: str | None, plan: DownloadPlan, missing_files: str) -> None:
    """Stop with the plan and what can be done."""
    asks = missing_files != NEVER
    advised = (
        f"'missing_files' is set to '{missing_files}': set it to '{DOWNLOAD}' and queue again to fetch them."
        if asks
        else f"'missing_files' is set to '{NEVER}', so nothing is fetched."
    )
    text = f"{plan.describe()}\n{advised}\n{plan.by_hand()}"
    send(node, PLAN, {"state": "asks" if asks else "refuses", "text": text, "plan": plan.as_json()})
    raise NotFetched(text)


def fetch(node: str | None, plan: DownloadPlan, settings: FetchSettings) -> list[Result]:
    """Fetch what is missing under one bar of the node, by bytes over all files."""
    bar, last = comfy.utils.ProgressBar(max(1, plan.to_come), node_id=node), DownloadMoment("", 0, 0, 0.0, None)

    def show(moment: DownloadMoment) -> None:
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
        prompt, workflow = state.find_running()
        prompt = prompt or getattr(server, "last_prompt_id", None)
        told = {"node": node, "prompt_id": prompt, "workflow": workflow, **message}
        (state.note_plan if event == PLAN else state.note_progress)(node, told)
        server.send_sync(event, told, client)
        server.send_progress_text(message["text"], node, client)


def show_loaded(node: str | None, made: FoundFiles, *models: Any) -> dict[str, Any]:
    """What a loader shows: files that were fetched, and for each of ``models`` its number format and why."""
    text = "\n".join([*made.lines, *filter(None, map(machine.describe_choice, models))])
    show_text(text, node)
    return {"text": [text]} if text else {}


def show_text(text: str, node: str | None) -> None:
    """Show ``text`` inside the node with the id ``node``, where this host can."""
    server = getattr(PromptServer, "instance", None)
    send_text = getattr(server, "send_progress_text", None)
    if text and send_text is not None and node is not None:
        send_text(text, str(node), getattr(server, "client_id", None))
