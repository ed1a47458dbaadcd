"""Pictures through a VAE: what the nodes ask of Stage A, the image encoder and the Previewer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ....stages.errors import WrongInput
from ....stages.inputs.canvas import Canvas
from ....stages.inputs.grids import COMPRESSION
from ..out_of_memory import explain_out_of_memory, is_out_of_memory
from ..report.card import StageReport, find_weights_path
from ..report.measure import measure_work
from .vae import StageAVAE, StageCVAE

FALLBACK_TILE = 128
"""Pixels a tile for what did not fit: the margins of smaller ones would outweigh them."""

LESS_MEMORY = (
    "Choose a smaller picture or batch, set vae_device to cpu in the loader, or close other programs that use "
    "the graphics card."
)


def decode(vae: Any, samples: Tensor, tile_size: int = 0) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] from Stage B latents; ``tile_size`` in pixels, 0 decides by memory."""
    image = None
    if not tile_size:
        try:
            image = vae.decode(samples)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    if image is None:  # asked for, or out of memory; the handler's traceback would keep the failed run's tensors alive
        height, width = (4 * side for side in samples.shape[-2:])
        cells = max(1, (tile_size or FALLBACK_TILE) // 4)
        with explain_out_of_memory(f"Stage A, decoding a {width}x{height} picture in tiles,", LESS_MEMORY):
            image = vae.decode_tiled(
                samples, tile_x=cells, tile_y=cells, overlap=0 if isinstance(vae, StageAVAE) else 16
            )
    return image.clamp(0.0, 1.0)


def decode_reported(vae: Any, samples: Tensor, tile_size: int = 0) -> tuple[Tensor, StageReport]:
    """As :func:`decode`, with what it took."""
    with measure_work(vae.patcher.load_device) as taken:
        image = decode(vae, samples, tile_size)
    count, height, width, _ = image.shape
    settings = (("tile_size", tile_size),) if tile_size else ()
    return image, StageReport(
        "Stage A", width, height, count, "px", settings, find_weights_path(vae.patcher)
    ).with_measured(taken)


def encode(vae: Any, image: Tensor) -> Tensor:
    """Stage B latents (B, 4, H/4, W/4) of pictures (B, H, W, 3)."""
    with explain_out_of_memory("Stage A, encoding a picture,", LESS_MEMORY):
        return vae.encode(image)


def preview(vae: Any, samples: Tensor) -> Tensor:
    """Small pictures (B, 8h, 8w, 3) in [0, 1] of Stage C latents (B, 16, h, w)."""
    with explain_out_of_memory("The Previewer", LESS_MEMORY):
        return vae.decode(samples).clamp(0.0, 1.0)


def encode_for_prior(vae: Any, image: Tensor, canvas: Canvas) -> Tensor:
    """The Stage C latent (B, 16, h, w) of a picture (B, H, W, 3) on its canvas, resized bilinearly, antialiased."""
    width, height = canvas.encoder_size
    if tuple(image.shape[1:3]) != (height, width):
        image = F.interpolate(image.movedim(-1, 1), size=(height, width), mode="bilinear", antialias=True).movedim(
            1, -1
        )
    return encode_picture(vae, image.clamp(0.0, 1.0))


def read_compression(vae: Any) -> float | None:
    """Pixels to one cell of the Stage C that an image encoder was made for; None for the published one's."""
    encoder = getattr(vae.first_stage_model, "encoder", None) if isinstance(vae, StageCVAE) else None
    native = None if encoder is None else encoder.config.native_compression
    return None if native == COMPRESSION else native


def encode_picture(vae: Any, image: Tensor) -> Tensor:
    """Stage C latents (B, 16, H/32, W/32) of pictures (B, H, W, 3) as they are."""
    with explain_out_of_memory("The image encoder", LESS_MEMORY):
        return vae.encode(image)


def expect_stage_a(vae: Any, where: str, name: str = "vae") -> None:
    """Refuse a VAE that is not Stage A."""
    if getattr(vae, "latent_channels", None) == 4 and getattr(vae, "downscale_ratio", None) == 4:
        return
    raise WrongInput(
        f"{where} got {describe_vae(vae)} on its '{name}' input. It needs Stage A: wire the 'stage_a' output of "
        "Load Stable Cascade into it."
    )


def expect_stage_c(vae: Any, where: str, name: str = "vae") -> None:
    """Refuse a VAE that is not the image encoder and Previewer."""
    if getattr(vae, "latent_channels", None) == 16 and (
        isinstance(vae, StageCVAE) or hasattr(vae.first_stage_model, "previewer")
    ):
        return
    raise WrongInput(
        f"{where} got {describe_vae(vae)} on its '{name}' input. It needs the image encoder and Previewer: wire the "
        "'stage_c_vae' output of Load Stable Cascade into it."
    )


def describe_vae(vae: Any) -> str:
    """What a VAE is, for a sentence."""
    if vae is None:
        return "nothing (no file for it was chosen in the loader)"
    if isinstance(vae, StageAVAE):
        return "Stage A"
    if isinstance(vae, StageCVAE):
        return "the Stage C VAE (image encoder and Previewer)"
    return f"another model's VAE ({type(getattr(vae, 'first_stage_model', vae)).__name__})"
