"""Training in the graph: a set of pictures, the settings, and what is learned from them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..stages.errors import WrongInput
from ..stages.training import dataset, settings
from .host import latents
from .host.models import use_vae as vaes
from .host.training import train
from .training_set import CATEGORY, DEFAULTS, TrainingSet, make_input, split_lines

TrainingSettings = io.Custom("CASCADE_TRAINING_SETTINGS")
NO_LORA, OWN_PRESET = "none", "none"
BLOCKS_BY = {"words": "", "blocks": " ".join(DEFAULTS.blocks), "control_blocks": ""}
"""Settings that a node takes as text: lists, and pairs in lines."""


class CascadeStudioTrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_TrainingSettings",
            display_name="Cascade Training Settings",
            category=CATEGORY,
            description="Everything about training that most runs do not need; the defaults are those without it.",
            search_aliases=[
                "stable cascade",
                "train lora",
                "optimizer",
                "ema",
                "gradient checkpointing",
                "dora",
                "loha",
            ],
            inputs=[
                make_input("blocks", default=BLOCKS_BY["blocks"]),
                make_input("base"),
                make_input("checkpointing"),
                make_input("accumulation"),
                make_input("warm_up"),
                make_input("weight_decay"),
                make_input("ema", max=0.9999),
                make_input("loss_weight"),
                make_input("shift"),
                make_input("offset_noise"),
                make_input("drop_text"),
                io.String.Input(
                    "words",
                    default=BLOCKS_BY["words"],
                    multiline=True,
                    tooltip=(
                        "Words to learn, one a line: [name] = words to start from. Captions hold the word. Each is "
                        "saved as an embedding too."
                    ),
                ),
                make_input("layout"),
                *(make_input(name, advanced=True, optional=True) for name in cls.NEW),
                make_input("control_blocks", default="", advanced=True, optional=True),
                io.Combo.Input(
                    "start_from",
                    options=[NO_LORA, *train.list_loras()],
                    default=NO_LORA,
                    advanced=True,
                    optional=True,
                    tooltip=settings.SPECS["start_from"].says,
                ),
                *(make_input(name, advanced=True, optional=True) for name in cls.WATCHED),
            ],
            outputs=[TrainingSettings.Output("settings", display_name="settings", tooltip="For Train Cascade LoRA.")],
        )

    NEW = ("method", "optimiser", "schedule", "restarts", "weights", "hint", "validate_every")
    WATCHED = ("held_out", "list_steps", "trunk_steps")

    @classmethod
    def execute(
        cls, blocks: str, words: str, control_blocks: str = "", start_from: str = NO_LORA, **values: Any
    ) -> io.NodeOutput:
        tokens = [[part.strip() for part in (*line.split("=", 1), "")][:2] for line in split_lines(words)]
        given = {
            **values,
            "blocks": blocks.replace(",", " ").split(),
            "control_blocks": control_blocks.replace(",", " ").split(),
            "start_from": "" if start_from == NO_LORA else start_from,
            "tokens": tokens,
        }
        return io.NodeOutput(settings.from_dict(given, "Cascade Training Settings"))


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
                make_input("name", tooltip="Name of the LoRA's file."),
                make_input("steps"),
                make_input("batch_size"),
                make_input("learning_rate"),
                make_input("rank"),
                make_input("alpha", max=1024.0),
                make_input("seed"),
                make_input("save_every"),
                make_input("sample_every"),
                make_input("sample_prompt"),
                TrainingSettings.Input("settings", optional=True, tooltip="From Cascade Training Settings."),
                io.Model.Input(
                    "decoder",
                    optional=True,
                    tooltip="Stage B of Load Stable Cascade: live samples are then painted by it and Stage A, slowly.",
                ),
                io.Vae.Input(
                    "stage_a", optional=True, tooltip="Stage A's VAE of Load Stable Cascade, for such samples."
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with the LoRA on it, for a sampler."),
                io.String.Output("lora_name", display_name="lora name", tooltip="The file's name, for a LoRA loader."),
                io.Image.Output("loss_plot", display_name="loss plot", tooltip="The loss of every step."),
                io.String.Output(
                    "report", display_name="report", tooltip="What is to be told of the pictures and the run."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        training_set: dataset.TrainingSet,
        settings: Any = None,
        decoder: Any = None,
        stage_a: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage C", "Train Cascade LoRA")
        vaes.expect_stage_c(vae, "Train Cascade LoRA")
        wired = train.Wired(model, clip, vae, check_stage_a(decoder, stage_a), str(cls.hidden.unique_id), decoder)
        done = train.train_model(wired, training_set, merge_settings(settings, {**values, "what": "lora"}))
        return io.NodeOutput(done.model, done.name, done.plot, done.report, ui=ui.PreviewImage(done.plot, cls=cls))


class CascadeStudioTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Train",
            display_name="Train Cascade",
            category=CATEGORY,
            description=(
                "Trains any part of Stable Cascade on your own pictures: a LoRA on Stage C, Stage B or the "
                "text encoder, words, a whole stage, or a ControlNet. Stop and queue again at any time: it goes "
                "on where it was."
            ),
            search_aliases=["stable cascade", "fine-tune", "finetune", "train controlnet", "train lora", "stage b"],
            inputs=[
                make_input("what"),
                io.Combo.Input(
                    "preset",
                    options=[OWN_PRESET, *settings.PRESETS],
                    default=OWN_PRESET,
                    tooltip="Settings for a task; those of Cascade Training Settings and this node's own come on top.",
                ),
                io.Model.Input("model", tooltip="The prior (Stage C), or the decoder (Stage B) to train that one."),
                io.Clip.Input("clip", tooltip="Text encoder of Load Stable Cascade, for the captions."),
                io.Vae.Input("vae", tooltip="The Stage C VAE of Load Stable Cascade, with the image encoder."),
                TrainingSet.Input("training_set", tooltip="The pictures, from Cascade Training Set."),
                make_input("name", default="my_training"),
                make_input("steps", default=0, min=0, tooltip="Updates in all; 0 takes those of the preset."),
                make_input(
                    "learning_rate", default=0.0, min=0.0, tooltip="How large each update is; 0 takes the preset's."
                ),
                make_input("seed"),
                TrainingSettings.Input("settings", optional=True, tooltip="From Cascade Training Settings."),
                io.Vae.Input("stage_a", optional=True, tooltip="Stage A's VAE of Load Stable Cascade, for Stage B."),
                io.Model.Input(
                    "decoder",
                    optional=True,
                    tooltip="Stage B of Load Stable Cascade: live samples are then painted by it and Stage A, slowly.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The model with what was learned on it."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder, with a LoRA if that learned."),
                io.String.Output("file_name", display_name="file name", tooltip="The file's name, for a loader."),
                io.Image.Output("loss_plot", display_name="loss plot", tooltip="The loss of every step."),
                io.String.Output(
                    "report", display_name="report", tooltip="What is to be told of the pictures and the run."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        what: str,
        preset: str,
        model: Any,
        clip: Any,
        vae: Any,
        training_set: dataset.TrainingSet,
        settings: Any = None,
        stage_a: Any = None,
        decoder: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        check_models(what, model, vae, "Train Cascade")
        own = {name: value for name, value in values.items() if value or name not in ("steps", "learning_rate")}
        chosen = merge_settings(settings, {**own, "what": what}, preset)
        wired = train.Wired(model, clip, vae, check_stage_a(decoder, stage_a), str(cls.hidden.unique_id), decoder)
        done = train.train_model(wired, training_set, chosen)
        shown = ui.PreviewImage(done.plot, cls=cls)
        return io.NodeOutput(done.model, done.clip, done.name, done.plot, done.report, ui=shown)


class CascadeStudioFindLearningRate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_FindLearningRate",
            display_name="Find Learning Rate",
            category=CATEGORY,
            description=(
                "Tries nine learning rates for a few steps each, from one start and judged on the same noise, and says "
                "which to begin with. Nothing is saved."
            ),
            search_aliases=["stable cascade", "learning rate", "range test", "lr finder", "train lora"],
            inputs=[
                make_input("what"),
                io.Model.Input("model", tooltip="The prior (Stage C), or the decoder (Stage B) to train that one."),
                io.Clip.Input("clip", tooltip="Text encoder of Load Stable Cascade, for the captions."),
                io.Vae.Input("vae", tooltip="The Stage C VAE of Load Stable Cascade, with the image encoder."),
                TrainingSet.Input("training_set", tooltip="The pictures, from Cascade Training Set."),
                io.Int.Input("steps", default=20, min=2, max=1000, tooltip="Updates at each rate."),
                make_input("batch_size"),
                make_input("rank"),
                make_input("alpha", max=1024.0),
                make_input("seed"),
                TrainingSettings.Input("settings", optional=True, tooltip="From Cascade Training Settings."),
                io.Vae.Input("stage_a", optional=True, tooltip="Stage A's VAE of Load Stable Cascade, for Stage B."),
            ],
            outputs=[
                io.Float.Output(
                    "learning_rate", display_name="learning rate", tooltip="For the learning_rate of a training node."
                ),
                io.Image.Output("plot", display_name="plot", tooltip="The loss on fixed noise by learning rate."),
                io.String.Output("report", display_name="report", tooltip="What each rate reached."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        what: str,
        model: Any,
        clip: Any,
        vae: Any,
        training_set: dataset.TrainingSet,
        steps: int,
        settings: Any = None,
        stage_a: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        check_models(what, model, vae, "Find Learning Rate")
        chosen = merge_settings(settings, {**values, "what": what})
        rate, plot, report = train.find_rate(train.Wired(model, clip, vae, stage_a), training_set, chosen, steps)
        return io.NodeOutput(rate, plot, report, ui=ui.PreviewImage(plot, cls=cls))


def check_models(what: str, model: Any, vae: Any, where: str) -> None:
    """:class:`WrongInput` for a model or a VAE that ``what`` cannot learn on."""
    vaes.expect_stage_c(vae, where)
    if what in ("stage_c", "controlnet", "text_lora", "words"):
        latents.check_model(model, "Stage C", where)
    elif what == "stage_b":
        latents.check_model(model, "Stage B", where)


def check_stage_a(decoder: Any, stage_a: Any) -> Any:
    """``stage_a``; :class:`WrongInput` where a decoder is to paint samples without it, or is none."""
    if decoder is not None:
        latents.check_model(decoder, "Stage B", "Live samples")
        if stage_a is None:
            raise WrongInput("A decoder is wired in to paint the live samples. Wire Stage A's VAE into 'stage_a', too.")
    return stage_a


def merge_settings(
    chosen: settings.Settings | None, values: dict[str, Any], preset: str = OWN_PRESET
) -> settings.Settings:
    """A preset, what the settings node changes of the defaults, and the training node's own, later ones first."""
    if preset != OWN_PRESET and preset not in settings.PRESETS:
        raise WrongInput(f"The preset '{preset}' is not known. Presets are: {', '.join(settings.PRESETS)}.")
    plain = DEFAULTS.as_dict()
    changed = {} if chosen is None else {k: v for k, v in chosen.as_dict().items() if v != plain[k]}
    return settings.from_dict(
        {**plain, **settings.PRESETS.get(preset, {}), **changed, **values}, "The inputs of the training node"
    )


NODES = [CascadeStudioTrainingSettings, CascadeStudioTrainLora, CascadeStudioTrain, CascadeStudioFindLearningRate]
