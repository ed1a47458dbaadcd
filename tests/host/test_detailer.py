"""The detailer in the host: new parts where something is marked, the very old pixels everywhere else."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from graphs import check_sentence
from node_inputs import load_control_net
from torch import Tensor
from world import Studio, changed

from cascade_studio.stages.inputs.inpaint import resample_image, resize_image
from cascade_studio.stages.inputs.masks import grow_square

SEED, GROW, FEATHER = 9, 4, 8
KIND = "CascadeStudio_Detailer"
SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")
FACES = ((40, 50, 90, 100), (250, 160, 330, 220))
"""Left, top, right, bottom."""


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 300, 400, 3, generator=torch.Generator().manual_seed(0))


def boxes_mask(*boxes: tuple[int, int, int, int]) -> Tensor:
    mask = torch.zeros(1, 300, 400)
    for left, top, right, bottom in boxes:
        mask[:, top:bottom, left:right] = 1
    return mask


def given(studio: Studio, image: Tensor, **inputs: Any) -> dict[str, Any]:
    parts = studio.parts
    return {
        "image": image,
        "prior": parts.prior,
        "decoder": parts.decoder,
        "stage_a": parts.stage_a,
        "stage_c_vae": parts.stage_c_vae,
        **studio.prompts,
        "seed": SEED,
        "steps": 2,
        "decoder_steps": 1,
        "target_size": 128,
        "grow": GROW,
        "feather": FEATHER,
        **inputs,
    }


def detail(studio: Studio, image: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    return tuple(studio.call(KIND, range(2), **given(studio, image, **inputs)))


@pytest.fixture(scope="module")
def both(studio, image) -> tuple[Tensor, Tensor]:
    return detail(studio, image, mask=boxes_mask(*FACES))


def check_kept(result: Tensor, image: Tensor, mask: Tensor) -> None:
    """What lies beyond the mask and its feather is the same to the bit, and within the mask something is new."""
    reach = grow_square(mask, GROW + FEATHER) > 0
    assert torch.equal(result[~reach], image[~reach])
    assert changed(result[mask > 0], image[mask > 0])


def test_two_spots_change_and_the_rest_is_the_same_to_the_bit(image, both):
    result, where = both
    check_kept(result, image, boxes_mask(*FACES))
    for half in (slice(0, 200), slice(200, 400)):
        assert changed(result[:, :, half], image[:, :, half])
    assert torch.equal(result[where == 0], image[where == 0]) and where.max() == 1


def segs(kind: str) -> Any:
    """The two faces as packs hand them on."""
    things = [
        SEG(None, torch.ones(bottom - top, right - left).numpy(), 0.9, [left, top, right, bottom],
            [left, top, right, bottom], "face", None)
        for left, top, right, bottom in FACES
    ]  # fmt: skip
    return {
        "named tuples": ((300, 400), things),
        "plain tuples": ((300, 400), [tuple(each) for each in things]),
        "dicts": {"size": (300, 400), "segs": [each._asdict() for each in things]},
        "of half the size": ((600, 800), [each._replace(crop_region=[2 * side for side in each.bbox])
                                          for each in things]),
        "corners": [list(face) for face in FACES],
        "bounding boxes": [{"x": left, "y": top, "width": right - left, "height": bottom - top}
                           for left, top, right, bottom in FACES],
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["named tuples", "plain tuples", "dicts", "of half the size", "corners", "bounding boxes"]
)
def test_every_way_to_say_the_same_place_gives_the_same_picture(studio, image, both, kind):
    assert torch.equal(detail(studio, image, segments=segs(kind))[0], both[0])


def test_a_batch_gives_the_pictures_of_their_seeds(studio, image, both):
    """Each picture with its own mask; one without anything marked stays as it is."""
    pictures = torch.cat([image, image.flip(1), image])
    masks = torch.cat([boxes_mask(*FACES), torch.zeros(1, 300, 400), boxes_mask(FACES[1])])
    result, where = detail(studio, pictures, mask=masks)
    assert torch.equal(result[0], both[0][0]) and torch.equal(result[1], pictures[1])
    assert not where[1].any()
    alone, _ = detail(studio, image, mask=boxes_mask(FACES[1]), seed=SEED + 2)
    assert torch.equal(result[2], alone[0])
    other, _ = detail(studio, image, mask=boxes_mask(FACES[1]), seed=SEED + 3)
    assert changed(other, alone)


def test_each_part_may_have_a_prompt_of_its_own(studio, image, both):
    mask, clip = boxes_mask(*FACES), studio.parts.clip
    second, _ = detail(studio, image, mask=mask, clip=clip, prompts="\na red lamp")
    left = slice(0, 200)
    assert torch.equal(second[:, :, left], both[0][:, :, left]) and changed(second, both[0])
    graph = studio.graph()
    node = graph.add(KIND, **given(studio, image, mask=mask, prompts="a red lamp"))
    check_sentence(graph.error(node[0]), "prompts", "clip")


def test_a_mask_limits_segments(studio, image):
    result, where = detail(studio, image, segments=segs("corners"), mask=boxes_mask(FACES[0]))
    check_kept(result, image, boxes_mask(FACES[0]))
    assert not where[:, :, 200:].any()


def test_denoise_and_stage_b_alone(studio, image, both):
    """0 leaves Stage C out: its prompt and steps no longer matter."""
    mask = boxes_mask(FACES[0])
    rebuilt, _ = detail(studio, image, mask=mask, denoise=0.0)
    assert torch.equal(rebuilt, detail(studio, image, mask=mask, denoise=0.0, steps=4)[0])
    check_kept(rebuilt, image, mask)
    assert changed(rebuilt, detail(studio, image, mask=mask)[0])
    assert changed(detail(studio, image, mask=mask, decoder_denoise=0.3, denoise=0.0)[0], rebuilt)


def test_what_is_kept_of_a_part(studio, image, both):
    """Its shapes and colours at half its size come back, and nothing beyond the mask and its feather changes."""
    soft, mask = resize_image(resize_image(image, 100, 75), 400, 300), boxes_mask(*FACES)
    given = {"mask": mask, "context": 1.0}
    painted, kept = (detail(studio, soft, keep_source=share, **given)[0] for share in (0.0, 1.0))
    check_kept(kept, soft, mask)
    errors = []
    for each in (painted, kept):
        lost = [(each - soft)[:, top:bottom, left:right] for left, top, right, bottom in FACES]
        errors.append(sum(float(resample_image(part, 20, 20).square().mean()) for part in lost))
    assert errors[1] < 0.3 * errors[0], errors
    assert torch.equal(detail(studio, image, mask=mask, keep_source=0.0)[0], both[0])


def test_hints_are_cropped_with_their_part(studio, image):
    """A hint that is white under the first spot only steers that one as a hint that is white everywhere does."""
    mask, hints = boxes_mask(*FACES), {}
    for name, until in (("none", 0), ("left", 200), ("all", 400)):
        hint = torch.zeros(1, 300, 400, 3)
        hint[:, :, :until] = 1
        prompts = studio.call(
            "CascadeStudio_ApplyControl", range(2), control_net=load_control_net(), image=hint, **studio.prompts
        )
        hints[name] = detail(studio, image, mask=mask, positive=prompts[0], negative=prompts[1], context=1.0)[0]
    left, right = slice(0, 200), slice(200, 400)
    assert not changed(hints["left"][:, :, left], hints["all"][:, :, left])
    assert not changed(hints["left"][:, :, right], hints["none"][:, :, right])
    assert changed(hints["all"][:, :, left], hints["none"][:, :, left])


def test_nothing_to_do(studio, image):
    """An empty list is a detector that found nothing; an empty mask is a mistake, and so is neither."""
    result, where = detail(studio, image, segments=((300, 400), []))
    assert torch.equal(result, image) and not where.any()
    for inputs, words in (
        ({"mask": torch.zeros(1, 64, 64)}, ("mask", "empty", "Paint")),
        ({}, ("mask", "segments", "SEGS")),
        ({"segments": "here"}, ("segments", "boxes")),
        ({"segments": [[900, 900, 990, 990]]}, ("900", "400 x 300")),
        ({"mask": boxes_mask(FACES[0]), "prior": studio.parts.decoder}, ("'prior'", "Stage B")),
        ({"mask": boxes_mask(FACES[0]), "stage_a": studio.parts.stage_c_vae}, ("'stage_a'", "Stage A")),
    ):
        graph = studio.graph()
        check_sentence(graph.error(graph.add(KIND, **given(studio, image, **inputs))[0]), *words)


def test_progress_counts_the_steps_of_all_parts(studio, image):
    graph = studio.graph()
    node = graph.add(KIND, **given(studio, image, mask=boxes_mask(*FACES)))
    told = [each[1:] for each in graph.execute(node[0]).progress if each[2] == 6]
    found = [value for value, _ in told]
    assert found == sorted(found) and {1, 6} <= set(found) and len(found) > 2, "the host may leave some out"
