"""UltraPixel: its guide nets, and the Stage C that a small picture guides through a large one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .file_inputs import FileLoader, file_input, missing_input
from .host import latents
from .host.models.load import ModelPart
from .host.models.load_guide import load_guide
from .host.sampling import features as small_features, guide as guides
from .host.sampling.guidance import check_own

CATEGORY = "Cascade Studio/high resolution"
GUIDE = "Guide Stage C with UltraPixel"
EXTRA_PASS, LAST_STEP = "extra pass", "last step"
AS_TRAINED, EXACT = "as trained", "exact"


class CascadeStudioLoadUltraPixel(FileLoader, io.ComfyNode):
    ROLES = ("ultrapixel",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_LoadUltraPixel",
            display_name="Load UltraPixel Guide",
            category=CATEGORY,
            description=(
                "Loads UltraPixel's guide nets, with which the full Stage C (3.6B) paints pictures of 2K to 6K after a "
                "small one."
            ),
            search_aliases=["stable cascade", "ultrapixel", "ultracascade", "4k", "high resolution", "model patch"],
            inputs=[file_input("ultrapixel", "ultrapixel_t2i, from models/model_patches."), missing_input()],
            hidden=[io.Hidden.unique_id],
            outputs=[io.ModelPatch.Output("guide", display_name="guide", tooltip="For Guide Stage C.")],
        )

    @classmethod
    def load(cls, parts: dict[str, ModelPart | None]) -> tuple[Any, ...]:
        return (load_guide(parts["ultrapixel"]),)


class CascadeStudioGuideStageC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_GuideStageC",
            display_name=GUIDE,
            category=CATEGORY,
            description=(
                "Lets a finished small picture guide Stage C through a large one: the structure comes from the small "
                "one, the detail from the model. The second pass starts from noise alone."
            ),
            search_aliases=["stable cascade", "ultrapixel", "ultracascade", "hires fix", "4k", "6k", "high resolution"],
            inputs=[
                io.Model.Input("model", tooltip="The prior (Stage C) that paints the large picture, LoRAs included."),
                io.ModelPatch.Input("guide", tooltip="From Load UltraPixel Guide."),
                io.Latent.Input(
                    "prior",
                    tooltip="The small picture's latent, of about 1024 pixels: sampled, or encoded for Stage C.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt of the small picture."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How strongly the small picture is followed; 1 as published, 0 leaves the guide out.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Part of the run after which the guide begins to act.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Part of the run after which the guide no longer acts.",
                ),
                io.Combo.Input(
                    "features",
                    options=[EXTRA_PASS, LAST_STEP],
                    default=EXTRA_PASS,
                    advanced=True,
                    tooltip=(
                        "Where the small picture is looked at: by one extra pass over its latent, whoever made it, or "
                        "in the last step of Sample Stage C (with keep_features), as published."
                    ),
                ),
                io.Combo.Input(
                    "encoding",
                    options=[AS_TRAINED, EXACT],
                    default=AS_TRAINED,
                    advanced=True,
                    tooltip=(
                        "How places in the large picture are encoded: as trained rounds them to bf16, as the published "
                        "code does; exact is its float32 setting."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="prior", tooltip="For a second Sample Stage C with denoise 1.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        guide: Any,
        prior: dict[str, Any],
        positive: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        features: str,
        encoding: str,
    ) -> io.NodeOutput:
        latents.check_model(model, "Stage C", GUIDE)
        check_own(model, GUIDE, "Stage C")
        nets = guides.check_nets(model, guide, prior, GUIDE)
        plain = guides.take_guide_off(model)
        if features == LAST_STEP:
            maps = small_features.find_kept_features(prior, GUIDE)
        else:
            maps = small_features.extract_features(plain, positive, prior, GUIDE)
        settings = guides.Guide(nets, maps, strength, start_percent, end_percent, encoding == AS_TRAINED)
        return io.NodeOutput(guides.patch_guide(model, guide, settings))


NODES = [CascadeStudioLoadUltraPixel, CascadeStudioGuideStageC]
