"""What makes sampling faster: PyTorch's compiler, and steps that are guessed instead of computed."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..stages.diffusion.reuse import OFF, PRESETS
from .guidance import model_input, model_output
from .host.models.compile import compile_blocks
from .host.sampling.cache import patch_cache
from .host.sampling.guidance import check_own

CATEGORY = "Cascade Studio/speed"
COMPILE, CACHE = "Compile Cascade", "Cache for Cascade"


class CascadeStudioCompile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Compile",
            display_name=COMPILE,
            category=CATEGORY,
            description=(
                "Runs the blocks of Stage C or Stage B through PyTorch's compiler: the same picture, faster from the "
                "second step on. LoRAs, hooks, patches and streaming go on acting, and nothing is compiled anew for "
                "another size, prompt, seed or strength."
            ),
            search_aliases=["stable cascade", "torch.compile", "inductor", "speed", "triton"],
            inputs=[model_input()],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        check_own(model, COMPILE)
        return io.NodeOutput(compile_blocks(model))


class CascadeStudioCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_Cache",
            display_name=CACHE,
            category=CATEGORY,
            description=(
                "Guesses some of the steps from the ones before instead of computing them: faster, and the picture "
                "is a little different. How much is on the help page."
            ),
            search_aliases=["stable cascade", "easycache", "teacache", "skip steps", "speed"],
            inputs=[
                model_input(),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=OFF,
                    tooltip=(
                        "off computes every step: the exact picture. careful leaves out fewer steps, fast more. The "
                        "last step is always computed."
                    ),
                ),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: Any, preset: str) -> io.NodeOutput:
        check_own(model, CACHE)
        return io.NodeOutput(patch_cache(model, preset))


NODES = [CascadeStudioCompile, CascadeStudioCache]
