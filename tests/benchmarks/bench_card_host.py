"""The sections of the card's tour (bench_card.py) in which the host's own memory management runs our networks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_counts import Case, plan_memory
from safetensors.torch import save_file
from torch import Tensor, nn

KEYS = {"Stage C": "stage_c", "Stage B": "stage_b"}


def partial(tour: Any) -> None:
    """A step with half of the weights on the card, streamed by the host's own patcher."""
    import comfy.model_patcher
    import comfy.ops

    from cascade_studio.nodes.host.models.backend import backend_for

    case = Case("Stage B", "1.5B", "bf16")
    net = tour.build(case, backend=backend_for(comfy.ops.disable_weight_init)).to("cpu")
    size = sum(parameter.nbytes for parameter in net.parameters())
    for share in (1.0, 0.5):
        patcher = comfy.model_patcher.ModelPatcher(net, load_device=tour.device, offload_device=torch.device("cpu"))
        patcher.load(tour.device, lowvram_model_memory=int(size * share) if share < 1 else 0, force_patch_weights=False)
        given = tour.inputs(case)
        tour.tell(f"{share:.0%} of the weights on the card: {tour.time(lambda: net(*given)):.1f} ms")
        patcher.detach()


def dynamic(tour: Any) -> None:
    """Guided steps of the lite stages, loaded from a file: in the host's plain patcher, and in that of dynamic VRAM."""
    import comfy.model_management as management

    from cascade_studio.nodes.host.models.load import load_diffusion

    if not enable_dynamic(tour.device):
        tour.tell("the host's dynamic VRAM does not start here: it needs an NVIDIA card and comfy-aimdo")
    for network, size in (("Stage C", "1B"), ("Stage B", "700M")):
        case, expected = Case(network, size, "bf16"), None
        with tempfile.TemporaryDirectory() as folder:
            path = write_file(tour.build(case), KEYS[network], Path(folder))
            for plain in (True, False):
                patcher = load_diffusion(str(path), KEYS[network], "bf16", disable_dynamic=plain)
                management.load_models_gpu([patcher], memory_required=plan_memory(case))
                net, given = patcher.model.diffusion_model, tour.inputs(case)
                made = call_as_host(net, given).float()
                expected = made if expected is None else expected
                took = tour.time(lambda net=net, given=given: call_as_host(net, given))
                tour.tell(
                    f"{network} {size} {type(patcher).__name__}: {took:.1f} ms, "
                    f"differs {float((made - expected).std() / expected.std()):.1e}"
                )
                management.unload_all_models()
                patcher = net = None


def enable_dynamic(device: torch.device) -> bool:
    """Start the host's dynamic VRAM as its main.py does; False where it cannot."""
    import comfy.memory_management
    import comfy.model_patcher

    if device.type != "cuda":
        return False
    try:
        from comfy_aimdo import control

        control.init()
        index = device.index or 0
        try:
            started = control.init_devices([(index, 0)])
        except TypeError:  # an older protocol
            started = control.init_devices([index])
    except (ImportError, AttributeError, RuntimeError, OSError):
        return False
    if started:
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    return bool(started)


def write_file(net: nn.Module, kind: str, folder: Path) -> Path:
    """``net`` as a model file, with its configuration where that was never published."""
    from cascade_studio.stages.files.header import MARKER, marker_tensor
    from cascade_studio.stages.files.kinds import is_published

    tensors = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    if not is_published(kind, net.config):
        tensors[MARKER] = marker_tensor(kind, net.config)
    path = folder / f"{kind}.safetensors"
    save_file(tensors, path)
    return path


def call_as_host(net: nn.Module, given: list[Tensor]) -> Tensor:
    """A pass of the host's form of a network: keyword conditions behind the latent and the noise level."""
    names = ("clip_text", "clip_text_pooled", "clip_img") if len(given) == 5 else ("effnet", "clip")
    return net(*given[:2], transformer_options={}, **dict(zip(names, given[2:], strict=True)))
