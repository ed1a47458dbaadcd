"""Model files on the host's folder paths: names for the loader inputs, and paths for names."""
from __future__ import annotations

import os
from collections.abc import Iterable

import folder_paths

from ...stages.errors import WrongFile

NONE = "none"
FROM_CHECKPOINT = "from the checkpoint"

FOLDERS = {
    "prior": ("diffusion_models", "checkpoints"),
    "decoder": ("diffusion_models", "checkpoints"),
    "text_encoder": ("text_encoders", "checkpoints"),
    "stage_a": ("vae", "checkpoints"),
    "image_encoder": ("vae", "checkpoints"),
    "previewer": ("vae", "vae_approx", "checkpoints"),
    "clip_vision": ("clip_vision", "checkpoints"),
    "controlnet": ("controlnet",),
}
"""Folder keys of the host that each loader input offers, the usual one first."""


def names(role: str, extra: Iterable[str] = ()) -> list[str]:
    """File names for a loader input; cheap, from the host's cached lists."""
    found = list(extra)
    for folder in FOLDERS[role]:
        if folder in folder_paths.folder_names_and_paths:
            found.extend(name for name in folder_paths.get_filename_list(folder) if name not in found)
    return found


def find(role: str, name: str) -> str:
    """Full path of the file that ``name`` means for ``role``; raises :class:`WrongFile` in plain words."""
    for folder in FOLDERS[role]:
        if folder in folder_paths.folder_names_and_paths:
            path = folder_paths.get_full_path(folder, name) if name else None
            if path is not None:
                return path
    raise WrongFile(missing(role, name))


def missing(role: str, name: str) -> str:
    """The sentence for a file that is not there."""
    folders = " or ".join(f"models/{folder}" for folder in FOLDERS[role])
    label = role.replace("_", " ")
    if not name:
        return f"No file is chosen for '{label}'. Put the Stable Cascade {label} file into {folders} and choose it."
    return (f"The {label} file '{name}' is not on this computer. Put it into {folders}, press R to refresh the lists, "
            "or choose another file.")


def stamp(role: str, name: str | None) -> str:
    """Changes whenever the file behind ``name`` does, so that replaced files are loaded again."""
    try:
        path = find(role, name or "")
    except WrongFile:
        return f"{name}:absent"
    status = os.stat(path)
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"
