"""Out-of-memory errors, told apart on every host version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

from ...stages.errors import OutOfMemory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that memory ran out, on the graphics card or the processor."""
    told = getattr(comfy.model_management, "is_oom", None)
    if told is not None and told(error):
        return True
    known = tuple(kind for kind in (torch.cuda.OutOfMemoryError, MemoryError) if isinstance(kind, type))
    if isinstance(error, known):
        return True
    # torch has no type and no field for the processor's memory: this alone goes by its words, and a test asks torch.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def make_room() -> None:
    """Unload every model and hand cached memory back, before one more try."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into the sentence ``what`` "ran out of memory" with ``advice``."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} ran out of memory. {advice}") from error
