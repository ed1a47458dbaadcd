"""Stage C and Stage B as ComfyUI models: configurations, conditions, memory estimates and checks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models
import torch
from torch import Tensor

from ....stages.diffusion.sampling import logsnr_from_sigma, noise_condition
from ....stages.errors import BadValues, WrongInput
from ....stages.files.header import MARKER, marker_tensor
from ....stages.files.kinds import is_published
from ....stages.inputs.resize import crop_prior
from ....stages.nets.stage_c import StageCConfig
from ..latents import count_host_ratio
from .finite import FiniteWatch, is_finite
from .foreign import SaysWhatIsMissing
from .nets import HostStageB, HostStageC
from .regions import PICTURES_KEY, REGIONS_KEY, WEIGHTS_KEY, join_image_embeds, join_token_weights, make_region_conds

OWN_SAMPLER = "cascade_studio_sampler"
"""Key in ``transformer_options`` by which our samplers say that the grid they ask for is meant."""

LARGEST_UNASKED_GRID = 127

log = logging.getLogger(__name__)


def expect_pooled_text(kwargs: dict[str, Any], stage: str, width: int) -> Tensor:
    """The pooled text of one condition, or a sentence that says what is missing from it."""
    pooled = kwargs.get("pooled_output")
    if pooled is None:
        raise WrongInput(
            f"{stage} got a conditioning without pooled output. It needs the pooled text that CLIP Text Encode makes "
            "from the Stable Cascade text encoder; a node between the two (or another model's text encoder) dropped "
            "it. Wire CLIP Text Encode straight into the sampler."
        )
    if pooled.shape[-1] != width:
        raise WrongInput(
            f"{stage} got a conditioning whose pooled text is {pooled.shape[-1]} wide; this model needs {width}. "
            "The prompt was encoded by another model's text encoder: use the CLIP output of the Stable Cascade loader."
        )
    return pooled


def check_finite(output: Tensor, stage: str, dtype: torch.dtype, given: Tensor | None = None) -> Tensor:
    """``output`` itself, or a sentence that names the stage, its dtype and what to try.

    ``given`` is what the stage was given, if that may be to blame.
    """
    if is_finite(output):
        return output
    if given is not None and not is_finite(given):
        raise BadValues(
            f"{stage} was given NaN or infinite values. They come from the node before it: load the model "
            "that made them with dtype bf16 or fp32."
        )
    raise blame(stage, dtype)


def blame(stage: str, dtype: torch.dtype) -> BadValues:
    """The sentence about a stage that gave NaN or infinite values, and what to try."""
    advice = {torch.float16: "Load it with dtype bf16 or fp32", torch.float32: "Lower the strength of LoRAs on it"}
    return BadValues(
        f"{stage} produced NaN or infinite values while computing in {str(dtype).replace('torch.', '')}. "
        f"{advice.get(dtype, 'Load it with dtype fp32')}; if that does not help, its file or a LoRA on it is damaged: "
        "download the file again, or take the LoRA off."
    )


GIVEN = {
    "clip_text": "the text of a prompt",
    "clip_text_pooled": "the pooled text of a prompt",
    "clip": "the pooled text of a prompt",
    "clip_img": "an image prompt",
    "effnet": "the Stage C latent of a prompt",
    "text_weights": "the weights of a prompt's words",
    "region_weights": "the masks or strengths of a regional prompt",
}
"""What the host hands to a network, by its name there."""


def check_given(stage: str, x: Tensor, conditions: dict[str, Any]) -> None:
    """Say which of the things that ``stage`` was given holds NaN or infinity, if one does."""
    given = {"the latent": x, **{GIVEN[name]: value for name, value in conditions.items() if name in GIVEN}}
    wrong = [
        words for words, value in given.items() if torch.is_tensor(value) and value.numel() and not is_finite(value)
    ]
    if wrong:
        raise BadValues(
            f"{stage} was given NaN or infinite values in {' and in '.join(dict.fromkeys(wrong))}. Look there first: "
            "for a weight or a strength that is no number, such as (word:nan), for a mask or a picture with such "
            "values, and for a text encoder that computes in fp16."
        )


class CascadeSampling(SaysWhatIsMissing, comfy.model_sampling.StableCascadeSampling, comfy.model_sampling.EPS):
    """ComfyUI's Stable Cascade sampling, with the noise condition in the official rounding.

    ``sigma`` is b/a of the variance-preserving process, ``timestep`` the noise condition r that the networks embed. The
    sigmas are core's own, so that every scheduler gives what it gives with core's loader and core's
    ModelSamplingStableCascade changes nothing but the shift. They reach below the official ones (at shift 2 to 0.010
    instead of 0.020); the official schedule is :func:`~.stages.diffusion.sampling.schedule_sigmas`.
    """

    def set_parameters(self, shift: float = 1.0, cosine_s: float = 8e-3) -> None:
        """As the host's, at one call instead of ten thousand."""
        self.shift = shift
        self.cosine_s = torch.tensor(cosine_s)
        self._init_alpha_cumprod = torch.cos(self.cosine_s / (1 + self.cosine_s) * torch.pi * 0.5) ** 2
        self.num_timesteps = 10000
        self.set_sigmas(self.sigma(torch.arange(1, self.num_timesteps + 1) / self.num_timesteps))

    def timestep(self, sigma: Tensor) -> Tensor:
        """The noise condition that the network gets for ``sigma``."""
        return noise_condition(logsnr_from_sigma(sigma.float()))


def make_sampling(shift: float) -> CascadeSampling:
    """A sampling object with this shift, for an object patch."""
    sampling = CascadeSampling()
    sampling.set_parameters(shift)
    return sampling


class CascadeModel(SaysWhatIsMissing, comfy.model_base.BaseModel):
    """What both stages share: the official sampling, output checks and true memory estimates."""

    stage, kind = "Stage C", "stage_c"

    def __init__(self, model_config: Any, net: type[torch.nn.Module], device: torch.device | None = None):
        kinds = comfy.model_base.ModelType
        # By its own type the host would first make the sampling that we replace, at ten thousand calls a load.
        comfy.model_base.BaseModel.__init__(self, model_config, kinds.EPS, device=device, unet_model=net)
        self.model_type, self.model_sampling = kinds.STABLE_CASCADE, CascadeSampling(model_config)
        self.watch = FiniteWatch()

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Denoised latents (x0), as the host's; raises ``BadValues`` on NaN or infinity, now or at a later step."""
        out = super().apply_model(x, t, *args, **kwargs)
        if not self.watch.note(out):
            self.check_finite_run(x, kwargs)
        return out

    def settle(self) -> None:
        """Raise ``BadValues`` if any step of the run that ends gave NaN or infinity."""
        if not self.watch.settle():
            self.check_finite_run()

    def check_finite_run(self, x: Tensor | None = None, conditions: dict[str, Any] | None = None) -> None:
        """Raise the sentence about NaN: of what the stage was given, where that is to blame, or of the stage."""
        if x is not None:
            check_given(self.stage, x, conditions or {})
        raise blame(self.stage, self.get_dtype_inference())

    def memory_required(self, input_shape: Any, cond_shapes: Any = {}) -> float:  # noqa: B006 - the host's signature
        """Bytes that a forward pass takes beside the weights, counted by the network itself."""
        dtype = comfy.model_management.dtype_size(self.get_dtype_inference())
        height, width = input_shape[-2:]
        return float(self.diffusion_model.activation_memory(input_shape[0], height, width, dtype))

    def state_dict_for_saving(self, unet_state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What the host saves; sizes that were never published carry their configuration as one small tensor."""
        config = self.diffusion_model.config
        if not is_published(self.kind, config):
            unet_state_dict = {**unet_state_dict, MARKER: marker_tensor(self.kind, config)}
        return super().state_dict_for_saving(unet_state_dict, *args, **kwargs)


class CascadePrior(CascadeModel, comfy.model_base.StableCascade_C):
    """Stage C: text and image conditions → the 16-channel latent."""

    stage, kind = "Stage C", "stage_c"

    def __init__(self, model_config: Any, device: torch.device | None = None):
        CascadeModel.__init__(self, model_config, HostStageC, device)
        native = self.diffusion_model.config.native_compression
        self.latent_format.spacial_downscale_ratio = count_host_ratio(native)

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs.get("transformer_options", {})
        if max(x.shape[-2:]) > LARGEST_UNASKED_GRID and not options.get(OWN_SAMPLER):
            raise WrongInput(
                f"Stage C was asked for a grid of {x.shape[-1]}x{x.shape[-2]} cells. A Stage C latent has about one "
                "cell for 42 pixels (24x24 for 1024x1024): this looks like a Stage B latent (one cell for 4 pixels) "
                "wired into the Stage C sampler. Wire the canvas node's Stage C latent here."
            )
        return super().apply_model(x, t, *args, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """What Stage C is told by a conditioning; raises :class:`WrongInput` for that of another model."""
        config = self.diffusion_model.config
        pooled = expect_pooled_text(kwargs, "Stage C", config.c_clip_text_pooled)
        out = {"clip_text_pooled": comfy.conds.CONDRegular(pooled)}
        out["clip_img"] = comfy.conds.CONDRegular(join_image_embeds(kwargs.get(PICTURES_KEY), config.c_clip_img))
        text = kwargs.get("cross_attn")
        if text is not None:
            if text.shape[-1] != config.c_clip_text:
                raise WrongInput(
                    f"Stage C got text tokens {text.shape[-1]} wide; this model needs {config.c_clip_text}. The prompt "
                    "was encoded by another model's text encoder: use the CLIP output of the Stable Cascade loader."
                )
            # Core's CONDCrossAttn repeats the shorter of two prompts, which here would count its tokens twice.
            out["clip_text"] = comfy.conds.CONDRegular(text)
            out.update(make_regional_conds(text, pooled, kwargs, config))
        return move_conds(out, kwargs.get("device"))


def move_conds(conds: dict[str, comfy.conds.CONDRegular], device: Any) -> dict[str, comfy.conds.CONDRegular]:
    """``conds`` on ``device``, once a run: the host would copy them there at every step."""
    if device is not None:
        for cond in conds.values():
            cond.cond = cond.cond.to(device) if torch.is_tensor(cond.cond) else cond.cond
    return conds


def make_regional_conds(
    text: Tensor, pooled: Tensor, kwargs: dict[str, Any], config: StageCConfig
) -> dict[str, comfy.conds.CONDRegular]:
    """The conditions of regional prompts and of token weights, where the conditioning has them."""
    regions, out = kwargs.get(REGIONS_KEY), {}
    weights = join_token_weights(text, kwargs.get(WEIGHTS_KEY), regions)
    if weights is not None:
        out["text_weights"] = comfy.conds.CONDRegular(weights.to(text.device))
    if regions is not None:
        out.update(make_region_conds(text, pooled, kwargs.get(PICTURES_KEY), regions, kwargs["noise"], config))
    return out


class CONDPrior(comfy.conds.CONDRegular):
    """A Stage C latent that is cropped together with the Stage B area it belongs to.

    The network stretches the prior over its grid with aligned corners, so the crop samples the whole prior at the
    positions of the area's cells: an area sees exactly what it would see inside the whole picture.
    """

    def __init__(self, cond: Tensor, grid: tuple[int, int], least: int = 1):
        super().__init__(cond)
        self.grid, self.least = grid, least

    def _copy_with(self, cond: Tensor) -> CONDPrior:
        return type(self)(cond, self.grid, self.least)

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> CONDPrior:
        """As the host's, cropped to the ``area`` of a part of the picture."""
        whole = super().process_cond(batch_size, area=area, **kwargs)
        if area is None or tuple(area[:2]) == self.grid:
            return whole
        return self._copy_with(crop_prior(whole.cond, self.grid, area, self.least))


class CascadeDecoder(CascadeModel, comfy.model_base.StableCascade_B):
    """Stage B: a Stage C latent and pooled text → the latent of Stage A."""

    stage, kind = "Stage B", "stage_b"

    def __init__(self, model_config: Any, device: torch.device | None = None):
        CascadeModel.__init__(self, model_config, HostStageB, device)

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """What Stage B is told by a conditioning; raises :class:`WrongInput` for that of another model."""
        config = self.diffusion_model.config
        out = {"clip": comfy.conds.CONDRegular(expect_pooled_text(kwargs, "Stage B", config.c_clip))}
        noise = kwargs["noise"]
        prior = kwargs.get("stable_cascade_prior")
        if prior is None:
            if kwargs.get("prompt_type") == "positive":
                log.warning(
                    "Stage B got a prompt without a Stage C latent and will paint something that no prior guides. Wire "
                    "the prompt through Cascade Decoder Conditioning, or use Sample Stage B."
                )
            cells = [max(1, side * 4 // 42) for side in noise.shape[-2:]]  # the usual size, so that it can be batched
            prior = torch.zeros((1, config.c_effnet, *cells))
        if prior.ndim != 4 or prior.shape[1] != config.c_effnet:
            raise WrongInput(
                f"Stage B got a prior of shape {tuple(prior.shape)}; it needs the Stage C latent, (batch, "
                f"{config.c_effnet}, height, width). Wire the output of the Stage C sampler into 'prior'."
            )
        grid = (int(noise.shape[-2]), int(noise.shape[-1]))
        check_aspect(prior.shape[2:], grid)
        out["effnet"] = CONDPrior(prior.to(device=noise.device), grid, self.diffusion_model.least_cells)
        return move_conds(out, kwargs.get("device"))


def check_aspect(prior: Sequence[int], grid: Sequence[int]) -> None:
    """Refuse a Stage C latent (rows, columns) that no picture of Stage B's ``grid`` has: it would be stretched.

    What the rounding to whole cells explains, one cell more or less a side, is let pass.
    """
    least = max(side / (cells + 1) for side, cells in zip(grid, prior))
    most = min(side / (cells - 1) if cells > 1 else math.inf for side, cells in zip(grid, prior))
    if least >= most:
        (rows, columns), (height, width) = prior, grid
        raise WrongInput(
            f"Stage B got a latent of {width} x {height} ({4 * width} x {4 * height} px) for a Stage C latent of "
            f"{columns} x {rows} cells: their aspects differ, and the picture would be stretched. Leave 'latent' of "
            "Sample Stage B unconnected, or use the Stage B latent of the canvas that Stage C was sampled on."
        )


class PriorConfig(comfy.supported_models.Stable_Cascade_C):
    """Model configuration of Stage C; fp16 is offered because our network keeps its residuals in fp32 there."""

    def get_model(self, state_dict: Any, prefix: str = "", device: torch.device | None = None) -> CascadePrior:
        """The host's model of a Stage C."""
        return CascadePrior(self, device=device)


class DecoderConfig(comfy.supported_models.Stable_Cascade_B):
    """Model configuration of Stage B."""

    def get_model(self, state_dict: Any, prefix: str = "", device: torch.device | None = None) -> CascadeDecoder:
        """The host's model of a Stage B."""
        return CascadeDecoder(self, device=device)
