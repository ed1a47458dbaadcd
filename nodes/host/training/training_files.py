"""Where the host lets the pictures of a training set lie."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ....stages.errors import WrongInput
from ....stages.training.dataset import SUFFIXES


def training_folder(name: str) -> Path:
    """The folder ``name`` below the host's input folder; WrongInput for one outside of it."""
    home = os.path.abspath(folder_paths.get_input_directory())
    path = os.path.abspath(os.path.join(home, name.strip()))
    if not name.strip():
        raise WrongInput(
            "No folder is named and no images are wired in. Write the name of a folder with pictures "
            "and captions that lies in ComfyUI's input folder, or wire images into this node."
        )
    if path == home or not Path(path).is_relative_to(home):
        raise WrongInput(
            f"'{name}' does not lie in ComfyUI's input folder. Put the pictures into a folder there, or "
            "a link to their folder, and give its name."
        )
    return Path(path)


def stamp(name: str) -> str:
    """Changes with every file of a training folder."""
    try:
        folder = training_folder(name)
        entries = [
            (entry.name, entry.stat())
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if os.path.splitext(entry.name)[1].lower() in {*SUFFIXES, ".txt"}
        ]
    except (OSError, WrongInput):
        return f"{name}:absent"
    return f"{name}:" + ";".join(f"{entry}:{status.st_size}:{status.st_mtime_ns}" for entry, status in entries)
