"""Loaders: everything at once, or one network at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from .file_inputs import CHECKPOINT, NONE, FileLoader, compile_input, dtype_input, file_input, missing_input
from .host.files import fetch, names
from .host.models import load_vae, preview
from .host.models.clip import load_clip_vision, load_text_encoder
from .host.models.compile import compile_blocks
from .host.models.load import AUTO, DEVICES, ModelPart, load_diffusion

CATEGORY = "Cascade Studio/loaders"
NO_VISION = (
    "Load Stable Cascade has no CLIP vision to give: no file is chosen for 'clip_vision'. Choose one there, or load it "
    "with Load CLIP Vision."
)
NO_CODER = (
    "Load Stable Cascade has no Stage C VAE to give: no file is chosen for 'image_encoder' nor for 'previewer'. Choose "
    "one there: the image encoder reads pictures, the Previewer shows Stage C."
)
FileParts = dict[str, ModelPart | None]


def preset_input() -> io.Combo.Input:
    """The input ``preset``: a set of files that belong together."""
    return io.Combo.Input(
        "preset",
        options=fetch.list_presets(),
        default=fetch.AUTOMATIC,
        optional=True,
        extra_dict={"presets": fetch.list_preset_files()},
        tooltip=(
            f"Files that belong together, instead of those in the inputs; '{fetch.AUTOMATIC}' takes the best "
            f"complete set on this computer, or Cascade Mini; '{fetch.OWN}' keeps to the inputs."
        ),
    )


def vae_dtype_input() -> io.Combo.Input:
    """The number format of Stage A, image encoder and Previewer."""
    return io.Combo.Input(
        "vae_dtype",
        options=[AUTO, "fp32", "bf16", "fp16"],
        default=AUTO,
        advanced=True,
        tooltip="Number format of Stage A, image encoder and Previewer; wins over the host's flags.",
    )


def vae_device_input() -> io.Combo.Input:
    """Where Stage A, image encoder and Previewer run."""
    return io.Combo.Input(
        "vae_device",
        options=list(DEVICES),
        default=AUTO,
        advanced=True,
        tooltip="Where they run; wins over the host's --cpu-vae.",
    )


def preview_input() -> io.Combo.Input:
    """The Previewer's file."""
    return io.Combo.Input(
        "previewer",
        options=names.Library().list_names("previewer", (NONE,)),
        default=NONE,
        optional=True,
        tooltip=(
            "previewer.safetensors, which shows the picture while it is sampled; without it a rougher preview is shown."
        ),
    )


class CascadeStudioLoad(FileLoader, io.ComfyNode):
    ROLES = ("prior", "decoder", "text_encoder", "stage_a", "image_encoder", "previewer", "clip_vision")
    NOTHING = {3: NO_VISION, 5: NO_CODER}
    CHECKED_HERE = ("preset",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        pick = partial(file_input, library=names.Library())
        return io.Schema(
            node_id="CascadeStudio_Load",
            display_name="Load Stable Cascade",
            category=CATEGORY,
            description=(
                "Loads all parts of Stable Cascade. Official split files, ComfyUI's all-in-one checkpoints and "
                "diffusers files work alike, full and lite mixed as you like."
            ),
            search_aliases=["cascade", "txt2img", "stable cascade", "checkpoint", "wuerstchen", "prior", "decoder"],
            inputs=[
                pick("prior", "Stage C: stage_c_bf16, stage_c_lite_bf16, … or stable_cascade_stage_c."),
                pick("decoder", "Stage B: stage_b_bf16, stage_b_lite_bf16, … or stable_cascade_stage_b."),
                pick(
                    "text_encoder", "CLIP ViT-bigG of Stable Cascade, or the one inside the checkpoints.", (CHECKPOINT,)
                ),
                pick("stage_a", "Stage A (VQGAN), or the one inside the Stage B checkpoint.", (CHECKPOINT,)),
                pick(
                    "image_encoder",
                    "effnet_encoder, for pictures as input; none if you only write prompts.",
                    (CHECKPOINT, NONE),
                ),
                pick("previewer", "previewer, for quick looks at Stage C latents.", (CHECKPOINT, NONE)),
                pick("clip_vision", "CLIP ViT-L/14 vision, for image prompts.", (CHECKPOINT, NONE)),
                dtype_input("prior_dtype", "Stage C"),
                dtype_input("decoder_dtype", "Stage B"),
                dtype_input("text_dtype", "the text encoder", fast=False),
                vae_dtype_input(),
                vae_device_input(),
                preset_input(),
                missing_input(),
                compile_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output("prior", display_name="prior", tooltip="Stage C, for Sample Stage C."),
                io.Model.Output("decoder", display_name="decoder", tooltip="Stage B, for Sample Stage B."),
                io.Clip.Output("clip", display_name="clip", tooltip="Text encoder, for CLIP Text Encode."),
                io.ClipVision.Output("clip_vision", display_name="clip_vision", tooltip="For CLIP Vision Encode."),
                io.Vae.Output("stage_a", display_name="stage_a", tooltip="Stage A, for Decode and Encode Stage A."),
                io.Vae.Output(
                    "stage_c_vae",
                    display_name="stage_c_vae",
                    tooltip=("Image encoder and Previewer, for Encode for Stage C and Preview Stage C."),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, preset: str = fetch.OWN, **given: Any) -> str:
        """As for the other loaders; a preset stands for its files."""
        return fetch.stamp_preset(preset, {role: given.get(role) for role in cls.ROLES})

    @classmethod
    def load(
        cls,
        parts: FileParts,
        prior_dtype: str,
        decoder_dtype: str,
        text_dtype: str,
        vae_dtype: str,
        vae_device: str,
        compile: bool = False,
    ) -> tuple[Any, ...]:
        prior = load_diffusion(parts["prior"], "stage_c", prior_dtype)
        decoder = load_diffusion(parts["decoder"], "stage_b", decoder_dtype)
        if compile:
            prior, decoder = compile_blocks(prior), compile_blocks(decoder)
        clip = load_text_encoder(parts["text_encoder"], text_dtype)
        vision = None if parts["clip_vision"] is None else load_clip_vision(parts["clip_vision"])
        stage_a = load_vae.load_stage_a(parts["stage_a"], vae_dtype, vae_device)
        halves, coder = (parts["image_encoder"], parts["previewer"]), None
        if any(halves):
            coder = load_vae.load_stage_c_vae(*halves, vae_dtype, vae_device)
        return preview.attach_previews(prior, coder), decoder, clip, vision, stage_a, coder


class CascadeStudioLoadPrior(FileLoader, io.ComfyNode):
    ROLES = ("prior", "previewer")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadPrior",
            display_name="Load Stage C (prior)",
            category=CATEGORY,
            description="Loads Stage C alone, from any of its file layouts.",
            search_aliases=["stable cascade", "unet loader", "stage c"],
            inputs=[
                file_input("prior", "A Stage C file, or an all-in-one Stage C checkpoint."),
                dtype_input("dtype", "Stage C"),
                missing_input(),
                preview_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output("prior", display_name="prior", tooltip="Stage C, for Sample Stage C.")],
        )

    @classmethod
    def load(cls, parts: FileParts, dtype: str) -> tuple[Any, ...]:
        model = load_diffusion(parts["prior"], "stage_c", dtype)
        if parts["previewer"] is None:
            return (model,)
        return (preview.attach_previews(model, load_vae.load_stage_c_vae(None, parts["previewer"])),)


class CascadeStudioLoadDecoder(FileLoader, io.ComfyNode):
    ROLES = ("decoder",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadDecoder",
            display_name="Load Stage B (decoder)",
            category=CATEGORY,
            description="Loads Stage B alone, from any of its file layouts.",
            search_aliases=["stable cascade", "unet loader", "stage b"],
            inputs=[
                file_input("decoder", "A Stage B file, or an all-in-one Stage B checkpoint."),
                dtype_input("dtype", "Stage B"),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output("decoder", display_name="decoder", tooltip="Stage B, for Sample Stage B.")],
        )

    @classmethod
    def load(cls, parts: FileParts, dtype: str) -> tuple[Any, ...]:
        return (load_diffusion(parts["decoder"], "stage_b", dtype),)


class CascadeStudioLoadTextEncoder(FileLoader, io.ComfyNode):
    ROLES = ("text_encoder",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadTextEncoder",
            display_name="Load Cascade Text Encoder",
            category=CATEGORY,
            description="Loads the text encoder of Stable Cascade alone (CLIP ViT-bigG).",
            search_aliases=["stable cascade", "clip loader"],
            inputs=[
                file_input("text_encoder", "The text encoder's file, or an all-in-one checkpoint."),
                dtype_input("dtype", "the text encoder", fast=False),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    def load(cls, parts: FileParts, dtype: str) -> tuple[Any, ...]:
        return (load_text_encoder(parts["text_encoder"], dtype),)


class CascadeStudioLoadStageA(FileLoader, io.ComfyNode):
    ROLES = ("stage_a",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadStageA",
            display_name="Load Stage A",
            category=CATEGORY,
            description="Loads Stage A alone: the VQGAN that paints the pixels.",
            search_aliases=["stable cascade", "vae loader", "vqgan"],
            inputs=[
                file_input("stage_a", "stage_a.safetensors, or an all-in-one Stage B checkpoint."),
                vae_dtype_input(),
                vae_device_input(),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Vae.Output("stage_a", display_name="stage_a", tooltip="For Decode and Encode Stage A.")],
        )

    @classmethod
    def load(cls, parts: FileParts, vae_dtype: str, vae_device: str) -> tuple[Any, ...]:
        return (load_vae.load_stage_a(parts["stage_a"], vae_dtype, vae_device),)


class CascadeStudioLoadImageEncoder(FileLoader, io.ComfyNode):
    ROLES = ("image_encoder", "previewer")

    @classmethod
    def define_schema(cls) -> io.Schema:
        pick = partial(file_input, library=names.Library())
        return io.Schema(
            node_id="CascadeStudio_LoadImageEncoder",
            display_name="Load Image Encoder and Previewer",
            category=CATEGORY,
            description="Loads the Stage C VAE: the image encoder (effnet) and the Previewer, either or both.",
            search_aliases=["stable cascade", "effnet", "previewer", "vae loader"],
            inputs=[
                pick("image_encoder", "effnet_encoder.safetensors, or a Stage C checkpoint.", (NONE,)),
                pick("previewer", "previewer.safetensors, or a Stage C checkpoint.", (NONE,)),
                vae_dtype_input(),
                vae_device_input(),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Vae.Output(
                    "stage_c_vae", display_name="stage_c_vae", tooltip=("For Encode for Stage C and Preview Stage C.")
                )
            ],
        )

    @classmethod
    def check_files(cls, chosen: dict[str, Any]) -> str:
        if all(value == NONE for value in chosen.values()):
            return "Neither an image encoder nor a previewer file is chosen. Choose at least one of them."
        return super().check_files(chosen)

    @classmethod
    def load(cls, parts: FileParts, vae_dtype: str, vae_device: str) -> tuple[Any, ...]:
        return (load_vae.load_stage_c_vae(parts["image_encoder"], parts["previewer"], vae_dtype, vae_device),)


class CascadeStudioLoadClipVision(FileLoader, io.ComfyNode):
    ROLES = ("clip_vision",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadClipVision",
            display_name="Load Cascade CLIP Vision",
            category=CATEGORY,
            description=(
                "Loads the CLIP vision tower that image prompts of Stable Cascade need (ViT-L/14), or another size."
            ),
            search_aliases=["stable cascade", "clip vision loader", "image prompt"],
            inputs=[
                file_input("clip_vision", "The CLIP vision file, or an all-in-one Stage C checkpoint."),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.ClipVision.Output("clip_vision", display_name="clip_vision", tooltip="For CLIP Vision Encode.")
            ],
        )

    @classmethod
    def load(cls, parts: FileParts) -> tuple[Any, ...]:
        return (load_clip_vision(parts["clip_vision"]),)


NODES = [
    CascadeStudioLoad,
    CascadeStudioLoadPrior,
    CascadeStudioLoadDecoder,
    CascadeStudioLoadTextEncoder,
    CascadeStudioLoadStageA,
    CascadeStudioLoadImageEncoder,
    CascadeStudioLoadClipVision,
]
