"""Regional prompts and windows: who hears what, and that saying nothing changes nothing."""

from __future__ import annotations

import pytest
import torch
from tiny import relative, tiny_net
from torch import Tensor

from cascade_studio.stages.attention.layers import Changes, LayeredHooks, own_share
from cascade_studio.stages.attention.regions import EVERYONE, Layout, RegionLayer, weights_of
from cascade_studio.stages.attention.windows import WindowLayer, cut_side
from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.nets.backend import torch_attention

LEFT = torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = tiny_net("stage_c_tiny").config
    return {
        "x": torch.randn(1, 16, 8, 8),
        "r": torch.tensor([0.6]),
        "clip_text": torch.randn(1, 12, net.c_clip_text),
        "clip_text_pooled": torch.randn(1, 2, net.c_clip_text_pooled),
        "clip_img": None,
        "sca": None,
        "crp": None,
        "control": None,
    }


def denoised(given: dict, *layers, **changes) -> Tensor:
    net = tiny_net("stage_c_tiny", **changes)
    with torch.inference_mode():
        return net(**given, hooks=LayeredHooks(Changes(layers), torch_attention))


def region(weights: Tensor, text: tuple[int, int] = (7, 5)) -> RegionLayer:
    return RegionLayer(weights, Layout(text, 4))


# Weights


def test_weights_of_regions():
    weights = weights_of([LEFT, 1 - LEFT], [1.0, 0.5], (4, 4), True, [False, False])
    assert weights.shape == (1, 4, 4, 4) and torch.equal(weights[0, 3], torch.ones(4, 4))
    assert torch.equal(weights[0, 0], torch.ones(4, 4))
    assert torch.equal(weights[0, 1, :, :2], torch.ones(4, 2)) and not weights[0, 1, :, 2:].any()
    assert torch.equal(weights[0, 2, :, 2:], torch.full((4, 2), 0.5))


def test_the_base_is_heard_where_no_region_is():
    weights = weights_of([LEFT * 0.75], [3.0], (8, 8), False, [False])
    torch.testing.assert_close(weights[0, 0], 1 - LEFT[0] * 0.75)


def test_masks_of_different_batches():
    assert weights_of([LEFT.expand(3, -1, -1), LEFT], [1, 1], (8, 8), True, [False] * 2).shape[0] == 3
    with pytest.raises(WrongInput, match=r"\[3, 2\]"):
        weights_of([LEFT.expand(3, -1, -1), LEFT.expand(2, -1, -1)], [1, 1], (8, 8), True, [False] * 2)
    with pytest.raises(WrongInput, match="at least one region"):
        weights_of([], [], (8, 8), True, [])


def test_owners_follow_the_tokens():
    assert Layout((2, 1), 2).owners() == [0, 0, 1, 0, 0, 1, 1]
    assert Layout((2, 1), 2, (EVERYONE, 1)).owners() == [0, 0, 1, 0, 0, 1, 1, -1, -1, 1, 1]


def test_image_prompts_of_the_whole_picture():
    """They are heard where no region has its own instead; regions without leave them as they are."""
    weights = weights_of([LEFT * 0.75, 1 - LEFT], [3.0, 1.0], (8, 8), True, [True, False])
    torch.testing.assert_close(weights[0, -1], 1 - LEFT[0] * 0.75)
    assert torch.equal(weights[0, 0], torch.ones(8, 8))


# The mask in the network


def test_everything_heard_everywhere_changes_nothing():
    given = inputs()
    assert relative(denoised(given, region(torch.ones(1, 2, 8, 8))), denoised(given)) <= 1e-5


def test_an_unheard_region_is_not_there():
    given = inputs()
    weights = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])[None]
    base = {**given, "clip_text": given["clip_text"][:, :7], "clip_text_pooled": given["clip_text_pooled"][:, :1]}
    result = denoised(given, region(weights))
    assert relative(result, denoised(base)) <= 1e-5
    assert relative(result, denoised(given)) > 1e-3


def test_an_image_prompt_everywhere_is_one_of_the_whole_picture():
    """A region that replaces the empty image prompt in all cells gives what its pictures give alone."""
    given, pictures = inputs(), torch.randn(1, 2, tiny_net("stage_c_tiny").config.c_clip_img)
    empty = torch.zeros_like(pictures[:, :1])
    weights = torch.stack([torch.ones(8, 8), torch.ones(8, 8), torch.zeros(8, 8)])[None]
    layer = RegionLayer(weights, Layout((7, 5), 4, (EVERYONE, 1, 1)))
    alone = denoised({**given, "clip_img": pictures})
    result = denoised({**given, "clip_img": torch.cat([empty, pictures], dim=1)}, layer)
    assert relative(result, alone) <= 1e-5
    assert relative(denoised({**given, "clip_img": torch.cat([empty, pictures], dim=1)}), alone) > 1e-3


@pytest.mark.parametrize("switch", [False, True])
def test_a_region_acts_on_its_own_cells_first(switch):
    """Of a single attention, only the region's own cells change with its prompt."""
    given = inputs()
    other = {**given, "clip_text": torch.cat([given["clip_text"][:, :7], -given["clip_text"][:, 7:]], dim=1)}
    weights = torch.cat([torch.ones(1, 1, 8, 8), LEFT[:, None]], dim=1)
    changes = {"switch_level": (switch,)}
    before, after = (denoised(each, region(weights), **changes) for each in (given, other))
    difference = (after - before).abs().mean(dim=(0, 1, 2))
    assert difference[:4].mean() > 1.5 * difference[4:].mean() > 0


def test_own_cells_only_in_one_attention():
    layer, place = region(torch.cat([torch.ones(1, 1, 8, 8), LEFT[:, None]], dim=1)), Spot((8, 8))
    q, k = torch.randn(1, 64, 128), torch.randn(1, 64 + 24, 128)
    v = k.clone()
    changed = v.clone()
    changed[:, 64 + 7 : 64 + 12] += 1  # the region's text tokens

    def attend(values: Tensor) -> Tensor:
        return layer.attend(
            place, q, k, values, 64, None, lambda q, k, v, n, mask: torch_attention(q, k, v, 2, mask=mask)
        )

    difference = (attend(changed) - attend(v)).abs().amax(dim=2).view(8, 8)
    assert difference[:, :4].min() > 0 and difference[:, 4:].max() == 0


class Spot:
    """As much of a place as a layer reads."""

    def __init__(self, grid: tuple[int, int], number: int = 0):
        self.grid, self.number, self.heads = grid, number, 2


# The joint softmax in two halves


@pytest.mark.parametrize("masked", [False, True])
def test_two_halves_make_the_joint_attention(masked):
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 600, 64), torch.randn(2, 40, 64), torch.randn(2, 40, 64)
    mask = torch.randn(2, 600, 40) if masked else None
    parts = [None if mask is None else mask[..., part] for part in (slice(0, 30), slice(30, None))]
    own = torch_attention(q, k[:, :30], v[:, :30], 2, mask=parts[0]).unflatten(-1, (2, -1))
    rest = torch_attention(q, k[:, 30:], v[:, 30:], 2, mask=parts[1]).unflatten(-1, (2, -1))
    share = own_share(q, k, 2, 30, mask)
    joint = (own * share + rest * (1 - share)).flatten(-2)
    torch.testing.assert_close(joint, torch_attention(q, k, v, 2, mask=mask), rtol=0, atol=1e-5)


# Windows


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("length, window", [(24, 12), (25, 8), (100, 33), (7, 9), (5, 1)])
def test_cuts_cover_a_side_once(length, window, shifted):
    found = cut_side(length, window, shifted)
    assert [cell for first, last in found for cell in range(first, last)] == list(range(length))
    assert max(last - first for first, last in found) <= window + 1


def test_windows_larger_than_the_grid_change_nothing():
    given = inputs()
    assert torch.equal(denoised(given, WindowLayer(8)), denoised(given))
    assert relative(denoised(given, WindowLayer(4)), denoised(given)) > 1e-3


def test_cells_see_their_window_and_the_prompt_alone():
    q, k = torch.randn(1, 64, 128), torch.randn(1, 64 + 5, 128)
    layer = WindowLayer(4, shift=False)

    def attend(values: Tensor) -> Tensor:
        return layer.attend(
            Spot((8, 8)), q, k, values, 64, None, lambda q, k, v, n, mask: torch_attention(q, k, v, 2, mask=mask)
        )

    cell, prompt = k.clone(), k.clone()
    cell[:, 0] += 1
    prompt[:, -1] += 1
    difference = (attend(cell) - attend(k)).abs().amax(dim=2).view(8, 8)
    assert difference[:4, :4].min() > 0 and difference[4:].max() == 0 and difference[:, 4:].max() == 0
    assert (attend(prompt) - attend(k)).abs().amax(dim=2).min() > 0


def test_regions_and_windows_together():
    """The mask of a region reaches every window: unheard regions are not there."""
    given = inputs()
    weights = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])[None]
    base = {**given, "clip_text": given["clip_text"][:, :7], "clip_text_pooled": given["clip_text_pooled"][:, :1]}
    assert relative(denoised(given, WindowLayer(4), region(weights)), denoised(base, WindowLayer(4))) <= 1e-5
