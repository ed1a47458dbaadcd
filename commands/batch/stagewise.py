"""Cuts a prompt between Stage C and Stage B: priors are painted here, finals anywhere else.

``c`` keeps what leads to the Stage C latents and saves them; ``ba`` loads them where Stage C was. A latent that comes
from a file knows its grid only, so the size is told by the canvas, which stays in the prompt.
"""

from __future__ import annotations

import copy
from typing import Any

from ..messages import Stop
from ..workflow.inputs import Prompt, is_link

STAGES = ("c", "ba")
PRIOR_INPUTS = {
    "CascadeStudio_SampleDecoder": "prior",
    "CascadeStudio_DecoderConditioning": "prior",
    "StableCascade_StageB_Conditioning": "stage_c",
}
"""Nodes that hand a Stage C latent to Stage B, and the input that takes it."""
CANVAS, SAMPLE_PRIOR, SAMPLE_DECODER = (
    "CascadeStudio_Canvas",
    "CascadeStudio_SamplePrior",
    "CascadeStudio_SampleDecoder",
)
OUTPUTS_OF_STAGE_B = ("SaveImage", "CascadeStudio_SaveImage", "PreviewImage")
PREVIEW_INPUT, STAGE_C_VAE = "prior", 5
"""The input of Preview Stage C for a latent, and the output of Load Stable Cascade that has the Previewer."""
Source = tuple[str, int]


def find_priors(prompt: Prompt) -> list[Source]:
    """The outputs that give Stage B its Stage C latents, each once."""
    found = []
    for entry in prompt.values():
        value = entry["inputs"].get(PRIOR_INPUTS.get(entry["class_type"], ""))
        if is_link(value):
            found.append((str(value[0]), value[1]))
    return list(dict.fromkeys(found))


def cut(prompt: Prompt, stages: str) -> Prompt:
    """The part of ``prompt`` for ``stages``; its latents are saved, or loaded, by nodes called ``prior_1`` and on."""
    priors = find_priors(prompt)
    if not priors:
        raise Stop(
            "The workflow hands no Stage C latent to a Stage B node, so --stages has nothing to cut. Use a workflow "
            "with Sample Stage B, or leave --stages out."
        )
    made = copy.deepcopy(prompt)
    return _only_priors(made, priors) if stages == "c" else _without_priors(made, priors)


def node_of(number: int) -> str:
    """The name of the node that saves or loads a latent; ``number`` from 1."""
    return f"prior_{number}"


def _only_priors(prompt: Prompt, priors: list[Source]) -> Prompt:
    kept = upstream(prompt, [node for node, _ in priors])
    made = {node: entry for node, entry in prompt.items() if node in kept}
    for number, (node, slot) in enumerate(priors, 1):
        made[node_of(number)] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [node, slot], "filename_prefix": ""},
            "_meta": {"title": f"Stage C latent {number}"},
        }
        _add_preview(made, number, (node, slot))
    return made


def _add_preview(prompt: Prompt, number: int, prior: Source) -> None:
    """A small picture to choose by, where the workflow loads a Previewer."""
    for node, entry in list(prompt.items()):
        previewer = entry["inputs"].get("previewer")
        if entry["class_type"] == "CascadeStudio_Load" and previewer not in (None, "none"):
            prompt[f"preview_{number}"] = {
                "class_type": "CascadeStudio_DecodePreview",
                "inputs": {PREVIEW_INPUT: list(prior), "vae": [node, STAGE_C_VAE]},
                "_meta": {"title": f"Preview {number}"},
            }
            prompt[f"save_{number}"] = {
                "class_type": "SaveImage",
                "inputs": {"images": [f"preview_{number}", 0], "filename_prefix": ""},
                "_meta": {"title": f"Save preview {number}"},
            }
            return


def saves(prompt: Prompt) -> list[str]:
    """The nodes of a cut prompt that write a row's files."""
    return [node for node, entry in prompt.items() if entry["class_type"] in ("SaveLatent", "SaveImage")]


def _without_priors(prompt: Prompt, priors: list[Source]) -> Prompt:
    for entry in prompt.values():
        if entry["class_type"] == SAMPLE_DECODER and not is_link(entry["inputs"].get("latent")):
            canvas = _canvas_of(prompt, entry["inputs"].get("prior"))
            if canvas is not None:
                entry["inputs"]["latent"] = [canvas, 1]
    for number, prior in enumerate(priors, 1):
        prompt[node_of(number)] = {
            "class_type": "LoadLatent",
            "inputs": {"latent": ""},
            "_meta": {"title": f"Stage C latent {number}"},
        }
        for entry in prompt.values():
            name = PRIOR_INPUTS.get(entry["class_type"], "")
            if entry["inputs"].get(name) == list(prior):
                entry["inputs"][name] = [node_of(number), 0]
    return drop_unused(prompt)


def _canvas_of(prompt: Prompt, source: Any) -> str | None:
    """The canvas whose empty latent a Stage C sampler fills, if it is one of ours."""
    while is_link(source):
        entry = prompt.get(str(source[0])) or {"class_type": "", "inputs": {}}
        if entry["class_type"] == CANVAS:
            return str(source[0])
        source = entry["inputs"].get("latent") if entry["class_type"] == SAMPLE_PRIOR else None
    return None


def upstream(prompt: Prompt, nodes: list[str]) -> set[str]:
    """``nodes`` and everything that they take from."""
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node in prompt and node not in seen:
            seen.add(node)
            waiting += [str(value[0]) for value in prompt[node]["inputs"].values() if is_link(value)]
    return seen


def drop_unused(prompt: Prompt) -> Prompt:
    """What the saved or shown pictures take from, and nothing else."""
    ends = [node for node, entry in prompt.items() if entry["class_type"] in OUTPUTS_OF_STAGE_B]
    kept = upstream(prompt, ends)
    return {node: entry for node, entry in prompt.items() if node in kept}
