"""ControlNets on a conditioning: masks, chains of nets, and what is kept of them for one picture of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.controlnet
import comfy.model_base
import torch
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.inputs.control_rules import BlockWeights
from ....stages.inputs.pictures import check_mask
from ....stages.nets.portable import average_areas, sample_lines
from .controlnet import CascadeControl, align, measure_widths

Box = tuple[float, float, float, float]


class MaskedControl(comfy.controlnet.ControlBase):
    """A chain of ControlNets of any kind whose maps act in a part of the picture only: they are multiplied by a mask.

    ``inner`` is that chain, ``mask`` (B or 1, h, w) between 0 and 1, averaged over the cells of each map. What comes
    before it (``previous_controlnet``) is left as it is. An area's prompt sees hint and mask fitted into its area.
    """

    def __init__(self, inner: Any, mask: Tensor):
        super().__init__()
        self.inner, self.mask = inner, mask
        self.count = 0
        self.sized: dict[Any, Tensor] = {}  # the mask at every size, batch, dtype and device of the run

    def copy(self) -> MaskedControl:
        """As the host asks before each run; the control inside is shared."""
        copied = MaskedControl(self.inner, self.mask)
        self.copy_to(copied)
        return copied

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> MaskedControl:
        """A copy with networks of its own on another device."""
        copied = MaskedControl(clone_chain(self.inner, load_device), self.mask)
        self.copy_to(copied)
        if autoregister:
            self.multigpu_clones[load_device] = copied
        return copied

    def get_models(self) -> list[Any]:
        """The models that the host loads for it, those of the control inside among them."""
        return [*super().get_models(), *self.inner.get_models()]

    def get_extra_hooks(self) -> list[Any]:
        """The hooks of the chain, those of the control inside among them."""
        return [*super().get_extra_hooks(), *self.inner.get_extra_hooks()]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Bytes, for the control inside too."""
        return self.inner.inference_memory_requirements(dtype) + super().inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Before a run: count the ResBlocks of a Stage C, whose control maps are by their numbers."""
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)
        self.sized.clear()
        prior = isinstance(model, comfy.model_base.StableCascade_C)
        self.count = len(measure_widths(model.diffusion_model)) if prior else 0

    def cleanup(self) -> None:
        """After a run: let go of the masks in other sizes."""
        super().cleanup()
        self.inner.cleanup()
        self.sized.clear()

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any
    ) -> dict[str, list[Tensor | None]] | None:
        """The masked maps of ``inner`` and those of the nets before, for one call of the model."""
        given = (x_noisy, t, cond, batched_number, transformer_options)
        previous = None if self.previous_controlnet is None else self.previous_controlnet.get_control(*given)
        found = align(self.inner.get_control(*given), self.count)
        if found is None:
            return previous
        masked = [
            None if values is None else values * self.mask_for(values, x_noisy.shape[0], batched_number)
            for values in found["input"]
        ]
        return self.control_merge({"input": masked}, align(previous, self.count), x_noisy.dtype)

    def mask_for(self, maps: Tensor, batch: int, batched_number: int) -> Tensor:
        """The mask for ``maps`` (B, C, h, w), made once a run: a mask has many more pixels than a map has cells."""
        key = maps.shape[-2:], batch, batched_number, maps.dtype, maps.device
        if key not in self.sized:
            mask = comfy.controlnet.broadcast_image_to(match_mask(self.mask[:, None], maps), batch, batched_number)
            self.sized[key] = mask
        return self.sized[key]


def match_mask(mask: Tensor, maps: Tensor) -> Tensor:
    """A mask (B, 1, h, w) at the size of ``maps`` (B, C, h, w)."""
    return average_areas(mask.float().clamp(0, 1), tuple(maps.shape[-2:])).to(maps)


def clone_chain(control: Any, device: torch.device) -> Any:
    """``control`` and the nets before it with networks of their own on ``device``."""
    if control is None:
        return None
    return control.deepclone_multigpu(device).set_previous_controlnet(clone_chain(control.previous_controlnet, device))


def apply_control(
    positive: Any,
    negative: Any,
    net: Any,
    hint: Tensor,
    strength: float,
    percents: tuple[float, float],
    weights: BlockWeights,
    mask: Tensor | None = None,
) -> tuple[Any, Any]:
    """Both conditionings with ``net`` and its ``hint`` (B, H, W, C), behind whatever nets they have already.

    mask: (B, h, w), where it acts; everywhere without one.
    """
    if strength == 0:
        return positive, negative
    if percents[1] < percents[0]:
        raise WrongInput(
            f"ControlNet for Cascade starts at {percents[0]:g} and ends at {percents[1]:g}, so it would "
            "never act. The end has to come after the start: 0 is the beginning of sampling, 1 its end."
        )
    if not isinstance(net, CascadeControl) and not weights.neutral:
        raise WrongInput(
            "Block weights were set for a ControlNet of another loader, which has none. Load it with Load "
            "Cascade ControlNet, or set early and late to 1 and leave the block weights empty."
        )
    copies: dict[Any, Any] = {}

    def behind(previous: Any) -> Any:
        if previous not in copies:
            copied = net.copy().set_cond_hint(hint.movedim(-1, 1), strength, percents)
            if isinstance(copied, CascadeControl):
                copied.weights = weights
            if mask is not None:
                copied = MaskedControl(copied, check_mask(mask, "ControlNet for Cascade"))
            copies[previous] = copied.set_previous_controlnet(previous)
        return copies[previous]

    # Prompt and negative prompt share a copy, so that the host runs them in one batch and the maps are made once.
    return tuple(
        [
            [text, {**extra, "control": behind(extra.get("control")), "control_apply_to_uncond": False}]
            for text, extra in conditioning
        ]
        for conditioning in (positive, negative)
    )


def align_controls(conditioning: Any) -> Any:
    """``conditioning`` whose ControlNets of other loaders count the ResBlocks as ours do, also applied after ours.

    The host adds the maps of chained nets by their index in lists that end with the first ResBlock: a shorter list
    would land on other blocks. A mask of ones around a net brings its list to full length.
    """
    if conditioning is None:
        return None
    made: dict[Any, Any] = {}
    return [
        [text, {**extra, "control": _align_chain(extra["control"], made)} if extra.get("control") else extra]
        for text, extra in conditioning
    ]


def _align_chain(control: Any, made: dict[Any, Any]) -> Any:
    if control is None or control in made:
        return made.get(control)
    before = _align_chain(control.previous_controlnet, made)
    own = isinstance(control, (CascadeControl, MaskedControl))
    if own and before is control.previous_controlnet:
        made[control] = control
    elif own or before is None:
        made[control] = control.copy().set_previous_controlnet(before) if own else control
    else:
        alone = control.copy().set_previous_controlnet(None)
        made[control] = MaskedControl(alone, torch.ones(1, 1, 1)).set_previous_controlnet(before)
    return made[control]


def release_controls(*conditionings: Any) -> None:
    """Drop what the nets of ``conditionings`` hold for a run; the host does so only after a run that went well."""
    for conditioning in conditionings:
        for _, extra in conditioning or ():
            if extra.get("control") is not None:
                extra["control"].cleanup()


def pick_control(control: Any, index: int) -> Any:
    """``control`` and the nets before it for picture ``index`` of a batch alone: copies where a hint is one of many."""

    def pick(given: Tensor) -> Tensor:
        place = index % given.shape[0]
        return given if given.shape[0] == 1 else given[place : place + 1]

    return change_hints(control, pick)


def crop_control(control: Any, part: Box) -> Any:
    """``control`` and the nets before it on a ``part`` (left, top, right, bottom; shares of the hint's sides)."""
    left, top, right, bottom = part

    def crop(given: Tensor) -> Tensor:
        places = []
        for cells, start, end in ((given.shape[-2], top, bottom), (given.shape[-1], left, right)):
            count = max(1, round((end - start) * cells))
            centres = start + (torch.arange(count, dtype=torch.float32) + 0.5) / count * (end - start)
            places.append((centres * cells - 0.5).clamp(0, cells - 1)[None].to(given.device))
        maps = given if given.ndim == 4 else given[:, None]
        cut = sample_lines(maps.float(), *places).to(given.dtype)
        return cut if given.ndim == 4 else cut[:, 0]

    return change_hints(control, crop)


def change_hints(control: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``control`` and the nets before it with ``change`` on every hint (B, C, H, W) and mask (B, h, w): copies where
    that gives another tensor."""
    name = "mask" if isinstance(control, MaskedControl) else "cond_hint_original"
    given, before, inner = getattr(control, name), control.previous_controlnet, getattr(control, "inner", None)
    previous = None if before is None else change_hints(before, change)
    within = None if inner is None else change_hints(inner, change)
    changed = change(given) if torch.is_tensor(given) else given
    if changed is given and previous is before and within is inner:
        return control
    copied = control.copy().set_previous_controlnet(previous)
    if inner is not None:
        copied.inner = within
    setattr(copied, name, changed)
    return copied
