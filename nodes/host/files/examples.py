"""The pictures that bundled workflows load, put where the host's Load Image looks for them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths

from ...checkpoints.find import PACK

log = logging.getLogger(__name__)

PICTURES = PACK / "mini" / "input"


def place_pictures() -> None:
    """Copy into the host's input folder what is not there; a file of the same name stays as it is."""
    folder = Path(folder_paths.get_input_directory())
    try:
        for picture in sorted(PICTURES.glob("*.webp")):
            if not (folder / picture.name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, folder / picture.name)
    except OSError as error:
        log.info("The example pictures were not put into %s: %s", folder, error)
