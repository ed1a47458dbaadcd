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
HUB = "https://huggingface.co/stabilityai/stable-cascade/resolve/main/"

PRIOR_FILE = {
    "name": "stable_cascade_stage_c.safetensors", "directory": "checkpoints",
    "url": HUB + "comfyui_checkpoints/stable_cascade_stage_c.safetensors",
    "hash": "088ddf1e444abf399007b2da2bac87791df165c69f477994f6b3c745a20904b0", "hash_type": "SHA256"}
DECODER_FILE = {
    "name": "stable_cascade_stage_b.safetensors", "directory": "checkpoints",
    "url": HUB + "comfyui_checkpoints/stable_cascade_stage_b.safetensors",
    "hash": "6c218dc948575e3b14b03dffe2014d7870ac505005770ce3abdc28e920a03c05", "hash_type": "SHA256"}


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

MODELS_NOTE = """## Models

Put both files into `ComfyUI/models/checkpoints/`:

- [stable_cascade_stage_c.safetensors]({c}) (9.2 GB: Stage C, text encoder, image encoder, Previewer, CLIP vision)
- [stable_cascade_stage_b.safetensors]({b}) (4.6 GB: Stage B, Stage A)

They come under Stability AI's **non-commercial research licence**.

Split files (`stage_c_bf16`, `stage_b_lite_bf16`, …) work as well: choose them in the loader, from
`models/diffusion_models/`.
""".format(c=PRIOR_FILE["url"], b=DECODER_FILE["url"])

STAGES_NOTE = """## The three stages

1. **Stage C** turns the prompt into a tiny latent (24x24 for 1024x1024). This decides what the picture shows.
2. **Stage B** rebuilds from it the latent of Stage A.
3. **Stage A** paints the pixels.

Any size works; the canvas picks the grids. cfg 4 and 20 steps for Stage C, cfg 1.1 and 10 steps for Stage B are the
official settings.
"""


def text_to_image() -> dict[str, Any]:
    """Prompt → Stage C → Stage B → Stage A → file."""
    encode = {"clip": ("CLIP", "load", 2)}
    guidance = [1.0, "ddpm", 0.7, False, -1.0, 0.0, 1.0]  # denoise, sampler and the rest of the guidance
    nodes = [
        Node("load", "CascadeStudio_Load", (40, 120), (360, 400), [
            PRIOR_FILE["name"], DECODER_FILE["name"], CHECKPOINT, CHECKPOINT, NONE, NONE, NONE, AUTO, AUTO, AUTO, AUTO,
            AUTO], outputs=LOAD_OUTPUTS, models=[PRIOR_FILE, DECODER_FILE]),
        Node("positive", "CLIPTextEncode", (460, 120), (380, 160), [
            "a red apple on a wooden table, soft morning light, photograph"], encode,
            [("CONDITIONING", "CONDITIONING")], "Prompt", PROMPT),
        Node("negative", "CLIPTextEncode", (460, 330), (380, 120), [""], encode,
             [("CONDITIONING", "CONDITIONING")], "Negative prompt", NEGATIVE),
        Node("canvas", "CascadeStudio_Canvas", (460, 560), (380, 170), [1024, 1024, 1, 0.0],
             outputs=[("Stage C latent", "LATENT"), ("Stage B latent", "LATENT")]),
        Node("c", "CascadeStudio_SamplePrior", (900, 120), (320, 340), [0, "randomize", 20, 4.0, 2.0, *guidance], {
            "model": ("MODEL", "load", 0), "positive": ("CONDITIONING", "positive", 0),
            "negative": ("CONDITIONING", "negative", 0), "latent": ("LATENT", "canvas", 0)}, [("prior", "LATENT")]),
        Node("b", "CascadeStudio_SampleDecoder", (1280, 120), (320, 340), [0, "fixed", 10, 1.1, 1.0, *guidance], {
            "model": ("MODEL", "load", 1), "positive": ("CONDITIONING", "positive", 0),
            "negative": ("CONDITIONING", "negative", 0), "prior": ("LATENT", "c", 0)}, [("latent", "LATENT")]),
        Node("a", "CascadeStudio_DecodeStageA", (1280, 560), (320, 110), [0], {
            "latent": ("LATENT", "b", 0), "vae": ("VAE", "load", 4)}, [("image", "IMAGE")]),
        Node("save", "SaveImage", (1660, 120), (480, 550), ["cascade"], {"images": ("IMAGE", "a", 0)}),
        Node("models", "MarkdownNote", (40, 580), (360, 300), [MODELS_NOTE], title="Model Links", colours=NOTE),
        Node("stages", "MarkdownNote", (900, 560), (320, 300), [STAGES_NOTE], title="The three stages", colours=NOTE),
    ]
    return workflow(nodes, [
        Group("Step 1 - Load models", (20, 40, 400, 500)), Group("Step 2 - Prompt", (440, 40, 420, 430)),
        Group("Step 3 - Picture size", (440, 480, 420, 270)), Group("Step 4 - Stage C and Stage B", (880, 40, 740, 440)),
        Group("Step 5 - Stage A and picture", (1260, 480, 380, 210))])


def main() -> None:
    """Write every workflow."""
    FOLDER.mkdir(exist_ok=True)
    for build in (text_to_image,):
        path = Path(FOLDER, f"{build.__name__}.json")
        content = {**build(), "id": f"cascade-studio-{build.__name__}"}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
