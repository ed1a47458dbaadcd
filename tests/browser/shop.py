"""The tiny family for downloading: on a loopback server, under names that no computer has yet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from faulty_server import FaultyServer, File
from safetensors.torch import load_file, save

FILES = {
    "prior": "diffusion_models/stage_c",
    "decoder": "diffusion_models/stage_b",
    "stage_a": "vae/stage_a",
    "text_encoder": "text_encoders/clip_g",
    "image_encoder": "vae/effnet_encoder",
    "previewer": "vae/previewer",
    "clip_vision": "clip_vision/clip_l_vision",
}
IN_THE_WAY = ("CASCADE_STUDIO_OFFLINE", "HF_HUB_OFFLINE", "CASCADE_STUDIO_MIRRORS", "HF_HUB_CACHE", "HF_TOKEN")


class Shop(FaultyServer):
    """Serves every file of the family; ``catalogue`` is a user's catalogue with one preset of all of them."""

    PRESET = "The small family"

    def __init__(self, family: Path, folder: Path) -> None:
        super().__init__()
        entries = [self._entry(family, role, *place.split("/")) for role, place in FILES.items()]
        preset = {"title": self.PRESET, "inputs": {role: f"small_{role}" for role in FILES}}
        self.catalogue = folder / "catalogue.json"
        self.catalogue.write_text(json.dumps({"files": entries, "presets": {"small": preset}}), encoding="utf-8")

    def _entry(self, family: Path, role: str, folder: str, name: str) -> dict[str, object]:
        # Other metadata makes another hash, or the file would be found under its first name.
        data = save(load_file(family / folder / f"{name}.safetensors"), {"format": "pt", "shop": "yes"})
        self.files[role] = File(data)
        return {
            "key": f"small_{role}",
            "role": role,
            "name": f"small_{role}.safetensors",
            "folder": folder,
            "url": self.url(role),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(file.data) for file in self.files.values())

    @property
    def environment(self) -> dict[str, str]:
        """What leads a server here, and away from every other place that has files."""
        return {
            "CASCADE_STUDIO_CATALOGUE": str(self.catalogue),
            "HF_HOME": str(self.catalogue.parent),
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
        }
