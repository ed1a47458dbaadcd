"""Training in the graph: a set of pictures, the settings, and the LoRA that is learned from them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..stages.inputs.pictures import check_pictures, to_rgb
from ..stages.training import dataset, pictures_io, settings
from .host import latents
from .host.models import use_vae as vaes
from .host.training import train

CATEGORY = "Cascade Studio/training"
TrainingSet = io.Custom("CASCADE_TRAINING_SET")
TrainingSettings = io.Custom("CASCADE_TRAINING_SETTINGS")
DEFAULTS = settings.Settings()


def split_lines(text: str) -> list[str]:
    """The lines of a text box."""
    return [line.strip() for line in text.splitlines() if line.strip()]


class CascadeStudioTrainingSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TrainingSet",
            display_name="Cascade Training Set",
            category=CATEGORY,
            description=(
                "Pictures with captions to learn from: a folder in ComfyUI's input folder, each picture with a "
                ".txt file of its name beside it, or images from the graph. Everything is checked at once."
            ),
            search_aliases=["stable cascade", "dataset", "captions", "train lora", "bucket"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip=(
                        "Name of a folder inside ComfyUI's input folder. Leave it empty when images are wired in."
                    ),
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip=(
                        "For a folder: a caption for pictures without a .txt file; left empty, such pictures are an "
                        "error. For images: one line each, or a single line for all."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=DEFAULTS.resolution,
                    min=64,
                    max=2048,
                    step=32,
                    tooltip=(
                        "Side of the square whose area the image encoder sees. 768 suits models that paint 1024 px; "
                        "192 suits Cascade Mini. Other shapes get the same area."
                    ),
                ),
                io.Image.Input("images", optional=True, tooltip="Pictures from the graph, instead of a folder."),
            ],
            outputs=[
                TrainingSet.Output("training_set", display_name="training set", tooltip="For Train Cascade LoRA."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=("How many pictures there are, in which sizes, and which are small."),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_: Any) -> str:
        return train.stamp_folder(folder)

    @classmethod
    def execute(cls, folder: str, captions: str, resolution: int, images: io.Image.Type | None = None) -> io.NodeOutput:
        if images is not None and not folder.strip():
            check_pictures(images, "Cascade Training Set", "images")
            found = dataset.from_batch(to_rgb(images), split_lines(captions), resolution)
        else:
            where = train.training_folder(folder)
            found = dataset.from_folder(where, pictures_io.read_picture, " ".join(split_lines(captions)), resolution)
        return io.NodeOutput(found, found.report())


class CascadeStudioTrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TrainingSettings",
            display_name="Cascade Training Settings",
            category=CATEGORY,
            description=(
                "Everything about training that most LoRAs do not need; the defaults are those without this node."
            ),
            search_aliases=["stable cascade", "train lora", "optimizer", "ema", "gradient checkpointing"],
            inputs=[
                io.String.Input(
                    "blocks",
                    default=" ".join(DEFAULTS.blocks),
                    tooltip=(
                        "What is trained: parts of layer names. .attn is the attention (official), .kv_mapper the "
                        "prompt's way in, .channelwise the residual blocks, .mapper the noise level."
                    ),
                ),
                io.Combo.Input(
                    "base",
                    options=list(settings.BASES),
                    default=DEFAULTS.base,
                    tooltip=(
                        "How the frozen model is stored: bf16, or fp8 in half of that. auto is fp32 on a processor."
                    ),
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=DEFAULTS.checkpointing,
                    tooltip=("Compute activations twice instead of keeping them: far less memory, a third slower."),
                ),
                io.Int.Input(
                    "accumulation",
                    default=DEFAULTS.accumulation,
                    min=1,
                    max=4096,
                    tooltip=("Into how many parts a batch is cut. More need less memory and give the same result."),
                ),
                io.Int.Input(
                    "warm_up",
                    default=DEFAULTS.warm_up,
                    min=0,
                    max=100000,
                    tooltip="Steps over which the learning rate rises.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=DEFAULTS.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="AdamW's weight decay; 0.01 officially.",
                ),
                io.Float.Input(
                    "ema",
                    default=DEFAULTS.ema,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                    round=0.0001,
                    tooltip=("Decay of averaged weights, which are then the result; 0 takes the last weights."),
                ),
                io.Combo.Input(
                    "loss_weight",
                    options=list(settings.LOSS_WEIGHTS),
                    default=DEFAULTS.loss_weight,
                    tooltip=(
                        "How noise levels count: p2 and adaptive are the official ways, constant counts all alike, "
                        "velocity counts the first, noisiest steps most."
                    ),
                ),
                io.Float.Input(
                    "shift",
                    default=DEFAULTS.shift,
                    min=0.1,
                    max=16.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Shift of the noise schedule in training; 1 officially.",
                ),
                io.Float.Input(
                    "offset_noise",
                    default=DEFAULTS.offset_noise,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Noise on whole channels, for darker and brighter pictures; up to about 0.1.",
                ),
                io.Float.Input(
                    "drop_text",
                    default=DEFAULTS.drop_text,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How often a caption is left out, so that guidance works; 0.05 officially.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Words to learn, one a line: [name] = words to start from. Captions hold the word. Each is "
                        "saved as an embedding too."
                    ),
                ),
                io.Combo.Input(
                    "layout",
                    options=list(settings.LAYOUTS),
                    default=DEFAULTS.layout,
                    tooltip=("Names in the file: comfyui loads in every LoRA loader, official in the official code."),
                ),
            ],
            outputs=[TrainingSettings.Output("settings", display_name="settings", tooltip="For Train Cascade LoRA.")],
        )

    @classmethod
    def execute(cls, blocks: str, words: str, **values: Any) -> io.NodeOutput:
        tokens = [[part.strip() for part in (*line.split("=", 1), "")][:2] for line in split_lines(words)]
        return io.NodeOutput(
            settings.from_dict(
                {**values, "blocks": blocks.replace(",", " ").split(), "tokens": tokens}, "Cascade Training Settings"
            )
        )


class CascadeStudioTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TrainLora",
            display_name="Train Cascade LoRA",
            category=CATEGORY,
            description=(
                "Trains a LoRA for Stage C on your own pictures and puts it on the model. Stop and queue again "
                "at any time: it goes on where it was. The file lands among your LoRAs."
            ),
            search_aliases=["stable cascade", "train lora", "finetune", "dreambooth", "style", "textual inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The prior (Stage C) of Load Stable Cascade; LoRAs on it are kept in."),
                io.Clip.Input("clip", tooltip="Text encoder of Load Stable Cascade, for the captions."),
                io.Vae.Input("vae", tooltip="The Stage C VAE of Load Stable Cascade, with the image encoder."),
                TrainingSet.Input("training_set", tooltip="The pictures, from Cascade Training Set."),
                io.String.Input("name", default=DEFAULTS.name, tooltip="Name of the LoRA's file."),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=1000000,
                    tooltip=("Updates in all. Raise it and queue again to go on with a finished run."),
                ),
                io.Int.Input(
                    "batch_size", default=DEFAULTS.batch_size, min=1, max=4096, tooltip="Pictures to an update."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=1e-9,
                    tooltip="How large each update is; 0.0001 officially.",
                ),
                io.Int.Input(
                    "rank",
                    default=DEFAULTS.rank,
                    min=1,
                    max=1024,
                    tooltip=("How much the LoRA can hold; 4 officially, more for many subjects."),
                ),
                io.Float.Input(
                    "alpha",
                    default=DEFAULTS.alpha,
                    min=0.001,
                    max=1024.0,
                    step=0.5,
                    round=0.001,
                    tooltip=("Its effect is multiplied by alpha / rank."),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip=("The order of the pictures and all noise. Another seed is another run."),
                ),
                io.Int.Input(
                    "save_every",
                    default=DEFAULTS.save_every,
                    min=0,
                    max=1000000,
                    tooltip=("Steps between LoRA files kept on the way; 0 keeps none. The state is saved anyway."),
                ),
                io.Int.Input(
                    "sample_every",
                    default=DEFAULTS.sample_every,
                    min=0,
                    max=1000000,
                    tooltip=("Steps between live samples, which need the Previewer in the VAE; 0 paints none."),
                ),
                io.String.Input(
                    "sample_prompt",
                    default="",
                    tooltip=("What the live samples show; left empty, the first picture's caption."),
                ),
                TrainingSettings.Input("settings", optional=True, tooltip="From Cascade Training Settings."),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA on it, for a sampler."),
                io.String.Output("lora_name", display_name="lora name", tooltip="The file's name, for a LoRA loader."),
                io.Image.Output("loss_plot", display_name="loss plot", tooltip="The loss of every step."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type,
        vae: io.Vae.Type,
        training_set: Any,
        settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage C", train.WHERE)
        vaes.expect_stage_c(vae, train.WHERE)
        chosen = merge_settings(settings, values)
        done = train.train_lora(model, clip, vae, training_set, chosen, str(cls.hidden.unique_id))
        return io.NodeOutput(done.model, done.name, done.plot, ui=ui.PreviewImage(done.plot, cls=cls))


def merge_settings(chosen: settings.Settings | None, values: dict) -> settings.Settings:
    """The settings of the advanced node with those of the training node."""
    base = DEFAULTS if chosen is None else chosen
    return settings.from_dict({**base.as_dict(), **values}, "The inputs of Train Cascade LoRA")


NODES = [CascadeStudioTrainingSet, CascadeStudioTrainingSettings, CascadeStudioTrainLora]
