"""Points a converted workflow at small weights and makes it small, so that it runs in seconds.

Cascade Mini, the pack's own small weights, where it has every part that the workflow uses; else the tests' tiny random
family.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cascade_studio.commands.workflow.api_prompt import Converted
from cascade_studio.commands.workflow.inputs import MODEL_FILES
from cascade_studio.commands.workflow.widgets import read_widgets
from cascade_studio.stages.diffusion.official import OFFICIAL

from .edit import CATALOGUE, set_prompt
from .env import REPOSITORY
from .scenes import Scene

MINI_FOLDER = REPOSITORY / "mini"
SIDES = ("width", "height", "target_size", "resolution", "left", "right", "top", "bottom")
SMALLEST, PARTS = 128, 4
FROM_CHECKPOINT = "from the checkpoint"

KEEP_TO_FILES = {"preset": "files below", "missing_files": "never"}
"""Inputs of loaders (those that have both) that would take other files than those that are named."""


@dataclass(frozen=True)
class Kit:
    """Small files that fit each other, by role."""

    name: str
    files: dict[str, str]

    def covers(self, roles: Iterable[str]) -> bool:
        """Whether there is a file for each of these roles."""
        return set(roles) <= set(self.files)


FAMILY = Kit(
    "tiny family",
    {
        "prior": "stage_c.safetensors",
        "another prior": "tuned_prior.safetensors",
        "decoder": "stage_b.safetensors",
        "text_encoder": "clip_g.safetensors",
        "stage_a": "stage_a.safetensors",
        "image_encoder": "effnet_encoder.safetensors",
        "previewer": "previewer.safetensors",
        "clip_vision": "clip_l_vision.safetensors",
        "lora": "kohya.safetensors",
        "controlnet_canny": "canny.safetensors",
        "controlnet_inpainting": "inpainting.safetensors",
        "controlnet_super_resolution": "super_resolution.safetensors",
        "ultrapixel": "ultrapixel_t2i.safetensors",
    },
)

MINI_FILES = {
    "prior": "diffusion_models/cascade_mini_stage_c",
    "decoder": "diffusion_models/cascade_mini_stage_b",
    "text_encoder": "text_encoders/cascade_mini_text",
    "stage_a": "vae/cascade_mini_stage_a",
    "image_encoder": "vae/cascade_mini_stage_c_vae",
    "previewer": "vae/cascade_mini_stage_c_vae",
    "clip_vision": "clip_vision/cascade_mini_vision",
    "lora": "loras/cascade_mini_noto",
    "another lora": "loras/cascade_mini_ink",
    "controlnet_canny": "controlnet/cascade_mini_canny",
}


PAINTS = ("prior", "decoder", "text_encoder", "stage_a", "image_encoder", "previewer", "clip_vision")
"""The roles that make a whole Mini; the LoRA and the ControlNet are examples beside it."""

SHIPPED: frozenset[str] = frozenset(MINI_FILES)
"""The roles whose files are in the repository: add those of :data:`MINI_FILES` in the commit that adds the files.

This is the one switch. Tests fail, rather than skip, where a file of these is absent, and the recipes of the workflows
use what is here (``python3 dev.py run -m tools.authoring`` then writes them anew).
"""


def mini(folder: Path = MINI_FOLDER) -> Kit:
    """Those of Cascade Mini's files that the pack carries."""
    present = {role: Path(folder, f"{name}.safetensors") for role, name in MINI_FILES.items()}
    return Kit("Cascade Mini", {role: path.name for role, path in present.items() if path.is_file()})


@lru_cache(maxsize=1)
def _roles() -> dict[str, str]:
    """The role of every published file by its name."""
    return {file["name"]: file["role"] for file in json.loads(CATALOGUE.read_text(encoding="utf-8"))["files"]}


def role_of(name: str, value: Any) -> str | None:
    """Which part of the model a widget chooses: by the input's name, else by the published file that it names."""
    if value == FROM_CHECKPOINT:
        return name
    if not isinstance(value, str) or not value.lower().endswith(MODEL_FILES):
        return None
    if name in FAMILY.files:
        return name
    if name == "lora" or name.startswith("lora_"):
        return "lora"
    if name == "controlnet":
        return next((role for role in FAMILY.files if role.startswith("controlnet_") and role[11:] in value), None)
    return _roles().get(value.replace("\\", "/").split("/")[-1])


def roles_of(converted: Converted) -> set[str]:
    """Every part of the model that the workflow loads from a file."""
    found = (role_of(name, value) for node in converted.prompt.values() for name, value in node["inputs"].items())
    return {role for role in found if role}


def kit_for(converted: Converted) -> Kit:
    """Mini where it has all that is needed, else the tiny family."""
    small = mini()
    return small if small.covers(roles_of(converted)) else FAMILY


def for_mini(converted: Converted, definitions: dict[str, Any], scene: Scene | None, picture: str = "") -> bool:
    """Let a workflow paint ``scene`` with Mini at its own size; False, and nothing is changed, where Mini lacks a part.

    ``picture`` is the name of the input picture that every Load Image then takes. Training takes two steps. Stage C's
    official guidance becomes that of Mini.
    """
    kit = mini()
    if not kit.covers(roles_of(converted)):
        return False
    with_our_loaders(converted, definitions)
    use(converted, kit)
    shrink(converted, steps=None, smallest=MINI_SIDE)
    choose(converted, MINI_CHOICES)
    set_mini_guidance(converted)
    if scene is not None:
        set_prompt(converted, scene.prompt)
    for node, entry in converted.prompt.items():
        if picture and entry["class_type"] == "LoadImage":
            converted.set(node, "image", picture)
    return True


def set_mini_guidance(converted: Converted) -> None:
    """Mini's guidance wherever a ``cfg`` is Stage C's official one, which no other sampler of a workflow has."""
    for node, entry in converted.prompt.items():
        if entry["inputs"].get("cfg") == OFFICIAL["stage_c"].cfg:
            converted.set(node, "cfg", MINI_PRIOR_CFG)


def use(converted: Converted, kit: Kit) -> None:
    """Name the kit's files wherever the workflow names a file, and keep to them; nothing is fetched.

    Two files for the same part stay two, where the kit has another one.
    """
    first: dict[str, Any] = {}
    for node, entry in converted.prompt.items():
        for name, value in list(entry["inputs"].items()):
            role = role_of(name, value)
            if role:
                other = first.setdefault(role, value) != value
                converted.set(
                    node, name, kit.files.get(f"another {role}", kit.files[role]) if other else kit.files[role]
                )
            elif name in KEEP_TO_FILES and "missing_files" in entry["inputs"]:
                converted.set(node, name, KEEP_TO_FILES[name])


CORE = {("prior", 0): "Prior", ("prior", 1): "TextEncoder", ("decoder", 0): "Decoder", ("decoder", 2): "StageA"}
"""Our loader for each output of core's checkpoint loader, by the role of its file."""
LOADER_INPUTS = {"Prior": "prior", "TextEncoder": "text_encoder", "Decoder": "decoder", "StageA": "stage_a"}


def with_our_loaders(converted: Converted, definitions: dict[str, Any]) -> None:
    """Put ours in the place of core's checkpoint loaders, which cannot load networks as narrow as the small ones."""
    prompt = converted.prompt
    loaders = {
        key: role_of("ckpt_name", node["inputs"]["ckpt_name"])
        for key, node in prompt.items()
        if node["class_type"] == "CheckpointLoaderSimple"
    }
    for node in list(prompt.values()):
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                kind = CORE[(loaders[value[0]], value[1])]
                node["inputs"][name] = [f"{value[0]}-{value[1]}", 0]
                prompt[f"{value[0]}-{value[1]}"] = _our_loader(kind, definitions)
    for key in loaders:
        del prompt[key]


def choose(converted: Converted, more: dict[str, dict[str, Any]] | None = None) -> None:
    """Set what a person would set on the way."""
    for node, entry in converted.prompt.items():
        kind = entry["class_type"]
        for name, value in {**CHOICES.get(kind, {}), **(more or {}).get(kind, {})}.items():
            converted.set(node, name, value)


def _our_loader(kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    name, file = f"CascadeStudio_Load{kind}", LOADER_INPUTS[kind]
    given = {widget.name: widget.box.value for widget in read_widgets(definitions[name], None)}
    return {"class_type": name, "_meta": {"title": name}, "inputs": {**given, file: FAMILY.files[file]}}


CHOICES = {"CascadeStudio_DraftBoard": {"chosen": "1"}}
"""Widgets that a person would set on the way, by node."""

MINI_SIDE, MINI_PRIOR_STEPS, MINI_PRIOR_CFG, MINI_DECODER_STEPS = 256, 8, 2.0, 4
"""The side of the pictures of Cascade Mini, the steps that are enough for its Stage C and Stage B, and the guidance
that suits its Stage C (``training.mini settings``, ``training.mini steps``)."""
MINI_CHOICES = {
    "CascadeStudio_Canvas": {"width": MINI_SIDE, "height": MINI_SIDE, "compression": 21.33},
    "CascadeStudio_TrainLora": {"steps": 2},
    "CascadeStudio_TrainingSet": {"resolution": 384},
    "CascadeStudio_InpaintCrop": {"target_size": MINI_SIDE},
    "CascadeStudio_Upscale": {"tile_size": MINI_SIDE, "tile_overlap": 64},
}
"""The same for Mini, which paints and learns at a quarter of the usual sides."""


def shrink(converted: Converted, steps: int | None = 2, smallest: int = SMALLEST) -> None:
    """A quarter of every side, and at most ``steps`` steps a stage."""
    for node, entry in converted.prompt.items():
        for name, value in list(entry["inputs"].items()):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name in SIDES and value:
                least = 8 if entry["class_type"] == "SolidMask" else smallest
                converted.set(node, name, min(value, max(least, value // PARTS // 8 * 8)))
            elif name == "steps" and steps is not None:
                converted.set(node, name, min(value, steps))
