"""The subgraph blueprints; each block's name is its file's name."""

from __future__ import annotations

from ...scenes import FIRST
from ..blueprints import Block
from ..flow import Flow
from . import parts

CATEGORY = "Image generation and editing/Text to image"


def text_to_image_block() -> Block:
    """Prompt in, picture out."""
    name = "Stable Cascade text to image"
    flow = Flow(name)
    load = parts.load(flow, "full-bf16", parts.PICTURES_IN)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    flow.step("Prompt")
    positive, negative = prompts = parts.prompts(flow, load["clip"], "")
    c, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"])
    flow.step("Stage A paints the picture")
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=b["latent"], vae=load["stage_a"])
    block = Block(
        name,
        CATEGORY,
        "Makes a picture from a prompt with Stable Cascade's three stages and official "
        "settings. Choose full or lite models in the block.",
        flow,
    )
    block.input("text", (positive, "text"), label="prompt")
    block.input("negative", (negative, "text"), label="negative prompt")
    block.input("width", (canvas, "width"))
    block.input("height", (canvas, "height"))
    block.input("seed", (c, "seed"), (b, "seed"))
    block.input("steps", (c, "steps"), label="Stage C steps")
    block.input("decoder_steps", (b, "steps"), label="Stage B steps")
    for role in ("prior", "decoder", "text_encoder", "stage_a"):
        block.input(role, (load, role))
    block.output("image", decoded["image"])
    return block


def decoder_block() -> Block:
    """Stage C latent in, picture out."""
    name = "Stable Cascade decoder"
    flow = Flow(name)
    flow.step("Stage B")
    b = flow.add("CascadeStudio_SampleDecoder")
    flow.step("Stage A")
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=b["latent"])
    block = Block(name, CATEGORY, "Stage B and Stage A in one block: turns a Stage C latent into the picture.", flow)
    block.input("model", (b, "model"), label="decoder")
    block.input("stage_a", (decoded, "vae"))
    for entry in ("positive", "negative", "prior", "seed", "steps"):
        block.input(entry, (b, entry))
    block.output("image", decoded["image"])
    block.output("latent", b["latent"])
    return block


def first_picture_block() -> Block:
    """Cascade Mini as one block: prompt, size and seed in, picture out."""
    name = "Stable Cascade, small"
    flow = Flow(name, after=100)  # the page gives nodes inside other ids where they are taken outside
    load = parts.load_mini(flow)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, 256, 256)
    flow.step("Prompt")
    positive, negative = prompts = parts.prompts(flow, load["clip"], FIRST.prompt)
    c, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"])
    flow.step("Stage A paints the picture")
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=b["latent"], vae=load["stage_a"])
    flow.feature(positive, text="")
    block = Block(name, CATEGORY, "The three stages of Stable Cascade with the models that come with the pack.", flow)
    block.input("text", (positive, "text"), label="prompt")
    block.input("width", (canvas, "width"))
    block.input("height", (canvas, "height"))
    block.input("seed", (c, "seed"), (b, "seed"))
    block.output("image", decoded["image"])
    return block


BLOCKS = (text_to_image_block, decoder_block)
