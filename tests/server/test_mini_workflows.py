"""Bundled workflows on Cascade Mini: those whose every net it has show their scene, at a quarter of their size."""

from __future__ import annotations

from urllib.parse import quote

import eyes
import pytest
from mini_server import EXAMPLE, WORKFLOWS, check_shows, give_example, on_mini, pictures

from mini import need
from tools.scenes import SCENES
from tools.titles import title_of

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
PARTS = {
    title_of("canny"): ("controlnet_canny",),
    title_of("lora_control_regional"): ("controlnet_canny", "lora"),
    title_of("lora_stack"): ("lora",),
    title_of("lora_schedule"): ("lora",),
}
"""What a workflow needs of Mini beside the stages."""

NOT_MINI = {
    title_of(name)
    for name in ("inpaint", "outpaint", "super_resolution", "upscale_steered", "ultrapixel_2k", "ultrapixel_4k")
}
"""Mini has no such ControlNet and no guide; test_workflows runs them with the tiny family."""

LARGE = {title_of(name) for name in ("high_resolution_2k", "high_resolution_4k")}
"""More than the 256 pixels that Mini learned: the background stays, the subject may appear twice."""


def test_every_workflow_has_a_scene_or_a_reason():
    assert set(NAMES) - set(SCENES) <= NOT_MINI
    known = set(eyes.outlines().names)
    assert all(scene.subject in known for scene in SCENES.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_MINI])
def test_it_shows_its_scene(server, name):
    need()
    need(*PARTS.get(name, ("prior",)))
    give_example(server)
    found = pictures(server, server.run(on_mini(server, name, EXAMPLE).prompt))
    assert found
    for rgb in found[:1]:
        if name in LARGE:
            assert eyes.colour(rgb) == [SCENES[name].background] and rgb.std() > 0.05
        else:
            check_shows(rgb, SCENES[name])


def test_the_template_browser_gets_its_list_and_pictures(server):
    """Beside each file of the list the browser asks for the picture of the same name."""
    assert set(server.client.get("/workflow_templates")["cascade-studio"]) == set(NAMES)
    pictures_there = sorted(WORKFLOWS.glob("*.jpg"))
    if not pictures_there:
        pytest.skip("no pictures were made yet; test_thumbnails says when they have to be there")
    for path in pictures_there:
        assert server.client.fetch(f"/api/workflow_templates/cascade-studio/{quote(path.name)}") == path.read_bytes()
