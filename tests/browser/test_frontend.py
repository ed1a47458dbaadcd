"""The path of someone who only clicks: template, workflow, queue, preview, picture, and back from the picture."""

from __future__ import annotations

import io
import json
import re
from urllib.parse import quote

import pytest
from browser.page import NOT_THERE, QUEUE, Page, Small
from harness import REPOSITORY
from PIL import Image

from cascade_studio.commands.workflow.api_prompt import convert
from tools.blocks import cut
from tools.server import PACK

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
BLOCKS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
HELP = sorted((REPOSITORY / "web" / "docs").glob("CascadeStudio_*.md"))

every_file = pytest.mark.parametrize("path", [*WORKFLOWS, *BLOCKS], ids=lambda path: path.stem)
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def press_queue(page: Page) -> None:
    """Press the Run button and wait for the end of the run."""
    page.watch("execution_success", "execution_error", "execution_interrupted", "b_preview_with_metadata", "executing")
    page.browser.click(QUEUE)
    page.wait_done()


def test_the_templates_are_listed(page, server):
    """The pack's category in the template browser shows every bundled workflow, with a picture where there is one."""
    page.browse_templates()
    cards = {path.stem: page.find_template(path.stem) for path in WORKFLOWS}  # the list goes on as it is scrolled
    for name in (path.stem for path in WORKFLOWS if path.with_suffix(".jpg").is_file()):
        assert server.client.fetch(f"/api/workflow_templates/{PACK}/{quote(name)}.jpg")[:2] == b"\xff\xd8"
        page.find_template(name)
        page.browser.wait(  # its address may be the page's own, for a copy; only the stand-in's is known
            "[...document.querySelector(arguments[0])?.querySelectorAll('img') ?? []].some((image) =>"
            " image.naturalWidth > 0 && !image.src.includes('default-template'))",
            cards[name],
        )
    page.dismiss()
    page.browse_templates()
    page.open_template(WORKFLOWS[0].stem)
    assert {node["type"] for node in page.graph()["nodes"]} == {
        node["type"] for node in json.loads(WORKFLOWS[0].read_text(encoding="utf-8"))["nodes"]
    }


@every_file
def test_a_workflow_opens_and_converts_as_the_frontend_does(page, object_info, path):
    """No missing node, nothing in the console, and our converter (commands/workflow/api_prompt.py) makes the very
    prompt that the frontend makes.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.load(workflow, path.stem)
    assert page.unknown() == []
    assert page.prompt() == convert(workflow, object_info).prompt
    errors = [error for error in page.browser.take_errors() if not error.startswith(NOT_THERE)]
    assert not errors, "\n".join(errors)


@every_workflow
def test_a_workflow_comes_back_as_it_was_saved(page, path):
    """Loaded and saved again: the same nodes, links and values; panels of the extension leave nothing in the file."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.load(workflow, path.stem)
    saved = page.graph()
    values = {node["id"]: node.get("widgets_values") for node in workflow["nodes"]}
    assert {node["id"]: node.get("widgets_values") for node in saved["nodes"]} == values
    assert sorted(link[:6] for link in saved["links"]) == sorted(link[:6] for link in workflow["links"])


def test_the_widgets_draw(page, object_info, pictures):
    """Every node of the first workflow is on the screen with something in it; a screenshot is kept."""
    page.setting("LiteGraph.Canvas.MinFontSizeForLOD", 0)  # letters at every zoom
    try:
        page.load(Small(WORKFLOWS[0], object_info).workflow)
        page.fit()
        page.wait_still()
        content = page.browser.picture()
    finally:
        page.setting("LiteGraph.Canvas.MinFontSizeForLOD", 8)
    (pictures / "workflow.png").write_bytes(content)
    boxes = page.browser.run(
        "return app.rootGraph.nodes.map((node) => [node.type, ...app.canvasPosToClientPos(node.pos),"
        " ...[...node.size].map((side) => side * app.canvas.ds.scale)])"
    )
    with Image.open(io.BytesIO(content)) as screen:
        for kind, left, top, width, height in boxes:
            assert left > 0 and top > 0 and left + width < screen.width and top + height < screen.height, kind
            found = screen.convert("RGB").crop((left, top, left + width, top + height))
            assert len(found.getcolors(1 << 24)) > 8, f"{kind} is blank"
    assert len(boxes) > 5


def test_a_click_makes_a_picture_and_the_picture_brings_the_graph_back(page, small, server, tmp_path):
    page.load(small.workflow)
    page.browser.run(
        "for (const node of app.rootGraph.nodes) for (const widget of node.widgets ?? [])"
        " if (widget.name === 'seed') widget.value = 90210"
    )  # so that nothing comes from the cache
    expected = page.prompt()
    press_queue(page)
    seen = page.seen("b_preview_with_metadata")
    assert len(seen) >= 2, "no preview came while it sampled"
    page.browser.wait(
        "app.rootGraph.getNodeById(arguments[0]).imgs?.[0]?.naturalWidth > 0",
        int(small.node("CascadeStudio_SampleDecoder")),
    )
    (save,) = [name for name, entry in expected.items() if entry["class_type"] == "SaveImage"]
    page.browser.wait("app.rootGraph.getNodeById(arguments[0]).imgs?.[0]?.naturalWidth === 128", int(save))
    stages = page.browser.run(
        "return [...document.querySelectorAll('.cascade-studio-stages')].map((strip) => strip.innerText)"
    )
    assert stages and all(len(re.findall(r"\d s|\d:\d\d", text)) == 3 for text in stages), stages

    image = page.browser.run("return app.nodeOutputs[arguments[0]].images[0]", save)
    file = tmp_path / image["filename"]
    file.write_bytes(server.client.view(image))
    page.clear()
    assert page.prompt() == {}
    page.browser.drop(file, 800, 500)
    page.browser.wait("app.rootGraph.nodes.length > 5")
    assert page.prompt() == expected


def test_a_second_click_shows_that_the_work_was_kept(page, small):
    """Fixed seeds: everything but the saving comes from the cache, and the strip says so."""
    page.load(small.workflow)
    page.browser.run(
        "for (const node of app.rootGraph.nodes) for (const widget of node.widgets ?? [])"
        " if (widget.name === 'control_after_generate') widget.value = 'fixed'"
    )
    press_queue(page)
    press_queue(page)
    states = page.browser.run(
        "return [...document.querySelectorAll('.cascade-studio-stages .stage')].map((part) => part.dataset.state)"
    )
    assert states and set(states) == {"cached"}


@pytest.mark.parametrize("path", HELP, ids=lambda path: path.stem)
def test_help_pages_are_served(server, path):
    """At the address that the frontend asks for."""
    assert server.client.fetch(f"/extensions/{PACK}/docs/{path.name}").decode() == path.read_text(encoding="utf-8")


def test_the_help_page_opens(page):
    """Select the node, press the info button, read the page in the panel, with its picture."""
    node = page.add("CascadeStudio_Compare", (500, 300))
    page.browser.run("app.canvas.selectNode(app.rootGraph.getNodeById(arguments[0]))", node)
    page.browser.click('[data-testid="info-button"]')
    first = next(
        line
        for line in (REPOSITORY / "web/docs/CascadeStudio_Compare.md").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    page.browser.wait("document.body.innerText.includes(arguments[0])", first.split(".")[0])
    page.browser.wait(
        "[...document.images].some((one) => one.src.endsWith(arguments[0]) && one.naturalWidth > 100)",
        "/docs/pictures/CascadeStudio_Compare.svg",
    )
    page.browser.run("app.extensionManager.rightSidePanel?.closePanel?.()")


def reopened(page: Page, small: Small) -> None:
    """The workflow opened anew: names of inputs are given to a node when it is made, and the first time the frontend
    may make it before it has fetched them."""
    page.load(small.workflow)


def test_the_language_switches(page, small):
    """The host's words, the extension's, and the names of inputs, as locales/fr has them."""
    page.load(small.workflow)
    texts, names = (
        json.loads((REPOSITORY / "locales" / "fr" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("main", "nodeDefs")
    )
    shown = {
        "a button": "document.querySelector('.cascade-studio-canvas button')?.textContent",
        "an input": "app.rootGraph.nodes.find((node) => node.type === 'CascadeStudio_Canvas')"
        "?.widgets.find((widget) => widget.name === 'width').label",
        "the Run button": f"document.querySelector('{QUEUE}')?.innerText.trim()",
    }
    english = {what: page.browser.wait(words) for what, words in shown.items()}
    french = {
        "a button": texts["cascadeStudio"]["canvas"]["swap"],
        "an input": names["CascadeStudio_Canvas"]["inputs"]["width"]["name"],
    }
    try:
        page.speak("fr")
        for what, words in french.items():
            if what == "an input":
                reopened(page, small)
            page.browser.wait(f"{shown[what]} === arguments[0]", words)
            assert words != english[what]
        page.browser.wait(f"{shown['the Run button']} !== arguments[0]", english["the Run button"])
    finally:
        page.speak("en")
        reopened(page, small)
    for what, words in english.items():
        page.browser.wait(f"{shown[what]} === arguments[0]", words)


def test_notes_of_bundled_workflows_are_in_the_users_language(page, small):
    """What stands in web/notes is said."""
    words = json.loads((REPOSITORY / "web" / "notes" / "fr.json").read_text(encoding="utf-8"))
    content = json.loads((REPOSITORY / "workflows" / "Stable Cascade - first picture.json").read_text(encoding="utf-8"))
    notes = [node["widgets_values"][0] for node in content["nodes"] if node["type"] == "MarkdownNote"]
    blocks = [block for note in notes for block in cut(note) if block in words]
    assert blocks, "the first picture has no note in French"
    shown = "app.rootGraph.nodes.filter((node) => node.type === 'MarkdownNote').map((node) => node.widgets[0].value)"
    page.load(small.workflow)
    try:
        page.speak("fr")
        page.load(content)
        page.browser.wait(f"{shown}.join().includes(arguments[0])", words[blocks[0]])
        told = "\n".join(page.browser.run(f"return {shown}"))
        assert all(words[block] in told for block in blocks)
    finally:
        page.speak("en")
