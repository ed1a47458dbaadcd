"""The size of picture that a fresh loader's model was trained on, for the nodes that are dropped beside it."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from typing import NamedTuple

from ....stages.errors import WrongFile
from ....stages.files.open import open_model
from ....stages.nets.stage_c import StageCConfig
from ...checkpoints.find import locate_bundled
from ...checkpoints.presets import rank_presets
from .. import machine
from .fetch import MINI, order_presets
from .names import Library, finder, usable_catalogue

PRIOR = "prior"


class Sides(NamedTuple):
    """What an input for a side of the picture begins with: here, and in files that are handed on if that may differ."""

    here: int
    authored: int | None = None


def find_sides() -> Sides:
    """For the model of a fresh loader; workflows and blocks do not follow the machine of their author."""
    return Sides(find_native_side(), find_bundled_side())


def find_native_side() -> int:
    """Side in pixels of the pictures that the prior of the preset "automatic" was trained on.

    The host asks at every look at its nodes, so files are known by name and size alone: a set under names of the
    user's own, which the loader tells by contents, is not seen. The published size where nothing is here.
    """
    library, looks = Library(), finder()
    known = library.catalogue

    @cache
    def find_quickly(key: str) -> str | None:
        entry = known.entries[key]
        path = library.find_known(entry.role, entry) or looks.find_in_hub(entry)
        return str(path) if path else None

    for key in order_presets(rank_presets(machine.describe_machine())[0]):
        preset = known.presets[key]
        prior = preset.inputs.get(PRIOR)
        if prior in preset.entries and all(map(find_quickly, preset.entries)) and (path := find_quickly(prior)):
            return _read_native_side(path, os.stat(path).st_mtime_ns)
    return StageCConfig.native_side


def find_bundled_side() -> int:
    """The same where nothing is but the files that come with the pack."""
    known = usable_catalogue()
    preset = known.presets.get(MINI)
    path = locate_bundled(known.entries[preset.inputs[PRIOR]]) if preset else None
    if path is None or not path.is_file():
        return StageCConfig.native_side
    return _read_native_side(str(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=8)
def _read_native_side(path: str, changed: int) -> int:
    """What the file at ``path``, last ``changed`` then, says of itself."""
    try:
        kind = open_model(path).kind
    except WrongFile:
        return StageCConfig.native_side
    return getattr((kind.part("stage_c") or kind).config, "native_side", StageCConfig.native_side)
