"""What cannot work as it is wired is found, and one press mends it: on graphs broken in the ways of people.

Each bundled workflow is broken wire by wire: another stage's model, the other VAE, a latent that is not finished,
core's empty latent, a wire taken out. The right offer is the wire that was there.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from browser.page import Page
from harness import REPOSITORY

from tools.server import PACK

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
GRAPHS, RIGHT = 200, 0.9
BREAKS = {
    "CascadeStudio_SamplePrior": ("model", "latent"),
    "CascadeStudio_SampleDecoder": ("model", "prior"),
    "CascadeStudio_DecodeStageA": ("latent", "vae"),
    "CascadeStudio_EncodeStageA": ("vae",),
    "CascadeStudio_EncodeImage": ("vae",),
    "CascadeStudio_DecodePreview": ("prior", "vae"),
    "CascadeStudio_DraftBoard": ("prior", "vae"),
    "CascadeStudio_HighResolutionPrior": ("prior",),
    "CascadeStudio_SuperResolutionHint": ("vae",),
    "CascadeStudio_DecoderConditioning": ("prior",),
    "CascadeStudio_Detailer": ("prior", "decoder", "stage_a", "stage_c_vae"),
    "CascadeStudio_Upscale": ("decoder", "stage_a", "stage_c_vae"),
    "CascadeStudio_OneModel": ("decoder", "stage_a", "stage_c_vae"),
    "CascadeStudio_GuideStageC": ("model", "prior"),
}
"""Inputs whose wires a script can break, by kind of node."""

WRONG = {"MODEL": {"prior": "decoder", "decoder": "prior"}, "VAE": {"stage_a": "stage_c_vae", "stage_c_vae": "stage_a"}}
"""By type of wire, what stands for the right output of a loader when somebody errs."""

EMPTY = {"id": 900, "type": "EmptyLatentImage", "pos": [-600, 0], "size": [300, 110], "flags": {}, "order": 0}

ASK = """
const { findFaults, mend } = await import(arguments[0]);
const found = [];
for (const { graph, node, input } of arguments[1]) {
  app.rootGraph.clear(); app.rootGraph.configure(graph);
  const faults = findFaults(app.rootGraph);
  const fault = faults.find((one) => String(one.node.id) === String(node) && one.input.name === input);
  const offer = fault?.source ? [Number(fault.source.node.id), fault.source.slot] : null;
  if (offer) mend(fault);
  found.push({ offer, seen: !!fault, others: faults.length - (fault ? 1 : 0), left: findFaults(app.rootGraph).length });
}
return found;
"""


def break_wires() -> list[dict[str, Any]]:
    """Every way to break one wire: the graph, where it is broken, how, and what was wired."""
    found = []
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        nodes = {node["id"]: node for node in workflow["nodes"]}
        for link in workflow["links"]:
            number, origin, slot, target, place, _ = link
            node, entry = nodes[target], nodes[target]["inputs"][place]
            if node["mode"] or entry["name"] not in BREAKS.get(node["type"], ()):
                continue
            where = {"name": path.stem, "node": target, "input": entry["name"], "was": [origin, slot]}
            for how, graph in ways(workflow, number):
                found.append({**where, "how": how, "graph": graph})
    return found


def ways(workflow: dict[str, Any], number: int) -> list[tuple[str, dict[str, Any]]]:
    """The workflow without one wire, with a wrong one of its own in its place, and with core's empty latent there."""
    made = [("taken out", rewire(workflow, number, None))]
    nodes = {node["id"]: node for node in workflow["nodes"]}
    link = next(link for link in workflow["links"] if link[0] == number)
    outputs = nodes[link[1]]["outputs"]
    wrong = WRONG.get(link[5], {}).get(outputs[link[2]]["name"])
    for slot, output in enumerate(outputs):
        if output["name"] == wrong:
            made.append((f"{wrong} instead", rewire(workflow, number, (link[1], slot))))
    if link[5] == "LATENT":
        made.append(("core's empty latent", rewire(workflow, number, (EMPTY["id"], 0))))
        starts = nodes[link[3]]["type"] == "CascadeStudio_SamplePrior"  # which can begin with a canvas anywhere
        for node in workflow["nodes"]:
            if node["type"] == "CascadeStudio_Canvas" and node["id"] != link[1] and not starts:
                made.append(("the canvas", rewire(workflow, number, (node["id"], 0))))
    return made


def rewire(workflow: dict[str, Any], number: int, start: tuple[int, int] | None) -> dict[str, Any]:
    """The workflow with link ``number`` from elsewhere, or without it."""
    broken = copy.deepcopy(workflow)
    if start and start[0] == EMPTY["id"]:
        outputs = [{"name": "LATENT", "type": "LATENT", "links": []}]
        more = {"mode": 0, "inputs": [], "properties": {}, "widgets_values": [512, 512, 1]}
        broken["nodes"].append({**EMPTY, **more, "outputs": outputs})
    nodes = {node["id"]: node for node in broken["nodes"]}
    link = next(link for link in broken["links"] if link[0] == number)
    nodes[link[1]]["outputs"][link[2]]["links"].remove(number)
    if start is None:
        broken["links"].remove(link)
        nodes[link[3]]["inputs"][link[4]]["link"] = None
    else:
        link[1:3] = start
        output = nodes[start[0]]["outputs"][start[1]]
        output["links"] = [*(output["links"] or []), number]
    return broken


def test_broken_graphs_get_the_right_offer_and_none_a_wrong_one(page: Page):
    broken = break_wires()
    random.Random(15).shuffle(broken)
    broken = broken[:GRAPHS]
    assert len(broken) == GRAPHS
    answers = page.browser.run(ASK, f"/extensions/{PACK}/js/repair.js", broken)
    page.clear()
    told = [
        (f"{one['name']}, {one['input']} of {one['node']}, {one['how']}", one, answer)
        for one, answer in zip(broken, answers)
    ]
    assert [where for where, _, answer in told if not answer["seen"]] == [], "it would paint, or fail, silently"
    assert [where for where, one, answer in told if answer["offer"] not in (None, one["was"])] == [], "a wrong offer"
    assert [where for where, _, answer in told if answer["others"]] == [], "something is wrong that was not broken"
    right = [answer for _, one, answer in told if answer["offer"] == one["was"]]
    assert len(right) / GRAPHS >= RIGHT, [where for where, _, answer in told if not answer["offer"]]
    assert all(answer["left"] == 0 for answer in right), "the press mends it"


def test_whole_workflows_have_no_faults(page: Page):
    whole = [json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS]
    asked = [{"graph": graph, "node": -1, "input": ""} for graph in whole]
    answers = page.browser.run(ASK, f"/extensions/{PACK}/js/repair.js", asked)
    page.clear()
    assert [path.stem for path, answer in zip(WORKFLOWS, answers) if answer["others"]] == []


def test_a_press_mends_and_undo_takes_it_back(page: Page):
    """The button comes when the workflow is queued, in the node; Undo brings the broken wire back."""
    (text,) = [path for path in WORKFLOWS if path.stem == "Stable Cascade - text to image"]
    workflow = json.loads(text.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    link = next(
        link
        for link in workflow["links"]
        if nodes[link[3]]["type"] == "CascadeStudio_DecodeStageA" and nodes[link[3]]["inputs"][link[4]]["name"] == "vae"
    )
    other = next(slot for slot, output in enumerate(nodes[link[1]]["outputs"]) if output["name"] == "stage_c_vae")
    page.load(rewire(workflow, link[0], (link[1], other)))
    page.fit()
    wired = "app.rootGraph.links.get(app.rootGraph.getNodeById(arguments[0]).inputs[arguments[1]].link).origin_slot"
    page.browser.run("app.api.dispatchCustomEvent('promptQueueing', { requestId: 1, batchCount: 1 })")
    page.browser.click(".cascade-studio-repair [data-action=mend]")
    page.browser.wait(f"{wired} === arguments[2]", link[3], link[4], link[2])
    assert page.browser.run("return document.querySelector('.cascade-studio-repair') === null")
    page.browser.run("await app.extensionManager.command.execute('Comfy.Undo')")
    page.browser.wait(f"{wired} === arguments[2]", link[3], link[4], other)


def test_every_frontend_says_once_that_a_prompt_is_queued(page: Page):
    """Older ones do not by themselves (web/js/older.js); the offers and the words of a refusal hang on it."""
    page.add("CascadeStudio_Canvas")
    heard = page.browser.run(
        "let heard = 0; const count = () => { heard += 1; };"
        "app.api.addEventListener('promptQueueing', count);"
        "try { await app.queuePrompt(0, 1); } catch { /* a graph without an output is refused */ }"
        "app.api.removeEventListener('promptQueueing', count); return heard"
    )
    page.dismiss()
    page.browser.take_errors()  # older frontends tell of the refusal in the console
    assert heard == 1
