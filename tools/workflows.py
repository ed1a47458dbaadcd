"""Writes the bundled workflows: ``python3 dev.py run -m tools.workflows``.

A workflow is described by its nodes in reading order: type, title, position, size, widget values and where each
input comes from. Links, ids and slots follow from that.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .env import REPOSITORY

FOLDER = REPOSITORY / "workflows"
PACK, VERSION = "cascade-studio", "0.1.0"
PROMPT, NEGATIVE, NOTE = ("#232", "#353"), ("#322", "#533"), ("#222", "#000")


def published(key: str) -> dict[str, str]:
    """The ``properties.models`` item of a file in the catalogue, where alone its address and hash are written."""
    content = json.loads((REPOSITORY / "nodes" / "checkpoints" / "catalogue.json").read_text(encoding="utf-8"))
    found = next(file for file in content["files"] if file["key"] == key)
    known = {"hash": found["sha256"], "hash_type": "SHA256"} if found["sha256"] else {}
    return {"name": found["name"], "directory": found["folder"], "url": found["url"], **known}


PRIOR_FILE, DECODER_FILE = published("checkpoint_stage_c"), published("checkpoint_stage_b")


@dataclass
class Node:
    """One node; ``inputs`` maps input names to (type, source node name, slot), ``outputs`` lists (name, type)."""

    name: str
    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    values: list[Any] = field(default_factory=list)
    inputs: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    title: str = ""
    colours: tuple[str, str] | None = None
    models: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """A titled frame: x, y, width, height."""

    title: str
    bounding: tuple[int, int, int, int]


def workflow(nodes: list[Node], groups: list[Group]) -> dict[str, Any]:
    """The workflow file's content, format 0.4."""
    ids = {node.name: index for index, node in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    leaving: dict[tuple[str, int], list[int]] = {}
    entering: dict[tuple[str, str], int] = {}
    for node in nodes:
        for slot, (name, (kind, source, source_slot)) in enumerate(node.inputs.items()):
            links.append([len(links) + 1, ids[source], source_slot, ids[node.name], slot, kind])
            leaving.setdefault((source, source_slot), []).append(len(links))
            entering[(node.name, name)] = len(links)
    return {
        "id": "", "revision": 0, "last_node_id": len(nodes), "last_link_id": len(links),
        "nodes": [entry(node, order, ids, leaving, entering) for order, node in enumerate(nodes)],
        "links": links,
        "groups": [{"id": index, "title": group.title, "bounding": list(group.bounding), "color": "#3f789e",
                    "font_size": 24, "flags": {}} for index, group in enumerate(groups, 1)],
        "config": {}, "extra": {}, "version": 0.4,
    }


def entry(node: Node, order: int, ids: dict[str, int], leaving: dict[tuple[str, int], list[int]],
          entering: dict[tuple[str, str], int]) -> dict[str, Any]:
    """One node of the file."""
    ours = node.type.startswith("CascadeStudio_")
    properties: dict[str, Any] = {"Node name for S&R": node.type, "cnr_id": PACK if ours else "comfy-core"}
    if ours:
        properties["ver"] = VERSION
    if node.models:
        properties["models"] = node.models
    if node.type == "MarkdownNote":
        properties = {}
    found: dict[str, Any] = {
        "id": ids[node.name], "type": node.type, "pos": list(node.at), "size": list(node.size), "flags": {},
        "order": order, "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": entering[(node.name, name)]}
                   for name, (kind, _, _) in node.inputs.items()],
        "outputs": [{"name": name, "type": kind, "links": leaving.get((node.name, slot))}
                    for slot, (name, kind) in enumerate(node.outputs)],
        "properties": properties, "widgets_values": node.values,
    }
    if node.title:
        found["title"] = node.title
    if node.colours:
        found["color"], found["bgcolor"] = node.colours
    return found


LOAD_OUTPUTS = [("prior", "MODEL"), ("decoder", "MODEL"), ("clip", "CLIP"), ("clip_vision", "CLIP_VISION"),
                ("stage_a", "VAE"), ("stage_c_vae", "VAE")]
CHECKPOINT, NONE, AUTO = "from the checkpoint", "none", "auto"

FILES_NOTE = """\
- [stable_cascade_stage_c.safetensors]({c}) (9.2 GB: Stage C, text encoder, image encoder, Previewer, CLIP vision)
- [stable_cascade_stage_b.safetensors]({b}) (4.6 GB: Stage B, Stage A)

They come under Stability AI's **non-commercial research licence**.
""".format(c=PRIOR_FILE["url"], b=DECODER_FILE["url"])

MODELS_NOTE = f"""## Models

The loader fetches both files into `ComfyUI/models/checkpoints/` when they are not here; it shows what that takes first.

{FILES_NOTE}
Another **preset** takes other files: *Lite models* for little memory, *Cascade Mini* to try everything without a
download (set the canvas to 256x256). *files below* keeps to the inputs under it.
"""

CORE_NOTE = f"""## Models

ComfyUI's own loaders do not fetch files. Its dialog offers those that are missing when you open this workflow; or put
them into `ComfyUI/models/checkpoints/` by hand:

{FILES_NOTE}
*Load Stable Cascade* in the other workflows fetches its files itself, checks them, and knows every layout.
"""

STAGES_NOTE = """## The three stages

1. **Stage C** turns the prompt into a tiny latent (24x24 for 1024x1024). This decides what the picture shows.
2. **Stage B** rebuilds from it the latent of Stage A.
3. **Stage A** paints the pixels.

Any size works; the canvas picks the grids. cfg 4 and 20 steps for Stage C, cfg 1.1 and 10 steps for Stage B are the
official settings.
"""


def text_to_image() -> dict[str, Any]:
    """Prompt → Stage C → Stage B → Stage A → file."""
    load = Node("load", "CascadeStudio_Load", (40, 120), (360, 450), [
        PRIOR_FILE["name"], DECODER_FILE["name"], CHECKPOINT, CHECKPOINT, NONE, NONE, NONE, *[AUTO] * 5,
        "files below", "download"], outputs=LOAD_OUTPUTS, models=[PRIOR_FILE, DECODER_FILE])
    return three_stages([load], ("load", 2), ("load", 0), ("load", 1), ("load", 4), MODELS_NOTE)


def text_to_image_core_loaders() -> dict[str, Any]:
    """The same picture with core's loaders: their files are offered by the host's own dialog."""
    outputs = [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]
    loads = [Node(name, "CheckpointLoaderSimple", (40, y), (360, 150), [file["name"]], outputs=outputs, title=title,
                  models=[file]) for name, y, file, title in (("load_c", 120, PRIOR_FILE, "Load Stage C checkpoint"),
                                                              ("load_b", 320, DECODER_FILE, "Load Stage B checkpoint"))]
    return three_stages(loads, ("load_c", 1), ("load_c", 0), ("load_b", 0), ("load_b", 2), CORE_NOTE)


Slot = tuple[str, int]


def three_stages(loads: list[Node], clip: Slot, prior: Slot, decoder: Slot, stage_a: Slot, note: str) -> dict[str, Any]:
    """Text to image behind any loaders, whose outputs are named by node and slot."""
    encode = {"clip": ("CLIP", *clip)}
    guidance = [1.0, "ddpm", 0.7, False, -1.0, 0.0, 1.0]  # denoise, sampler and the rest of the guidance
    nodes = [
        *loads,
        Node("positive", "CLIPTextEncode", (460, 120), (380, 160), [
            "a red apple on a wooden table, soft morning light, photograph"], encode,
            [("CONDITIONING", "CONDITIONING")], "Prompt", PROMPT),
        Node("negative", "CLIPTextEncode", (460, 330), (380, 120), [""], encode,
             [("CONDITIONING", "CONDITIONING")], "Negative prompt", NEGATIVE),
        Node("canvas", "CascadeStudio_Canvas", (460, 560), (380, 170), [1024, 1024, 1, 0.0],
             outputs=[("Stage C latent", "LATENT"), ("Stage B latent", "LATENT")]),
        Node("c", "CascadeStudio_SamplePrior", (900, 120), (320, 340), [0, "randomize", 20, 4.0, 2.0, *guidance], {
            "model": ("MODEL", *prior), "positive": ("CONDITIONING", "positive", 0),
            "negative": ("CONDITIONING", "negative", 0), "latent": ("LATENT", "canvas", 0)}, [("prior", "LATENT")]),
        Node("b", "CascadeStudio_SampleDecoder", (1280, 120), (320, 340), [0, "fixed", 10, 1.1, 1.0, *guidance], {
            "model": ("MODEL", *decoder), "positive": ("CONDITIONING", "positive", 0),
            "negative": ("CONDITIONING", "negative", 0), "prior": ("LATENT", "c", 0)}, [("latent", "LATENT")]),
        Node("a", "CascadeStudio_DecodeStageA", (1280, 560), (320, 110), [0], {
            "latent": ("LATENT", "b", 0), "vae": ("VAE", *stage_a)}, [("image", "IMAGE")]),
        Node("save", "SaveImage", (1660, 120), (480, 550), ["cascade"], {"images": ("IMAGE", "a", 0)}),
        Node("models", "MarkdownNote", (40, 640), (360, 330), [note], title="Model Links", colours=NOTE),
        Node("stages", "MarkdownNote", (900, 560), (320, 300), [STAGES_NOTE], title="The three stages", colours=NOTE),
    ]
    return workflow(nodes, [
        Group("Step 1 - Load models", (20, 40, 400, 550)), Group("Step 2 - Prompt", (440, 40, 420, 430)),
        Group("Step 3 - Picture size", (440, 480, 420, 270)),
        Group("Step 4 - Stage C and Stage B", (880, 40, 740, 440)),
        Group("Step 5 - Stage A and picture", (1260, 480, 380, 210))])


def main() -> None:
    """Write every workflow."""
    FOLDER.mkdir(exist_ok=True)
    for build in (text_to_image, text_to_image_core_loaders):
        path = Path(FOLDER, f"{build.__name__}.json")
        content = {**build(), "id": f"cascade-studio-{build.__name__}"}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
