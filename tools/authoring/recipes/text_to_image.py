"""Text to image: the ways in."""

from __future__ import annotations

from cascade_studio.stages.diffusion.official import OFFICIAL, OfficialSettings
from cascade_studio.stages.diffusion.reuse import FAST, OFF

from ...titles import title_of
from ..flow import Flow
from . import parts
from .blocks import first_picture_block

C, B = OFFICIAL["stage_c"], OFFICIAL["stage_b"]
SAMPLER = {"sampler_name": "euler_ancestral", "scheduler": "simple", "denoise": 1.0}


def _plain(
    name: str,
    preset: str,
    prompt: str,
    size: tuple[int, int] = (1024, 1024),
    without: tuple[str, ...] = (),
    more: str = "",
) -> Flow:
    """Prompt → Stage C → Stage B → Stage A → file."""
    flow = Flow(name)
    load = parts.load(flow, preset, without)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, *size)
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], prompt)
    c, b = parts.both_stages(flow, load, prompts, canvas["Stage C latent"])
    saved = parts.finish(flow, b["latent"], load["stage_a"], parts.keys_of(preset, without), more)
    flow.feature(prompts[0], text="")
    flow.show_in_app([(prompts[0], "text"), (canvas, "width"), (canvas, "height"), (c, "seed")], saved)
    flow.note("The three stages", parts.STAGES)
    return flow


def a_first_picture() -> Flow:
    """Cascade Mini, which comes with the pack: a picture without any download, from one block beside one note."""
    flow = Flow("a_first_picture")
    flow.step("Write, then press Run")
    block = flow.add_block(first_picture_block(), (360, 340))
    flow.features = block.block.flow.features
    flow.step("The picture")
    saved = flow.add("SaveImage", images=block["image"], filename_prefix=f"cascade/{flow.name}", wide=360, high=340)
    flow.show_in_app([(block, name) for name in ("text", "width", "height", "seed")], saved)
    flow.note(
        "Your first picture",
        f"""## Your first picture

Press **Run**. A few seconds later there is a red apple at the right; nothing is downloaded.

Now write something else: *a robot on a gray background*, *snowman on a purple background*. Each run takes a new seed.

**Double-click** the block beside its fields (or press *Enter subgraph*) to see the three stages inside.

This is **Cascade Mini**, a small model that comes with the pack. It paints things, animals and faces on plain
backgrounds, 256 pixels wide. For the published models open **{title_of("text_to_image")}**.""",
        high=340,
    )
    return flow


def text_to_image() -> Flow:
    """The full models from their own files."""
    return _plain(
        "text_to_image",
        "full-bf16",
        "a red apple on a wooden table, soft morning light, photograph",
        without=parts.PICTURES_IN,
    )


def text_to_image_lite() -> Flow:
    """The lite models, for graphics cards with little memory."""
    return _plain(
        "text_to_image_lite",
        "lite-bf16",
        "a lighthouse on a cliff above a stormy sea, oil painting, thick brush strokes",
        (1152, 896),
        parts.PICTURES_IN,
        "\nThe lite models follow long prompts less closely than the full ones and are about twice as quick. They can "
        "be mixed: a full Stage C with the lite Stage B is a good middle way.",
    )


def text_to_image_all_in_one() -> Flow:
    """The two checkpoints that hold everything."""
    return _plain(
        "text_to_image_all_in_one",
        "all-in-one",
        "portrait of an old fisherman, wrinkled face, grey beard, studio light",
        (896, 1152),
        more="\nEach checkpoint holds several parts: 'from the checkpoint' in the loader takes a part from there.",
    )


def text_to_image_core_loaders() -> Flow:
    """Core's checkpoint loaders, whose missing files the host's own dialog offers."""
    flow = Flow("text_to_image_core_loaders")
    keys = ("checkpoint_stage_c", "checkpoint_stage_b")
    flow.step("Load models with ComfyUI's own loaders")
    prior = flow.add("CheckpointLoaderSimple", "Load Stage C checkpoint", ckpt_name=parts.files.name(keys[0]))
    decoder = flow.add("CheckpointLoaderSimple", "Load Stage B checkpoint", ckpt_name=parts.files.name(keys[1]))
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    flow.step("Prompt")
    prompts = parts.prompts(flow, prior["CLIP"], "a steam train crossing a stone viaduct, autumn forest, photograph")
    flow.feature(prompts[0], text="")
    _, b = parts.both_stages(
        flow, prior, prompts, canvas["Stage C latent"], prior=prior["MODEL"], decoder=decoder["MODEL"]
    )
    flow.step("Stage A paints the picture")
    parts.picture(flow, b["latent"], decoder["VAE"], flow.name)
    flow.note(
        "Model Links",
        f"""## Models

ComfyUI's own loaders fetch nothing. Its dialog offers the files that are missing when this workflow is opened; or
put them there by hand:

{parts.files.links(keys)}

{parts.files.licence(keys)}

*Load Stable Cascade* in the other workflows fetches its files itself, checks them, and knows every layout.

## Memory

{parts.memory(keys)}""",
    )
    flow.note("The three stages", parts.STAGES)
    return flow


def text_to_image_core_ksampler() -> Flow:
    """The same stages with core's KSampler, as in ComfyUI's own example."""
    flow = Flow("text_to_image_core_ksampler")
    load = parts.load(flow, "full-bf16", parts.PICTURES_IN)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    flow.step("Prompt")
    positive, negative = parts.prompts(
        flow, load["clip"], "evening mist over a quiet harbour, fishing boats, watercolour"
    )
    flow.step("Stage C with KSampler")
    c = flow.add(
        "KSampler",
        "KSampler (Stage C)",
        then="randomize",
        model=load["prior"],
        positive=positive[0],
        negative=negative[0],
        latent_image=canvas["Stage C latent"],
        seed=0,
        **C.as_inputs,
        **SAMPLER,
    )
    flow.step("Stage B with KSampler")
    conditioning = flow.add(
        "CascadeStudio_DecoderConditioning",
        positive=positive[0],
        negative=negative[0],
        prior=c["LATENT"],
        model=load["decoder"],
    )
    b = flow.add(
        "KSampler",
        "KSampler (Stage B)",
        model=load["decoder"],
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        latent_image=conditioning["Stage B latent"],
        seed=0,
        **B.as_inputs,
        **SAMPLER,
    )
    parts.finish(flow, b["LATENT"], load["stage_a"], parts.keys_of("full-bf16", parts.PICTURES_IN))
    flow.feature(positive, text="")
    flow.feature(c, cfg=1.0)
    flow.note(
        "KSampler settings",
        f"""## KSampler settings

Both stages are ordinary ComfyUI models, so any sampler works. Stage C: {C.steps} steps, cfg {C.cfg:g}. Stage B:
{B.steps} steps, cfg {B.cfg:g}.
euler_ancestral with the simple schedule comes closest to the official sampler; samplers that add no noise (plain
euler) leave Stage B a little grainy.

**Cascade Decoder Conditioning** hands the Stage C latent to Stage B and gives the empty latent of the right size; it
also cures pictures that are cut or stretched at odd sizes.""",
    )
    return flow


def text_to_image_custom_sampling() -> Flow:
    """The official schedule, sampler and guidance as parts for core's custom sampling nodes."""
    flow = Flow("text_to_image_custom_sampling")
    load = parts.load(flow, "full-bf16", parts.PICTURES_IN)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, 1024, 1280)
    flow.step("Prompt")
    positive, negative = parts.prompts(
        flow, load["clip"], "a glass greenhouse full of ferns, rain on the panes, photograph", "blurry, low contrast"
    )
    c = _custom(flow, "Stage C, piece by piece", load["prior"], positive[0], negative[0], canvas["Stage C latent"], C)
    flow.step("Hand over to Stage B")
    given = flow.add(
        "CascadeStudio_DecoderConditioning",
        positive=positive[0],
        negative=negative[0],
        prior=c[1],
        model=load["decoder"],
    )
    b = _custom(
        flow,
        "Stage B, piece by piece",
        load["decoder"],
        given["positive"],
        given["negative"],
        given["Stage B latent"],
        B,
    )
    parts.finish(flow, b[1], load["stage_a"], parts.keys_of("full-bf16", parts.PICTURES_IN))
    flow.feature(positive, text="")
    flow.feature(next(node for node in flow.nodes if node.kind == "CascadeStudio_Guider"), rescale=0.0)
    flow.note(
        "Custom sampling",
        """## Custom sampling

**Guider for Cascade** is the official guidance with its contrast rescale of 0.7, **Schedule for Cascade** the official
noise levels, **Sampler for Cascade** the official step (ddpm; ddim and lcm as well). Each can be exchanged for another
node that gives SIGMAS, SAMPLER or GUIDER.""",
    )
    return flow


def _custom(flow: Flow, title: str, model, positive, negative, latent, settings: OfficialSettings):
    """SamplerCustomAdvanced with the official parts; returns it."""
    flow.step(title)
    guider = flow.add("CascadeStudio_Guider", model=model, positive=positive, negative=negative, cfg=settings.cfg)
    sampler = flow.add("CascadeStudio_Sampler")
    sigmas = flow.add("CascadeStudio_Schedule", model=model, steps=settings.steps)
    noise = flow.add("RandomNoise", then="randomize" if settings is C else "fixed", noise_seed=0)
    return flow.add(
        "SamplerCustomAdvanced",
        noise=noise[0],
        guider=guider[0],
        sampler=sampler[0],
        sigmas=sigmas[0],
        latent_image=latent,
    )


def low_memory() -> Flow:
    """Lite models in fp8, one loader a part, Stage A in small tiles."""
    flow = Flow("low_memory")
    keys = ("stage_c_lite_bf16", "stage_b_lite_bf16", "text_encoder", "stage_a")
    names = {key: parts.files.name(key) for key in keys}
    flow.step("Load models, one by one")
    clip = flow.add("CascadeStudio_LoadTextEncoder", text_encoder=names["text_encoder"])
    prior = flow.add("CascadeStudio_LoadPrior", prior=names["stage_c_lite_bf16"], dtype="fp8_e4m3fn")
    decoder = flow.add("CascadeStudio_LoadDecoder", decoder=names["stage_b_lite_bf16"], dtype="fp8_e4m3fn")
    stage_a = flow.add("CascadeStudio_LoadStageA", stage_a=names["stage_a"])
    flow.step("Prompt")
    prompts = parts.prompts(flow, clip["clip"], "a mountain village in winter, warm windows, snow, night")
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, compression=48.0)
    flow.step("Sample Stage C, then Stage B")
    c = parts.sample_prior(flow, prior["prior"], prompts[0][0], prompts[1][0], canvas["Stage C latent"])
    b = parts.sample_decoder(flow, decoder["decoder"], prompts[0][0], prompts[1][0], c["prior"], cfg=1.0)
    parts.finish(
        flow, b["latent"], stage_a["stage_a"], keys, title="Stage A paints the picture in tiles", tile_size=256
    )
    flow.feature(prompts[0], text="")
    flow.feature(canvas, compression=32.0)
    flow.note(
        "What saves memory",
        """## What saves memory here

- **Lite models** for Stage C and Stage B.
- **fp8** in the two loaders: the weights take half as much; computing stays in the machine's own format.
- **Compression 48** on the canvas: a smaller Stage C grid.
- **cfg 1** for Stage B: one pass a step instead of two, with hardly a difference.
- **Tiles** of 256 pixels in Decode Stage A. They give exactly the same picture.

Not enough yet? Start ComfyUI with `--lowvram`, or make a smaller picture.""",
    )
    return flow


def fast() -> Flow:
    """Fewer computed steps in both stages, and none of Stage B guided."""
    flow = Flow("fast")
    load = parts.load(flow, "full-bf16", parts.PICTURES_IN)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow)
    flow.step("Prompt")
    prompts = parts.prompts(flow, load["clip"], "a rocket above the clouds at dawn, photograph")
    flow.step("Leave out steps")
    cached = [flow.add("CascadeStudio_Cache", model=load[part], preset=FAST) for part in ("prior", "decoder")]
    flow.step("Sample Stage C, then Stage B")
    plain = [node[0] for node in prompts]
    c = parts.sample_prior(flow, cached[0]["model"], *plain, canvas["Stage C latent"])
    b = parts.sample_decoder(flow, cached[1]["model"], *plain, c["prior"], cfg=1.0)
    parts.finish(flow, b["latent"], load["stage_a"], parts.keys_of("full-bf16", parts.PICTURES_IN))
    for node in cached:
        flow.feature(node, preset=OFF)
    flow.step("Off: PyTorch's compiler")
    flow.add("CascadeStudio_Compile", muted=True)
    flow.note(
        "What makes it faster",
        """## What makes it faster

- **Cache for Cascade** computes about half of the steps and guesses the others from them. *careful* is nearer to the
exact picture, *off* gives it.
- **cfg 1** in Stage B leaves its negative prompt out. The official 1.1 hardly changes the picture and doubles the cost
of every step.
- **Compile Cascade**, at the right, is switched off: the first picture with it waits for the compiler. Switch it on
(Ctrl+M) and wire one behind each output of the loader; the picture stays the same.

The help page of Cache for Cascade has a table of seconds against distance from the exact picture.""",
    )
    return flow


RECIPES = (
    *((a_first_picture,) if parts.ships() else ()),
    text_to_image,
    text_to_image_lite,
    text_to_image_all_in_one,
    text_to_image_core_loaders,
    text_to_image_core_ksampler,
    text_to_image_custom_sampling,
    low_memory,
    fast,
)
