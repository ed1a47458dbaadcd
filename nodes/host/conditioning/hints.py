"""The hints of the published ControlNets as IMAGE values of the host, and pictures of what the nets will see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....stages.errors import WrongInput
from ....stages.inputs import canny, hints, masks, pictures
from ....stages.inputs.boxes import list_things, read_boxes, read_numbers
from ....stages.inputs.canvas import Canvas
from .. import latents
from ..models import use_vae as vaes

IDENTITY_WIDTH = 512


def read_rgb(image: Any, where: str, name: str = "image") -> Tensor:
    """An IMAGE (B, H, W, 1, 3 or 4) as float32 (B, 3, H, W); a sentence for anything else."""
    return pictures.to_rgb(pictures.check_pictures(image, where, name)).movedim(-1, 1).float()


def to_image(tensor: Tensor) -> Tensor:
    """(B, C, H, W) as an IMAGE (B, H, W, C) where the host keeps such."""
    return tensor.movedim(1, -1).contiguous().to(latents.device())


def find_canvas(image: Tensor, latent: Any, where: str) -> Canvas:
    """The canvas of the Stage C latent that will be sampled; without one, that of the picture's own size."""
    return (
        latents.plan_canvas_for_image(image)
        if latent is None
        else latents.find_prior_canvas(latents.fit_empty_prior(latent), where)
    )


def fit_mask(mask: Any, image: Tensor, where: str) -> Tensor:
    """A MASK as (1 or B, H, W) at the size of ``image`` (B, C, H, W), thin strokes included."""
    mask = pictures.check_mask(mask, where)
    pictures.check_count(mask, image, where)
    return masks.resize_mask(mask, *image.shape[2:], "nearest-exact")


def make_canny_hint(image: Tensor, low: int, high: int, latent: Any, where: str) -> Tensor:
    """Edges (B, H, W, 3), all three channels alike, at the size at which the ControlNet reads them."""
    rgb = read_rgb(image, where)
    picture = hints.lay_on_canvas(rgb, find_canvas(image, latent, where)).clamp(0.0, 1.0)
    return to_image(canny.make_hint(picture, low, high).expand(-1, 3, -1, -1))


def make_inpaint_hint(image: Tensor, mask: Tensor, grow: int, latent: Any, where: str) -> tuple[Tensor, Tensor]:
    """The hint (B, H, W, 4), and the picture in it (B, H, W, 3)."""
    rgb = read_rgb(image, where)
    canvas = find_canvas(image, latent, where)
    given = fit_mask(mask, rgb, where)
    repaint = hints.lay_mask_on_canvas(masks.grow_octagon((given > hints.MARKED).float(), grow), canvas)
    if not repaint.any():
        raise WrongInput(nothing_repainted(float(given.max()), grow, where))
    picture = hints.lay_on_canvas(rgb, canvas).clamp(0.0, 1.0)
    hint = to_image(hints.pack_inpaint(picture, repaint))
    return hint, hint[..., :3]


def nothing_repainted(most: float, grow: int, where: str) -> str:
    """The sentence for a mask whose largest value is ``most`` and of which the canvas shows nothing."""
    if most <= hints.MARKED:
        why = f"The mask is nowhere above {hints.MARKED:g} (its largest value is {most:.3g})"
    elif grow < 0:
        why = f"Made smaller by {-grow} px, the mask is empty"
    else:
        why = "The mask lies outside of the part of the picture that the canvas shows"
    return f"{why}, so {where} would have nothing repainted. Paint over the part to change, or wire another mask."


def make_outpaint_canvas(
    image: Tensor, mask: Tensor | None, sides: hints.Sides, width: int, height: int, where: str
) -> tuple[Tensor, Tensor]:
    """The picture (B, H, W, 3) with white borders, and its mask (1 or B, H, W)."""
    rgb = read_rgb(image, where)
    rows, columns = rgb.shape[2:]
    old = torch.zeros(1, 1, rows, columns) if mask is None else fit_mask(mask, rgb, where)[:, None]
    sides = hints.complete_sides(columns, rows, sides, width, height)
    picture, new = hints.add_borders(rgb, old, sides)
    return to_image(picture), new[:, 0].to(latents.device())


def make_super_resolution_hint(image: Tensor, vae: Any, where: str) -> tuple[Tensor, Tensor, Canvas]:
    """The hint (B, 2h, 2w, 16), the picture that the encoder read, and the canvas of the larger picture."""
    vaes.expect_stage_c(vae, where)
    rgb = read_rgb(image, where)
    canvas = hints.plan_enlarged(int(rgb.shape[3]), int(rgb.shape[2]))
    picture = to_image(hints.pad_to_cells(rgb).clamp(0.0, 1.0))
    cells = F.interpolate(vaes.encode_picture(vae, picture), scale_factor=2, mode="nearest")
    return to_image(cells), picture, canvas


def make_identity_hint(image: Tensor, boxes: Any, embeddings: Any, latent: Any, where: str) -> tuple[Tensor, Tensor]:
    """The map (1, cells down, cells across, 512), and the picture with the faces tinted."""
    rgb = read_rgb(image, where)
    canvas = find_canvas(image, latent, where)
    height, width = rgb.shape[2:]
    corners, identities = read_faces(boxes, embeddings, where)
    kept = hints.choose_faces(corners, width, height)
    cells = hints.find_face_cells(corners[kept], width, height, canvas)
    picture = hints.lay_on_canvas(rgb[:1], canvas).clamp(0.0, 1.0)
    return (
        to_image(hints.paint_identities(cells, identities[kept], canvas)),
        to_image(hints.tint_faces(picture, cells)),
    )


def read_faces(boxes: Any, embeddings: Any, where: str) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4: left, top, right, bottom) and vectors (N, 512) out of what face packs pass around."""
    corners = read_boxes(boxes)
    vectors = read_numbers([find_vector(each) for each in list_things(embeddings)], IDENTITY_WIDTH)
    if corners is None or vectors is None or len(corners) != len(vectors):
        raise WrongInput(
            f"{where} could not read the faces: it needs one box (left, top, right, bottom in pixels) "
            f"and one ArcFace embedding ({IDENTITY_WIDTH} numbers) for each face. Wire a face detector's "
            "boxes into 'boxes' and a face recogniser's embeddings into 'embeddings'; a list of "
            "insightface faces can go into both."
        )
    return corners, vectors


def find_vector(face: Any) -> Any:
    """The embedding of a face, whichever way it is held."""
    if isinstance(face, dict):
        return face.get("normed_embedding", face.get("embedding"))
    return getattr(face, "normed_embedding", getattr(face, "embedding", face))
