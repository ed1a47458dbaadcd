"""LoRA files on the host's models: finding and reading them, and patching through the host's own adapters."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_base
import comfy.utils
from torch import Tensor

from ....stages.errors import WrongInput
from ....stages.files.header import load_file, read_header
from ....stages.files.kinds import KINDS
from ....stages.files.torch_zip import is_torch_zip
from ....stages.lora.match import TOKEN_TABLE, TOKENS, UNET_PREFIX, MatchedLora, match_lora
from ..files import names
from . import words

log = logging.getLogger(__name__)

TEXT_ROOT = "clip_g.transformer."
BASES = {"stage_c": comfy.model_base.StableCascade_C, "stage_b": comfy.model_base.StableCascade_B}


def read_lora(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``(tensors, metadata)`` of the LoRA file ``name``."""
    path = names.find("lora", name)
    if is_torch_zip(path):
        return load_file(path)
    metadata = read_header(path).metadata
    return comfy.utils.load_torch_file(path, safe_load=True), metadata


@dataclass(frozen=True)
class Targets:
    """The models that are wired; each may be None."""

    prior: Any = None
    decoder: Any = None
    clip: Any = None

    def check(self, where: str) -> None:
        """Refuse nothing at all, and models on the wrong input."""
        if self.prior is None and self.decoder is None and self.clip is None:
            raise WrongInput(
                f"{where} has no model to change. Wire the prior, the decoder or the CLIP of Load Stable Cascade "
                "into it."
            )
        for model, wanted, title in ((self.prior, "stage_c", "prior"), (self.decoder, "stage_b", "decoder")):
            if model is not None and kind_of(model, where) != wanted:
                raise WrongInput(
                    f"{where} got a Stable Cascade {KINDS[kind_of(model, where)].stage} model on its '{title}' "
                    f"input. It needs {KINDS[wanted].stage} there: the '{title}' output of Load Stable Cascade."
                )
        if self.clip is not None and not hasattr(self.clip.cond_stage_model, "clip_g"):
            raise WrongInput(
                f"{where} got another model's text encoder on its 'clip' input. It needs the CLIP output of Load "
                "Stable Cascade."
            )

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of all parameters by canonical name, for each network that is there."""
        found = {
            kind: shapes_of(model.model.diffusion_model)
            for kind, model in (("stage_c", self.prior), ("stage_b", self.decoder))
            if model is not None
        }
        if self.clip is not None:
            found["text_encoder"] = {
                name[len(TEXT_ROOT) :]: shape
                for name, shape in shapes_of(self.clip.cond_stage_model).items()
                if name.startswith(TEXT_ROOT)
            }
        return found

    @classmethod
    def of_model(cls, model: Any, clip: Any, where: str) -> Targets:
        """Targets from one MODEL of either stage."""
        prior = model if kind_of(model, where) == "stage_c" else None
        return cls(prior, None if prior is not None else model, clip)


def kind_of(model: Any, where: str) -> str:
    """ "stage_c" or "stage_b"; raises :class:`WrongInput` for a model of another architecture."""
    found = next((kind for kind, base in BASES.items() if isinstance(model.model, base)), None)
    if found is None:
        raise WrongInput(
            f"{where} got a {type(model.model).__name__} model. It needs Stage C or Stage B of Stable Cascade: the "
            "'prior' or 'decoder' output of Load Stable Cascade."
        )
    return found


def shapes_of(net: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of everything in a network's state dict, by name."""
    return {name: tuple(value.shape) for name, value in net.state_dict().items() if hasattr(value, "shape")}


def read_and_match(name: str, targets: Targets) -> MatchedLora:
    """The LoRA file ``name`` for the models that are wired; an error where nothing in it fits."""
    tensors, metadata = read_lora(name)
    return match_lora(tensors, targets.shapes(), metadata, os.path.basename(name))


def unet_patches(lora: MatchedLora, model: Any) -> dict[Any, Any]:
    """The host's patches for the diffusion model, by the key of the weight."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    return comfy.lora.load_lora(lora.unet_tensors(), keys, log_missing=False)


def text_patches(lora: MatchedLora, clip: Any) -> dict[Any, Any]:
    """The host's patches for the text encoder; rows of its token table as slices of one weight."""
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patches = comfy.lora.load_lora(lora.text_tensors(), keys, log_missing=False)
    table = f"{TEXT_ROOT}{TOKEN_TABLE}.weight"
    for index, row in lora.offsets.items():
        if index < TOKENS:
            patches[(table, (0, index, 1))] = ("diff", (row[None],))
    return patches


def apply_lora(
    lora: MatchedLora, targets: Targets, strength_model: float, strength_clip: float, typed: Mapping[str, str]
) -> tuple[Targets, list[str]]:
    """New models with ``lora`` on them, and lines for the report. A strength of 0 leaves a model the same object.

    typed: words for added tokens, each with the pattern of the words that it starts from.
    """
    model = {"stage_c": targets.prior, "stage_b": targets.decoder}.get(lora.stage)
    clip, notes = targets.clip, []
    if model is not None and strength_model != 0:
        model = add_patches(model, unet_patches(lora, model), strength_model, UNET_PREFIX, lora.unet, notes)
    if clip is not None and strength_clip != 0:
        clip = add_patches(clip, text_patches(lora, clip), strength_clip, TEXT_ROOT, lora.text, notes)
        fresh, lines = words.make_vectors(lora, targets.clip, strength_clip, typed)
        notes += lines
        if fresh:
            clip = clip if clip is not targets.clip else clip.clone()
            clip.tokenizer = words.teach(clip.tokenizer, fresh)
    prior, decoder = targets.prior, targets.decoder
    if lora.stage == "stage_c":
        prior = model
    elif lora.stage == "stage_b":
        decoder = model
    notes += list_notes(lora, strength_model, strength_clip)
    return Targets(prior, decoder, clip), notes


@dataclass(frozen=True)
class LoraChoice:
    """One LoRA of a stack: file name, strengths, and the words for its added tokens as they were typed."""

    name: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    tokens: str = ""


def apply_all(choices: Sequence[LoraChoice], targets: Targets, where: str) -> tuple[Targets, str]:
    """``targets`` with every LoRA of ``choices`` on them, in order, and their reports."""
    targets.check(where)
    reports = []
    for choice in choices:
        lora = read_and_match(choice.name, targets)
        targets, notes = apply_lora(
            lora, targets, choice.strength_model, choice.strength_clip, words.parse_tokens(choice.tokens)
        )
        reports.append(lora.report.text(notes))
    return targets, "\n\n".join(reports) or "The stack is empty: no LoRA is applied"


def list_notes(lora: MatchedLora, strength_model: float, strength_clip: float) -> list[str]:
    """Sentences about strengths of 0, which leave out what the LoRA brings."""
    notes = []
    if lora.unet and strength_model == 0:
        notes.append("strength_model is 0: the model is left as it is")
    if (lora.text or lora.offsets or lora.bundled) and strength_clip == 0:
        notes.append("strength_clip is 0: the text encoder is left as it is")
    return notes


def add_patches(
    owner: Any, patches: Mapping[Any, Any], strength: float, root: str, modules: Mapping[str, Any], notes: list[str]
) -> Any:
    """A clone of a MODEL or CLIP with ``patches``; ``owner`` itself where there are none."""
    keys = {key if isinstance(key, str) else key[0] for key in patches}
    known = {key.removesuffix(".weight").removesuffix(".bias") for key in keys}
    lost = [module for module in modules if root + module not in known]
    if lost:
        notes.append(
            f"This ComfyUI does not know the method of {len(lost)} layers (for example {lost[0]}); they are left out"
        )
        log.warning("%d LoRA layers have a method that the host does not know, for example %s", len(lost), lost[0])
    if not patches:
        return owner
    clone = owner.clone()
    clone.add_patches(patches, strength)
    return clone


class StageHook(comfy.hooks.WeightHook):
    """A weight hook for the one kind of model that its patches were made for.

    The same conditioning goes to both stages, whose layers share names but not shapes; the host would try the patches
    on either.
    """

    kind: type | None = None

    def add_hook_patches(self, model: Any, model_options: Any, target_dict: Any, registered: Any) -> bool:
        """As the host's, for models of this stage alone: one hook may be on the conditioning of both."""
        text = target_dict.get("target") == comfy.hooks.EnumWeightTarget.Clip
        if not (self.weights_clip if text else self.weights) or not (text or isinstance(model.model, self.kind)):
            return False
        return super().add_hook_patches(model, model_options, target_dict, registered)

    def clone(self) -> StageHook:
        """As the host's, of the same stage."""
        copy = super().clone()
        copy.kind = self.kind
        return copy


def make_hook(
    lora: MatchedLora, targets: Targets, strength_model: float, strength_clip: float, before: Any = None
) -> Any:
    """HOOKS with ``lora`` added; ``before`` itself where both strengths are 0."""
    before = before or comfy.hooks.HookGroup()
    if strength_model == 0 and strength_clip == 0:
        return before
    model = {"stage_c": targets.prior, "stage_b": targets.decoder}.get(lora.stage)
    made = StageHook(strength_model=strength_model, strength_clip=strength_clip)
    made.need_weight_init = False
    made.weights = unet_patches(lora, model) if model is not None else {}
    made.weights_clip = text_patches(lora, targets.clip) if targets.clip is not None else {}
    made.kind = BASES.get(lora.stage)
    group = comfy.hooks.HookGroup()
    group.add(made)
    return before.clone_and_combine(group)
