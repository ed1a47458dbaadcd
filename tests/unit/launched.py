"""``studio.py`` as a launcher starts it, in a group that takes only what a group of graphics cards would take.

No card is needed: numbers travel by gloo, but a tensor that was not carried to the crew's device first is refused with
PyTorch's own words for a group that serves cards alone, such as one of NCCL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from studio import load_pack  # noqa: E402

load_pack()
from cascade_studio.stages.training.distributed import Processes  # noqa: E402

REFUSED = "No backend type associated with device type cpu"


def serve_cards_alone(patch: Any = setattr) -> None:
    """Let groups take copies that :meth:`.Processes.carry` made, each once, and nothing else."""
    there: dict[int, torch.Tensor] = {}
    plain, reduce = Processes.carry, torch.distributed.all_reduce

    def carry(crew: Processes, tensor: torch.Tensor) -> torch.Tensor:
        copy = plain(crew, tensor).clone()
        there[id(copy)] = copy
        return copy

    def all_reduce(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if there.pop(id(tensor), None) is None:
            raise RuntimeError(REFUSED)
        return reduce(tensor, *arguments, **options)

    patch(Processes, "carry", carry)
    patch(torch.distributed, "all_reduce", all_reduce)


if __name__ == "__main__":
    from cascade_studio.commands import main

    serve_cards_alone()
    sys.exit(main(sys.argv[1:]))
