"""Writing safetensors files into the output folder: nothing is overwritten, and nothing half written stays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.files.header import read_header
from ...checkpoints import disk

ROOM = 1 << 20
"""Bytes to keep beside the tensors, for the header."""


def next_path(prefix: str) -> Path:
    """The next free ``output/PREFIX_00001_.safetensors``; what Windows allows in no name becomes "-"."""
    root, prefix = folder_paths.get_output_directory(), disk.for_all_systems(prefix)
    wanted = Path(root, prefix)
    if not prefix.strip() or not str(wanted.resolve()).startswith(str(Path(root).resolve()) + os.sep):
        raise WrongInput(f"The file name '{prefix}' lies outside the output folder. Write a name such as loras/mine.")
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    while (path := Path(folder, f"{name}_{counter:05}_.safetensors")).exists():
        counter += 1
    return path


def size_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of ``tensors``, the floating ones in ``dtype`` if one is given."""
    return sum(
        tensor.numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in tensors.values()
    )


def check_room(path: Path, size: int) -> None:
    """Raises :class:`WrongInput` where the disk has no room for ``size`` bytes at ``path``."""
    free = disk.free_bytes(path.parent)
    if free < size + ROOM:
        raise WrongInput(
            f"{path.name} needs {disk.in_words(size)}, but only {disk.in_words(free)} are free in "
            f"{path.parent}. Make room, or choose a smaller number format."
        )


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` contiguous and in memory of their own, as the format wants them; those that are already stay.

    Weights that the host bakes only when they are written are no plain tensors, and have to reach its writer as they are.
    """
    found, seen = {}, set()
    for name, tensor in tensors.items():
        if type(tensor) is Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            seen.add(storage.data_ptr())
        found[name] = tensor if tensor.is_contiguous() else tensor.contiguous()
    return found


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file at ``path``, which must not exist, and check that it is whole."""
    check_room(path, size_of(tensors))
    part = path.with_name(path.name + ".part")
    try:
        comfy.utils.save_torch_file(apart(tensors), str(part), metadata=dict(metadata))
        header = read_header(part)
        if set(header.tensors) != set(tensors):
            raise WrongInput(f"{path.name} was not written completely. Save it again, on another disk if need be.")
        publish(part, path)
    except OSError as error:
        reason = "the disk is full" if disk.is_full(error) else error.strerror or str(error)
        raise WrongInput(
            f"{path.name} could not be written into {path.parent}: {reason}. "
            "Make room there, or check that the folder can be written to."
        ) from error
    finally:
        disk.remove(part)


def publish(part: Path, path: Path) -> None:
    """Give ``part`` its real name, unless another program has taken that meanwhile."""
    with open(path, "xb"):  # takes the name, or fails
        pass
    try:
        disk.replace(part, path)
    except OSError:
        disk.remove(path)
        raise


def with_workflow(metadata: Mapping[str, str], hidden: Mapping[str, str]) -> dict[str, str]:
    """``metadata`` with the prompt and the workflow, unless the host was told not to keep them."""
    return {**(hidden if not args.disable_metadata else {}), **metadata}
