"""A pretended graphics card: tensors that say they are on ``cuda:0`` and compute on the processor.

What a card would make wait is counted: reading a value back (``sync``), and copies from and to the processor's memory
that block. Mixing a tensor of the card with one of the processor raises, as a card does.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CARD = torch.device("cuda", 0)
SYNC = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Card:
    """What was asked of the card so far, by kind and by the lines that asked."""

    def __init__(self) -> None:
        self.events: collections.Counter[tuple[str, str]] = collections.Counter()

    def note(self, kind: str) -> None:
        self.events[kind, self.asker()] += 1

    @staticmethod
    def asker() -> str:
        """The innermost lines of the pack or of the host on the stack."""
        found, frame = [], sys._getframe(2)
        while frame is not None and len(found) < 3:
            name = frame.f_code.co_filename
            ours = "/nodes/host/" in name or "/stages/" in name
            if ours or "/comfy/" in name:
                found.append(f"{'pack' if ours else 'host'}/{name.rsplit('/', 1)[-1]}:{frame.f_lineno}")
            frame = frame.f_back
        return " < ".join(found)

    def count(self, *kinds: str) -> int:
        return sum(number for (kind, _), number in self.events.items() if kind in kinds)

    def of_pack(self) -> dict[tuple[str, str], int]:
        """What lines of the pack itself asked for."""
        return {key: number for key, number in self.events.items() if key[1].startswith("pack/")}

    def describe(self) -> str:
        return "\n".join(f"{number} x {kind}: {where}" for (kind, where), number in self.events.most_common())


card = Card()


def on_card(device: Any) -> bool:
    """Whether ``device`` is the card; tensors of it say "meta" to what asks below Python."""
    return device is not None and torch.device(device).type in ("cuda", "meta")


class Pretend(Tensor):
    """A tensor of the card; ``inner`` computes."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        same = (device is None or on_card(device)) and (dtype is None or dtype == self.dtype) and not copy
        if same and (layout is None or self.is_contiguous(memory_format=layout)):
            return self
        more = {} if layout is None else {"memory_format": layout}
        return torch.ops.aten._to_copy(
            self, dtype=dtype or self.dtype, device=device or CARD, non_blocking=non_blocking, **more
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation: on the card if any of its tensors is, or if it is asked to make one there."""
    name = func._schema.name.split("::")[1]
    if func in (torch.ops.aten.to.other, torch.ops.aten.type_as.default):
        return args[0].to(CARD if isinstance(args[1], Pretend) else args[1].device, args[1].dtype)
    if func._overloadpacket is not torch.ops.aten.scaled_dot_product_attention:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with PretendMode():
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
    flat, spec = tree_flatten((args, kwargs))
    of_card = [each for each in flat if isinstance(each, Pretend)]
    device = kwargs.get("device")
    if not of_card and not on_card(device):
        return func(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})
    inner_args, inner_kwargs = tree_unflatten(
        [each.inner if isinstance(each, Pretend) else each for each in flat], spec
    )
    if device is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu") if on_card(device) else device}
    inner_kwargs.pop("pin_memory", None)
    count_waits(name, args, flat, of_card, device, kwargs)
    refuse_mixing(name, args, flat, of_card)
    out = func(*inner_args, **inner_kwargs)
    leaves = device is not None and not on_card(device)
    if name in ("_local_scalar_dense", "is_nonzero", "equal") or leaves:
        return out
    known = {id(each.inner): each for each in of_card}

    def wrap(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return known[id(each)] if id(each) in known else Pretend(each)

    return tree_map(wrap, out)


def count_waits(name: str, args: tuple, flat: list, of_card: list, device: Any, kwargs: dict) -> None:
    if name in SYNC or (name in INDEXED and any(is_mask(each) for each in tree_flatten(args[1])[0])):
        card.note("sync")
    if name == "_to_copy" and device is not None and bool(of_card) != on_card(device):
        if not kwargs.get("non_blocking"):
            card.note("copy to the processor" if of_card else "copy to the card")
    if name == "copy_" and isinstance(flat[0], Pretend) != isinstance(flat[1], Pretend) and flat[1].dim() > 0:
        if not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
            card.note("copy to the card" if isinstance(flat[0], Pretend) else "copy to the processor")


def is_mask(each: Any) -> bool:
    return isinstance(each, Pretend) and each.dtype in (torch.bool, torch.uint8)


def refuse_mixing(name: str, args: tuple, flat: list, of_card: list) -> None:
    """Raise for a tensor of the processor beside those of the card; numbers and indices may come from anywhere."""
    if name in ("_to_copy", "copy_", "set_") or not of_card:
        return
    allowed = tree_flatten(args[1])[0] if name in INDEXED else []
    for each in flat:
        plain = isinstance(each, Tensor) and not isinstance(each, Pretend) and each.dim() > 0
        if plain and not any(each is index for index in allowed):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found two devices, {CARD} and cpu! ({name})"
            )


class PretendMode(TorchDispatchMode):
    """Also catches what is made on the card without a tensor of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


def make_on_processor(real: Any) -> Any:
    """``torch.tensor`` and its like, which would ask a real card for memory."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Pretend):
            return data.to(**{key: value for key, value in kwargs.items() if key == "dtype"}) if kwargs else data
        found = real(data, *args, **kwargs) if on_card(device) else real(data, *args, device=device, **kwargs)
        return found.to(CARD) if on_card(device) else found

    return made


class Event:
    """A CUDA event that is always done."""

    def record(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def pretended_card(monkeypatch: Any, gigabytes: float = 12) -> Iterator[Card]:
    """The host believes in a card of this size; yields what is asked of it."""
    import types

    import comfy.model_management as management

    total = int(gigabytes * 2**30)
    card.events.clear()
    properties = types.SimpleNamespace(major=8, minor=6, name="a pretended card", total_memory=total)
    for name, value in {
        "_lazy_init": lambda: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (8, 6),
        "is_bf16_supported": lambda *args, **kwargs: True,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: card.note("sync"),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (total, total),
        "memory_stats": lambda device=None: collections.defaultdict(int),
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(management, "cpu_state", management.CPUState.GPU)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "set_vram_to", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "get_torch_device", lambda: CARD)
    monkeypatch.setattr(management, "NUM_STREAMS", 0)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, make_on_processor(getattr(torch, name)))
    for name in ("get_free_memory", "get_total_memory"):
        real = getattr(management, name)

        def ask(device: Any = None, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            if device is not None and torch.device(device).type == "cpu":
                return real(device, *args, **kwargs)
            return (total, 0) if any((*args, *kwargs.values())) else total

        monkeypatch.setattr(management, name, ask)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with PretendMode():
            yield card
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
