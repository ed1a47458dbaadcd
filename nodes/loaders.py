"""Loaders: everything at once, or one network at a time.

Every ``validate_inputs`` names the file inputs, so that the host accepts names that are not on this computer: its own
refusal does not say what to do. A missing file is fetched, or gets its sentence, when the node runs, before anything is
loaded.
"""

from __future__ import annotations

from comfy_api.latest import io

from .host.files import fetch, names
from .host.models import clip as text, load as loading, load_vae, preview

CATEGORY = "Cascade Studio/loaders"
CHECKPOINT = names.FROM_CHECKPOINT
NONE = names.NONE


def file_input(role: str, tooltip: str, extra: tuple[str, ...] = ()) -> io.Combo.Input:
    """A file name: the files here, then published ones; ``extra`` are choices that are no files.

    Which of the names would be fetched goes to the web extension as ``published``.
    """
    return io.Combo.Input(
        role,
        options=names.names(role, extra),
        extra_dict={"published": names.published(role)},
        tooltip=f"{tooltip} After the files here follow published ones, fetched when needed.",
    )


def missing_input() -> io.Combo.Input:
    return io.Combo.Input(
        "missing_files",
        options=list(fetch.MODES),
        default=fetch.DOWNLOAD,
        optional=True,
        tooltip=(
            "What to do about published files that are not here: download shows what it takes and fetches them, ask stops "
            "and shows it, never stops and tells how to get them by hand."
        ),
    )


def preset_input() -> io.Combo.Input:
    return io.Combo.Input(
        "preset",
        options=fetch.presets(),
        default=fetch.OWN,
        optional=True,
        tooltip=(
            f"Files that belong together, instead of those in the inputs; '{fetch.AUTOMATIC}' takes what suits this "
            f"machine, '{fetch.OWN}' keeps to the inputs."
        ),
    )


def dtype_input(name: str, what: str) -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=[loading.AUTO, *loading.DTYPES],
        default=loading.AUTO,
        advanced=True,
        tooltip=(
            f"Number format of {what}. auto follows the host's flags and this machine; a choice here wins over both. fp8 "
            "stores half as much and computes in the machine's own format."
        ),
    )


def vae_dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "vae_dtype",
        options=[loading.AUTO, "fp32", "bf16", "fp16"],
        default=loading.AUTO,
        advanced=True,
        tooltip="Number format of Stage A, image encoder and Previewer; wins over the host's flags.",
    )


def vae_device_input() -> io.Combo.Input:
    return io.Combo.Input(
        "vae_device",
        options=list(loading.DEVICES),
        default=loading.AUTO,
        advanced=True,
        tooltip="Where they run; wins over the host's --cpu-vae.",
    )


def preview_input() -> io.Combo.Input:
    return io.Combo.Input(
        "previewer",
        options=names.names("previewer", (NONE,)),
        default=NONE,
        optional=True,
        tooltip=(
            "previewer.safetensors, which shows the picture while it is sampled; without it a rougher preview is shown."
        ),
    )


class CascadeStudioLoad(io.ComfyNode):
    ROLES = ("prior", "decoder", "text_encoder", "stage_a", "image_encoder", "previewer", "clip_vision")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Load",
            display_name="Load Stable Cascade",
            category=CATEGORY,
            description=(
                "Loads all parts of Stable Cascade. Official split files, ComfyUI's all-in-one checkpoints and "
                "diffusers files work alike, full and lite mixed as you like."
            ),
            search_aliases=["stable cascade", "checkpoint", "wuerstchen", "prior", "decoder"],
            inputs=[
                file_input("prior", "Stage C: stage_c_bf16, stage_c_lite_bf16, … or stable_cascade_stage_c."),
                file_input("decoder", "Stage B: stage_b_bf16, stage_b_lite_bf16, … or stable_cascade_stage_b."),
                file_input(
                    "text_encoder", "CLIP ViT-bigG of Stable Cascade, or the one inside the checkpoints.", (CHECKPOINT,)
                ),
                file_input("stage_a", "Stage A (VQGAN), or the one inside the Stage B checkpoint.", (CHECKPOINT,)),
                file_input(
                    "image_encoder",
                    "effnet_encoder, for pictures as input; none if you only write prompts.",
                    (CHECKPOINT, NONE),
                ),
                file_input("previewer", "previewer, for quick looks at Stage C latents.", (CHECKPOINT, NONE)),
                file_input("clip_vision", "CLIP ViT-L/14 vision, for image prompts.", (CHECKPOINT, NONE)),
                dtype_input("prior_dtype", "Stage C"),
                dtype_input("decoder_dtype", "Stage B"),
                dtype_input("text_dtype", "the text encoder"),
                vae_dtype_input(),
                vae_device_input(),
                preset_input(),
                missing_input(),
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
    def validate_inputs(
        cls, prior, decoder, text_encoder, stage_a, image_encoder, previewer, clip_vision, preset=fetch.OWN
    ) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, preset=fetch.OWN, **chosen) -> str:
        return fetch.stamps(preset, {role: chosen.get(role) for role in cls.ROLES})

    @classmethod
    def execute(
        cls,
        prior_dtype,
        decoder_dtype,
        text_dtype,
        vae_dtype,
        vae_device,
        preset=fetch.OWN,
        missing_files=fetch.DOWNLOAD,
        **chosen,
    ) -> io.NodeOutput:
        node, (values, line) = cls.hidden.unique_id, fetch.applied(preset, chosen)
        found = fetch.ready(node, values, missing_files, line)
        paths = loading.Parts(found.paths)
        prior_path, decoder_path = paths.find("prior", "stage_c"), paths.find("decoder", "stage_b")
        text_path = paths.find("text_encoder", "text_encoder")
        vision_path = paths.find("clip_vision", "clip_vision")
        stage_a_path = paths.find("stage_a", "stage_a")
        encoder_path = paths.find("image_encoder", "encoder", "stage_c_vae")
        previewer_path = paths.find("previewer", "previewer", "stage_c_vae")
        prior = loading.load_diffusion(prior_path, "stage_c", prior_dtype)
        decoder = loading.load_diffusion(decoder_path, "stage_b", decoder_dtype)
        clip, vision = text.load_text_encoder(text_path, text_dtype), cls.vision(vision_path)
        vae = load_vae.load_stage_a(stage_a_path, vae_dtype, vae_device)
        coder = cls.coder(encoder_path, previewer_path, vae_dtype, vae_device)
        return io.NodeOutput(
            preview.attach(prior, coder),
            decoder,
            clip,
            vision,
            vae,
            coder,
            ui=fetch.told(node, found, prior, decoder, vae),
        )

    @classmethod
    def vision(cls, path: str | None):
        return None if path is None else text.load_clip_vision(path)

    @classmethod
    def coder(cls, encoder: str | None, previewer: str | None, dtype: str, device: str):
        return (
            None
            if encoder is None and previewer is None
            else load_vae.load_stage_c_vae(encoder, previewer, dtype, device)
        )


class CascadeStudioLoadPrior(io.ComfyNode):
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
    def validate_inputs(cls, prior, previewer=NONE) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, prior=None, previewer=NONE, **_) -> str:
        return names.stamp("prior", prior) + ("" if previewer == NONE else names.stamp("previewer", previewer))

    @classmethod
    def execute(cls, prior, dtype, missing_files=fetch.DOWNLOAD, previewer=NONE) -> io.NodeOutput:
        found = fetch.ready(cls.hidden.unique_id, {"prior": prior, "previewer": previewer}, missing_files)
        model = loading.load_diffusion(found.paths["prior"], "stage_c", dtype)
        told = fetch.told(cls.hidden.unique_id, found, model)
        if previewer != NONE:
            model = preview.attach(model, load_vae.load_stage_c_vae(None, found.paths["previewer"]))
        return io.NodeOutput(model, ui=told)


class CascadeStudioLoadDecoder(io.ComfyNode):
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
    def validate_inputs(cls, decoder) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, decoder=None, **_) -> str:
        return names.stamp("decoder", decoder)

    @classmethod
    def execute(cls, decoder, dtype, missing_files=fetch.DOWNLOAD) -> io.NodeOutput:
        found = fetch.ready(cls.hidden.unique_id, {"decoder": decoder}, missing_files)
        model = loading.load_diffusion(found.paths["decoder"], "stage_b", dtype)
        return io.NodeOutput(model, ui=fetch.told(cls.hidden.unique_id, found, model))


class CascadeStudioLoadTextEncoder(io.ComfyNode):
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
                dtype_input("dtype", "the text encoder"),
                missing_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, text_encoder=None, **_) -> str:
        return names.stamp("text_encoder", text_encoder)

    @classmethod
    def execute(cls, text_encoder, dtype, missing_files=fetch.DOWNLOAD) -> io.NodeOutput:
        found = fetch.ready(cls.hidden.unique_id, {"text_encoder": text_encoder}, missing_files)
        return io.NodeOutput(
            text.load_text_encoder(found.paths["text_encoder"], dtype), ui=fetch.told(cls.hidden.unique_id, found)
        )


class CascadeStudioLoadStageA(io.ComfyNode):
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
    def validate_inputs(cls, stage_a) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, stage_a=None, **_) -> str:
        return names.stamp("stage_a", stage_a)

    @classmethod
    def execute(cls, stage_a, vae_dtype, vae_device, missing_files=fetch.DOWNLOAD) -> io.NodeOutput:
        found = fetch.ready(cls.hidden.unique_id, {"stage_a": stage_a}, missing_files)
        vae = load_vae.load_stage_a(found.paths["stage_a"], vae_dtype, vae_device)
        return io.NodeOutput(vae, ui=fetch.told(cls.hidden.unique_id, found, vae))


class CascadeStudioLoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadImageEncoder",
            display_name="Load Image Encoder and Previewer",
            category=CATEGORY,
            description="Loads the Stage C VAE: the image encoder (effnet) and the Previewer, either or both.",
            search_aliases=["stable cascade", "effnet", "previewer", "vae loader"],
            inputs=[
                file_input("image_encoder", "effnet_encoder.safetensors, or a Stage C checkpoint.", (NONE,)),
                file_input("previewer", "previewer.safetensors, or a Stage C checkpoint.", (NONE,)),
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
    def validate_inputs(cls, image_encoder, previewer) -> bool | str:
        if (image_encoder, previewer) == (NONE, NONE):
            return "Neither an image encoder nor a previewer file is chosen. Choose at least one of them."
        return True

    @classmethod
    def fingerprint_inputs(cls, image_encoder=None, previewer=None, **_) -> str:
        return names.stamp("image_encoder", image_encoder) + names.stamp("previewer", previewer)

    @classmethod
    def execute(cls, image_encoder, previewer, vae_dtype, vae_device, missing_files=fetch.DOWNLOAD) -> io.NodeOutput:
        chosen = {"image_encoder": image_encoder, "previewer": previewer}
        found = fetch.ready(cls.hidden.unique_id, chosen, missing_files)
        paths = [None if found.paths[role] == NONE else found.paths[role] for role in chosen]
        return io.NodeOutput(
            load_vae.load_stage_c_vae(*paths, vae_dtype, vae_device), ui=fetch.told(cls.hidden.unique_id, found)
        )


class CascadeStudioLoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadClipVision",
            display_name="Load Cascade CLIP Vision",
            category=CATEGORY,
            description="Loads the CLIP vision tower that image prompts of Stable Cascade need (ViT-L/14), or another size.",
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
    def validate_inputs(cls, clip_vision) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, clip_vision=None, **_) -> str:
        return names.stamp("clip_vision", clip_vision)

    @classmethod
    def execute(cls, clip_vision, missing_files=fetch.DOWNLOAD) -> io.NodeOutput:
        found = fetch.ready(cls.hidden.unique_id, {"clip_vision": clip_vision}, missing_files)
        return io.NodeOutput(
            text.load_clip_vision(found.paths["clip_vision"]), ui=fetch.told(cls.hidden.unique_id, found)
        )


NODES = [
    CascadeStudioLoad,
    CascadeStudioLoadPrior,
    CascadeStudioLoadDecoder,
    CascadeStudioLoadTextEncoder,
    CascadeStudioLoadStageA,
    CascadeStudioLoadImageEncoder,
    CascadeStudioLoadClipVision,
]
