"""Writing safetensors files into the output folder: nothing is overwritten, and nothing half written stays."""

from __future__ import annotations

import os
import tempfile
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
from ...checkpoints.addresses import describe_problem

ROOM = 1 << 20
"""Bytes to keep beside the tensors, for the header."""


def next_path(prefix: str) -> Path:
    """The next free ``output/PREFIX_00001_.safetensors`` in a folder that can be written to.

    What Windows allows in no name becomes "-". Raises :class:`WrongInput` for a place outside the output folder, for
    names that a system cannot hold, and where nothing can be written; ask before long work begins.
    """
    root, prefix = folder_paths.get_output_directory(), disk.for_all_systems(prefix)
    wanted = Path(os.path.abspath(os.path.join(root, prefix)))
    if not prefix.strip() or not str(wanted).startswith(os.path.abspath(root) + os.sep):
        raise WrongInput(f"The file name '{prefix}' lies outside the output folder. Write a name such as loras/mine.")
    for part in wanted.relative_to(os.path.abspath(root)).parts:
        if problem := describe_problem(part):
            raise WrongInput(
                f"The file name {prefix[:80]!r} cannot be used: {problem}. Write a name such as loras/mine."
            )
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
        check_writable(Path(folder))
    except OSError as error:
        raise WrongInput(
            f"Nothing can be written into {wanted.parent} ({error.strerror or error}). Check the folder's "
            "permissions, or write another name."
        ) from None
    except Exception:  # noqa: BLE001 - the host has no class of its own for it
        raise WrongInput(
            f"A folder on the way to {wanted} is a link that leads out of the output folder, where ComfyUI saves "
            "nothing. Put a real folder in its place, or write a name in another folder."
        ) from None
    while (path := Path(folder, f"{name}_{counter:05}_.safetensors")).exists():
        counter += 1
    return path


def check_writable(folder: Path) -> None:
    """Raises OSError where no file can be made in ``folder``."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def count_bytes(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> int:
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


def separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` contiguous and in memory of their own, as the format wants them; those that are already stay.

    Weights that the host bakes only when they are written are no plain tensors, and have to reach its writer as they
    are.
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


def write_model(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file at ``path``, which must not exist, and check that it is whole."""
    check_room(path, count_bytes(tensors))
    part = path.with_name(path.name + ".part")
    try:
        comfy.utils.save_torch_file(separate_tensors(tensors), str(part), metadata=dict(metadata))
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


def add_workflow(metadata: Mapping[str, str], hidden: Mapping[str, str]) -> dict[str, str]:
    """``metadata`` with the prompt and the workflow, unless the host was told not to keep them."""
    return {**(hidden if not args.disable_metadata else {}), **metadata}
