"""The hint nodes in the host: what each gives to its ControlNet, shows, and says when it cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from graphs import check_sentence
from PIL import Image
from torch.nn import functional as F
from world import Studio, changed, relative

from cascade_studio.stages.inputs import canny, hints
from cascade_studio.stages.inputs.canvas import plan_canvas

CANNY, INPAINT, OUTPAINT, LARGER, IDENTITY = (
    f"CascadeStudio_{name}"
    for name in ("CannyHint", "InpaintHint", "OutpaintCanvas", "SuperResolutionHint", "IdentityHint")
)


def scene(height: int = 128, width: int = 160, batch: int = 1) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    disc = (x**2 + y**2 < 0.4).float()
    return torch.stack([disc, 0.5 * (1 - disc) + 0.2 * x, 0.5 + 0.4 * y], -1)[None].clamp(0, 1).repeat(batch, 1, 1, 1)


def shown(studio: Studio, kind: str, **inputs: Any) -> list[np.ndarray]:
    """The pictures that the node shows."""
    graph = studio.graph()
    node = graph.add(kind, **inputs)
    images = graph.execute(node[0]).ui[node.name]["images"]
    folder = studio.host.folder_paths.get_temp_directory()
    return [np.asarray(Image.open(f"{folder}/{image['filename']}").convert("RGB")) for image in images]


def test_canny(studio):
    image = scene()
    hint = studio.call(CANNY, image=image)
    canvas = plan_canvas(160, 128)
    assert tuple(hint.shape) == (1, *reversed(canvas.encoder_size), 3)
    expected = canny.make_hint(hints.lay_on_canvas(image.movedim(-1, 1), canvas))
    for channel in range(3):
        assert torch.equal(hint[..., channel], expected[:, 0])
    assert 0.005 < hint.mean() < 0.3
    assert studio.call(CANNY, image=image, low=2000, high=2040).sum() < hint.sum()
    [picture] = shown(studio, CANNY, image=image)
    assert np.abs(picture / 255 - hint[0].numpy()).max() < 0.01


def test_hints_follow_the_latent(studio):
    """With a latent they have its canvas: the net reads them without resizing."""
    latent = studio.canvas(300, 200)[0]
    canvas = plan_canvas(300, 200)
    for kind, more in ((CANNY, {}), (INPAINT, {"mask": torch.ones(1, 128, 160)})):
        hint = studio.call(kind, image=scene(), latent=latent, **more)
        assert tuple(hint.shape[1:3]) == tuple(reversed(canvas.encoder_size))
    wrong = studio.graph()
    text = wrong.error(wrong.add(CANNY, image=scene(), latent={"samples": torch.zeros(1, 4, 8, 8)})[0])
    check_sentence(text, "Canny Hint", "Stage B latent", "Wire")


def test_inpaint(studio):
    """Four channels at the size that the net reads; the mask is all or nothing there, and white in the picture."""
    image, mask = scene(batch=2), torch.zeros(1, 64, 80)
    mask[:, 16:48, 20:60] = 0.7
    hint, preview = studio.call(INPAINT, range(2), image=image, mask=mask)
    assert hint.shape[0] == 2 and hint.shape[-1] == 4 and torch.equal(preview, hint[..., :3])
    assert set(hint[..., 3].unique().tolist()) == {0.0, 1.0}
    share = float(hint[..., 3].mean())
    assert abs(share - 0.25) < 0.05 and (hint[..., :3][hint[..., 3] == 1] == 1).all()
    grown = studio.call(INPAINT, image=image, mask=mask, grow=12)[..., 3].mean()
    shrunk = studio.call(INPAINT, image=image, mask=mask, grow=-12)[..., 3].mean()
    assert shrunk < share < grown
    assert len(shown(studio, INPAINT, image=image, mask=mask)) == 2
    graph = studio.graph()
    check_sentence(graph.error(graph.add(INPAINT, image=image, mask=torch.ones(3, 8, 8))[0]), "3 masks for 2 pictures")


def test_outpaint(studio):
    """Borders are white and masked; together with Inpaint Hint they make the hint of the new canvas."""
    image = scene()
    picture, mask, width, height = studio.call(OUTPAINT, range(4), image=image, left=32, bottom=16, width=256)
    assert (width, height) == (256, 144) and picture.shape == (1, 144, 256, 3) and mask.shape == (1, 144, 256)
    left = 32 + (256 - 192) // 2
    assert torch.equal(picture[:, :128, left : left + 160], image) and not mask[:, :128, left : left + 160].any()
    assert (picture[mask == 1] == 1).all() and mask.sum() == 256 * 144 - 128 * 160
    hole = torch.zeros(1, 128, 160)
    hole[:, 60:70, 70:90] = 1
    assert studio.call(OUTPAINT, 1, image=image, left=8, mask=hole).sum() == 8 * 128 + 200
    picture, mask = studio.call(OUTPAINT, range(2), image=image, width=256, height=256)
    hint = studio.call(INPAINT, image=picture, mask=mask, latent=studio.canvas(256, 256)[0])
    assert abs(float(hint[..., 3].mean()) - float(mask.mean())) < 0.01
    graph = studio.graph()
    check_sentence(graph.error(graph.add(OUTPAINT, image=image, left=64, width=160)[0]), "224 x 128", "larger canvas")


@pytest.mark.parametrize("height, width", [(96, 128), (100, 75)])
def test_super_resolution(studio, height, width):
    """The encoder's cells twice as large, and the canvas of a picture 2.67 times as large with exactly that grid."""
    image = scene(height, width)
    hint, prior, decoder, preview = studio.call(LARGER, range(4), image=image, vae=studio.parts.stage_c_vae)
    rows, columns = -(-height // 32), -(-width // 32)
    assert tuple(hint.shape) == (1, 2 * rows, 2 * columns, 16) and tuple(prior["samples"].shape[2:]) == hint.shape[1:3]
    assert tuple(preview.shape) == (1, 32 * rows, 32 * columns, 3)
    canvas = prior["cascade_studio_canvas"]
    assert canvas == hints.plan_enlarged(width, height)
    assert tuple(decoder["samples"].shape[2:]) == (canvas.decoder_height, canvas.decoder_width)
    cells = studio.parts.stage_c_vae.encode(preview)
    assert relative(hint.movedim(-1, 1), F.interpolate(cells, scale_factor=2, mode="nearest")) <= 1e-5
    if (height, width) == (96, 128):
        assert torch.equal(preview, image), "whole cells are encoded as they are"
    graph = studio.graph()
    check_sentence(graph.error(graph.add(LARGER, image=image, vae=studio.parts.stage_a)[0]), "Stage A", "stage_c_vae")


FACES = [
    SimpleNamespace(bbox=np.array([10.0, 10, 70, 70]), normed_embedding=np.eye(512)[3]),
    SimpleNamespace(bbox=np.array([100.0, 64, 150, 120]), normed_embedding=np.eye(512)[7]),
]
BOXES = {
    "lists": [[10, 10, 70, 70], [100, 64, 150, 120]],
    "flat": [10, 10, 70, 70],
    "tensor": torch.tensor([[10.0, 10, 70, 70, 0.9], [100, 64, 150, 120, 0.8]]),
    "boxes": [{"x": 10, "y": 10, "width": 60, "height": 60}, {"x": 100, "y": 64, "width": 50, "height": 56}],
    "nested": [[[10, 10, 70, 70], [100, 64, 150, 120]]],
    "faces": FACES,
}


@pytest.mark.parametrize("held", BOXES)
def test_identity(studio, held):
    """Faces in whatever form face packs hold them."""
    count = 1 if held == "flat" else 2
    vectors = FACES if held == "faces" else torch.eye(512)[[3, 7]][:count]
    hint, preview = studio.call(IDENTITY, range(2), image=scene(), boxes=BOXES[held], embeddings=vectors)
    canvas = plan_canvas(160, 128)
    assert tuple(hint.shape) == (1, canvas.prior_height, canvas.prior_width, 512)
    assert hint[..., 3].sum() > 0 and (hint[..., 7].sum() > 0) == (count == 2)
    assert hint.sum() < hint.shape[1] * hint.shape[2]
    assert hint[0, 0, 0, 3] == 1 and tuple(preview.shape[1:3]) == tuple(reversed(canvas.encoder_size))


@pytest.mark.parametrize(
    "boxes, vectors",
    [
        ([[1, 2, 3, 4]], torch.eye(512)[:2]),
        ("a face", torch.eye(512)[:1]),
        ([[1, 2, 3, 4]], torch.zeros(1, 128)),
        ([], []),
    ],
)
def test_faces_that_cannot_be_read(studio, boxes, vectors):
    graph = studio.graph()
    text = graph.error(graph.add(IDENTITY, image=scene(), boxes=graph.give(boxes), embeddings=graph.give(vectors))[0])
    check_sentence(text, "Identity Hint", "one box", "512", "Wire")


def test_a_canny_hint_steers_stage_c(studio):
    """Hint node, loader, apply node and sampler together; the hint needs no resizing on the way."""
    graph = studio.graph()
    canvas = graph.add("CascadeStudio_Canvas", width=160, height=128)
    net = graph.add("CascadeStudio_LoadControlNet", controlnet="canny.safetensors", dtype="fp32")
    hint = graph.add(CANNY, image=scene(), latent=canvas[0])
    apply = graph.add("CascadeStudio_ApplyControl", control_net=net[0], image=hint[0], strength=4.0, **studio.prompts)
    run = {"model": studio.parts.prior, "latent": canvas[0], "steps": 2}
    steered = graph.add("CascadeStudio_SamplePrior", positive=apply[0], negative=apply[1], **run)
    plain = graph.add("CascadeStudio_SamplePrior", **studio.prompts, **run)
    results = graph.run(steered[0], plain[0])
    assert changed(*(each["samples"] for each in results))
