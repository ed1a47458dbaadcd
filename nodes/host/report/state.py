"""What a page that was loaded meanwhile asks for: the running prompt, what it told of its downloads, its last results.

``GET /cascade_studio/state?workflow=ID`` starts and changes nothing. It gives::

    {"running": {"prompt_id", "workflow"} or null,
     "downloads": {"prompt_id", "workflow", "plans": {node: message}, "progress": {node: message}} or null,
     "last": {"prompt_id", "outputs": {node: {"images", "cascade_studio_drafts", …}}} or null}

"downloads" are the messages of :mod:`..files.fetch`, kept beside the prompt that sent them until another one sends
some; "last" is what the host's history has of the newest finished run of the workflow with this id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from server import PromptServer

from ... import PREFIX

ADDRESS = "/cascade_studio/state"


@dataclass
class Downloads:
    """What one prompt has told, the newest message of each node."""

    prompt_id: str | None = None
    workflow: str | None = None
    plans: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


_told: list[Downloads] = []
"""Of one prompt at most, the newest that told something."""


def find_item() -> Any:
    """The running prompt as the host's queue has it, or None."""
    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    running, _ = queue.get_current_queue_volatile() if queue is not None else ([], [])
    return running[0] if running else None


def find_running() -> tuple[str | None, str | None]:
    """Id of the prompt that runs, and that of the workflow which it was queued from; None where there is none."""
    item = find_item()
    return (item[1], find_workflow(item)) if item else (None, None)


def find_choice() -> str | None:
    """How the user of the running prompt wants previews: "default" where they have not said, "none" for none."""
    item = find_item() or ()
    extra = item[3] if len(item) > 3 and isinstance(item[3], Mapping) else {}
    return extra.get("preview_method")


def find_workflow(item: Any) -> str | None:
    """The id of the workflow that an item of the queue or the history was queued from."""
    extra = item[3] if len(item) > 3 and isinstance(item[3], Mapping) else {}
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return workflow.get("id") if isinstance(workflow, Mapping) else None


def note_plan(node: str, message: dict[str, Any]) -> None:
    """Keep what a node needs; a new prompt makes the last one's forgotten."""
    if not _told or message.get("prompt_id") != _told[0].prompt_id:
        _told[:] = [Downloads(message.get("prompt_id"), message.get("workflow"))]
    _told[0].plans[node] = message
    _told[0].progress.pop(node, None)


def note_progress(node: str, message: dict[str, Any]) -> None:
    """Keep how far the download of a node is."""
    if _told and message.get("prompt_id") == _told[0].prompt_id:
        _told[0].progress[node] = message


def find_last(workflow: str) -> dict[str, Any] | None:
    """The newest finished run of a workflow: what its nodes of ours showed."""
    history = list(PromptServer.instance.prompt_queue.history.values())
    for entry in reversed(history):
        item, outputs = entry.get("prompt") or (), entry.get("outputs") or {}
        if len(item) > 3 and outputs and find_workflow(item) == workflow:
            ours = {
                node: shown
                for node, shown in outputs.items()
                if str(item[2].get(node, {}).get("class_type", "")).startswith(PREFIX)
            }
            return {"prompt_id": item[1], "outputs": ours}
    return None


def describe_state(workflow: str) -> dict[str, Any]:
    """What the address answers."""
    prompt, place = find_running()
    return {
        "running": {"prompt_id": prompt, "workflow": place} if prompt else None,
        "downloads": vars(_told[0]) if _told else None,
        "last": find_last(workflow) if workflow else None,
    }


def serve_state() -> None:
    """Add the address to the host's server, where there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None or not hasattr(server, "routes"):
        return

    @server.routes.get(ADDRESS)
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(describe_state(request.query.get("workflow", "")))
