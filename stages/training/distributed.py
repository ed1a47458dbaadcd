"""The processes that train together: one alone, or several that torchrun or accelerate launch has started."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


class Crew:
    """One process alone; :class:`Processes` is the same for several."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return tensor

    def share(self, value: Any) -> Any:
        """What process 0 has."""
        return value

    def wait(self) -> None:
        """Until all processes are here."""

    def close(self) -> None:
        """Leave."""


class Processes(Crew):
    """The processes of a torch.distributed group."""

    def __init__(self, backend: str) -> None:
        torch.distributed.init_process_group(backend)
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    def share(self, value: Any) -> Any:
        box = [value if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        torch.distributed.barrier()

    def close(self) -> None:
        torch.distributed.destroy_process_group()


def from_environment(device: str = "cpu") -> Crew:
    """The group that the launcher's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) describe, or one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Crew()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return Processes("nccl" if device == "cuda" else "gloo")


ALONE = Crew()
