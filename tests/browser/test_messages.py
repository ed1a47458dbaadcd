"""What nodes say while they run is in the user's language on the page, and in English for everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser.page import OPENING, QUEUE, Page, Small
from harness import REPOSITORY

from tools.server import PACK, HostServer

WORDS = json.loads((REPOSITORY / "web" / "messages" / "fr.json").read_text(encoding="utf-8"))
ADVICE = (
    "Wire the output of the Stage B sampler, the canvas node's Stage B latent or a picture encoded by Stage A into "
    "this input."
)
NOTHING = "Load Stable Cascade has no Stage C VAE to give: no file is chosen for 'image_encoder' nor for 'previewer'."
CANVAS = {"class_type": "CascadeStudio_Canvas", "inputs": {"width": 128, "height": 128, "compression": 0}}


def use(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture
def files(small: Small) -> dict[str, Any]:
    """The loader with the tiny family, without the files that make a Stage C VAE."""
    chosen = small.converted.prompt[small.node("CascadeStudio_Load")]["inputs"]
    return {**chosen, "image_encoder": "none", "previewer": "none"}


def wire_wrong(files: dict[str, Any]) -> dict[str, Any]:
    """A Stage C latent where one of Stage B belongs."""
    return {
        "1": use("CascadeStudio_Load", **files),
        "2": CANVAS,
        "3": use("CascadeStudio_DecodeStageA", latent=["2", 0], vae=["1", 4]),
        "4": use("PreviewImage", images=["3", 0]),
    }


def wire_nothing(files: dict[str, Any]) -> dict[str, Any]:
    """An output that has nothing to give, in one of the host's nodes."""
    return {
        "1": use("CascadeStudio_Load", **files),
        "2": CANVAS,
        "3": use("VAEDecode", samples=["2", 0], vae=["1", 5]),
        "4": use("PreviewImage", images=["3", 0]),
    }


def queue(page: Page, prompt: dict[str, Any]) -> None:
    """Open a prompt of the API as a graph, and queue it as a user does."""
    page.dismiss()
    page.browser.run("await app.loadApiJson(arguments[0], 'test')", prompt)
    page.browser.wait("app.rootGraph.nodes.length === arguments[0]", len(prompt))
    page.watch("execution_error", "execution_success")
    page.browser.click(QUEUE)


def fail(page: Page, prompt: dict[str, Any]) -> str:
    """The message that the page's own listeners hear of a prompt that fails."""
    queue(page, prompt)
    page.browser.wait("window.seen.length > 0", timeout=OPENING)
    return page.seen("execution_error")[0]["exception_message"]


def list_failures(server: HostServer) -> str:
    """What programs read of all runs so far."""
    return json.dumps([run["status"]["messages"] for run in server.client.get("/history").values()])


@pytest.fixture
def french(page: Page, small: Small) -> Iterator[Page]:
    """The page in French, one of the languages that the frontend offers; afterwards in English again."""
    said = f"(await import('/extensions/{PACK}/js/messages.js')).say(arguments[0]) === arguments[1]"
    page.load(small.workflow)
    page.speak("fr")
    page.browser.wait(said, ADVICE, WORDS["templates"][ADVICE])
    try:
        yield page
    finally:
        page.speak("en")
        page.browser.wait(said, ADVICE, ADVICE)


def test_a_wrong_wire_is_explained_in_french(french, files, server):
    """As the host's own listeners hear it; the record of the run, which programs read, stays English."""
    said = fail(french, wire_wrong(files))
    assert WORDS["templates"][ADVICE] in said, said
    assert ADVICE in list_failures(server) and WORDS["templates"][ADVICE] not in list_failures(server)


def test_a_blocked_output_is_explained_in_french(french, files):
    assert WORDS["templates"][NOTHING] in fail(french, wire_nothing(files))


def test_a_refused_prompt_is_explained_in_french(french, server):
    """The answer to the queue's request is English; what the host keeps of it for the page is not."""
    prompt = {
        "1": use("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "2": use("CascadeStudio_SaveImage", images=["1", 0], filename_prefix="../../outside", hashes=False),
    }
    queue(french, prompt)
    told = "Object.values(app.lastNodeErrors ?? {}).flatMap((node) => node.errors.map((error) => error.details)).join()"
    french.browser.wait(f"{told}.includes(arguments[0])", WORDS["names"]["Save Cascade Image"])


def test_english_is_what_the_server_says(page, files):
    assert ADVICE in fail(page, wire_wrong(files))
