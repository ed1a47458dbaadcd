"""What comes after the first picture, in screenshots: the files of the published models, a download, a LoRA.

``python3 dev.py run tests/browser/retake.py`` takes them together with those of the walk.
"""

from __future__ import annotations

from pathlib import Path

from browser.page import QUEUE, Page
from browser.shop import Shop
from browser.walk import LONGEST, SHARE, SHOWN

from tools.scenes import SCENES
from tools.small import MINI_FILES, MINI_SIDE
from tools.titles import title_of

STEPS = {6: "text_to_image", 7: "fetching", 8: "lora"}
TEMPLATE = title_of("text_to_image")
SCENE = SCENES[title_of("lora_schedule")]
MINI, LORA = "Cascade Mini (bundled, 256 px)", f"{Path(MINI_FILES['lora']).name}.safetensors"
RATE = 500_000
"""Bytes a second at which files come while their screenshot is taken."""

ARRIVED = "document.querySelector('.cascade-studio-download .file[data-state=here] ~ .file[data-state=now]')"
"""Expression of a page: the file that comes, once another one is here."""

ENDS = ("execution_success", "execution_error", "execution_interrupted")

INSERT = """
const graph = app.rootGraph;
const loader = graph.nodes.find((node) => node.type === 'CascadeStudio_Load');
const group = graph.groups.find((one) => one.pos[0] <= loader.pos[0] && loader.pos[0] < one.pos[0] + one.size[0]);
const made = LiteGraph.createNode('CascadeStudio_LoadLora');
const edge = group.pos[0] + group.size[0];
const links = (output) => (output.links ?? []).map((id) => graph.links.get?.(id) ?? graph.links[id]);
for (const part of [...graph.nodes, ...graph.groups])
  if (part.pos[0] >= edge) part.pos = [part.pos[0] + made.size[0] + 30, part.pos[1]];
made.pos = [edge + 30, loader.pos[1]];
graph.add(made);
const slotOf = (slots, name) => slots.findIndex((slot) => slot.name === name);
for (const name of ['prior', 'clip']) {
  const from = slotOf(loader.outputs, name);
  const targets = links(loader.outputs[from]).map(({ target_id, target_slot }) => [target_id, target_slot]);
  loader.connect(from, made, slotOf(made.inputs, name));
  for (const [id, slot] of targets) made.connect(slotOf(made.outputs, name), graph.getNodeById(id), slot);
}
return made.id;
"""
"""Body of a page's function: puts a LoRA between the loader and all that takes its prior and its clip."""


def open_workflow(page: Page) -> None:
    """The published text to image as the only workflow, by clicks."""
    page.open()
    page.clear()
    page.browse_templates()
    page.open_template(TEMPLATE)
    page.browser.wait("app.extensionManager.workflow.activeWorkflow?.path?.includes(arguments[0])", TEMPLATE)


def shoot(page: Page, folder: Path, number: int) -> Path:
    """One screenshot of all that is in the graph."""
    page.fit(SHARE)
    page.wait_still()
    file = folder / f"first_{number}_{STEPS[number]}.png"
    file.write_bytes(page.browser.picture())
    return file


def set_of(page: Page, kind: str, **values: object) -> None:
    """Give widgets of the one node of its kind their values."""
    node = page.browser.run(
        "return app.rootGraph.nodes.find((node) => node.type === arguments[0]).id", f"CascadeStudio_{kind}"
    )
    for name, value in values.items():
        page.set(node, name, value)


def shoot_files(page: Page, folder: Path) -> Path:
    """The workflow as it opens: the loader says what a run would fetch."""
    open_workflow(page)
    return shoot(page, folder, 6)


def shoot_fetching(page: Page, folder: Path, shop: Shop) -> Path:
    """The same while files come, which then is stopped."""
    open_workflow(page)
    set_of(page, "Load", preset=shop.PRESET, missing_files="download")
    shop.rate = RATE
    page.watch(*ENDS)
    page.browser.click(QUEUE)
    page.browser.wait(f"!!{ARRIVED}")
    file = shoot(page, folder, 7)
    page.browser.click(".cascade-studio-download [data-action=cancel]")
    page.browser.wait("window.seen.length > 0")
    shop.rate = None
    return file


def shoot_lora(page: Page, folder: Path) -> Path:
    """A LoRA in the same workflow, after a run: on Cascade Mini, with the LoRA that comes with it."""
    open_workflow(page)
    lora = page.browser.run(INSERT)
    page.set(lora, "lora", LORA)
    set_of(page, "Load", preset=MINI)
    set_of(page, "Canvas", width=MINI_SIDE, height=MINI_SIDE)
    prompt = page.browser.run("return app.rootGraph.nodes.find((node) => node.title === 'Prompt').id")
    page.set(prompt, "text", SCENE.prompt)
    page.fit(SHARE)
    page.watch(*ENDS)
    page.browser.click(QUEUE)
    page.wait_done(LONGEST)
    page.browser.wait(SHOWN)
    return shoot(page, folder, 8)
