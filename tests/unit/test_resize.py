"""A Stage C latent on a larger grid shows the same picture in the same place."""

from __future__ import annotations

import pytest
import torch

from cascade_studio.stages.inputs.canvas import Canvas, plan_canvas
from cascade_studio.stages.inputs.resize import MODES, enlarge_canvas, resample_prior


def ramp(canvas: Canvas) -> torch.Tensor:
    """The place of every cell in the picture, (1, 2, h, w): y and x from 0 to 1 between the picture's borders."""
    axes = []
    for cells, padded, first, last in (
        (canvas.prior_height, canvas.padded_height, canvas.crop[1], canvas.crop[3]),
        (canvas.prior_width, canvas.padded_width, canvas.crop[0], canvas.crop[2]),
    ):
        axes.append(((torch.arange(cells) + 0.5) * padded / cells - first) / (last - first))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize(
    "size, factor, compression",
    [((1000, 1000), 2.0, None), ((1024, 600), 1.5, None), ((777, 1301), 2.2, 64.0), ((1024, 1024), 1.0, 32.0)],
)
def test_every_cell_stays_at_its_place(size, factor, compression, mode):
    source = plan_canvas(*size)
    target = enlarge_canvas(source, factor, compression)
    assert (target.width, target.height) == tuple(round(side * factor) for side in size)
    moved, expected = resample_prior(ramp(source), source, target, mode), ramp(target)
    assert moved.shape[2:] == target.prior_shape()[2:]
    cell = 1 / min(source.prior_width, source.prior_height)
    allowed = {"bilinear": 1e-3, "bicubic": 0.1}[mode] * cell  # PyTorch's cubic bends a straight line a little
    torch.testing.assert_close(moved[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], rtol=0, atol=allowed)


@pytest.mark.parametrize("compression, cells", [(None, 24), (21.33, 48), (64.0, 16)])
def test_a_larger_picture_keeps_a_compression_that_was_asked_for(compression, cells):
    source = plan_canvas(512, 512, compression)
    assert enlarge_canvas(source, 2.0).prior_width == cells
    assert enlarge_canvas(source, 2.0, 32.0).prior_width == 32


def test_nearest_takes_the_cell_below():
    source = plan_canvas(1024, 1024)
    target = enlarge_canvas(source, 2.0)
    samples = torch.randn(2, 16, 24, 24)
    moved = resample_prior(samples, source, target, "nearest-exact")
    assert target.prior_width == 48
    assert torch.equal(moved, samples.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_same_canvas_is_a_copy():
    canvas, samples = plan_canvas(640, 448), torch.randn(1, 16, 11, 15)
    moved = resample_prior(samples, canvas, canvas)
    assert torch.equal(moved, samples) and moved is not samples


def test_bicubic_keeps_more_contrast_than_bilinear():
    torch.manual_seed(0)
    source, samples = plan_canvas(1024, 1024), torch.randn(1, 16, 24, 24)
    target = enlarge_canvas(source, 1.7)
    sharp, soft = (resample_prior(samples, source, target, mode).std() for mode in MODES[:2])
    assert sharp > soft
