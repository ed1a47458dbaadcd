"""Hints: pictures on their canvas, inpaint packing, borders, identity maps; and how control maps are weighted."""

from __future__ import annotations

import pytest
import torch
from measured import measured_peak
from torch.nn import functional as F

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs import hints, masks
from cascade_studio.stages.inputs.canvas import MAX_SIDE, plan_canvas
from cascade_studio.stages.inputs.control_rules import BlockWeights, check_fit, check_hint, parse_curve
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig


def ramp(height: int, width: int) -> torch.Tensor:
    """(1, 2, H, W): the position of each pixel's middle, across and down."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


# Onto the canvas


def test_a_picture_of_the_canvas_size():
    """Padded as the picture nodes pad it and resized as officially: short side 768 of 1024 is bilinear, antialiased."""
    image, canvas = torch.rand(1, 3, 1024, 1024), plan_canvas(1024, 1024)
    expected = F.interpolate(image, (768, 768), mode="bilinear", antialias=True)
    assert torch.equal(hints.lay_on_canvas(image, canvas), expected)
    small = torch.rand(2, 3, 768, 768)
    assert torch.equal(hints.lay_on_canvas(small, canvas), small), "the size that is read already"


@pytest.mark.parametrize("width, height", [(1000, 610), (333, 777), (64, 200)])
def test_padding_keeps_the_picture_in_its_place(width, height):
    """A picture pixel lands where the canvas has it, also when the picture comes at half the size."""
    canvas = plan_canvas(width, height)
    left, top, _, _ = canvas.crop
    across, down = canvas.encoder_size
    for scale in (1.0, 0.5):
        size = max(1, round(height * scale)), max(1, round(width * scale))
        placed = hints.lay_on_canvas(ramp(*size) / scale, canvas)[0]
        assert tuple(placed.shape) == (2, down, across)
        x = (torch.arange(across) + 0.5) * canvas.padded_width / across - left
        y = (torch.arange(down) + 0.5) * canvas.padded_height / down - top
        inside_x, inside_y = ((axis > 6) & (axis < most - 6) for axis, most in ((x, width), (y, height)))
        tolerance = 1.5 / scale
        assert (placed[0, down // 2] - x)[inside_x].abs().max() < tolerance
        assert (placed[1, :, across // 2] - y)[inside_y].abs().max() < tolerance


def test_another_aspect_is_cropped_from_the_middle():
    canvas = plan_canvas(1024, 1024)
    placed = hints.lay_on_canvas(ramp(100, 300), canvas, size=(100, 100))
    assert torch.equal(placed, ramp(100, 300)[..., 100:200])
    nearest = hints.lay_mask_on_canvas((ramp(100, 300)[:, 0] > 120).float(), canvas)
    assert set(nearest.unique().tolist()) == {0.0, 1.0} and nearest.shape[-2:] == (768, 768)


# Super-resolution


@pytest.mark.parametrize("side, expected", [(768, 2048), (384, 1024), (1024, 2728)])
def test_enlarged_squares(side, expected):
    """The official sizes; whole cells are neither padded nor resized."""
    canvas = hints.plan_enlarged(side, side)
    assert (canvas.width, canvas.height, canvas.padded_width) == (expected, expected, expected)
    assert canvas.prior_width == canvas.prior_height == side // 16
    image = torch.rand(1, 3, side, 64)
    assert hints.pad_to_cells(image) is image


@pytest.mark.parametrize("width, height", [(700, 500), (1000, 333), (97, 640)])
def test_enlarged_other_sizes(width, height):
    """The picture lies in the padded canvas where its pixels lie among those that the encoder reads."""
    canvas = hints.plan_enlarged(width, height)
    cells = hints.pad_to_cells(ramp(height, width))
    columns, rows = cells.shape[-1] // 32, cells.shape[-2] // 32
    assert (canvas.prior_width, canvas.prior_height) == (2 * columns, 2 * rows) and canvas.stretch <= 0.005
    assert abs(canvas.width / width / (8 / 3) - 1) < 0.06
    left, top, right, bottom = canvas.crop
    scale = canvas.padded_width / cells.shape[-1]
    assert abs(left / scale - (cells.shape[-1] - width) // 2) < 1
    assert abs(top / scale - (cells.shape[-2] - height) // 2) < 1
    assert right <= canvas.padded_width and bottom <= canvas.padded_height


# Inpainting and outpainting


def test_inpaint_packing():
    """White and 1 where the mask says so, the picture and 0 elsewhere; a mask is boolean."""
    image, mask = torch.rand(2, 3, 4, 5), torch.zeros(1, 1, 4, 5)
    mask[..., 1:3, 2:] = 0.6
    mask[..., 0, 0] = 0.5
    packed, before = hints.pack_inpaint(image, mask), image.clone()
    inside = torch.zeros(4, 5, dtype=torch.bool)
    inside[1:3, 2:] = True
    assert packed.shape == (2, 4, 4, 5) and torch.equal(image, before)
    assert (packed[..., inside] == 1).all()
    assert torch.equal(packed[:, :3][..., ~inside], image[..., ~inside]) and not packed[:, 3][..., ~inside].any()


@pytest.mark.parametrize("pixels", [1, 5, 20])
def test_growing_is_about_round(pixels):
    mask = torch.zeros(1, 61, 71)
    mask[..., 30, 35] = 1
    found = masks.grow_octagon(mask, pixels)[0]
    y, x = torch.meshgrid(torch.arange(61) - 30, torch.arange(71) - 35, indexing="ij")
    distance = (x**2 + y**2).float().sqrt()
    assert found[30].sum() == found[:, 35].sum() == 2 * pixels + 1
    assert found[distance <= 0.9 * pixels].all() and not found[distance > 1.1 * pixels + 0.5].any()
    assert torch.equal(masks.grow_octagon(masks.grow_octagon(mask, pixels), -pixels), mask)
    assert masks.grow_octagon(mask, 0) is mask


def test_outpaint_borders():
    image, mask = torch.rand(1, 3, 4, 6), torch.zeros(1, 1, 4, 6)
    mask[..., 2, 2] = 1
    sides = hints.complete_sides(6, 4, (1, 0, 2, 0), 12, 7)
    assert sides == (2, 1, 4, 2)
    picture, new = hints.add_borders(image, mask, sides)
    assert picture.shape == (1, 3, 7, 12) and new.shape == (1, 1, 7, 12)
    assert torch.equal(picture[..., 1:5, 2:8], image) and torch.equal(new[..., 1:5, 2:8], mask)
    assert new.sum() == 7 * 12 - 4 * 6 + 1 and (picture.amin(1)[new[:, 0] == 1][1:] == 1).any()
    assert hints.complete_sides(6, 4, (3, 3, 3, 3)) == (3, 3, 3, 3)
    with pytest.raises(WrongInput, match=f"{MAX_SIDE} px a side"):
        hints.complete_sides(6, 4, (MAX_SIDE, 0, 0, 0))
    with pytest.raises(WrongInput, match="8 x 4 px, but a canvas of 7 x 4 px"):
        hints.complete_sides(6, 4, (2, 0, 0, 0), 7)


# Identity


def test_identity_map():
    """The official painting: boxes over 32 rounded, one cell at least, vectors of length 1, later faces on top."""
    canvas = plan_canvas(1024, 1024)
    boxes = torch.tensor([[0.0, 0, 512, 256], [1020, 1020, 1024, 1024], [256, 128, 600, 300]])
    cells = hints.find_face_cells(boxes, 1024, 1024, canvas)
    assert cells == [(0, 0, 12, 6), (23, 23, 24, 24), (6, 3, 14, 7)]
    painted = hints.paint_identities(cells, 3 * torch.eye(3, 5), canvas)
    assert painted.shape == (1, 5, 24, 24)
    assert painted[0, :, 1, 1].tolist() == [1, 0, 0, 0, 0] and painted[0, :, 5, 8].tolist() == [0, 0, 1, 0, 0]
    assert painted[0, 1].sum() == 1 and painted.sum() == 12 * 6 - 6 * 3 + 8 * 4 + 1 and not painted[0, :, 20, 2].any()
    half = hints.find_face_cells(boxes / 2, 512, 512, canvas)
    assert half == cells, "boxes are in the picture's own pixels"
    with pytest.raises(WrongInput, match="identity vector"):
        hints.paint_identities(cells, torch.zeros(3, 5), canvas)


def test_faces_of_a_cropped_picture():
    """The canvas shows the middle third of a wide picture."""
    canvas = plan_canvas(1024, 1024)
    cells = hints.find_face_cells(torch.tensor([[1024.0, 0, 2048, 1024], [0, 0, 100, 100]]), 3072, 1024, canvas)
    assert cells == [(0, 0, 24, 24), (0, 0, 1, 2)]


def test_the_largest_and_most_central_faces():
    size = torch.tensor([40.0, 50, 60, 30, 20])
    left = torch.tensor([480.0, 0, 450, 500, 490])
    boxes = torch.stack([left, left, left + size, left + size], 1)
    assert set(hints.choose_faces(boxes, 1000, 1000).tolist()) == {0, 2, 3, 4}
    assert hints.choose_faces(boxes[:2], 1000, 1000).tolist() == [0, 1]


def test_identity_picture():
    image = torch.full((1, 3, 96, 96), 0.5)
    tinted = hints.tint_faces(image, [(1, 0, 3, 2)])
    assert torch.equal(tinted[0, :, 0, 0], image[0, :, 0, 0]) and tinted[0, 0, 5, 40] > tinted[0, 2, 5, 40]
    assert not torch.equal(image, tinted) and (image == 0.5).all()


# Weights and checks


@pytest.mark.parametrize(
    "weights, expected",
    [
        (BlockWeights(), [1, 1, 1, 1, 1]),
        (BlockWeights(2.0, 0.0), [2, 2, 2, 0, 0]),
        (BlockWeights(curve=(1, 0)), [1, 0.75, 0.5, 0.25, 0]),
        (BlockWeights(curve=(0, 1, 0)), [0, 0.5, 1, 0.5, 0]),
        (BlockWeights(2.0, 1.0, (0.5,)), [1, 1, 1, 0.5, 0.5]),
    ],
)
def test_block_weights(weights, expected):
    assert [weights.at(block, 5) for block in range(5)] == pytest.approx(expected)
    assert weights.neutral == (expected == [1] * 5)


def test_curves():
    assert parse_curve(" 1, 0.5;".replace(";", ",0 ")) == (1.0, 0.5, 0.0) and parse_curve("  ") == ()
    with pytest.raises(WrongInput, match="'1, strong'"):
        parse_curve("1, strong")


@pytest.mark.parametrize("c_in, fits", [(1, {1, 3}), (3, {1, 3}), (4, {4}), (16, {16}), (512, {512}), (7, {7})])
def test_hints_of_other_nets(c_in, fits):
    for channels in (1, 3, 4, 7, 16, 512):
        if channels in fits:
            check_hint(ControlNetConfig(c_in=c_in), channels)
        else:
            with pytest.raises(WrongInput, match=f"hint of {channels} channels.*needs.*{c_in} channels.*Wire"):
                check_hint(ControlNetConfig(c_in=c_in), channels)


def test_models_of_other_sizes():
    check_fit(ControlNetConfig(), (2048,) * 64)
    with pytest.raises(WrongInput, match="2048 channels, but this Stage C is 1536 wide"):
        check_fit(ControlNetConfig(), (1536,) * 32)
    with pytest.raises(WrongInput, match="ResBlock 63, but this Stage C has 32"):
        check_fit(ControlNetConfig(), (2048,) * 32)


def test_levels_of_two_widths_are_fed_where_the_maps_fit():
    """Only the width of the blocks that are fed counts."""
    check_fit(ControlNetConfig(c_proj=256, proj_blocks=(1, 3, 4, 6)), (128, *(256,) * 6, 128))
    with pytest.raises(WrongInput, match="256 channels, but this Stage C is 128 wide"):
        check_fit(ControlNetConfig(c_proj=256, proj_blocks=(0, 3)), (128, *(256,) * 6, 128))


MODES = {
    "effnet": ControlNetConfig(c_proj=64, trunk=EncoderConfig(repeats=(1, 1, 1, 1, 1, 1), c_features=64)),
    "large": ControlNetConfig(
        c_in=16, c_proj=64, bottleneck_mode="large", c_large=(4096, 16), blocks_large=1, c_embed=16
    ),
}


@pytest.mark.parametrize("mode, side", [("effnet", 512), ("large", 48)])
def test_memory_estimate(mode, side):
    """Between the memory that the maps really take and twice that."""
    setup = f"""
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig
net = ControlNet({MODES[mode]!r})
def warm(): net(torch.rand(1, net.config.c_in, net.config.cell, net.config.cell))
"""
    used = measured_peak(setup, f"x = torch.rand(1, net.config.c_in, {side}, {side})", "net(x)")
    net = ControlNet(MODES[mode], device="meta")
    assert used <= net.memory(1, side**2, 4) <= 2 * used
