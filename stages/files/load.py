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
from .convert import FLOAT8, LAYER_ENTRIES, dequantise, normalise
from .header import MARKER, marker_tensor
from .identify import FileKind, identify
from .kinds import KINDS, NETWORKS
from .open import open_model
from .quantised import check_numbers

log = logging.getLogger(__name__)

SHOWN = 3
"""How many keys an error names before it only counts them."""


def from_file(path: str | Path, **options: Any) -> nn.Module:
    """The network in the safetensors file at ``path``; ``options`` are those of :func:`from_state_dict`."""
    opened = open_model(path)
    kind = require(opened.kind, options.pop("expect", None), opened.name)
    return build(normalise(opened.read_tensors(), kind), kind, **{"name": opened.name, **options})


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
    raise WrongFile(f"{subject} {name_need(wanted[0])}; {_lower(_advice(kind))}")


def name_need(kind: str) -> str:
    """What the input for ``kind`` needs, as the first half of a sentence."""
    return f"The '{KINDS[kind].input}' input needs {KINDS[kind].needs}"


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
    check_config(kind, name)
    check_numbers(tensors, name, list_quantised_keys(tensors))
    own = dtype or _main_dtype(tensors)
    if backend is TORCH:
        # Plain layers cannot mix dtypes, and cannot compute in 8 bits.
        dtype = own
        tensors = dequantise(tensors, own)
    module = (classes or {}).get(kind.kind, KINDS[kind.kind].module)
    if module is None:
        raise WrongFile(f"{name} is {kind.describe()}, which is no network of the pack. {_advice(kind)}")
    try:
        net = module(kind.config, dtype=own, device="meta", backend=backend)
    except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise WrongFile(
            f"{name} looks like {kind.describe()}, but no network of its sizes can be built ({error}). "
            "Use a file in its published form, or one with a 'cascade_studio.config' entry."
        ) from error
    tensors = _move(tensors, dtype, device)
    fill(net, tensors, kind, name)
    return net.eval().requires_grad_(False)


def check_config(kind: FileKind, name: str) -> None:
    """Raises :class:`WrongFile` for a network whose sizes could not be told."""
    if kind.config is None:
        raise WrongFile(
            f"{name} looks like {kind.title}, but {kind.problem or 'it is incomplete'}. The file was saved without "
            "some of its tensors: take a complete one."
        )


def check_tensors(needed: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: FileKind, name: str) -> None:
    """Raises :class:`WrongFile` where ``tensors`` lack one of ``needed``
    (shapes by key) or have it in another shape.
    """
    quantised = list_quantised_keys(tensors)
    shapes = [
        f"{key} is {_size(tensors[key].shape)} instead of {_size(shape)}"
        for key, shape in needed.items()
        if key in tensors and key not in quantised and tuple(tensors[key].shape) != tuple(shape)
    ]
    if shapes:
        raise WrongFile(describe_fault(name, kind, "has tensors of the wrong shape", shapes))
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise WrongFile(describe_fault(name, kind, "lacks tensors", missing))


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
    check_tensors({k: v.shape for k, v in own.items() if v is not None}, tensors, kind, name)
    result = net.load_state_dict(tensors, strict=False, assign=assign)
    if result.unexpected_keys and not strict:
        log.warning(
            "%s: %d tensors are not used, for example %s", name, len(result.unexpected_keys), result.unexpected_keys[0]
        )
    elif result.unexpected_keys:
        raise WrongFile(describe_fault(name, kind, "holds tensors that do not belong there", result.unexpected_keys))


def describe_fault(name: str, kind: FileKind, what: str, keys: Sequence[str]) -> str:
    """The sentence for a file of ``kind`` that ``what`` ("lacks tensors", …) is wrong with, in ``keys``."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return (
        f"{name} looks like {kind.describe()} but {what} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}. "
        "Take a complete file, as it was published or saved."
    )


def _advice(kind: FileKind) -> str:
    if kind.advice:
        return kind.advice
    if kind.parts:
        return "Choose a file that holds it."
    return f"Choose this file {KINDS[kind.kind].use} instead."


def _lower(sentence: str) -> str:
    """``sentence`` to go on after a semicolon; names keep their capitals."""
    first = sentence.split(" ", 1)[0]
    return sentence[0].lower() + sentence[1:] if first in ("Choose", "It") else sentence


def _move(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device | str | None
) -> dict[str, Tensor]:
    """``tensors`` on ``device``, and in ``dtype`` unless they are part of a quantised layer's weight."""
    keep = list_quantised_keys(tensors)
    moved = {}
    for key, tensor in tensors.items():
        cast = dtype if tensor.is_floating_point() and key not in keep else None
        moved[key] = tensor.to(device=device, dtype=cast) if cast or device else tensor
    return moved


def list_quantised_keys(tensors: Mapping[str, Tensor]) -> set[str]:
    """The keys that together make the quantised weights."""
    layers = [key[: -len("comfy_quant")] for key in tensors if key.endswith(".comfy_quant")]
    return {layer + entry for layer in layers for entry in ("weight", *LAYER_ENTRIES)}


def _main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The float dtype that most weights have, bf16 where that is one of 8 bits; None without any."""
    sizes: dict[torch.dtype, int] = {}
    keep = list_quantised_keys(tensors)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and key not in keep:
            dtype = torch.bfloat16 if tensor.dtype in FLOAT8 else tensor.dtype
            sizes[dtype] = sizes.get(dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
