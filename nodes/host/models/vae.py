"""Stage A, and the image encoder with the Previewer, as ComfyUI VAE objects with true memory estimates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ....stages.errors import WrongInput
from ....stages.files import load
from ....stages.nets import encoder, previewer, stage_a
from ....stages.nets.stage_a_blocks import choose_bands
from .backend import backend_for
from .load import Loaded
from .model import check_finite

DECODE_SHARE = 0.7
"""Part of the free memory that one decode may plan for before it is cut into tiles."""

CPU_BUDGET = 2 * 1024**3
"""Bytes one decode may plan for on the processor, where 'free' memory is not a promise."""


class HostStageA(stage_a.StageA):
    """Stage A behind the host's calls: refuses foreign latents, and tiles (which is exact) what would not fit."""

    def decode(self, latent: Tensor) -> Tensor:
        """(B, 4, h, w) → (B, 3, 4h, 4w), unclamped."""
        check_latent(latent, self.config.c_latent)
        budget = decode_budget(latent.device)
        together = self.choose_together(latent.shape, latent.element_size(), latent.device, budget)
        if together:
            return check_finite(super().decode(latent, together), "Stage A", latent.dtype, latent)
        return self.decode_tiled(latent, budget=budget, on_tile=stop_if_interrupted)

    def choose_together(self, shape: Any, dtype_size: int, device: torch.device, budget: int) -> int:
        """How many pictures of a latent's ``shape`` can be decoded at once within ``budget`` bytes; 0 for none."""
        count, bands = shape[0], choose_bands(device)
        while count and self.decode_memory(shape, dtype_size, bands, count) > budget:
            count //= 2
        return count

    def decode_tiled(self, latent: Tensor, **options: Any) -> Tensor:
        """As ``StageA.decode_tiled``; raises ``BadValues`` on NaN or infinity."""
        return check_finite(super().decode_tiled(latent, **options), "Stage A", latent.dtype, latent)

    def encode_tiled(self, image: Tensor, **options: Any) -> Tensor:
        """As ``StageA.encode_tiled``; raises ``BadValues`` on NaN or infinity."""
        return check_finite(super().encode_tiled(image, **options), "Stage A", image.dtype, image)


def decode_budget(device: torch.device) -> int:
    """Bytes that one decode or encode on ``device`` may use."""
    if comfy.model_management.is_device_cpu(device):
        return CPU_BUDGET
    return int(comfy.model_management.get_free_memory(device) * DECODE_SHARE)


def stop_if_interrupted(done: int, total: int) -> None:
    """Stop between tiles when the user asked for it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def check_latent(latent: Tensor, channels: int) -> None:
    """Refuse a latent that is not Stage B's, in plain words."""
    if latent.ndim == 4 and latent.shape[1] == channels:
        return
    given = f"a latent of shape {tuple(latent.shape)}"
    if latent.ndim == 4 and latent.shape[1] == 16:
        given = "a Stage C latent (16 channels)"
    raise WrongInput(
        f"Stage A got {given}; it paints pictures from Stage B latents ({channels} channels). Put the Stage B sampler "
        "between the Stage C sampler and this node, or decode a Stage C latent with the preview decoder."
    )


class StageCCoder(nn.Module):
    """The image encoder and the Previewer as one autoencoder, under the names that the host saves them with."""

    def __init__(self, encoder_net: nn.Module | None, previewer_net: nn.Module | None):
        super().__init__()
        if encoder_net is not None:
            self.encoder = encoder_net
        if previewer_net is not None:
            self.previewer = previewer_net

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, 16, H/32, W/32)."""
        check_encoder(self)
        return check_finite(self.encoder(encoder.normalise(image)), "The image encoder", image.dtype, image)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, 16, h, w) → (B, 3, 8h, 8w), unclamped."""
        if not hasattr(self, "previewer"):
            raise WrongInput(
                "This VAE holds the image encoder only, so it cannot show a Stage C latent. Choose the "
                "Previewer file in the loader."
            )
        if latent.ndim != 4 or latent.shape[1] != self.previewer.config.c_in:
            given = "a Stage B latent (4 channels)" if latent.shape[1] == 4 else f"a latent of {tuple(latent.shape)}"
            raise WrongInput(
                f"The Previewer got {given}; it shows Stage C latents ({self.previewer.config.c_in} "
                "channels). Decode Stage B latents with Stage A."
            )
        return check_finite(self.previewer(latent), "The Previewer", latent.dtype, latent)


def check_encoder(net: nn.Module) -> None:
    """Refuse the network of a Stage C VAE without its image encoder."""
    if not hasattr(net, "encoder"):
        raise WrongInput(
            "This VAE holds the Previewer only, so it cannot encode a picture for Stage C. Choose the "
            "image encoder file (effnet_encoder) in the loader."
        )


class CascadeVAE(comfy.sd.VAE):
    """A VAE of the host with one of our networks inside; every attribute that the host's constructor sets is set."""

    def __init__(
        self,
        net: nn.Module,
        *,
        ratio_down: int,
        ratio_up: int,
        channels: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        disable_dynamic: bool = False,
    ):
        self.memory_used_encode = lambda shape, dtype: 0
        self.memory_used_decode = lambda shape, dtype: 0
        self.downscale_ratio = ratio_down
        self.upscale_ratio = ratio_up
        self.latent_channels = channels
        self.latent_dim = 2
        self.output_channels = 3
        self.pad_channel_value = None
        self.process_input = lambda image: image
        self.process_output = lambda image: image.clamp_(0.0, 1.0)
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.disable_offload = False
        self.not_video = False
        self.size = None
        self.downscale_index_formula = None
        self.upscale_index_formula = None
        self.extra_1d_channel = None
        self.crop_input = True
        self.handles_tiling = False
        self.format_encoded = None
        self.audio_sample_rate = 44100

        self.device = comfy.model_management.vae_device() if device is None else device
        offload_device = comfy.model_management.vae_offload_device()
        self.vae_dtype = dtype
        self.output_device = comfy.model_management.intermediate_device()
        self.first_stage_model = net.eval().requires_grad_(False)
        comfy.model_management.archive_model_dtypes(net)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(net, load_device=self.device, offload_device=offload_device)

    def load_weights(self, loaded: Loaded) -> None:
        """Load the tensors, streamed on hosts that do so."""
        load.fill(
            self.first_stage_model,
            loaded.tensors,
            loaded.kind,
            loaded.name,
            assign=self.patcher.is_dynamic(),
            strict=False,
        )
        self.model_size()


class StageAVAE(CascadeVAE):
    """Stage A: pictures ↔ the latents of Stage B, in exact tiles."""

    def __init__(
        self,
        config: stage_a.StageAConfig,
        dtype: torch.dtype,
        device: torch.device | None,
        operations: Any,
        **patcher: Any,
    ):
        # The host's latent format of Stage B carries the official factor: its wires hold latents without it.
        config = replace(config, scale_factor=1.0)
        net = HostStageA(config, dtype=dtype, backend=backend_for(operations))
        super().__init__(
            net,
            ratio_down=config.cell,
            ratio_up=config.cell,
            channels=config.c_latent,
            dtype=dtype,
            device=device,
            **patcher,
        )
        self.memory_used_decode = self.plan_decode
        self.memory_used_encode = self.plan_encode

    def plan_decode(self, shape: Any, dtype: torch.dtype) -> int:
        """Bytes that decoding a latent of ``shape`` uses, in tiles where the device could not hold it whole."""
        net, size, most = self.first_stage_model, comfy.model_management.dtype_size(dtype), self.most()
        together = net.choose_together(shape, size, self.device, most)
        if together:
            return net.decode_memory(shape, size, choose_bands(self.device), together)
        return net.decode_memory_tiled(shape, size, net.decode_tile(most, size))

    def plan_encode(self, shape: Any, dtype: torch.dtype) -> int:
        """Bytes that encoding a picture of ``shape`` uses."""
        size = comfy.model_management.dtype_size(dtype)
        return self.first_stage_model.encode_memory(shape, size, choose_bands(self.device))

    def most(self) -> int:
        """What a decode may plan for once other models have made room."""
        if comfy.model_management.is_device_cpu(self.device):
            return CPU_BUDGET
        return int(comfy.model_management.get_total_memory(self.device) * DECODE_SHARE)

    def decode_tiled_(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        """The host's tiled decode. Tiles are exact here, so ``overlap`` is only the least of their margins."""
        net, cell = self.first_stage_model, self.first_stage_model.config.cell
        check_latent(samples, net.config.c_latent)
        batch, _, height, width = samples.shape
        out = torch.empty((batch, 3, height * cell, width * cell), device=self.output_device, dtype=self.result_dtype())
        net.decode_tiled(
            samples.to(self.vae_dtype),
            tile=self.window(max(tile_x, tile_y), net.config.decode_margin),
            out=out,
            device=self.device,
            on_tile=report_tiles(),
        )
        return self.process_output(out)

    def encode_tiled_(self, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64) -> Tensor:
        """The host's tiled encode, exact as well."""
        net, cell = self.first_stage_model, self.first_stage_model.config.cell
        batch, _, height, width = pixel_samples.shape
        out = torch.empty(
            (batch, net.config.c_latent, height // cell, width // cell),
            device=self.output_device,
            dtype=self.result_dtype(),
        )
        return net.encode_tiled(
            pixel_samples.to(self.vae_dtype),
            tile=self.window(max(tile_x, tile_y) // cell, net.config.encode_margin),
            out=out,
            device=self.device,
            on_tile=report_tiles(),
        )

    @staticmethod
    def window(cells: int, margin: int) -> int:
        """A tile of ``cells`` with its margins around it."""
        return max(1, cells) + 2 * margin

    def result_dtype(self) -> torch.dtype:
        """The dtype in which the host wants pictures and latents."""
        told = getattr(self, "vae_output_dtype", None)
        return torch.float32 if told is None else told()


def report_tiles() -> Any:
    """A progress bar over tiles, which also stops between them when the user asked for it."""
    progress = comfy.utils.ProgressBar(1)

    def on_tile(done: int, total: int) -> None:
        stop_if_interrupted(done, total)
        progress.update_absolute(done, total)

    return on_tile


class StageCVAE(CascadeVAE):
    """The image encoder (pictures → Stage C latents) and the Previewer (Stage C latents → small pictures)."""

    def __init__(
        self,
        encoder_config: encoder.EncoderConfig | None,
        previewer_config: previewer.PreviewerConfig | None,
        dtype: torch.dtype,
        device: torch.device | None,
        operations: Any,
        **patcher: Any,
    ):
        backend = backend_for(operations)
        nets = [
            None if config is None else build(config, dtype=dtype, backend=backend)
            for build, config in ((encoder.ImageEncoder, encoder_config), (previewer.Previewer, previewer_config))
        ]
        channels = previewer_config.c_in if previewer_config else encoder_config.c_latent
        super().__init__(
            StageCCoder(*nets),
            ratio_down=encoder.CELL,
            ratio_up=previewer.CELL,
            channels=channels,
            dtype=dtype,
            device=device,
            **patcher,
        )
        self.memory_used_encode = self.memory_callback(nets[0])
        self.memory_used_decode = self.memory_callback(nets[1])

    @staticmethod
    def memory_callback(net: nn.Module | None) -> Any:
        """The host's memory callback for one half, from the network's own estimate."""

        def estimate(shape: Any, dtype: torch.dtype) -> int:
            size = comfy.model_management.dtype_size(dtype)
            return net.memory(shape, size) if net is not None else math.prod(shape) * size

        return estimate
