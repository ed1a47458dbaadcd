"""Stage A: the Paella VQGAN that turns 4-channel latents into RGB pictures and back, 4 pixels to a cell.

Rampas et al., "A Novel Sampling Scheme for Text- and Image-Conditional Image Synthesis in Quantized Latent Spaces"
(arXiv 2211.07292); key names as in the published ``stage_a.safetensors``. The pipeline uses the continuous latent:
the codebook plays no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import WrongInput
from ..units import CARD_SLACK
from .backend import TORCH, Backend
from .exact_tiles import Grid, largest_window, run_tiled, spans
from .quantizer import Quantized, VectorQuantizer
from .stage_a_blocks import PROCESSOR, Bands, StageAResBlock, choose_bands

ALLOCATOR_SLACK = 1.2  # measured: 1.05 to 1.2 where the allocator returns memory at once, up to 1.7 where it keeps it
DEFAULT_BUDGET = 2**30


@dataclass(frozen=True)
class StageAConfig:
    """Defaults are the published model. A cell of the latent is ``2**levels`` pixels wide."""

    levels: int = 2
    bottleneck_blocks: int = 12
    c_hidden: int = 384
    c_latent: int = 4
    codebook_size: int = 8192
    scale_factor: float = 0.43

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels from the picture's side to the latent's."""
        return tuple(self.c_hidden // 2**i for i in reversed(range(self.levels)))

    @property
    def cell(self) -> int:
        """Pixels a side to one latent cell."""
        return 2**self.levels

    @property
    def head_margin(self) -> int:
        """Cells of context on each side that the layers after the bottleneck need: 1 in the published model."""
        low, high = 0, 2 ** (self.levels - 1) - 1
        for _ in range(self.levels - 1):
            low, high = (low - 2) // 2, (high + 2) // 2  # a 3×3 block, then a 4×4 transposed convolution of stride 2
        return max(-low, high)

    @property
    def decode_margin(self) -> int:
        """Cells of context on each side of a cell that its pixels depend on: 13 in the published model."""
        return self.bottleneck_blocks + self.head_margin

    @property
    def encode_margin(self) -> int:
        """Cells of context on each side of a cell that its latent depends on: 2 (8 pixels) in the published model."""
        low, high = -1, 1
        for _ in range(self.levels - 1):
            low, high = 2 * low - 2, 2 * high + 3  # a 4×4 convolution of stride 2, then a 3×3 block
        return -(-max(-2 * low, 2 * high + 2 - self.cell) // self.cell)


class StageA(nn.Module):
    """Pictures in [0, 1] ↔ continuous latents. Built in eval mode; nothing in it reaches further than ``margins``."""

    def __init__(
        self,
        config: StageAConfig = StageAConfig(),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: Backend = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        at = {"dtype": dtype, "device": device}
        widths, c_latent = config.widths, config.c_latent

        def block(c: int) -> StageAResBlock:
            return StageAResBlock(c, backend, dtype, device)

        self.in_block = nn.Sequential(nn.PixelUnshuffle(2), backend.Conv2d(12, widths[0], kernel_size=1, **at))
        down: list[nn.Module] = [block(widths[0])]
        for c_in, c_out in zip(widths, widths[1:]):
            down += [backend.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1, **at), block(c_out)]
        to_latent = backend.Conv2d(widths[-1], c_latent, kernel_size=1, bias=False, **at)
        self.down_blocks = nn.Sequential(*down, nn.Sequential(to_latent, backend.BatchNorm2d(c_latent, **at)))

        self.vquantizer = VectorQuantizer(config.codebook_size, c_latent, backend, dtype, device)

        up: list[nn.Module] = [nn.Sequential(backend.Conv2d(c_latent, widths[-1], kernel_size=1, **at))]
        up += [block(widths[-1]) for _ in range(config.bottleneck_blocks)]
        for c_in, c_out in zip(widths[::-1], widths[-2::-1]):
            up += [backend.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1, **at), block(c_out)]
        self.up_blocks = nn.Sequential(*up)
        self.out_block = nn.Sequential(backend.Conv2d(widths[0], 12, kernel_size=1, **at), nn.PixelShuffle(2))
        self.eval()

    def encode(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] → continuous (not quantised) latent (B, 4, H/4, W/4).

        Without gradients the work goes in bands of rows, which is exact. Raises :class:`WrongInput` if a side is not
        a multiple of the cell.
        """
        if not _needs_graph():
            return self.encode_tiled(image, tile=max(image.shape))
        self._check(image, 3, self.config.cell)
        return self._encode_window(image)

    def decode(self, latent: Tensor, together: int | None = None) -> Tensor:
        """Latent (B, 4, H, W) → RGB (B, 3, 4H, 4W), unclamped.

        Without gradients the work goes in bands of rows, which is exact, and on a processor image by image; elsewhere
        ``together`` of them at once, or all.
        """
        self._check(latent, self.config.c_latent)
        if _needs_graph():
            x = (latent * self.config.scale_factor).contiguous(memory_format=torch.channels_last)
            return self.out_block(self.up_blocks(x))
        out = self._picture_for(latent, None)
        count = 1 if choose_bands(latent.device) == PROCESSOR else together or len(latent)
        for some, targets in zip(latent.split(count), out.split(count), strict=True):
            self._decode_lean(some, targets)
        return out

    def quantize(self, latent: Tensor) -> Quantized:
        """The nearest codebook vectors to what ``encode`` returns, in the same scale; ``loss`` in the codebook's."""
        found = self.vquantizer(latent * self.config.scale_factor)
        return found._replace(vectors=found.vectors / self.config.scale_factor)

    def decode_tiled(
        self,
        latent: Tensor,
        *,
        tile: int | None = None,
        budget: int = DEFAULT_BUDGET,
        out: Tensor | None = None,
        out_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """``decode`` by windows of at most ``tile`` × ``tile`` cells that overlap by two margins: the same picture.

        Without ``tile`` the windows are what ``budget`` bytes allow, the picture aside. Windows have at least
        ``smallest_tile`` cells. ``device`` is where the network runs (by default where the latent lies); the picture
        goes into ``out`` or to ``out_device``. ``on_tile(done, total)`` follows every tile; what it raises stops it.
        """
        self._check(latent, self.config.c_latent)
        tile = self.decode_tile(budget, latent.element_size()) if tile is None else max(tile, self.smallest_tile)
        grid = Grid.cut(latent.shape[2:], (tile, tile), self.config.decode_margin, 1, self.config.cell)
        out = self._picture_for(latent, out_device) if out is None else out
        return run_tiled(partial(StageA.decode, self), latent, out, grid, device=device, on_tile=on_tile)

    def encode_tiled(
        self,
        image: Tensor,
        *,
        tile: int | None = None,
        budget: int = DEFAULT_BUDGET,
        out: Tensor | None = None,
        out_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """``encode`` by windows at most ``tile`` cells wide and high; see :meth:`decode_tiled`.

        High windows are cut into bands, so a tile as large as the picture is no costlier in memory than a strip.
        """
        self._check(image, 3, self.config.cell)
        height, width = (side // self.config.cell for side in image.shape[2:])
        margin = self.config.encode_margin
        if tile is None:
            cost = partial(self.encode_memory_tiled, image.shape, image.element_size())  # of a processor: the least
            tile = largest_window(budget, cost, smallest=16 * margin)
        bands = choose_bands(image.device if device is None else device)
        window = self._encode_shape(height, width, image.element_size(), tile, bands)
        grid = Grid.cut((height, width), window, margin, self.config.cell, 1)
        if out is None:
            out = image.new_empty(image.shape[0], self.config.c_latent, height, width, device=out_device)
        return run_tiled(self._encode_window, image, out, grid, device=device, on_tile=on_tile)

    @property
    def smallest_tile(self) -> int:
        """Below four margins the context outweighs the tile."""
        return 4 * self.config.decode_margin + 1

    def decode_tile(self, budget: int, dtype_size: int) -> int:
        """The largest ``tile`` whose window decodes within ``budget`` bytes."""

        def cost(side: int) -> int:
            return self.decode_memory((1, self.config.c_latent, side, side), dtype_size)

        return largest_window(budget, cost, self.smallest_tile)

    def decode_memory(
        self, shape: Sequence[int], dtype_size: int, bands: Bands = PROCESSOR, together: int | None = None
    ) -> int:
        """Bytes that :meth:`decode` of a latent (B, 4, H, W) needs without gradients, the picture included."""
        batch, _, height, width = shape
        body = height * width * self.config.c_hidden * dtype_size
        picture = batch * 3 * height * width * self.config.cell**2 * dtype_size
        rows = min(height, self._band_rows(width, self.config.head_margin, dtype_size, bands))
        if bands == PROCESSOR:
            return body + picture + self._band_memory(rows * width, dtype_size)
        map_ = self._wide_bytes(rows * width, dtype_size)
        most = max(bands.memory(body), map_ + bands.memory(map_))
        return int(CARD_SLACK * (picture + (together or batch) * (body + most)))

    def decode_memory_tiled(self, shape: Sequence[int], dtype_size: int, tile: int | None = None) -> int:
        """Bytes that :meth:`decode_tiled` needs with ``tile``, or at the least; the picture included."""
        tile = self.smallest_tile if tile is None else max(tile, self.smallest_tile)
        picture = shape[0] * 3 * shape[2] * shape[3] * self.config.cell**2 * dtype_size
        windows = (spans(side, tile, self.config.decode_margin)[0].last for side in shape[2:])
        return picture + self.decode_memory((1, shape[1], *windows), dtype_size)

    def encode_memory(self, shape: Sequence[int], dtype_size: int, bands: Bands = PROCESSOR) -> int:
        """Bytes that :meth:`encode` of a picture (B, 3, H, W) needs without gradients, the latent included."""
        return self.encode_memory_tiled(shape, dtype_size, max(shape), bands)

    def encode_memory_tiled(
        self, shape: Sequence[int], dtype_size: int, tile: int = 64, bands: Bands = PROCESSOR
    ) -> int:
        """Bytes that :meth:`encode_tiled` needs with ``tile``, the latent included."""
        height, width = (side // self.config.cell for side in shape[2:])
        rows, columns = self._encode_shape(height, width, dtype_size, tile, bands)
        latent = shape[0] * self.config.c_latent * height * width * dtype_size
        return latent + self._band_memory(min(rows, height) * columns, dtype_size, bands)

    def _encode_window(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        return self._run(self.down_blocks, self.in_block(image)) / self.config.scale_factor

    def _decode_lean(self, latent: Tensor, target: Tensor) -> None:
        """The bottleneck in place, the wide layers after it in bands that go straight into the picture."""
        body, bands = 1 + self.config.bottleneck_blocks, choose_bands(latent.device)
        x = (latent * self.config.scale_factor).contiguous(memory_format=torch.channels_last)
        narrow, wide = list(self.up_blocks)[:body], list(self.up_blocks)[body:]
        x = self._run(narrow, x)
        margin = self.config.head_margin
        window = self._band_rows(x.shape[3], margin, x.element_size(), bands), x.shape[3]
        grid = Grid.cut(x.shape[2:], window, margin, 1, self.config.cell)
        run_tiled(lambda band: self.out_block(self._run(wide, band)), x, target, grid, together=len(latent))

    def _run(self, layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        bands = None if _needs_graph() else choose_bands(x.device)
        for layer in layers:
            x = layer.update_(x, bands) if bands and isinstance(layer, StageAResBlock) else layer(x)
        return x

    def _encode_shape(
        self, height: int, width: int, dtype_size: int, tile: int, bands: Bands = PROCESSOR
    ) -> tuple[int, int]:
        """Rows and columns of cells of one window of the encoder."""
        margin = self.config.encode_margin
        columns = min(width, max(tile, 4 * margin + 1))
        return min(columns if tile < height else height, self._band_rows(columns, margin, dtype_size, bands)), columns

    def _band_rows(self, width: int, margin: int, dtype_size: int, bands: Bands = PROCESSOR) -> int:
        """Rows of cells to a band: within ``bands.map``, but never so few that the margins outweigh the work."""
        return max(bands.map // self._wide_bytes(width, dtype_size), 16 * margin, 1)

    def _band_memory(self, cells: int, dtype_size: int, bands: Bands = PROCESSOR) -> int:
        """What one band holds: the widest map, and a block's hidden layer with its input and output beside it."""
        wide = self._wide_bytes(cells, dtype_size)
        return int(ALLOCATOR_SLACK * (wide + bands.memory(wide)))

    def _wide_bytes(self, cells: int, dtype_size: int) -> int:
        """Size of the widest map of the network, at half the picture's resolution."""
        return cells * self.config.widths[0] * (self.config.cell // 2) ** 2 * dtype_size

    def _picture_for(self, latent: Tensor, device: torch.device | str | None) -> Tensor:
        batch, _, height, width = latent.shape
        return latent.new_empty(batch, 3, height * self.config.cell, width * self.config.cell, device=device)

    def _check(self, x: Tensor, channels: int, multiple: int = 1) -> None:
        name = "picture" if channels == 3 else "latent"
        if x.ndim != 4 or x.shape[1] != channels:
            raise WrongInput(
                f"A {name} of shape {tuple(x.shape)} was given to Stage A, which needs (batch, {channels}, height, "
                f"width). Use {'a picture without an alpha channel' if channels == 3 else 'a latent of Stage B'}."
            )
        if x.shape[2] % multiple or x.shape[3] % multiple or not x.numel():
            raise WrongInput(
                f"A {name} of {x.shape[3]}×{x.shape[2]} was given to Stage A, which needs sides that are multiples "
                f"of {multiple}. Crop or pad it."
            )


def _needs_graph() -> bool:
    """Gradients and compilers want the plain network: no writing in place, no loop over bands."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()
