"""ComfyUI's frontend as the tests use it: loading a workflow, converting, running, and what is on the screen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from browser.driver import FRAMES, Browser

from cascade_studio.commands.workflow.api_prompt import Converted, convert
from tools.edit import fit_files
from tools.server import PACK

QUEUE = '[data-testid="queue-button"]'
READY = f"!document.querySelector('.p-progressspinner') && !!document.querySelector('{QUEUE}') && !!window.app.canvas"
OURS, CODE = "cascade", (f"/extensions/{PACK}/js/", f"/extensions/{PACK}/css/")
NOT_THERE = "Failed to load resource"
"""The frontend asks for thumbnails, and for help in the user's language, whether there are any or not."""
POLICY = "Content Security Policy"
"""What older frontends are refused on an offline server: to ask where a missing file lies how large it is."""
UNHEARD = "Unhandled message"
"""What arrives while a page is opened anew, before anybody listens: the frontend warns of it."""

PREVIEWS = """
const board = Object.assign(document.createElement("canvas"), { width: 512, height: 512 });
board.getContext("2d").fillRect(0, 0, 512, 512);
const blob = await new Promise((done) => board.toBlob(done));
for (const id of arguments[0].map(String)) {
  const ids = { nodeId: id, displayNodeId: id, parentNodeId: id, realNodeId: id };
  app.api.dispatchCustomEvent("b_preview_with_metadata", { blob, ...ids });
}
"""
ERRORS = ".p-dialog-mask"
"""What older frontends show a failed run in."""
TEMPLATES = '[data-testid="template-workflows-content"]'
CROSS = "button:has(.pi-times)"
"""Closes a dialog; older frontends do not do it with Escape."""
CARD = '[data-testid="template-workflow-%s"]'
FIRST_CARD = "document.querySelector('[data-testid^=template-workflow-]')"
"""Expression of a page: the card that the template browser shows first."""

OPENING = 240.0
"""Seconds that the frontend may take to open, on a machine that is busy with something else."""

ACTIVE, FIRST_GRAPH = "app.extensionManager.workflow?.activeWorkflow != null", 10_000
"""Expression of a page: whether there is a graph; and the milliseconds that a frontend has for making a first one."""

TITLE = 30
"""Pixels of a node's title, which its position leaves out."""

SHOWN = """(() => {
  const { ds } = app.canvas;
  if (ds.scale !== 1 || ds.offset[0] || ds.offset[1]) { ds.scale = 1; ds.offset = [0, 0]; }
  app.canvas.setDirty(true, true);
  const widgets = app.rootGraph.getNodeById(arguments[0]).widgets ?? [];
  return widgets.every(({ hidden, element }) => hidden || !element || element.getBoundingClientRect().height > 0);
})()"""
"""Whether a node is drawn with its panels, but for hidden ones. Out of sight there are none, and a page may still move
while it opens."""

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Execution.PreviewMethod": "latent2rgb",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
"""Of a user who has been here before: no welcome dialogs, none about missing models, and previews while it samples."""


class Page:
    """The frontend in one browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self) -> None:
        """Open the frontend, or open it anew, and wait until it can be used."""
        self.browser.open(self.url)
        self.browser.wait(f"document.readyState == 'complete' && !!window.app && {READY}", timeout=OPENING)
        # The frontend restores or makes a first graph a moment later; older ones only where workflows are kept.
        self.browser.wait(f"{ACTIVE} || Date.now() - (window.cascadeStudioOpened ??= Date.now()) > {FIRST_GRAPH}")
        self.browser.run(f"if (!({ACTIVE})) await app.loadGraphData()")
        self.browser.wait(ACTIVE)
        heard = [error for error in self.browser.take_errors() if not error.startswith(UNHEARD)]
        self.browser.errors[:0] = heard

    def complaints(self) -> list[str]:
        """The console errors and warnings since the last time that name this pack."""
        return [
            error
            for error in self.browser.take_errors()
            if POLICY not in error
            and ((OURS in error.lower() and not error.startswith(NOT_THERE)) or any(path in error for path in CODE))
        ]

    def clear(self) -> None:
        """An empty graph, no dialog, no selection, nothing that runs, and no panel of what was there before."""
        self.dismiss()
        self.browser.run("app.canvas.deselectAll(); app.rootGraph.clear();")
        self.browser.wait(
            "await (async () => { const queue = await (await app.api.fetchApi('/queue')).json();"
            "if (queue.queue_pending.length) await app.api.clearItems('queue');"
            "if (queue.queue_running.length) await app.api.interrupt(null);"
            "return queue.queue_running.length + queue.queue_pending.length === 0; })()"
        )
        # The host keeps, out of sight, what was drawn in a subgraph that is gone.
        self.browser.wait(
            "app.rootGraph.nodes.length === 0 && [...document.querySelectorAll('.cascade-studio')]"
            ".every((panel) => panel.getBoundingClientRect().height === 0)"
        )

    def dismiss(self) -> None:
        """Close what the host opens over the graph, also after an error."""
        self.browser.run(
            "app.extensionManager.dialog?.closeDialog?.();"
            "document.querySelector('[data-testid=error-overlay-dismiss]')?.click()"
        )
        for above in (TEMPLATES, ERRORS):
            if self.browser.run(f"return !!document.querySelector('{above}')"):
                self.browser.press("Escape", 27)
                dialog = f"document.querySelector('{above}')?.closest('[role=dialog]')"
                self.browser.run(f"{dialog}?.querySelector('{CROSS}')?.click()")
                self.browser.wait(f"!document.querySelector('{above}')")

    def load(self, workflow: dict[str, Any], name: str = "test") -> None:
        """Open a workflow as from a file."""
        self.browser.run("await app.loadGraphData(arguments[0], true, true, arguments[1])", workflow, name)

    def browse_templates(self) -> None:
        """Open the template browser at the pack's own category."""
        self.browser.run("await app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.browser.wait(f"!!document.querySelector('{TEMPLATES}')")
        category = (
            "[...document.querySelectorAll('[role=dialog] *')]"
            f".find((e) => !e.children.length && e.textContent.trim() === '{PACK}')"
        )
        group = (
            "[...document.querySelectorAll('nav *, aside *, [role=dialog] *')]"
            ".find((e) => e.children.length === 0 && e.textContent.trim().toUpperCase() === 'EXTENSIONS')"
        )
        self.browser.wait(f"!!({category} ?? {group})")
        self.browser.run(f"if (!{category}) {group}.click()")
        self.browser.wait(f"!!{category}")
        self.browser.run(f"{category}.click()")

    def search_templates(self, words: str) -> None:
        """Type into the search of the template browser."""
        self.browser.run(
            "const field = document.querySelector('[role=dialog] input:not([type=checkbox])');"
            "field.focus(); field.value = arguments[0]; field.dispatchEvent(new Event('input', { bubbles: true }))",
            words,
        )

    def find_template(self, name: str) -> str:
        """Scroll the template browser until a workflow is listed; returns the selector of its card."""
        card = CARD % name
        self.browser.wait(
            "(document.querySelector(arguments[0]) ?? (document.querySelector(arguments[1])"
            "?.lastElementChild?.scrollIntoView(), null)) !== null",
            card,
            TEMPLATES,
        )
        self.browser.run("document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })", card)
        return card

    def open_template(self, name: str) -> None:
        """Click a workflow in the template browser and wait until it is in the graph."""
        self.browser.click(self.find_template(name))
        self.browser.wait(f"app.rootGraph.nodes.length > 0 && !document.querySelector('{TEMPLATES}')")

    def add(self, kind: str, at: tuple[int, int] = (100, 100), **values: Any) -> int:
        """Put one node into the graph and wait until it is drawn with its panels; returns its id."""
        node = self.browser.run(
            "const node = LiteGraph.createNode(arguments[0]); node.pos = arguments[1]; app.rootGraph.add(node);"
            "for (const [name, value] of Object.entries(arguments[2])) {"
            "  const widget = node.widgets.find((w) => w.name === name); widget.value = value;"
            "  widget.callback?.(value); }"
            "return node.id",
            kind,
            list(at),
            values,
        )
        self.browser.wait(SHOWN, node)
        self.browser.run(FRAMES)
        return node

    def value(self, node: int, widget: str) -> Any:
        return self.browser.run(
            "return app.rootGraph.getNodeById(arguments[0]).widgets.find((w) => w.name === arguments[1]).value",
            node,
            widget,
        )

    def set(self, node: int | str, widget: str, value: Any, quietly: bool = False) -> None:
        """Give a widget a value; ``quietly`` as code does, without its callback."""
        self.browser.run(
            "const widget = app.rootGraph.getNodeById(arguments[0]).widgets.find((w) => w.name === arguments[1]);"
            "widget.value = arguments[2]; if (!arguments[3]) widget.callback?.(arguments[2]);"
            "app.canvas.setDirty(true, true)",
            node,
            widget,
            value,
            quietly,
        )

    def executed(self, node: int | str, output: dict[str, Any]) -> None:
        """Let a node show an output as after a run."""
        self.browser.run("app.rootGraph.getNodeById(arguments[0]).onExecuted(arguments[1])", node, output)

    def prompt(self) -> dict[str, Any]:
        """What the frontend itself makes of the graph."""
        return self.browser.run("return (await app.graphToPrompt()).output")

    def graph(self) -> dict[str, Any]:
        return self.browser.run("return app.rootGraph.serialize()")

    def unknown(self) -> list[str]:
        """Types of nodes in the graph that the frontend does not know."""
        return self.browser.run(
            "return [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)"
            ".filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
        )

    def overlaps(self) -> list[str]:
        """Nodes that lie on one another as the page shows them, its panels included."""
        boxes = self.browser.run(
            "return app.rootGraph.nodes.map((n) => [n.title, ...n.pos, ...n.size, n.flags?.collapsed ? 1 : 0])"
        )
        found = []
        for index, (one, left, top, width, height, small) in enumerate(boxes):
            for other, x, y, across, down, also_small in boxes[index + 1 :]:
                if not (small or also_small) and (
                    left < x + across and x < left + width and top - TITLE < y + down and y - TITLE < top + height
                ):
                    found.append(f"'{one}' lies on '{other}'")
        return found

    def setting(self, name: str, value: Any) -> None:
        self.browser.run("await app.extensionManager.setting.set(arguments[0], arguments[1])", name, value)

    def speak(self, code: str) -> None:
        """Switch the language, and wait until the frontend has loaded the graph anew, which it does a moment later."""
        self.browser.run("window.before = app.rootGraph.nodes[0]")
        self.setting("Comfy.Locale", code)
        self.browser.wait("app.rootGraph.nodes.length > 0 && app.rootGraph.nodes[0] !== window.before")

    def fit(self, share: float = 0.75) -> None:
        """Zoom so that the whole graph takes this share of the screen: the host's own command, without its gliding."""
        self.browser.run(
            "const parts = [...app.rootGraph.nodes, ...app.rootGraph.groups];"
            "const [left, top] = [0, 1].map((way) => Math.min(...parts.map((part) => part.pos[way]))).map((v, way) =>"
            " v - way * arguments[0]);"
            "const [right, bottom] = [0, 1].map((way) => Math.max(...parts.map((p) => p.pos[way] + p.size[way])));"
            "app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: arguments[1] });"
            "app.canvas.setDirty(true, true);" + FRAMES,
            TITLE,
            share,
        )

    def wait_still(self) -> None:
        """Wait until every picture in sight has arrived and the graph has been drawn with them."""
        self.browser.wait(
            "[...document.images].every((image) => { const at = image.getBoundingClientRect();"
            "const seen = at.bottom > 0 && at.right > 0 && at.top < innerHeight && at.left < innerWidth;"
            "return image.complete || !seen; })"
        )
        self.browser.run("app.canvas.setDirty(true, true);" + FRAMES)

    def watch(self, *events: str) -> None:
        """Note these events of the server from now on, and no others, for :meth:`seen`."""
        self.browser.run(
            "window.seen ??= []; window.seen.length = 0; window.listened ??= new Set(); window.watched = arguments[0];"
            "for (const name of arguments[0]) if (!window.listened.has(name)) { window.listened.add(name);"
            "app.api.addEventListener(name, ({ detail }) => {"
            " if (window.watched.includes(name)) window.seen.push([name, detail]); }); }",
            list(events),
        )

    def seen(self, event: str) -> list[Any]:
        return [detail for name, detail in self.browser.run("return window.seen") if name == event]

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Let the page hear an event as if the server had sent it."""
        self.browser.run("app.api.dispatchEvent(new CustomEvent(arguments[0], { detail: arguments[1] }))", event, data)

    def show_previews(self, nodes: list[int]) -> None:
        """Give nodes a live preview, as the server does while it runs, and wait until they have it."""
        self.browser.run(PREVIEWS, nodes)
        self.browser.wait("arguments[0].every((id) => app.nodePreviewImages?.[id]?.length)", nodes)

    def run(self) -> None:
        """Press Run and wait until the prompt has ended; its failure is an error here."""
        self.watch("execution_success", "execution_error", "execution_interrupted")
        self.browser.click(QUEUE)
        self.wait_done()

    def wait_done(self, timeout: float = 300.0) -> None:
        """Wait until a watched run has ended; its failure is an error here."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            for name, detail in self.browser.run("return window.seen"):
                if name == "execution_success":
                    return
                assert name not in ("execution_error", "execution_interrupted"), detail
            time.sleep(0.1)
        raise AssertionError(f"the prompt was not done within {timeout:.0f} s")


class Small:
    """A bundled workflow as it runs here: its files re-pointed to the tiny family, its sizes and steps small."""

    def __init__(self, path: Path, object_info: dict[str, Any]) -> None:
        self.workflow = json.loads(path.read_text(encoding="utf-8"))
        self.converted: Converted = convert(self.workflow, object_info)
        self.saved = {node: dict(entry["inputs"]) for node, entry in self.converted.prompt.items()}
        fit_files(self.converted, object_info)
        for node, entry in self.converted.prompt.items():
            for name, value in entry["inputs"].items():
                small = {"steps": 3, "width": 128, "height": 128}.get(name)
                if small and isinstance(value, (int, float)):
                    self.converted.set(node, name, small)

    @property
    def changes(self) -> list[tuple[str, str, Any]]:
        """Node, input and value of all that differs from the file."""
        return [
            (node, name, value)
            for node, entry in self.converted.prompt.items()
            for name, value in entry["inputs"].items()
            if value != self.saved[node][name]
        ]

    def node(self, kind: str) -> str:
        (found,) = [name for name, entry in self.converted.prompt.items() if entry["class_type"] == kind]
        return found
