"""Found by name: templates, nodes in the search, offers for a loose wire, apps."""

from __future__ import annotations

import json

from browser.page import CARD, FIRST_CARD, Page
from harness import REPOSITORY

from tools.authoring.recipes import RECIPES
from tools.titles import FIRST, SEARCHED

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))

PAGE = 11
"""Nodes that the search of today's frontend shows at once in a window of 1000 pixels."""

SEARCH = (
    "const found = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')"
    ".nodeSearchService.searchNode(arguments[0], [], { limit: arguments[1] }); return found.map((node) => node.name)"
)


def listed(page: Page) -> list[str]:
    prefix = CARD.split("%s")[0].split('"')[1]
    return page.browser.run(
        'return [...document.querySelectorAll(`[data-testid^="${arguments[0]}"]`)]'
        ".map((card) => card.dataset.testid.slice(arguments[0].length))",
        prefix,
    )


def test_a_search_for_cascade_lists_every_workflow_and_the_first_picture_first(page: Page):
    page.browse_templates()
    page.search_templates(SEARCHED)
    page.browser.wait(f"{FIRST_CARD}?.dataset.testid.includes(arguments[0])", FIRST)
    page.find_template(WORKFLOWS[0].stem)
    found = listed(page)
    page.dismiss()
    assert found[0] == FIRST and {path.stem for path in WORKFLOWS} <= set(found)


def count_shown(page: Page) -> int:
    """The nodes that can be read without scrolling in the search as one opens it and types "cascade"."""
    page.browser.run("await app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.browser.wait("document.activeElement?.tagName === 'INPUT'")
    page.browser.type_text("cascade")
    rows = page.browser.wait(
        "(() => { const rows = [...document.querySelectorAll('[role=option]')].filter((row) => row.innerText);"
        "if (!rows[0]?.innerText.startsWith(arguments[0])) return null; return rows.map((row) => {"
        "const box = row.getBoundingClientRect();"
        "return row.contains(document.elementFromPoint(box.left + 40, box.bottom - 4)); }); })()",
        "Load Stable Cascade",
    )
    page.browser.press("Escape", 27)
    page.browser.wait("!document.querySelector('[role=option]')")
    return sum(rows)


def test_usual_words_find_our_nodes_on_the_first_page(page: Page):
    """Core's nodes of that very name may stand before ours. Older frontends show six rows and scroll to the others."""
    shown = count_shown(page)
    assert shown >= (PAGE if page.browser.run("return 'nextQueueRequestId' in app") else 6)
    words = ("lora", "txt2img", "img2img", "cascade", "inpaint", "train", "upscale", "controlnet", "ksampler", "canvas")
    for word in words:
        found = page.browser.run(SEARCH, word, max(shown, PAGE))
        assert any(name.startswith("CascadeStudio_") for name in found), (word, found)


def test_cascade_finds_the_loader_first(page: Page):
    assert page.browser.run(SEARCH, "cascade", 1) == ["CascadeStudio_Load"]


def test_a_loose_wire_is_offered_our_nodes(page: Page):
    offers = page.browser.run("return [LiteGraph.slot_types_default_out, LiteGraph.slot_types_default_in]")
    for types in offers:
        for kind in ("LATENT", "CLIP", "MODEL", "VAE"):
            assert [name for name in types[kind] if name.startswith("CascadeStudio_")], kind
            assert not types[kind][0].startswith("CascadeStudio_"), "core's own come first"
    known = page.browser.run("return Object.keys(LiteGraph.registered_node_types)")
    offered = {name for types in offers for names in types.values() for name in names}
    assert {name for name in offered if name.startswith("CascadeStudio_")} <= set(known)


def test_apps_show_widgets_and_results_that_are_there(page: Page):
    """Every input of an app is a widget of its node by that name, every output a node that shows something.

    Those that the recipes show as apps are, and no others.
    """
    apps = {}
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        shown = workflow["extra"].get("linearData")
        if not shown:
            continue
        page.load(workflow, path.stem)
        widgets = page.browser.run(
            "return arguments[0].map(([id, name]) =>"
            " !!app.rootGraph.getNodeById(id)?.widgets?.some((widget) => widget.name === name))",
            shown["inputs"],
        )
        assert shown["inputs"] and all(widgets), path.stem
        left = page.browser.run("return app.rootGraph.nodes.flatMap((node) => Object.keys(node.properties))")
        assert not [name for name in left if "Error" in name], "the host sets aside what it cannot read"
        results = page.browser.run(
            "return arguments[0].map((id) => !!app.rootGraph.getNodeById(id)?.constructor?.nodeData?.output_node)",
            shown["outputs"],
        )
        assert results and all(results), path.stem
        apps[path.stem] = [name for _, name in shown["inputs"]]
    meant = {name for name, recipe in RECIPES.items() if recipe().shown_in_app is not None}
    assert set(apps) == meant and FIRST in meant, apps
    assert all("text" in names for names in apps.values()), apps


def test_each_run_of_the_first_picture_takes_a_new_seed(page: Page):
    """The field of the block, since what stands inside is not what is queued."""
    page.load(json.loads((REPOSITORY / "workflows" / f"{FIRST}.json").read_text(encoding="utf-8")), FIRST)
    seeds = []
    for _ in range(3):
        prompt = page.browser.run("return (await app.graphToPrompt()).output")
        (seed,) = {node["inputs"]["seed"] for node in prompt.values() if "seed" in node["inputs"]}
        seeds.append(seed)
        page.browser.run("await app.queuePrompt(0, 1)")
    page.dismiss()
    assert len(set(seeds)) == 3, seeds
