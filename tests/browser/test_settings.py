"""Settings by task: the choice of the samplers fills in their numbers, and steps back when a hand changes one."""

from __future__ import annotations

import pytest
from browser.page import Page

from cascade_studio.stages.diffusion.official import OWN, list_tasks

SAMPLERS = {"CascadeStudio_SamplePrior": "stage_c", "CascadeStudio_SampleDecoder": "stage_b"}


def read_numbers(page: Page, node: int, stage: str) -> dict[str, float]:
    return {name: page.value(node, name) for name in list_tasks(stage)["official"]}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_task_fills_in_its_numbers(page: Page, kind: str):
    stage, node = SAMPLERS[kind], page.add(kind)
    assert page.value(node, "settings") == OWN
    for task, numbers in list_tasks(stage).items():
        page.set(node, "settings", task)
        assert read_numbers(page, node, stage) == numbers and page.value(node, "settings") == task
    page.set(node, "steps", 13)
    assert page.value(node, "settings") == OWN and page.value(node, "steps") == 13
    page.set(node, "settings", OWN)
    assert page.value(node, "steps") == 13, "the first choice changes nothing"


def test_a_saved_workflow_keeps_its_numbers(page: Page):
    """One from before the choice was there has no value for it; one whose numbers differ from its task says so."""
    node = page.add("CascadeStudio_SamplePrior", settings="draft")
    graph = page.graph()
    (saved,) = graph["nodes"]
    place = [
        widget["name"]
        for widget in page.browser.run(
            "return app.rootGraph.getNodeById(arguments[0]).widgets.filter((w) => w.serialize !== false)"
            ".map(({ name }) => ({ name }))",
            node,
        )
    ].index("settings")
    assert saved["widgets_values"][place] == "draft"
    page.load(graph)
    assert page.value(node, "settings") == "draft" and page.value(node, "steps") == 10
    saved["widgets_values"][2] = 17  # steps, after the seed and what becomes of it
    page.load(graph)
    assert page.value(node, "steps") == 17
    page.browser.wait(
        "app.rootGraph.getNodeById(arguments[0]).widgets.find((w) => w.name === 'settings').value === arguments[1]",
        node,
        OWN,
    )
    del saved["widgets_values"][place:]
    page.load(graph)
    assert page.value(node, "steps") == 17 and page.value(node, "settings") == OWN
