"""Which part of a Stage B or Stage C network a parameter belongs to, so that two networks can be mixed part by part."""

from __future__ import annotations

import re

GROUPS = ("input", "deep_down", "deep_up", "output", "conditioning", "time")
"""Parts of the U in the order of a pass, and what acts in all of them: condition tokens and the noise level."""

_LEVEL = re.compile(r"(down|up)_(?:blocks|downscalers|upscalers|repeat_mappers)\.(\d+)\.")
_CONDITIONING = re.compile(r"(clip_\w*mapper|effnet_mapper|pixels_mapper)\.|.*\.kv_mapper\.")
_TIME = re.compile(r".*\.mapper(_sca|_crp)?\.")


def group_of(name: str, levels: int) -> str:
    """The group of the parameter ``name`` (canonical) in a network with this many ``levels``.

    Half of the levels are deep: the second of Stage C, the third and fourth of Stage B. A scaler belongs to the level
    that it leads to going down, and to the one that it comes from going up; the first and last convolutions to the
    input and the output.
    """
    if _CONDITIONING.match(name):
        return "conditioning"
    if _TIME.match(name):
        return "time"
    if not (found := _LEVEL.match(name)):
        return "output" if name.startswith("clf.") else "input"
    down, index = found[1] == "down", int(found[2])
    depth = index if down else levels - 1 - index
    if depth < levels // 2 or levels == 1:
        return "input" if down else "output"
    return "deep_down" if down else "deep_up"
