"""The processes that train together: one alone, or several that torchrun or accelerate launch has started."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CascadeError
from ..nets.backend import processor_has_bf16

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: one of them may have far more to encode."""
GOODBYE, LOOK = 60.0, 0.02
"""Seconds that a process waits at most for the others to be done with the last exchange, and between two looks."""
DONE = "cascade_studio/done"
"""How many processes are done, in the group's store."""
TOGETHER = 25_000_000
"""Numbers of gradients that are summed over the processes at once."""
DEVICES = ("cpu", "cuda", "xpu", "mps")


class LostProcess(CascadeError):
    """Another process of the group has ended before its work was done."""


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

    def part(self) -> None:
        """The end of the work: until all processes are here, and are done with hearing so."""

    def close(self) -> None:
        """Leave."""


class Processes(Crew):
    """The processes of a torch.distributed group, whose tensors travel by way of ``device``.

    A group of graphics cards serves tensors of its own device alone, so whatever is to be shared goes there first.
    """

    def __init__(self, backend: str, device: torch.device | str = "cpu") -> None:
        from torch.distributed.rendezvous import rendezvous

        self.store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
        self.store.set_timeout(PATIENCE)
        torch.distributed.init_process_group(
            backend, timeout=PATIENCE, store=self.store, rank=self.rank, world_size=self.size
        )
        self.device = torch.device(device)

    def carry(self, tensor: Tensor) -> Tensor:
        """``tensor`` where the group takes it."""
        return tensor.to(self.device)

    def sum(self, tensor: Tensor) -> Tensor:
        there = self.carry(tensor)
        with explain_loss():
            torch.distributed.all_reduce(there)
        return there.to(tensor.device)

    def share(self, value: Any) -> Any:
        box = [value if self.rank == 0 else None]
        with explain_loss():
            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        self.sum(torch.zeros(1))

    def part(self) -> None:
        """A process that leaves closes its connections, and what another has not read of them by then is lost to it. On
        a busy machine that is the last answer itself, so each tells the store when it has that."""
        self.wait()
        ends = time.monotonic() + GOODBYE
        try:
            done = self.store.add(DONE, 1)
            while done < self.size and time.monotonic() < ends:
                time.sleep(LOOK)
                done = self.store.add(DONE, 0)
        except RuntimeError:  # the process that keeps the store saw that all are done, and has left
            return

    def close(self) -> None:
        torch.distributed.destroy_process_group()


def sum_gradients(parameters: Iterable[nn.Parameter], crew: Crew) -> None:
    """Every process gets the sum of all gradients. A parameter that took no part has the gradient 0."""
    waiting: list[Tensor] = []
    size = 0
    for parameter in parameters:
        grad = parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        waiting.append(grad)
        size += grad.numel()
        if size >= TOGETHER:
            _sum_together(waiting, crew)
            waiting, size = [], 0
    _sum_together(waiting, crew)


def _sum_together(tensors: list[Tensor], crew: Crew) -> None:
    if crew.size > 1 and tensors:
        together = crew.sum(torch.cat([one.flatten().float() for one in tensors]))
        for one, summed in zip(tensors, together.split([one.numel() for one in tensors])):
            one.copy_(summed.view_as(one))


@contextmanager
def explain_loss() -> Iterator[None]:
    """An exchange that fails as a sentence: tensors are where the group takes them, so another process is gone.

    PyTorch's own error would keep the group alive in the variables of its traceback. Its threads then outlive the
    interpreter, which aborts the process instead of ending it with that error.
    """
    try:
        yield
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        raise LostProcess(
            f"Another process of this run has ended too early ({str(error).splitlines()[0][:200]}). Look into its "
            "output for the reason, and start all of them again: the run goes on from its last state."
        ) from None


@contextmanager
def join_crew(device: str = "cpu") -> Iterator[tuple[Crew, torch.device]]:
    """As :func:`from_environment`, for a piece of work: the processes part when it is done, and leave in any case."""
    crew, here = from_environment(device)
    try:
        yield crew, here
        crew.part()
    finally:
        crew.close()


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
