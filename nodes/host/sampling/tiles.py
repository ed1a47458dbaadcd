"""Stage B in tiles or pieces, as wrappers on the MODEL: it works in our samplers and in core's."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ....stages.attention.layers import NO_CHANGES, Changes
from ....stages.attention.tiles import PIECES, TILES, PieceHooks, Tiling, count_piece_elements, run_in_tiles
from ....stages.errors import WrongInput
from ....stages.inputs.canvas import LATENT_PIXELS
from ....stages.nets.memory import activation_memory, pieces_memory
from ..models.hooks import CHANGES_KEY

__all__ = ["METHODS", "PIECES", "TILES", "estimate_tiled_memory", "patch_tiles", "make_tiling"]

METHODS = (PIECES, "tiles, shared norms", "tiles, own norms")
"""What workflows may say. The last two, which were 5 to 8 % off, are done in pieces since these are exact."""

TILING_KEY = "cascade_studio_tiling"
"""Key in ``transformer_options``: the :class:`Tiling` of a model, for its memory estimate."""
WRAPPER = "cascade_studio_tiles"


def make_tiling(method: str, tile: int, overlap: int, batch: int) -> Tiling:
    """A checked tiling; sizes in latents."""
    if method != PIECES and overlap > tile // 2:
        raise WrongInput(
            f"Tiles of {tile * LATENT_PIXELS} px were asked to overlap by {overlap * LATENT_PIXELS} px. The "
            f"overlap can be half a tile at most, {tile * LATENT_PIXELS // 2} px: choose a smaller overlap "
            "or larger tiles."
        )
    return Tiling(method, tile, overlap, batch)


def patch_tiles(model: Any, tiling: Tiling) -> Any:
    """A clone of the Stage B ``model`` that runs by ``tiling`` wherever a latent is larger than a tile."""
    clone = model.clone()
    points = comfy.patcher_extension.WrappersMP
    for kind in (points.DIFFUSION_MODEL, points.PREPARE_SAMPLING):
        clone.remove_wrappers_with_key(kind, WRAPPER)
    clone.add_wrapper_with_key(points.DIFFUSION_MODEL, WRAPPER, TileWrapper(tiling))
    clone.add_wrapper_with_key(points.PREPARE_SAMPLING, WRAPPER, prepare_for_tile)
    clone.model_options.setdefault("transformer_options", {})[TILING_KEY] = tiling
    return clone


class TileWrapper:
    """Surrounds the network: cuts what it is given, and puts together what it gives."""

    def __init__(self, tiling: Tiling):
        self.tiling = tiling

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        r: Tensor,
        context: Tensor | None,
        control: Any,
        options: dict[str, Any] | None,
        **conditions: Any,
    ) -> Tensor:
        net, tiling, options = executor.class_obj, self.tiling, options or {}
        prior = conditions.pop("effnet")

        def call(parts: Tensor, priors: Tensor, count: int, changes: Changes) -> Tensor:
            given = {name: repeat_entries(value, count) for name, value in conditions.items()}
            asked = options if changes is NO_CHANGES else {**options, CHANGES_KEY: changes}
            return executor(parts, repeat_entries(r, count), context, control, asked, effnet=priors, **given)

        if tiling.method == PIECES:
            elements = count_piece_elements(tiling, net.config.c_hidden[0])
            return call(x, prior, 1, Changes(blocks=PieceHooks(elements)))
        return run_in_tiles(call, x, prior, tiling, measure_deepest_cell(net), net.least_cells)


def repeat_entries(value: Any, count: int) -> Any:
    """Every entry of a batch ``count`` times in a row."""
    return value.repeat_interleave(count, 0) if torch.is_tensor(value) and count > 1 else value


def measure_deepest_cell(net: Any) -> int:
    """Latents a side in one cell of Stage B's deepest level."""
    return net.config.patch_size * net.least_cells


def find_tiling(model: Any) -> Tiling | None:
    """The tiling that a node put on this MODEL."""
    return model.model_options.get("transformer_options", {}).get(TILING_KEY)


def estimate_tiled_memory(model: Any, shape: Any) -> float:
    """Bytes beside the weights for a latent of ``shape`` (B, 4, H, W), tiles taken into account."""
    tiling = find_tiling(model)
    if tiling is None:
        return model.model.memory_required(list(shape))
    net, dtype = model.model.diffusion_model, model.model.get_dtype_inference().itemsize
    batch, _, height, width = shape
    strides = net.level_strides
    if tiling.method == PIECES:
        elements = count_piece_elements(tiling, net.config.c_hidden[0])
        return float(
            min(
                pieces_memory(net.config, batch, height, width, dtype, strides, elements),
                net.activation_memory(batch, height, width, dtype),
            )
        )
    step = measure_deepest_cell(net)
    tiles, _ = tiling.cut((height, width), step)
    count = min(tiling.batch, len(tiles))
    return float(activation_memory(net.config, batch * count, tiles[0].height, tiles[0].width, dtype, strides))


def prepare_for_tile(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Lets the host make room for a tile instead of the whole latent: it is told of a smaller one."""
    needed, whole = estimate_tiled_memory(model, noise_shape), model.model.memory_required(list(noise_shape))
    if len(noise_shape) == 4 and needed < whole:
        height = max(1, int(noise_shape[-2] * needed / whole))
        noise_shape = [*noise_shape[:2], height, noise_shape[-1]]
    return executor(model, noise_shape, *args, **kwargs)
