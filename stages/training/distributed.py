"""The processes that train together: one alone, or several that torchrun or accelerate launch has started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..nets.backend import processor_has_bf16

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: one of them may have far more to encode."""
DEVICES = ("cpu", "cuda", "xpu", "mps")


class Crew:
    """One process alone; :class:`Processes` is the same for several."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the device of ``tensor``."""
        return tensor

    def share(self, value: Any) -> Any:
        """What process 0 has."""
        return value

    def wait(self) -> None:
        """Until all processes are here."""

    def close(self) -> None:
        """Leave."""


class Processes(Crew):
    """The processes of a torch.distributed group, whose tensors travel by way of ``device``.

    A group of graphics cards serves tensors of its own device alone, so whatever is to be shared goes there first.
    """

    def __init__(self, backend: str, device: torch.device | str = "cpu") -> None:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = torch.device(device)

    def carry(self, tensor: Tensor) -> Tensor:
        """``tensor`` where the group takes it."""
        return tensor.to(self.device)

    def sum(self, tensor: Tensor) -> Tensor:
        there = self.carry(tensor)
        torch.distributed.all_reduce(there)
        return there.to(tensor.device)

    def share(self, value: Any) -> Any:
        box = [value if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        self.sum(torch.zeros(1))

    def close(self) -> None:
        torch.distributed.destroy_process_group()


def from_environment(device: str = "cpu") -> tuple[Crew, torch.device]:
    """The group that the launcher's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) describe, or one
    process; and the device of this process, for "cuda" with the number that is its own, or that ``device`` names."""
    kind, _, number = device.partition(":")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, torch.device(device)
    if kind in ("cuda", "xpu"):
        own = torch.device(kind, int(number or os.environ.get("LOCAL_RANK", "0")))
        getattr(torch, kind).set_device(own)
        return Processes({"cuda": "nccl", "xpu": "xccl"}[kind], own), own
    return Processes("gloo"), torch.device(device)


def find_device() -> str:
    """The kind of device that this machine trains fastest on."""
    if torch.cuda.is_available():
        return "cuda"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes products in bfloat16 quicker than in float32."""
    if device.type == "cpu":
        return processor_has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported() or device.type == "xpu"


ALONE = Crew()
