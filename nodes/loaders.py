"""Loaders: everything at once, or one network at a time.

Every ``validate_inputs`` names the file inputs, so that the host accepts names that are not on this computer: its own
refusal does not say what to do. A missing file gets its sentence when the node runs, before anything is loaded.
"""
from __future__ import annotations

from comfy_api.latest import io

from .host import files, loading, preview, text, vae_loading

CATEGORY = "Cascade Studio/loaders"
CHECKPOINT = files.FROM_CHECKPOINT
NONE = files.NONE


def file_input(role: str, tooltip: str, extra: tuple[str, ...] = (), name: str | None = None) -> io.Combo.Input:
    """A file name from the host's folders; ``extra`` are choices that are no files."""
    return io.Combo.Input(name or role, options=files.names(role, extra), tooltip=tooltip)


def dtype_input(name: str, what: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=[loading.AUTO, *loading.DTYPES], default=loading.AUTO, advanced=True, tooltip=(
        f"Number format of {what}. auto follows the host's flags and this machine; a choice here wins over both. fp8 "
        "stores half as much and computes in the machine's own format."))


def vae_dtype_input() -> io.Combo.Input:
    return io.Combo.Input("vae_dtype", options=[loading.AUTO, "fp32", "bf16", "fp16"], default=loading.AUTO, advanced=True,
                          tooltip="Number format of Stage A, image encoder and Previewer; wins over the host's flags.")


def vae_device_input() -> io.Combo.Input:
    return io.Combo.Input("vae_device", options=list(loading.DEVICES), default=loading.AUTO, advanced=True,
                          tooltip="Where they run; wins over the host's --cpu-vae.")


def preview_input() -> io.Combo.Input:
    return io.Combo.Input("previewer", options=files.names("previewer", (NONE,)), default=NONE, optional=True, tooltip=(
        "previewer.safetensors, which shows the picture while it is sampled; without it a rougher preview is shown."))


class CascadeStudioLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Load",
            display_name="Load Stable Cascade",
            category=CATEGORY,
            description=("Loads all parts of Stable Cascade. Official split files, ComfyUI's all-in-one checkpoints and "
                         "diffusers files work alike, full and lite mixed as you like."),
            search_aliases=["stable cascade", "checkpoint", "wuerstchen", "prior", "decoder"],
            inputs=[
                file_input("prior", "Stage C: stage_c_bf16, stage_c_lite_bf16, … or stable_cascade_stage_c."),
                file_input("decoder", "Stage B: stage_b_bf16, stage_b_lite_bf16, … or stable_cascade_stage_b."),
                file_input("text_encoder", "CLIP ViT-bigG of Stable Cascade, or the one inside the checkpoints.",
                           (CHECKPOINT,)),
                file_input("stage_a", "Stage A (VQGAN), or the one inside the Stage B checkpoint.", (CHECKPOINT,)),
                file_input("image_encoder", "effnet_encoder, for pictures as input; none if you only write prompts.",
                           (CHECKPOINT, NONE)),
                file_input("previewer", "previewer, for quick looks at Stage C latents.", (CHECKPOINT, NONE)),
                file_input("clip_vision", "CLIP ViT-L/14 vision, for image prompts.", (CHECKPOINT, NONE)),
                dtype_input("prior_dtype", "Stage C"),
                dtype_input("decoder_dtype", "Stage B"),
                dtype_input("text_dtype", "the text encoder"),
                vae_dtype_input(),
                vae_device_input(),
            ],
            outputs=[
                io.Model.Output("prior", display_name="prior", tooltip="Stage C, for Sample Stage C."),
                io.Model.Output("decoder", display_name="decoder", tooltip="Stage B, for Sample Stage B."),
                io.Clip.Output("clip", display_name="clip", tooltip="Text encoder, for CLIP Text Encode."),
                io.ClipVision.Output("clip_vision", display_name="clip_vision", tooltip="For CLIP Vision Encode."),
                io.Vae.Output("stage_a", display_name="stage_a", tooltip="Stage A, for Decode and Encode Stage A."),
                io.Vae.Output("stage_c_vae", display_name="stage_c_vae", tooltip=(
                    "Image encoder and Previewer, for Encode for Stage C and Preview Stage C.")),
            ],
        )

    @classmethod
    def validate_inputs(cls, prior, decoder, text_encoder, stage_a, image_encoder, previewer, clip_vision) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, **chosen) -> str:
        return "|".join(files.stamp(role, chosen.get(role)) for role in files.FOLDERS)

    @classmethod
    def execute(cls, prior, decoder, text_encoder, stage_a, image_encoder, previewer, clip_vision, prior_dtype,
                decoder_dtype, text_dtype, vae_dtype, vae_device) -> io.NodeOutput:
        prior_path, decoder_path = files.find("prior", prior), files.find("decoder", decoder)
        loading.recognise(prior_path, "stage_c")
        loading.recognise(decoder_path, "stage_b")
        paths = loading.Parts(prior_path, decoder_path)
        text_path = paths.find("text_encoder", text_encoder, "text_encoder")
        vision_path = paths.find("clip_vision", clip_vision, "clip_vision")
        stage_a_path = paths.find("stage_a", stage_a, "stage_a")
        encoder_path = paths.find("image_encoder", image_encoder, "encoder", "stage_c_vae")
        previewer_path = paths.find("previewer", previewer, "previewer", "stage_c_vae")
        coder = cls.coder(encoder_path, previewer_path, vae_dtype, vae_device)
        return io.NodeOutput(
            preview.attach(loading.load_diffusion(prior_path, "stage_c", prior_dtype), coder),
            loading.load_diffusion(decoder_path, "stage_b", decoder_dtype),
            text.load_text_encoder(text_path, text_dtype), cls.vision(vision_path),
            vae_loading.load_stage_a(stage_a_path, vae_dtype, vae_device), coder)

    @classmethod
    def vision(cls, path: str | None):
        return None if path is None else text.load_clip_vision(path)

    @classmethod
    def coder(cls, encoder: str | None, previewer: str | None, dtype: str, device: str):
        return None if encoder is None and previewer is None else vae_loading.load_stage_c_vae(encoder, previewer, dtype, device)


class CascadeStudioLoadPrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadPrior",
            display_name="Load Stage C (prior)",
            category=CATEGORY,
            description="Loads Stage C alone, from any of its file layouts.",
            search_aliases=["stable cascade", "unet loader", "stage c"],
            inputs=[file_input("prior", "A Stage C file, or an all-in-one Stage C checkpoint."),
                    dtype_input("dtype", "Stage C"),
                    preview_input()],
            outputs=[io.Model.Output("prior", display_name="prior", tooltip="Stage C, for Sample Stage C.")],
        )

    @classmethod
    def validate_inputs(cls, prior, previewer=NONE) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, prior=None, previewer=NONE, **_) -> str:
        return files.stamp("prior", prior) + ("" if previewer == NONE else files.stamp("previewer", previewer))

    @classmethod
    def execute(cls, prior, dtype, previewer=NONE) -> io.NodeOutput:
        model = loading.load_diffusion(files.find("prior", prior), "stage_c", dtype)
        if previewer == NONE:
            return io.NodeOutput(model)
        return io.NodeOutput(preview.attach(model, vae_loading.load_stage_c_vae(None, files.find("previewer", previewer))))


class CascadeStudioLoadDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadDecoder",
            display_name="Load Stage B (decoder)",
            category=CATEGORY,
            description="Loads Stage B alone, from any of its file layouts.",
            search_aliases=["stable cascade", "unet loader", "stage b"],
            inputs=[file_input("decoder", "A Stage B file, or an all-in-one Stage B checkpoint."),
                    dtype_input("dtype", "Stage B")],
            outputs=[io.Model.Output("decoder", display_name="decoder", tooltip="Stage B, for Sample Stage B.")],
        )

    @classmethod
    def validate_inputs(cls, decoder) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, decoder=None, **_) -> str:
        return files.stamp("decoder", decoder)

    @classmethod
    def execute(cls, decoder, dtype) -> io.NodeOutput:
        return io.NodeOutput(loading.load_diffusion(files.find("decoder", decoder), "stage_b", dtype))


class CascadeStudioLoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadTextEncoder",
            display_name="Load Cascade Text Encoder",
            category=CATEGORY,
            description="Loads the text encoder of Stable Cascade alone (CLIP ViT-bigG).",
            search_aliases=["stable cascade", "clip loader"],
            inputs=[file_input("text_encoder", "The text encoder's file, or an all-in-one checkpoint."),
                    dtype_input("dtype", "the text encoder")],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, text_encoder=None, **_) -> str:
        return files.stamp("text_encoder", text_encoder)

    @classmethod
    def execute(cls, text_encoder, dtype) -> io.NodeOutput:
        return io.NodeOutput(text.load_text_encoder(files.find("text_encoder", text_encoder), dtype))


class CascadeStudioLoadStageA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadStageA",
            display_name="Load Stage A",
            category=CATEGORY,
            description="Loads Stage A alone: the VQGAN that paints the pixels.",
            search_aliases=["stable cascade", "vae loader", "vqgan"],
            inputs=[file_input("stage_a", "stage_a.safetensors, or an all-in-one Stage B checkpoint."),
                    vae_dtype_input(), vae_device_input()],
            outputs=[io.Vae.Output("stage_a", display_name="stage_a", tooltip="For Decode and Encode Stage A.")],
        )

    @classmethod
    def validate_inputs(cls, stage_a) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, stage_a=None, **_) -> str:
        return files.stamp("stage_a", stage_a)

    @classmethod
    def execute(cls, stage_a, vae_dtype, vae_device) -> io.NodeOutput:
        return io.NodeOutput(vae_loading.load_stage_a(files.find("stage_a", stage_a), vae_dtype, vae_device))


class CascadeStudioLoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadImageEncoder",
            display_name="Load Image Encoder and Previewer",
            category=CATEGORY,
            description="Loads the Stage C VAE: the image encoder (effnet) and the Previewer, either or both.",
            search_aliases=["stable cascade", "effnet", "previewer", "vae loader"],
            inputs=[file_input("image_encoder", "effnet_encoder.safetensors, or a Stage C checkpoint.", (NONE,)),
                    file_input("previewer", "previewer.safetensors, or a Stage C checkpoint.", (NONE,)),
                    vae_dtype_input(), vae_device_input()],
            outputs=[io.Vae.Output("stage_c_vae", display_name="stage_c_vae", tooltip=(
                "For Encode for Stage C and Preview Stage C."))],
        )

    @classmethod
    def validate_inputs(cls, image_encoder, previewer) -> bool | str:
        if (image_encoder, previewer) == (NONE, NONE):
            return "Neither an image encoder nor a previewer file is chosen. Choose at least one of them."
        return True

    @classmethod
    def fingerprint_inputs(cls, image_encoder=None, previewer=None, **_) -> str:
        return files.stamp("image_encoder", image_encoder) + files.stamp("previewer", previewer)

    @classmethod
    def execute(cls, image_encoder, previewer, vae_dtype, vae_device) -> io.NodeOutput:
        paths = [None if name == NONE else files.find(role, name) for role, name in
                 (("image_encoder", image_encoder), ("previewer", previewer))]
        return io.NodeOutput(vae_loading.load_stage_c_vae(*paths, vae_dtype, vae_device))


class CascadeStudioLoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadClipVision",
            display_name="Load Cascade CLIP Vision",
            category=CATEGORY,
            description="Loads the CLIP vision tower that image prompts of Stable Cascade need (ViT-L/14), or another size.",
            search_aliases=["stable cascade", "clip vision loader", "image prompt"],
            inputs=[file_input("clip_vision", "The CLIP vision file, or an all-in-one Stage C checkpoint.")],
            outputs=[io.ClipVision.Output("clip_vision", display_name="clip_vision", tooltip="For CLIP Vision Encode.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision) -> bool | str:
        return True

    @classmethod
    def fingerprint_inputs(cls, clip_vision=None, **_) -> str:
        return files.stamp("clip_vision", clip_vision)

    @classmethod
    def execute(cls, clip_vision) -> io.NodeOutput:
        return io.NodeOutput(text.load_clip_vision(files.find("clip_vision", clip_vision)))


NODES = [CascadeStudioLoad, CascadeStudioLoadPrior, CascadeStudioLoadDecoder, CascadeStudioLoadTextEncoder,
         CascadeStudioLoadStageA, CascadeStudioLoadImageEncoder, CascadeStudioLoadClipVision]
