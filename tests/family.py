"""A tiny random Stable Cascade family in the published file formats and key names, only narrower.

    python tests/family.py DIRECTORY

writes the folders of a ComfyUI ``models`` directory, less than 40 MB in all: ``diffusion_models``, ``text_encoders``,
``vae``, ``clip_vision``, ``checkpoints``, ``controlnet``, ``model_patches`` and ``loras``. The weights are noise seeded
by their own keys, with just enough structure that sampling stays in range and the prompt, the seed and the size matter:
pictures are coloured noise, not flat and never NaN. Needs torch and safetensors only.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path

import torch
from family_shapes import (
    CONTROLNET,
    ENCODER,
    TEXT,
    Shapes,
    controlnet_shapes,
    encoder_shapes,
    guide_shapes,
    previewer_shapes,
    stage_a_shapes,
    stage_b_shapes,
    stage_c_shapes,
    text_shapes,
    vision_shapes,
)
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
MARKER = "cascade_studio.config"


def tensor_for(key: str, shape: tuple[int, ...]) -> Tensor:
    """Noise seeded by ``key`` and scaled so that activations keep a sensible size."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if key.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if key.endswith("gammas"):
        return 0.3 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise if key.endswith("weight") else 0.1 * noise
    if key.endswith(("gamma", "beta")):
        return 0.1 * noise
    return noise * math.sqrt((1.5 if len(shape) == 4 else 1.0) / math.prod(shape[1:]))


def weights_for(shapes: Shapes) -> Weights:
    return {key: tensor_for(key, shape) for key, shape in shapes.items()}


ANCHOR = 100.0
"""Length of the constant vector in the residual stream beside which latents (length about 4) are small."""


STRENGTHS = {
    ".channelwise.4.": 0.01,
    ".out_proj.bias": 0.01,
    ".out_proj.": 0.1,
    ".in_proj_bias": 0.1,
    ".kv_mapper.1.bias": 0.1,
    ".mapper": 0.0005,
    "clf.1.bias": 0.1,
}
SHARPNESS = 3.0
"""How much of their noise the weights keep by which blocks write to the residual stream (first match);
and how much attention prefers some tokens to others."""


def steady_weights(shapes: Shapes) -> tuple[Weights, Tensor, Tensor]:
    """Weights whose blocks only disturb the residual stream, a frame of latent directions (c, 16), and the anchor (c,).

    Untrained blocks alone would drive every sampler out of range within a few steps, so these nets answer with the
    noise in their input plus what their blocks add. Layer norms stay close to linear beside the constant anchor.
    """
    weights = weights_for(shapes)
    for key in weights:
        strength = next((strength for part, strength in STRENGTHS.items() if part in key), 1.0)
        weights[key] = strength * weights[key]
    c, c_in = shapes["embedding.1.weight"][:2]
    # Apart from each other, so that rounding to 16 bits keeps them orthogonal; the first direction of the frame is the
    # mean over the channels, which layer norms remove.
    split = 3 * c // 4
    anchor, directions = torch.zeros(c), torch.zeros(c, c_in)
    anchor[split:] = torch.tensor([1.0, -1.0]).repeat((c - split) // 2) / math.sqrt(c - split)
    columns = torch.cat([torch.ones(split, 1), tensor_for("frame", (split, c_in))], 1)
    directions[:split] = torch.linalg.qr(columns)[0][:, 1:]
    for key in [key for key in weights if key.endswith(".in_proj_weight")]:
        width = shapes[key][1]
        weights[key][: 2 * width] *= SHARPNESS
        if width == c:
            weights[key] = weights[key] - torch.outer(weights[key] @ anchor, anchor)
    weights["embedding.1.weight"] = directions.contiguous().view(shapes["embedding.1.weight"])
    weights["embedding.1.bias"] = ANCHOR * anchor
    return weights, directions, anchor


def stage_c_weights() -> Weights:
    """Answers with the noise of its input through the residual stream."""
    shapes = stage_c_shapes()
    weights, directions, _ = steady_weights(shapes)
    for key in ("down_downscalers.1.1.blocks.0", "up_upscalers.0.1.blocks.1"):
        weights[f"{key}.weight"] = torch.eye(len(directions)).view(shapes[f"{key}.weight"])
        weights[f"{key}.bias"] = 0.1 * weights[f"{key}.bias"]
    gain = math.sqrt(len(directions)) / ANCHOR
    weights["clf.1.weight"] = (directions.T / gain).contiguous().view(shapes["clf.1.weight"])
    return weights


def stage_b_weights() -> Weights:
    """Answers with the noise of its input through the skip of the shallowest level."""
    shapes = stage_b_shapes()
    weights, directions, anchor = steady_weights(shapes)
    c, c_in = directions.shape
    gain = math.sqrt(c) / ANCHOR
    for name, strength in (("effnet_mapper", 0.04), ("pixels_mapper", 0.02)):
        weights[f"{name}.2.weight"] = strength * weights[f"{name}.2.weight"]
        weights[f"{name}.2.bias"] = ANCHOR / 4 * anchor
    weights["up_upscalers.2.1.weight"] = 0.01 * weights["up_upscalers.2.1.weight"]
    weights["up_upscalers.2.1.bias"] = ANCHOR / 4 * anchor
    # GELU(v) - GELU(-v) = v: the first ResBlock of the shallowest up level hands its skip on as it is.
    start = "up_blocks.3.0.channelwise"
    first, last = torch.zeros(shapes[f"{start}.0.weight"]), torch.zeros(shapes[f"{start}.4.weight"])
    first[:c_in, c:], first[c_in : 2 * c_in, c:] = directions.T, -directions.T
    last[:, :c_in], last[:, c_in : 2 * c_in] = directions, -directions
    weights.update({f"{start}.0.weight": first, f"{start}.4.weight": last})
    for key in (f"{start}.0.bias", f"{start}.2.gamma", f"{start}.2.beta", f"{start}.4.bias"):
        weights[key] = torch.zeros(shapes[key])
    gain *= math.sqrt(c) / (ANCHOR / 4)
    weights["clf.1.weight"] = (directions.T / gain).contiguous().view(shapes["clf.1.weight"])
    return weights


def stage_a_weights() -> Weights:
    """A decoder whose pictures lie around middle grey, mostly inside [0, 1]."""
    weights = weights_for(stage_a_shapes())
    weights["out_block.0.weight"] = 0.25 * weights["out_block.0.weight"]
    weights["out_block.0.bias"] = 0.5 + weights["out_block.0.bias"]
    return weights


def previewer_weights() -> Weights:
    weights = weights_for(previewer_shapes())
    weights["blocks.24.weight"] = 1.5 * weights["blocks.24.weight"]
    weights["blocks.24.bias"] = 0.5 + weights["blocks.24.bias"]
    return weights


def controlnet_weights() -> Weights:
    weights = weights_for(controlnet_shapes())
    return {key: 0.5 * value if key.startswith("projections.") else value for key, value in weights.items()}


def write_guide(directory: str | Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The guide's file in a models folder: published as a pickle under the other format's name."""
    target = Path(directory, "model_patches", "ultrapixel_t2i.safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(cast(guide_weights(), dtype), target)
    return target


def guide_weights() -> Weights:
    """Corrections of about a tenth of what the picture takes in the residual stream."""
    weights = weights_for(guide_shapes())
    for key, value in weights.items():
        if ".hr_norm.mapping.mapper." in key:
            value *= 0.01
            value[: len(value) // 2] -= 1.97 if key.endswith("bias") else 0.0  # of 2 + this
    return weights


def split(weights: Weights) -> Weights:
    """ComfyUI's layout: query, key and value apart."""
    result: Weights = {}
    for key, tensor in weights.items():
        if ".attn.in_proj_" not in key:
            result[key] = tensor
            continue
        start, _, end = key.rpartition(".in_proj_")
        for name, part in zip("qkv", tensor.chunk(3)):
            result[f"{start}.to_{name}.{end}"] = part.contiguous()
    return result


def diffusers(weights: Weights) -> Weights:
    """The layout of diffusers' ``StableCascadeUNet``."""
    renames = {"attention.attn.to_": "attention.to_", "attention.attn.out_proj": "attention.to_out.0"}
    result: Weights = {}
    for key, tensor in split(weights).items():
        for old, new in renames.items():
            key = key.replace(old, new)
        if key.startswith("clip_mapper."):
            key = "clip_txt_pooled_mapper." + key.partition(".")[2]
        result[key] = tensor
    return result


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}


def fp8_scaled(weights: Weights, new: bool = False) -> Weights:
    """ComfyUI's scaled fp8 files, split layout: the blocks' linear weights in fp8 with a scale, the rest in bf16.

    ``new`` writes ``weight_scale`` and ``comfy_quant`` at each layer, else ``scale_weight`` and one ``scaled_fp8``.
    """
    result: Weights = {} if new else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in split(weights).items():
        if not (key.endswith(".weight") and tensor.ndim == 2 and "_blocks." in key):
            result[key] = tensor.to(torch.bfloat16)
            continue
        layer = key[: -len(".weight")]
        scale = tensor.abs().amax() / 448
        result[key] = (tensor / scale).to(torch.float8_e4m3fn)
        result[f"{layer}.{'weight_scale' if new else 'scale_weight'}"] = scale.float()
        if new:
            note = json.dumps({"format": "float8_e4m3fn"}).encode()
            result[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    return result


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def prior_coder(encoder: Weights, previewer: Weights) -> Weights:
    """The Stage C VAE of ComfyUI's all-in-one file: encoder, its picture statistics, and Previewer."""
    return {
        **prefixed("encoder.", encoder),
        "encoder.mean": torch.tensor([0.485, 0.456, 0.406]),
        "encoder.std": torch.tensor([0.229, 0.224, 0.225]),
        **prefixed("previewer.", previewer),
    }


def lora_pair(shape: tuple[int, int], key: str, rank: int = 4) -> tuple[Tensor, Tensor]:
    """``(up, down)`` of a low-rank change of a weight of ``shape``."""
    return tensor_for(f"{key}.up", (shape[0], rank)), 0.3 * tensor_for(f"{key}.down", (rank, shape[1]))


def official_lora(shapes: Shapes) -> Weights:
    """Positional, as the official trainer writes it: for each attention block out_proj, then in_proj; two tokens."""
    names = [key[: -len("in_proj_weight")] for key in shapes if key.endswith(".attn.in_proj_weight")]
    weights: Weights = {}
    for i, key in enumerate(f"{name}{end}" for name in names for end in ("out_proj.weight", "in_proj_weight")):
        weights[f"weights.{i}.lora_up"], weights[f"weights.{i}.lora_down"] = lora_pair(shapes[key], key)
    weights["embeddings.embeddings"] = tensor_for("embeddings", (2, TEXT["hidden_size"]))
    weights["embeddings.indices"] = torch.tensor([320, 49408])
    return weights


def kohya_lora(weights: Weights) -> Weights:
    """``lora_prior_unet_*`` for the split attention, with alpha equal to the rank."""
    result: Weights = {}
    for key, tensor in split(weights).items():
        if ".attention.attn." in key and key.endswith(".weight"):
            name = "lora_prior_unet_" + key[: -len(".weight")].replace(".", "_")
            up, down = lora_pair(tuple(tensor.shape), key)
            result.update({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down})
            result[f"{name}.alpha"] = torch.tensor(4.0)
    return result


def write_family(directory: str | Path, variants: bool = True) -> dict[str, Path]:
    """Write the family below ``directory``; returns ``{"folder/file": path}``.

    ``variants`` adds the same diffusion networks in every other layout and format. Files already there are replaced.
    """
    written: dict[str, Path] = {}

    def save(name: str, weights: Weights, dtype: torch.dtype | None = None, **metadata: str) -> None:
        path = Path(directory, f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {key: value.contiguous() for key, value in (cast(weights, dtype) if dtype else weights).items()}
        save_file(weights, path, metadata={"format": "pt", **metadata})
        written[name] = path

    stage_c = stage_c_weights()
    stage_b = stage_b_weights()
    stage_a, text, vision = stage_a_weights(), weights_for(text_shapes()), weights_for(vision_shapes())
    encoder, previewer = weights_for(encoder_shapes()), previewer_weights()
    half, brain = torch.float16, torch.bfloat16

    save("diffusion_models/stage_c", stage_c, brain)
    save("diffusion_models/stage_b", stage_b, brain)
    save("text_encoders/clip_g", text, half)
    save("clip_vision/clip_l_vision", vision, half)
    save("vae/stage_a", stage_a)
    save("vae/effnet_encoder", encoder)
    save("vae/previewer", previewer)
    save("controlnet/canny", controlnet_weights(), **{MARKER: controlnet_marker()})
    written["model_patches/ultrapixel_t2i"] = write_guide(directory)
    save("loras/official", official_lora(stage_c_shapes()))
    save("loras/kohya", kohya_lora(stage_c), half)
    clip_g = {
        **prefixed("text_encoder.clip_g.transformer.", text),
        "text_encoder.clip_g.logit_scale": torch.tensor(4.6),
    }
    save(
        "checkpoints/stable_cascade_stage_c",
        {
            **prefixed("model.diffusion_model.", cast(split(stage_c), brain)),
            **cast(clip_g, half),
            **prefixed("vae.", cast(prior_coder(encoder, previewer), half)),
            **prefixed("clip_l_vision.", cast(vision, half)),
        },
    )
    save(
        "checkpoints/stable_cascade_stage_b",
        {
            **prefixed("model.diffusion_model.", cast(split(stage_b), brain)),
            **cast(clip_g, half),
            **prefixed("vae.", cast(stage_a, half)),
        },
    )
    if variants:
        save("vae/stage_c_vae", prior_coder(encoder, previewer))
        for name, weights in (("stage_c", stage_c), ("stage_b", stage_b)):
            save(f"diffusion_models/{name}_diffusers_fp16", diffusers(weights), half)
            save(f"diffusion_models/{name}_fp8_scaled", fp8_scaled(weights))
        save("diffusion_models/stage_c_fp8_scaled_new", fp8_scaled(stage_c, new=True))
    return written


def controlnet_marker() -> str:
    """The marker that says which ResBlocks the two projections feed."""
    trunk = {**{key: ENCODER[key] for key in ("c_stem", "widths", "repeats", "c_features")}, "c_in": CONTROLNET["c_in"]}
    return json.dumps({"kind": "controlnet", "config": {**CONTROLNET, "bottleneck_mode": "effnet", "trunk": trunk}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random Stable Cascade family.")
    parser.add_argument("directory", type=Path, help="a ComfyUI models directory")
    parser.add_argument("--no-variants", action="store_true", help="leave out the other layouts and formats")
    arguments = parser.parse_args()
    write_family(arguments.directory, variants=not arguments.no_variants)
