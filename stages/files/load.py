"""From a state dict or a file to the network that it holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WrongFile
from ..nets.backend import TORCH, Backend
from ..nets.controlnet import ControlNet
from ..nets.encoder import ImageEncoder
from ..nets.previewer import Previewer
from ..nets.stage_a import StageA
from ..nets.stage_b import StageB
from ..nets.stage_c import StageC
from .convert import FLOAT8, LAYER_ENTRIES, dequantise, normalise
from .header import Header, load_file, read_header
from .identify import NETWORKS, FileKind, PriorCoderConfig, identify
from .marker import MARKER, marker_tensor

__all__ = ["Header", "PriorCoder", "build", "from_file", "from_state_dict", "load_file", "read_header", "require"]

log = logging.getLogger(__name__)

SHOWN = 3
"""How many keys an error names before it only counts them."""

INPUTS = {
    "stage_c": ("prior", "a Stage C model", "as the prior"),
    "stage_b": ("decoder", "a Stage B model", "as the decoder"),
    "stage_a": ("Stage A VAE", "a Stage A VAE", "as the Stage A VAE"),
    "stage_c_vae": ("Stage C VAE", "the image encoder, the Previewer or both", "as the Stage C VAE"),
    "encoder": ("image encoder", "the EfficientNet image encoder", "as the image encoder (Stage C VAE)"),
    "previewer": ("Previewer", "the Previewer", "as the Previewer (Stage C VAE)"),
    "controlnet": ("ControlNet", "a Stable Cascade ControlNet", "as the ControlNet"),
    "text_encoder": ("text encoder", "the CLIP-G text encoder", "as the text encoder"),
    "clip_vision": ("CLIP vision", "a CLIP vision tower (CLIP-L)", "as the CLIP vision model"),
    "lora": ("LoRA", "a Stable Cascade LoRA", "in a LoRA loader"),
    "embeddings": ("embedding", "a textual-inversion embedding", "as an embedding, by its name in a prompt"),
    "checkpoint": ("checkpoint", "an all-in-one checkpoint", "as a checkpoint"),
}
"""By kind: the name of the input it belongs to, what that input needs, and what to do with such a file."""


class PriorCoder(nn.Module):
    """Image encoder and Previewer under the keys of ComfyUI's Stage C VAE; a half without a config is None."""

    def __init__(
        self,
        config: PriorCoderConfig = PriorCoderConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        at = {"dtype": dtype, "device": device, "backend": backend}
        self.encoder = ImageEncoder(config.encoder, **at) if config.encoder else None
        self.previewer = Previewer(config.previewer, **at) if config.previewer else None


CLASSES: dict[str, type[nn.Module]] = {
    "stage_c": StageC,
    "stage_b": StageB,
    "stage_a": StageA,
    "encoder": ImageEncoder,
    "previewer": Previewer,
    "controlnet": ControlNet,
    "stage_c_vae": PriorCoder,
}


def from_file(path: str | Path, **options: Any) -> nn.Module:
    """The network in the safetensors file at ``path``; ``options`` are those of :func:`from_state_dict`."""
    tensors, metadata = load_file(path)
    return from_state_dict(tensors, **{"metadata": metadata, "name": Path(path).name, **options})


def from_state_dict(
    sd: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = TORCH,
    expect: str | Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    classes: Mapping[str, type[nn.Module]] | None = None,
    name: str = "This file",
) -> nn.Module:
    """Recognise ``sd`` and build the network that it describes, in eval mode and without gradients.

    dtype, device: where the weights go; None keeps them. The tensors of ``sd`` are used, not copied, where they fit.
    backend: the layer classes. The plain torch one gets quantised weights dequantised (to bf16 without a ``dtype``).
    expect: the kind, or kinds, that the caller needs, such as "stage_c"; picks that part out of an all-in-one file.
    classes: a class to build instead of ours, by kind. name: what errors call the file.

    Raises :class:`WrongFile` for anything that is not a whole network of the kind expected.
    """
    if not isinstance(sd, Mapping):
        raise WrongFile(
            f"{name} holds a {type(sd).__name__}, not a dict of tensors. "
            "Give the state dict of a Stable Cascade network."
        )
    kind = require(identify(sd, metadata), expect, name)
    return build(normalise(sd, kind), kind, dtype=dtype, device=device, backend=backend, classes=classes, name=name)


def require(kind: FileKind, expect: str | Sequence[str] | None = None, name: str = "This file") -> FileKind:
    """``kind``, or that part of it, which is one of ``expect`` (any network when None).

    Raises :class:`WrongFile` with what the file is, what the input needs and where the file belongs.
    """
    wanted = (expect,) if isinstance(expect, str) else tuple(expect or NETWORKS)
    for one in wanted:
        if found := kind.part(one):
            return found
    subject = f"{name} is {kind.describe()}."
    if expect is None:
        raise WrongFile(f"{subject} A Stable Cascade network is needed here. {_advice(kind)}")
    title, needs, _ = INPUTS[wanted[0]]
    raise WrongFile(f"{subject} The '{title}' input needs {needs}; {_lower(_advice(kind))}")


def build(
    tensors: Mapping[str, Tensor],
    kind: FileKind,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = TORCH,
    classes: Mapping[str, type[nn.Module]] | None = None,
    name: str = "This file",
) -> nn.Module:
    """The network of ``kind`` filled with ``tensors`` (canonical names, see ``normalise``).

    Raises :class:`WrongFile` when tensors are missing, left over or of the wrong shape.
    """
    if kind.config is None:
        raise WrongFile(f"{name} looks like {kind.title}, but {kind.problem or 'it is incomplete'}. Download it again.")
    own = dtype or _main_dtype(tensors)
    if backend is TORCH:
        # Plain layers cannot mix dtypes, and cannot compute in 8 bits.
        dtype = own
        tensors = dequantise(tensors, own)
    try:
        net = {**CLASSES, **(classes or {})}[kind.kind](kind.config, dtype=own, device="meta", backend=backend)
    except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise WrongFile(
            f"{name} looks like {kind.describe()}, but no network of its sizes can be built ({error}). "
            "Use a file in its published form, or one with a 'cascade_studio.config' entry."
        ) from error
    tensors = _moved(tensors, dtype, device)
    fill(net, tensors, kind, name)
    return net.eval().requires_grad_(False)


def fill(
    net: nn.Module,
    tensors: dict[str, Tensor],
    kind: FileKind,
    name: str = "This file",
    assign: bool = True,
    strict: bool = True,
) -> None:
    """Load canonical ``tensors`` into ``net``: as they are, or copied into its own ones without ``assign``.

    Raises :class:`WrongFile` when tensors are missing, of the wrong shape or, if ``strict``, left over; without it
    the leftovers of trainers and merges are only logged.
    """
    tensors, own = dict(tensors), net.state_dict()
    if MARKER in own:
        tensors[MARKER] = marker_tensor(kind.kind, kind.config)
    for key in own:
        # Old exports leave these counters out; inference never reads them.
        if key.endswith("num_batches_tracked") and key not in tensors:
            tensors[key] = torch.zeros((), dtype=torch.long)
    quantised = _quantised(tensors)
    shapes = [
        f"{key} is {_shape(tensors[key])} instead of {_shape(value)}"
        for key, value in own.items()
        if key in tensors and value is not None and key not in quantised and tensors[key].shape != value.shape
    ]
    if shapes:
        raise WrongFile(fault(name, kind, "has tensors of the wrong shape", shapes))
    result = net.load_state_dict(tensors, strict=False, assign=assign)
    if result.missing_keys:
        raise WrongFile(fault(name, kind, "lacks tensors", result.missing_keys))
    if result.unexpected_keys and not strict:
        log.warning(
            "%s: %d tensors are not used, for example %s", name, len(result.unexpected_keys), result.unexpected_keys[0]
        )
    elif result.unexpected_keys:
        raise WrongFile(fault(name, kind, "holds tensors that do not belong there", result.unexpected_keys))


def fault(name: str, kind: FileKind, what: str, keys: Sequence[str]) -> str:
    """The sentence for a file of ``kind`` that ``what`` ("lacks tensors", …) is wrong with, in ``keys``."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return (
        f"{name} looks like {kind.describe()} but {what} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}. "
        "Download it again, or use a complete file."
    )


def _advice(kind: FileKind) -> str:
    if kind.advice:
        return kind.advice
    if kind.parts:
        return "Choose a file that holds it."
    return f"Choose this file {INPUTS[kind.kind][2]} instead."


def _lower(sentence: str) -> str:
    """``sentence`` to go on after a semicolon; names keep their capitals."""
    first = sentence.split(" ", 1)[0]
    return sentence[0].lower() + sentence[1:] if first in ("Choose", "It") else sentence


def _moved(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device | str | None
) -> dict[str, Tensor]:
    """``tensors`` on ``device``, and in ``dtype`` unless they are part of a quantised layer's weight."""
    keep = _quantised(tensors)
    moved = {}
    for key, tensor in tensors.items():
        cast = dtype if tensor.is_floating_point() and key not in keep else None
        moved[key] = tensor.to(device=device, dtype=cast) if cast or device else tensor
    return moved


def _quantised(tensors: Mapping[str, Tensor]) -> set[str]:
    """The keys that together make the quantised weights."""
    layers = [key[: -len("comfy_quant")] for key in tensors if key.endswith(".comfy_quant")]
    return {layer + entry for layer in layers for entry in ("weight", *LAYER_ENTRIES)}


def _main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The float dtype that most weights have, bf16 where that is one of 8 bits; None without any."""
    sizes: dict[torch.dtype, int] = {}
    keep = _quantised(tensors)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and key not in keep:
            dtype = torch.bfloat16 if tensor.dtype in FLOAT8 else tensor.dtype
            sizes[dtype] = sizes.get(dtype, 0) + tensor.numel()
    return max(sizes, key=sizes.get) if sizes else None


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
