"""The callback of our samplers: progress, and the picture as it comes."""

from __future__ import annotations

from typing import Any

import comfy.utils
import latent_preview
from torch import Tensor

from ..report.state import find_choice


def show_steps(model: Any, steps: int) -> Any:
    """The host's callback; where nobody has chosen how to preview (its own default is not at all), with a preview."""
    if latent_preview.args.preview_method != latent_preview.LatentPreviewMethod.NoPreviews or find_choice() == "none":
        return latent_preview.prepare_callback(model, steps)
    form, bar = model.model.latent_format, comfy.utils.ProgressBar(steps)
    previewer = latent_preview.Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
    )

    def show(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        bar.update_absolute(step + 1, total, previewer.decode_latent_to_preview_image("JPEG", x0))

    return show
