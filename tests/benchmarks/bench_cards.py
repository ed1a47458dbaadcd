"""What cards of several sizes load, keep and stream over three pictures, predicted by the host's own loading.

    python3 dev.py run tests/benchmarks/bench_cards.py

Full-size models without their numbers (on the meta device) go through ``model_management.load_models_gpu`` one after
the other, as a picture asks for them, on a card that is said to have so many GB; nothing is computed. What a pass needs
is our plan. The first picture brings the weights to the card, a later one only what was put out in between; what does
not fit stays behind and is copied at every step.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from cascade_studio.stages.units import GIB

CARDS = (3, 4, 6, 8, 10, 12, 16)
PRESETS = {"lite": ("1B", "700M"), "full": ("3.6B", "1.5B")}
CONTEXT = int(0.3 * GIB)  # of the driver
LINK = 12e9  # bytes/s of PCIe 3 x16, as measured by those who copy
STEPS = 20, 10
RUNS = 3
META = torch.device("meta")
TEXT_WEIGHTS = 1_390_000_000  # of CLIP ViT-bigG's text half


@dataclass(frozen=True)
class Loading:
    """One model of one run: bytes brought to the card for it, and bytes that are copied at every pass."""

    name: str
    moved: int
    streamed: int


@contextlib.contextmanager
def simulated_card(gigabytes: float) -> Iterator[None]:
    """The host believes in a card of this size, whose memory holds what the loaded models have on it."""
    import comfy.model_management as management
    import comfy.ops

    total, layers = int(gigabytes * GIB), comfy.ops.disable_weight_init

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        used = sum(each.model_loaded_memory() for each in management.current_loaded_models)
        left = max(0, total - CONTEXT - used)
        return (left, 0) if torch_free_too else left

    def whole(device: Any = None, torch_total_too: bool = False) -> Any:
        return (total, 0) if torch_total_too else total

    # The host fills weights that have no numbers with zeros before it moves them: ten gigabytes that nobody reads.
    no_zeros = mock.patch.object(layers, "_zero_init_parameter", staticmethod(lambda *_: None), create=True)
    with (
        no_zeros,
        mock.patch.multiple(
            management,
            get_free_memory=free,
            get_total_memory=whole,
            get_torch_device=lambda: META,
            vram_state=management.VRAMState.NORMAL_VRAM,
            lowvram_available=True,
            current_loaded_models=[],
            soft_empty_cache=lambda force=False: None,
        ),
    ):
        yield


def wrap(model: nn.Module) -> Any:
    """The host's patcher around a model without numbers."""
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(model, load_device=META, offload_device=META)


def build_models(preset: str) -> dict[str, Any]:
    """Patchers of the text encoder, Stage C, Stage B and Stage A in bf16, by name."""
    import comfy.ops

    from cascade_studio.nodes.host.models.backend import backend_for
    from cascade_studio.nodes.host.models.model import DecoderConfig, PriorConfig
    from cascade_studio.nodes.host.models.nets import network_arguments
    from cascade_studio.stages.files.kinds import KINDS
    from cascade_studio.stages.nets.stage_a import StageA

    width, layer = TEXT_WEIGHTS // 32 // 1280, comfy.ops.disable_weight_init.Linear
    text = nn.Sequential(*(layer(1280, width, dtype=torch.bfloat16, device=META) for _ in range(32)))
    made = {"text": wrap(text)}
    for name, kind, stage, config, size in zip(
        ("Stage C", "Stage B"), ("stage_c", "stage_b"), "cb", (PriorConfig, DecoderConfig), PRESETS[preset], strict=True
    ):
        made_config = config(network_arguments(KINDS[kind].published[size], stage))
        made_config.set_inference_dtype(torch.bfloat16, None)
        made[name] = wrap(made_config.get_model({}, device=META))
    net = StageA(dtype=torch.bfloat16, device=META, backend=backend_for(comfy.ops.disable_weight_init))
    made["Stage A"] = wrap(net)
    return made


def plan_pass(name: str, patcher: Any, pixels: int) -> tuple[int, int]:
    """Bytes that a guided pass needs by our plan, and the least with which it can go on: one picture alone."""
    from cascade_studio.stages.nets.stage_a_blocks import CARD

    side, grid = pixels // 4, pixels * 24 // 1024
    if name == "text":
        return 0, 0
    if name == "Stage A":
        needed = patcher.model.decode_memory((1, 4, side, side), 2, CARD)
        return needed, needed
    shape = (16, grid, grid) if name == "Stage C" else (4, side, side)
    return tuple(int(patcher.model.memory_required([batch, *shape])) for batch in (2, 1))


def simulate(gigabytes: float, preset: str, pixels: int) -> list[list[Loading]]:
    """What happens on such a card in each of :data:`RUNS` pictures, model by model."""
    import comfy.model_management as management

    found = []
    with simulated_card(gigabytes):
        models = build_models(preset)
        for _ in range(RUNS):
            run = []
            for name, patcher in models.items():
                before = patcher.loaded_size()
                needed, least = plan_pass(name, patcher, pixels)
                management.load_models_gpu([patcher], memory_required=needed, minimum_memory_required=least)
                loaded = patcher.loaded_size()
                run.append(Loading(name, max(0, loaded - before), patcher.model_size() - loaded))
            found.append(run)
    return found


def describe(gigabytes: float, preset: str, pixels: int) -> str:
    """One row of the table."""
    runs = simulate(gigabytes, preset, pixels)
    streamed = {each.name: each.streamed for each in runs[-1]}
    moved = [sum(each.moved for each in run) for run in runs]
    seconds = (moved[-1] + STEPS[0] * streamed["Stage C"] + STEPS[1] * streamed["Stage B"]) / LINK
    cells = [streamed["Stage C"], streamed["Stage B"], *moved]
    return (
        f"| {gigabytes} GB | {preset} | {pixels} | "
        + " | ".join(f"{each / 1e9:.1f}" for each in cells)
        + f" | {seconds:.0f} |"
    )


def main() -> None:
    from comfy.cli_args import args

    args.cpu = True
    sys.stdout.write(
        "| card | models | picture | Stage C streams GB | Stage B streams GB | moved GB, 1st picture | 2nd | 3rd "
        "| seconds more, 3rd |\n" + "| --- " * 9 + "|\n"
    )
    for pixels in (1024, 2048):
        for preset in PRESETS:
            for card in CARDS:
                sys.stdout.write(describe(card, preset, pixels) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
