"""LoRAs (on Cascade Mini where its example ships, else on the lite models), training one, and merging."""

from __future__ import annotations

from ...scenes import SCENES
from ...titles import title_of
from ..flow import TOUCH, Flow, FlowNode, Output
from . import parts

MODELS = "lite-bf16"
ON_MINI = parts.ships("lora")
OWN = "my_style.safetensors"
"""Stands for a file of the user's own."""
STYLE = parts.mini_name("lora") if ON_MINI else OWN
OTHER_STYLE = parts.mini_name("another lora") if parts.ships("another lora") else OWN
SIDE = 256 if ON_MINI else 1024


def _lite(flow: Flow, without: tuple[str, ...] = parts.PICTURES_IN) -> FlowNode:
    """Load the lite models."""
    return parts.load(flow, MODELS, without)


def _models(flow: Flow) -> FlowNode:
    """Load what :data:`STYLE` was made for."""
    return parts.load_mini(flow) if ON_MINI else _lite(flow)


def _links(flow: Flow) -> None:
    """The note on the models that :func:`_models` loads."""
    if ON_MINI:
        parts.mini_note(
            flow,
            """
LoRAs come with the pack, too: *cascade_mini_noto* turns its pictures into the flat style of Noto Emoji, and
*cascade_mini_ink* draws them with black outlines. For LoRAs of the published models choose another preset in the
loader, their file, 1024 x 1024 on the canvas, 20 steps and cfg 4 for Stage C, and 10 steps for Stage B.
""",
        )
    else:
        parts.model_links(flow, parts.keys_of(MODELS, parts.PICTURES_IN))


def _end(flow: Flow, load: FlowNode, prompts: tuple[FlowNode, FlowNode], latent: Output, **models) -> FlowNode:
    """Both stages and the picture; returns Stage C's sampler."""
    c, b = parts.both_stages(flow, load, prompts, latent, **models)
    flow.step("Stage A paints the picture")
    parts.picture(flow, b["latent"], load["stage_a"], flow.name)
    return c


def lora_stack() -> Flow:
    """Several LoRAs at once."""
    flow = Flow("lora_stack")
    load = _models(flow)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, SIDE, SIDE)
    flow.step("LoRAs")
    first = flow.add("CascadeStudio_LoraStack", colours=TOUCH, lora=STYLE, strength_model=0.7)
    second = flow.add(
        "CascadeStudio_LoraStack", colours=TOUCH, lora=OTHER_STYLE, strength_model=0.6, stack=first["stack"]
    )
    applied = flow.add(
        "CascadeStudio_ApplyLoraStack",
        stack=second["stack"],
        prior=load["prior"],
        decoder=load["decoder"],
        clip=load["clip"],
    )
    flow.step("Prompt")
    prompt = SCENES[title_of("lora_stack")].prompt if ON_MINI else "a cat on a windowsill in the evening sun"
    prompts = parts.prompts(flow, applied["clip"], prompt)
    _end(flow, load, prompts, canvas["Stage C latent"], prior=applied["prior"], decoder=applied["decoder"])
    flow.feature(first, strength_model=0.0)
    flow.feature(second, strength_model=0.0)
    flow.step("Off: write the LoRA in another layout")
    flow.add("CascadeStudio_ConvertLora", muted=True, lora=STYLE, model=load["prior"], layout="ComfyUI")
    _links(flow)
    there = (
        "here *cascade_mini_noto*, flat colours, and *cascade_mini_ink*, black outlines"
        if ON_MINI
        else "*my_style* only stands for them"
    )
    flow.note(
        "LoRAs",
        f"""## LoRAs

Each **Cascade LoRA Stack** adds one file to the list: {there}. Put yours into `models/loras` and choose them in both
nodes; **{title_of("train_lora")}** makes one. Any layout works: official, kohya, OneTrainer,
diffusers, ComfyUI. The report on **Apply Cascade LoRA Stack** says how many of a file's keys are used; a file that
fits nothing stops with a sentence instead of doing nothing. LoRAs for the full Stage C need the full models: choose
them in the loader.

**Convert Cascade LoRA** is switched off (Ctrl+M switches it on): it writes a LoRA for other programs.""",
    )
    return flow


def lora_schedule() -> Flow:
    """A LoRA that acts on one prompt, and less and less during the run."""
    flow = Flow("lora_schedule")
    load = _models(flow)
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, SIDE, SIDE)
    flow.step("LoRA as hooks, fading out")
    hook = flow.add("CascadeStudio_LoadHookLora", colours=TOUCH, model=load["prior"], lora=STYLE, clip=load["clip"])
    begin = flow.add("CreateHookKeyframe", "Full strength at the start")
    end = flow.add(
        "CreateHookKeyframe", "Half strength from half way", strength_mult=0.5, start_percent=0.5, prev_hook_kf=begin[0]
    )
    timed = flow.add("SetHookKeyframes", hooks=hook["hooks"], hook_kf=end[0])
    flow.step("Prompt")
    prompt = SCENES[title_of("lora_schedule")].prompt if ON_MINI else "a red vintage car on a country road"
    positive, negative = prompts = parts.prompts(flow, load["clip"], prompt)
    hooked = flow.add(
        "PairConditioningSetProperties",
        positive_NEW=positive[0],
        negative_NEW=negative[0],
        hooks=timed[0],
        set_cond_area="default",
    )
    _end(flow, load, prompts, canvas["Stage C latent"], steered=hooked)
    flow.feature(hook, strength_model=0.0)
    flow.feature(end, strength_mult=1.0)
    _links(flow)
    flow.note(
        "Hooks",
        """## Hooks

**Load Cascade Hook LoRA** makes a LoRA of any layout into hooks of ComfyUI. They act on the prompts that they are
attached to and on the steps that the keyframes name, so that two prompts can have different LoRAs in one picture.
The model on the wire is not changed.""",
    )
    return flow


def _before_and_after(flow: Flow, load: FlowNode, taught: Output) -> tuple[FlowNode, FlowNode]:
    """One prompt and seed, painted by the model that was loaded and by the one that was ``taught``.

    Returns the prompt and the node that compares both.
    """
    flow.step("Picture size")
    canvas = parts.canvas(flow, SIDE, SIDE)
    flow.step("Prompt", below=True)
    prompt = SCENES[title_of("train_lora")].prompt if ON_MINI else "a mushroom"
    positive, negative = parts.prompts(flow, load["clip"], prompt)
    shown = {}
    for when, model in (("before", load["prior"]), ("after", taught)):
        flow.step(f"Stage C and Stage B, {when}")
        latent = canvas["Stage C latent"]
        heard = {"positive": positive[0], "negative": negative[0]}
        c = parts.sample_prior(flow, model, latent=latent, then="fixed", **heard)
        b = parts.sample_decoder(flow, load["decoder"], positive[0], negative[0], c["prior"])
        shown[when] = parts.picture(flow, b["latent"], load["stage_a"], f"train_lora_{when}")[0], c
    flow.step("Before and after")
    compared = flow.add("CascadeStudio_Compare", before=shown["before"][0]["image"], after=shown["after"][0]["image"])
    flow.feature(shown["after"][1], model=load["prior"])
    return positive, compared


def _other_training(flow: Flow, load: FlowNode, pictures: Output, settings: Output) -> None:
    """What is switched off: trying rates, and training a ControlNet."""
    given = {"model": load["prior"], "clip": load["clip"], "vae": load["stage_c_vae"], "training_set": pictures}
    flow.step("Off: find a learning rate")
    flow.add("CascadeStudio_FindLearningRate", muted=True, what="lora", **given, settings=settings, rank=8, alpha=8.0)
    flow.step("Off: train another part")
    flow.add(
        "CascadeStudio_Train",
        muted=True,
        what="controlnet",
        **given,
        name="chalk_edges",
        steps=500,
        learning_rate=0.001,
    )


def train_lora() -> Flow:
    """Twelve drawings that come with the pack become a LoRA, and the picture is painted without it and with it."""
    flow = Flow("train_lora")
    load = _models(flow)
    flow.step("Pictures to learn from")
    pictures = flow.add("CascadeStudio_TrainingSet", colours=TOUCH, folder="chalk", resolution=384 if ON_MINI else 768)
    flow.step("Train")
    settings = flow.add("CascadeStudio_TrainingSettings", blocks=".attn .channelwise", loss_weight="velocity")
    trained = flow.add(
        "CascadeStudio_TrainLora",
        model=load["prior"],
        clip=load["clip"],
        vae=load["stage_c_vae"],
        training_set=pictures["training set"],
        settings=settings["settings"],
        name="chalk",
        steps=150,
        learning_rate=0.0004,
        rank=8,
        alpha=8.0,
        sample_every=25,
    )
    prompt, compared = _before_and_after(flow, load, trained["model"])
    flow.show_in_app([(pictures, "folder"), (trained, "name"), (trained, "steps"), (prompt, "text")], trained, compared)
    _other_training(flow, load, pictures["training set"], settings["settings"])
    if ON_MINI:
        parts.mini_note(flow)
    else:
        parts.model_links(flow, parts.keys_of(MODELS, parts.PICTURES_IN))
    flow.note(
        "Training",
        f"""## Training

Press *Run*: twelve chalk drawings that come with the pack teach Cascade Mini their style in a few minutes, and the
picture is painted without the LoRA and with it.

1. For pictures of your own, put them into a folder inside ComfyUI's `input` folder, each with a `.txt` file of the same
   name that says what it shows, and write the folder's name into **Cascade Training Set**.
2. The node shows the loss and how much time is left. Stop whenever you like: the next run goes on from there.
3. The LoRA lands among your LoRAs; **{title_of("lora_stack")}** shows how to use it.

A LoRA fits the Stage C that it was trained on. For the published models choose another preset in the loader, a
resolution of 768, 1024 x 1024 on the canvas, 20 steps and cfg 4 for Stage C, 10 steps for Stage B; bf16 or fp8 in
**Cascade Training Settings** says how the frozen weights are kept in memory. **Train Cascade** trains whole stages and
ControlNets as well, **Find Learning Rate** tries rates before a long run; both are switched off (Ctrl+M).""",
    )
    return flow


def merge() -> Flow:
    """Two Stage C models mixed part by part, plus a share of what one of them learned."""
    flow = Flow("merge")
    keys = ("stage_c_bf16", "sotediffusion_v2_stage_c")
    load = parts.load(flow, "full-bf16", parts.PICTURES_IN)
    other = flow.add("CascadeStudio_LoadPrior", "The other Stage C", TOUCH, prior=parts.files.name(keys[1]))
    flow.step("Merge")
    mixed = flow.add(
        "CascadeStudio_MergeModels",
        model1=load["prior"],
        model2=other["prior"],
        input=0.2,
        deep_down=0.5,
        deep_up=0.5,
        output=0.8,
        conditioning=0.2,
        time=0.0,
    )
    added = flow.add(
        "CascadeStudio_AddDifference", model=mixed["model"], tuned=other["prior"], base=load["prior"], strength=0.1
    )
    flow.step("Picture size", below=True)
    canvas = parts.canvas(flow, 832, 1216)
    flow.step("Prompt")
    prompts = parts.prompts(
        flow, load["clip"], "a girl with an umbrella under cherry blossoms, anime illustration", "lowres, blurry"
    )
    _end(flow, load, prompts, canvas["Stage C latent"], prior=added["model"])
    flow.feature(mixed, deep_down=0.0, output=0.0)
    flow.feature(added, strength=0.0)
    flow.step("Off: save the result")
    flow.add("CascadeStudio_SaveModel", muted=True, model=added["model"], layout="ComfyUI")
    flow.add("CascadeStudio_ExtractLora", muted=True, tuned=added["model"], base=load["prior"])
    parts.model_links(flow, [*parts.keys_of("full-bf16", parts.PICTURES_IN), keys[1]])
    flow.note(
        "Shares",
        """## Shares

Each number of **Merge Cascade Models by Parts** is the share of the second model in one part of the network: the
deep parts decide what is in the picture, the output part paints its look. 0 keeps the first model exactly, 1 takes
the second exactly.

**Add Cascade Model Difference** adds what training changed: model + (tuned - base) x strength.

**Save Cascade Model** writes the result as a file of several gigabytes, **Extract Cascade LoRA** as a small LoRA.
Both are switched off; select one and press Ctrl+M to switch it on. LoRAs on the wire are baked in.""",
    )
    return flow


RECIPES = (lora_stack, lora_schedule, train_lora, merge)
