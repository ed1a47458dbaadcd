"""What a loader says of its files: before a run, while they come, and after an error."""

from __future__ import annotations

import json

from browser.page import QUEUE, Page
from harness import REPOSITORY

PLAN = {
    "state": "asks",
    "text": "2 files are missing.",
    "plan": {
        "found": [],
        "to_come": 10_280_000_000,
        "spaces": [{"folder": "models", "needed": 1, "free": 5 * 10**11}],
        "missing": [
            {"key": key, "name": f"stage_{key}.safetensors", "bytes": size, "about": f"Stage {key}", "licence": "x"}
            for key, size in (("c", 7_180_000_000), ("b", 3_100_000_000))
        ],
    },
}
PROGRESS = {
    "done": 10**9,
    "total": 3_100_000_000,
    "speed": 5e7,
    "left": 42.0,
    "note": "",
    "text": "",
    "finished": False,
}


def loader(page: Page, small) -> str:
    """The small workflow with its loader, whose missing_files is "ask"."""
    page.load(small.workflow)
    node = small.node("CascadeStudio_Load")
    page.browser.run(
        "const node = app.rootGraph.getNodeById(arguments[0]);"
        "if (!node.widgets.some((w) => w.name === 'missing_files'))"
        " node.addWidget('combo', 'missing_files', 'ask', () => {}, { values: ['download', 'ask', 'never'] });"
        "node.widgets.find((w) => w.name === 'missing_files').value = 'ask'",
        node,
    )
    page.fit()
    return node


def test_the_plan_shows_and_its_button_downloads_and_runs(page, small, pictures):
    node = loader(page, small)
    page.send("cascade_studio.plan", {"node": node, **PLAN})
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel}')?.innerText")
    assert all(word in text for word in ("2 files", "10.3 GB", "stage_c.safetensors", "7.2 GB", "500 GB")), text
    (pictures / "plan.png").write_bytes(page.browser.picture())
    page.watch("execution_success", "execution_error", "execution_interrupted")
    page.browser.click(f"{panel} [data-action=start]")
    page.wait_done()
    assert page.value(int(node), "missing_files") == "download"
    page.browser.wait(f"document.querySelector('{panel} .head').textContent === 'All files are here'")


def test_a_size_that_is_not_known_to_the_byte_is_about_right(page, small):
    """In a plan, and before it in what the loader would fetch; an error leaves no speed of before."""
    node = loader(page, small)
    (file, _), told = PLAN["plan"]["missing"], {"node": node, **PLAN, "state": "fetches"}
    rounded = {**file, "bytes": None, "about": 1_390_000_000}
    page.send("cascade_studio.plan", {**told, "plan": {**PLAN["plan"], "missing": [rounded], "to_come": 1_390_000_000}})
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel}').innerText")
    assert text.count("about 1.4 GB") == 2 and "0 B" not in text, text
    page.send(
        "cascade_studio.progress",
        {"node": node, "file": file["name"], "done": 0, "total": 10, "speed": 0, "left": None},
    )
    page.send("execution_error", {"prompt_id": None})
    words = page.browser.wait(f"document.querySelector('{panel} .words').textContent")
    assert words.startswith("Stopped by an error") and "/s" not in words


def test_a_loader_says_what_a_run_would_fetch(page, object_info):
    """From the moment it is opened: names, sizes, folders, licences; and that more than 1 GB is asked for first."""
    workflow = json.loads(
        (REPOSITORY / "workflows" / "Stable Cascade - text to image.json").read_text(encoding="utf-8")
    )
    (load,) = [node for node in workflow["nodes"] if node["type"] == "CascadeStudio_Load"]
    page.load(workflow)
    page.fit()
    text = page.browser.wait("document.querySelector('.cascade-studio-download')?.innerText")
    chosen = [value for value in load["widgets_values"] if str(value).endswith(".safetensors")]
    published = object_info["CascadeStudio_Load"]["input"]["required"]["prior"][1]["published"]
    assert published and all(name in text for name in chosen), text
    assert all(word in text for word in ("Run asks before it fetches", "GB", "models/", "Licence")), text
    page.set(load["id"], "missing_files", "never")
    page.browser.wait("document.querySelector('.cascade-studio-download .head').innerText.includes('missing')")
    page.set(load["id"], "preset", "automatic")
    page.browser.wait("document.querySelector('.cascade-studio-download .head').innerText.includes('best complete')")


def test_progress_shows_and_cancel_interrupts(page, small):
    """Cancel sends the host's own interrupt, which ends what runs."""
    node = loader(page, small)
    page.set(node, "missing_files", "download")
    page.set(small.node("CascadeStudio_SamplePrior"), "steps", 1000)
    for name, value in {"width": 1024, "height": 1024, "batch_size": 16}.items():
        page.set(small.node("CascadeStudio_Canvas"), name, value)  # so much work that it cannot end before the click
    page.watch("execution_interrupted", "execution_success", "execution_error", "progress_state")
    page.browser.click(QUEUE)
    page.browser.wait(
        "window.seen.some(([name, d]) => name === 'progress_state'"
        " && Object.values(d.nodes).some((n) => n.state === 'running' && n.max > 100 && n.value > 2))"
    )
    page.send("cascade_studio.plan", {"node": node, **PLAN, "state": "fetches"})
    page.send("cascade_studio.progress", {"node": node, "file": "stage_b.safetensors", **PROGRESS})
    panel = ".cascade-studio-download"
    text = page.browser.wait(f"document.querySelector('{panel} .words')?.textContent")
    assert "1.0 GB of 3.1 GB" in text and "50.0 MB/s" in text and "42 s" in text, text
    page.browser.click(f"{panel} [data-action=cancel]")
    page.browser.wait("window.seen.some(([name]) => name !== 'progress_state')")
    assert page.seen("execution_interrupted"), "it ended otherwise than by the click"
    page.browser.wait(f"document.querySelector('{panel} .words').textContent.includes('Stopped')")
    page.browser.wait(
        "[...document.querySelectorAll('.cascade-studio-stages .stage')]"
        ".some((part) => part.dataset.state === 'stopped')"
    )
