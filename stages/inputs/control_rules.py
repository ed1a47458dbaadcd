"""How control maps are weighted over the depth of Stage C, and what kind of hint each ControlNet needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import WrongInput
from ..nets.controlnet import ControlNetConfig

HINTS = {
    1: ("canny", "an edge picture", "Canny Hint"),
    3: ("picture", "an RGB picture", "a picture"),
    4: ("inpaint", "a picture with its mask as the fourth channel", "Inpaint Hint"),
    16: ("super-resolution", "the Stage C latent of a picture", "Super-Resolution Hint"),
    512: ("identity", "a map of identity vectors", "Identity Hint"),
}
"""By channels of the hint: what the ControlNet is called, what it needs, and the node that makes it."""


@dataclass(frozen=True)
class BlockWeights:
    """Multipliers of the control maps by the place of their ResBlock.

    ``early`` acts in the first half of the ResBlocks (the way down), ``late`` in the second (the way up). ``curve``
    holds numbers spread evenly from the first ResBlock to the last, with straight lines between them.
    """

    early: float = 1.0
    late: float = 1.0
    curve: tuple[float, ...] = ()

    @property
    def neutral(self) -> bool:
        """Whether they change nothing."""
        return self.early == self.late == 1.0 and all(value == 1.0 for value in self.curve)

    def at(self, block: int, count: int) -> float:
        """The multiplier of ResBlock ``block`` of ``count``."""
        half = self.early if 2 * block < count else self.late
        if not self.curve:
            return half
        place = block / max(count - 1, 1) * (len(self.curve) - 1)
        first = min(int(place), len(self.curve) - 1)
        second = min(first + 1, len(self.curve) - 1)
        return half * (self.curve[first] + (place - first) * (self.curve[second] - self.curve[first]))


def parse_curve(text: str) -> tuple[float, ...]:
    """Numbers out of text such as "1, 0.5, 0"; none out of empty text. Raises WrongInput for anything else."""
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise WrongInput(
            f"The block weights are '{text.strip()}', but they have to be numbers with commas between "
            "them, such as '1, 0.5, 0': from the first block of Stage C to the last. Leave the field "
            "empty for full strength everywhere."
        ) from None


def name_controlnet(config: ControlNetConfig) -> str:
    """What to call a ControlNet in a sentence, after "the"."""
    return f"{HINTS.get(config.c_in, (f'{config.c_in}-channel',))[0]} ControlNet"


def check_hint(config: ControlNetConfig, channels: int) -> None:
    """Raises WrongInput unless a hint of ``channels`` channels belongs to the ControlNet of ``config``.

    A net for one channel also takes RGB, of which it sees the mean, as in ComfyUI.
    """
    if channels == config.c_in or (config.c_in, channels) in ((1, 3), (3, 1)):
        return
    _, needs, node = HINTS.get(config.c_in, ("", "another hint", "the hint node that belongs to it"))
    given = HINTS.get(channels, ("", "something that no hint node makes", ""))[1]
    raise WrongInput(
        f"A hint of {channels} channels ({given}) was given to the {name_controlnet(config)}, which needs {needs} "
        f"({config.c_in} channels). Wire {node} into it."
    )


def check_fit(config: ControlNetConfig, widths: Sequence[int]) -> None:
    """Raises WrongInput unless the ControlNet's maps fit a Stage C whose ResBlocks have ``widths`` channels each."""
    last = max(config.proj_blocks)
    fed = [widths[block] for block in config.proj_blocks if block < len(widths)] or widths
    wrong = next((width for width in fed if width != config.c_proj), None)
    if wrong is not None:
        raise WrongInput(
            f"The {name_controlnet(config)} makes maps of {config.c_proj} channels, but this Stage C is "
            f"{wrong} wide. The published ControlNets belong to the full Stage C (3.6B, 2048 channels), "
            "not to the lite one: load the full Stage C, or a ControlNet that was trained for this one."
        )
    if last >= len(widths):
        raise WrongInput(
            f"The {name_controlnet(config)} feeds ResBlock {last}, but this Stage C has {len(widths)} of "
            "them (counted from 0). Use the Stage C that the ControlNet was trained for; the published "
            "ones belong to the full model (3.6B)."
        )
