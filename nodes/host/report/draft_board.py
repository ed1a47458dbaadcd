"""The draft board: a contact sheet of Stage C drafts, and the latents of those that were chosen."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ....stages.errors import WrongInput
from .card import find_batch_places, find_reports

STRIP, GAP = 22, 6
"""Pixels of the line below each draft, and between drafts."""

PAPER, INK, FADED = (24, 24, 24), (235, 235, 235), (140, 140, 140)


@dataclass(frozen=True)
class Draft:
    """One picture of the board: its number from 1, its place in the batch, its seed if known, and where it is shown."""

    number: int
    place: int
    seed: int | None
    chosen: bool
    left: int
    top: int
    width: int
    height: int

    @property
    def caption(self) -> str:
        """What stands below the picture."""
        return f"{self.number}" if self.seed is None else f"{self.number}    seed {self.seed}"


def find_seeds(latent: dict[str, Any]) -> list[int | None]:
    """The seed that makes each picture alone, as the last Stage C report of the latent says; None where none does."""
    runs = [report for report in find_reports(latent) if report.stage == "Stage C"]
    return [runs[-1].seed(index) if runs else None for index in range(latent["samples"].shape[0])]


def parse_numbers(text: str, count: int) -> list[int]:
    """The numbers in a text such as "1,3" or "2-4", in that order and each once; none for an empty text."""
    numbers: list[int] = []
    for part in re.split(r"[\s,;、،؛]+", unicodedata.normalize("NFKC", text).strip()):
        if not part:
            continue
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found:
            raise WrongInput(
                f"'{part}' is not a number of a draft. Write numbers as they stand on the board, such as "
                "1,3 or 2-4, or leave the field empty."
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= count:
            raise WrongInput(
                f"'{part}' was chosen, but the board shows the drafts 1 to {count}. Choose among them, or "
                "leave the field empty."
            )
        numbers += range(first, last + 1)
    return list(dict.fromkeys(numbers))


def pick_drafts(latent: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """A copy of ``latent`` with only those pictures; each keeps its place in the batch, which its noise follows."""
    indices = [number - 1 for number in numbers]
    places = find_batch_places(latent)
    out = {**latent, "samples": latent["samples"][indices], "batch_index": [places[index] for index in indices]}
    mask = latent.get("noise_mask")
    if mask is not None and mask.shape[0] > 1:
        out["noise_mask"] = mask[[index % mask.shape[0] for index in indices]]
    return out


def place_drafts(latent: dict[str, Any], numbers: list[int], size: tuple[int, int], columns: int) -> list[Draft]:
    """Where each draft of ``size`` (width, height) stands on a sheet; ``columns`` 0 makes it about square."""
    seeds, places = find_seeds(latent), find_batch_places(latent)
    columns = columns or math.ceil(math.sqrt(len(seeds) * size[1] / size[0]))
    columns = max(1, min(columns, len(seeds)))
    return [
        Draft(
            index + 1,
            places[index],
            seed,
            index + 1 in numbers,
            GAP + index % columns * (size[0] + GAP),
            GAP + index // columns * (size[1] + STRIP + GAP),
            *size,
        )
        for index, seed in enumerate(seeds)
    ]


def draw_sheet(pictures: Tensor, drafts: list[Draft]) -> Tensor:
    """One picture (1, H, W, 3) of all ``pictures`` (B, h, w, 3) with numbers and seeds; chosen ones are framed."""
    width = max(draft.left + draft.width for draft in drafts) + GAP
    height = max(draft.top + draft.height for draft in drafts) + STRIP + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    drawn, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for picture, draft in zip(pictures, drafts):
        pixels = (picture[..., :3].float().cpu().clamp(0, 1) * 255).round().byte().numpy()
        sheet.paste(Image.fromarray(pixels), (draft.left, draft.top))
        below = draft.top + draft.height
        drawn.text((draft.left + 2, below + 5), draft.caption, fill=INK if draft.chosen else FADED, font=font)
        if draft.chosen:
            drawn.rectangle(
                (draft.left - 3, draft.top - 3, draft.left + draft.width + 2, below + 2), outline=INK, width=2
            )
    return torch.from_numpy(np.array(sheet)).float().div(255)[None]


def show_drafts(drafts: list[Draft], sheet: Tensor) -> dict[str, Any]:
    """What the web extension needs to make the sheet clickable: the places of the drafts in pixels of the sheet."""
    return {
        "cascade_studio_drafts": [
            {
                "width": sheet.shape[2],
                "height": sheet.shape[1],
                "widget": "chosen",
                "drafts": [
                    {
                        "number": draft.number,
                        "seed": None if draft.seed is None else str(draft.seed),
                        "chosen": draft.chosen,
                        "left": draft.left,
                        "top": draft.top,
                        "width": draft.width,
                        "height": draft.height,
                    }
                    for draft in drafts
                ],
            }
        ]
    }


def block_output() -> ExecutionBlocker:
    """An output after which the host runs nothing, without an error."""
    return ExecutionBlocker(None)
