"""Mixing, comparing and saving diffusion models, LoRAs and earlier merges on the wire included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ....stages.errors import BadValues, WrongInput
from ....stages.files import convert
from ....stages.files.header import MARKER, marker_text
from ....stages.files.identify import identify
from ....stages.files.kinds import KINDS, find_published_name, is_published
from ....stages.lora.extract import Extraction, extract_layer, in_scope
from ....stages.lora.merge import group_of
from ...checkpoints import disk
from ..files.names import name_in_lists
from ..files.write import add_workflow, check_room, count_bytes, next_path, write_model
from ..models.load import DTYPES
from .apply import kind_of, shapes_of

ROOT = "diffusion_model."
TRAINED = (".weight", ".bias", ".gamma", ".beta")
AS_IS = "as it is"
SAVED_DTYPES = {AS_IS: None, **{name: DTYPES[name] for name in ("bf16", "fp16", "fp32")}}
LAYOUTS = {"ComfyUI": convert.to_comfyui, "official": convert.to_official, "diffusers": convert.to_diffusers}
HALF_MAX = torch.finfo(torch.float16).max


def check_same(first: Any, others: Mapping[str, Any], where: str) -> None:
    """Refuse models of different stages or sizes; ``others`` by the name of their input."""
    kind, shapes = kind_of(first, where), list_trained_shapes(first)
    for name, model in others.items():
        other = kind_of(model, where)
        if other != kind:
            raise WrongInput(
                f"{where} got {KINDS[kind].stage} and, on '{name}', {KINDS[other].stage}. Both have to be the same "
                "stage: two priors or two decoders."
            )
        if list_trained_shapes(model) != shapes:
            raise WrongInput(
                f"{where} got two sizes of {KINDS[kind].stage}; '{name}' does not match the first one. Models can "
                "only be mixed with others of their size: full with full, lite with lite."
            )


def list_trained_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, without what a quantised layer has beside them."""
    return {name: shape for name, shape in shapes_of(model.model.diffusion_model).items() if name.endswith(TRAINED)}


def find_weights(model: Any) -> dict[str, list[Any]]:
    """What the host's ``get_key_patches`` gives, for the parameters alone, by their keys in the host.

    Each is ``[(weight, what turns it into plain numbers), *patches]``. The host's own stumbles over a quantised layer,
    whose state names scales that are no weights of it.
    """
    found = {}
    for key in (ROOT + name for name in list_trained_shapes(model)):
        weight, _, convert_weight = comfy.model_patcher.get_key_weight(model.model, key)
        if key in model.backup:
            weight = model.backup[key].weight
        if key in model.hook_backup:
            weight = model.hook_backup[key][0]
        found[key] = [(weight, convert_weight or keep_weight), *model.patches.get(key, [])]
    return found


def keep_weight(weight: Tensor, **_: Any) -> Tensor:
    """A weight that is plain numbers already."""
    return weight


def merge_models(first: Any, second: Any, weights: Mapping[str, float], where: str) -> Any:
    """``first`` moved to ``second`` by the share in ``weights`` for each group of :data:`stages.lora.merge.GROUPS`."""
    check_same(first, {"model2": second}, where)
    levels = len(first.model.diffusion_model.down_blocks)
    patches = find_weights(second)
    merged = first.clone()
    for key, patch in patches.items():
        share = weights[group_of(key[len(ROOT) :], levels)]
        if share != 0:
            merged.add_patches({key: patch}, share, 1.0 - share)
    return merged


def add_difference(first: Any, tuned: Any, base: Any, strength: float, where: str) -> Any:
    """``first`` + (``tuned`` − ``base``) · ``strength``."""
    check_same(first, {"tuned": tuned, "base": base}, where)
    merged = first.clone()
    if strength == 0:
        return merged
    plus, minus = find_weights(tuned), find_weights(base)
    # The difference is made first, so that layers that are the same in both stay exactly as they are.
    patches = {key: [*plus[key], (-1.0, minus[key], 1.0, None, None)] for key in plus if key in minus}
    merged.add_patches(patches, strength, 1.0)
    return merged


def bake_weight(entry: list[Any], key: str, device: torch.device) -> Tensor:
    """A weight with its patches in float32; ``entry`` is what :func:`find_weights` has for ``key``."""
    (weight, convert_weight), *patches = entry
    weight = comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, convert_weight(weight, inplace=True), key)


def extract_lora(
    tuned: Any, base: Any, rank: int, energy: float, scope: str, dtype: torch.dtype, where: str
) -> tuple[dict[str, Tensor], Extraction]:
    """The LoRA, under ComfyUI's names, that turns ``base`` into ``tuned``, and how much of the change it keeps."""
    check_same(base, {"tuned": tuned}, where)
    device = comfy.model_management.get_torch_device()
    after, before = find_weights(tuned), find_weights(base)
    keys = [
        key
        for key, entry in before.items()
        if key in after
        and entry[0][0].is_floating_point()
        and in_scope(key[len(ROOT) :], tuple(entry[0][0].shape), scope)
    ]
    bar, tensors, layers = comfy.utils.ProgressBar(len(keys)), {}, []
    for key in keys:
        comfy.model_management.throw_exception_if_processing_interrupted()
        delta = bake_weight(after[key], key, device) - bake_weight(before[key], key, device)
        check_finite(delta, key)
        found = extract_layer(key[len(ROOT) :], delta, rank, energy, dtype)
        if found is not None:
            parts, layer = found
            module = key.removesuffix(".weight").removesuffix(".bias")
            tensors.update({f"{module}.{part}": tensor.cpu() for part, tensor in parts.items()})
            layers.append(layer)
        bar.update(1)
    if not tensors:
        raise WrongInput(
            f"{where} found no difference between the two models in '{scope}'. Wire the trained model into 'tuned' "
            "and the one that it was trained from into 'base', or choose more layers."
        )
    return tensors, Extraction(tuple(layers), len(keys) - len(layers))


def check_finite(values: Tensor, key: str) -> None:
    """Raises :class:`BadValues` for the merged weight of ``key`` that holds numbers which are none."""
    if not torch.isfinite(values).all():
        raise BadValues(
            f"The layer {key[len(ROOT) :]} holds NaN or infinite values. One of the models, or a LoRA on it, is "
            "damaged: load it again without LoRAs."
        )


def save_model(
    model: Any, layout: str, dtype: str, prefix: str, hidden: Mapping[str, str], notes: Mapping[str, str], where: str
) -> tuple[str, str]:
    """Write a diffusion model with everything on its wire; returns its name in the output folder and a report.

    Raises :class:`WrongInput` where the disk is too full or a number does not fit into the format.
    """
    kind, path = kind_of(model, where), next_path(prefix)
    comfy.model_management.load_models_gpu([model])
    stored = model.state_dict_for_saving()
    part = identify(stored)
    tensors = convert.normalise(stored, part)
    wanted = SAVED_DTYPES[dtype]
    if wanted is None and layout == "ComfyUI":
        check_room(path, count_bytes(tensors))
    else:
        check_room(path, count_bytes(tensors, wanted))
        tensors = convert.dequantise({key: cast_weight(tensor, wanted, key) for key, tensor in tensors.items()}, wanted)
    tensors = LAYOUTS[layout](tensors)
    metadata = metadata_for(kind, part.config, layout, notes)
    if MARKER in metadata and layout == "ComfyUI":  # core's own nodes lose metadata, but keep tensors
        tensors.update({key: value for key, value in stored.items() if key.endswith(MARKER)})
    write_model(path, tensors, add_workflow(metadata, hidden))
    size = disk.in_words(path.stat().st_size)
    return name_in_lists(
        path
    ), f"{path.name}: {KINDS[kind].stage} in {layout} layout, {dtype}, {len(tensors)} tensors, {size}"


def cast_weight(tensor: Tensor, dtype: torch.dtype | None, key: str) -> Tensor:
    """``tensor`` on the CPU, as the host bakes it, in ``dtype`` (None: its own)."""
    tensor = tensor.to("cpu")
    if dtype is None or not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or key.endswith("_scale"):
        return tensor
    if dtype == torch.float16 and tensor.numel() and tensor.abs().max() > HALF_MAX:
        raise WrongInput(
            f"The layer {key} has values up to {float(tensor.abs().max()):.3g}, which fp16 cannot hold. Save in "
            "bf16 or fp32."
        )
    return tensor.to(dtype)


def metadata_for(kind: str, config: Any, layout: str, notes: Mapping[str, str]) -> dict[str, str]:
    """What the file says about itself; sizes that were never published carry their configuration."""
    size = find_published_name(kind, config)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "https://github.com/Stability-AI/StableCascade",
        "modelspec.architecture": f"stable-cascade-v1-{kind.replace('_', '-')}" + (f"-{size}" if size else ""),
        "cascade_studio.layout": layout,
        **{key: value for key, value in notes.items() if value},
    }
    if not is_published(kind, config):
        metadata[MARKER] = marker_text(kind, config)
    return metadata


def hidden_texts(hidden: Any) -> dict[str, str]:
    """Prompt and workflow of a node's ``hidden`` as the host writes them into files."""
    found = {} if hidden.prompt is None else {"prompt": json.dumps(hidden.prompt)}
    extra = hidden.extra_pnginfo or {}
    return {**found, **{key: json.dumps(value) for key, value in extra.items()}}
