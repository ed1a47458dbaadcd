"""Which features of a small picture tell more of it: those of the last step, or of one more pass over its latent?

    python3 dev.py run tests/benchmarks/feature_sources.py [PICTURES]

On Cascade Mini in this process, without trained guide nets (none exist at its size). Guide nets learn from features of
encoded pictures, so a linear reader learns that here as well: to tell the latent from its features, cell by cell (ridge
regression). Then it reads pictures that it never saw, sampled with 20 and fewer steps and at both shifts, by features
of both sources; told is the share of the latent's variance that it finds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import inprocess  # noqa: E402
import torch  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402
from torch import Tensor  # noqa: E402

from training.mini.data import read_split  # noqa: E402

SIDE, BATCH, RIDGE = 256, 12, 1e-2
RUNS = ((20, 1.0), (20, 2.0), (10, 1.0), (6, 1.0))  # steps and shift; the first is UltraPixel's


def as_rows(maps: tuple[Tensor, ...]) -> Tensor:
    """Features (4 times B, C, h, w) as one row a cell, (B h w, 4 C), with a 1 at the end."""
    rows = torch.cat(maps, dim=1).movedim(1, -1).flatten(0, -2).double()
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def as_cells(latent: Tensor) -> Tensor:
    """A latent (B, 16, h, w) as one row a cell."""
    return latent.movedim(1, -1).flatten(0, -2).double()


class Reader:
    """A linear map from features to the latent, learned from pairs."""

    def __init__(self, features: Tensor, cells: Tensor) -> None:
        self.spread = features.std(0).clamp(min=1e-6)
        given = features / self.spread
        penalty = RIDGE * len(given) * torch.eye(given.shape[1], dtype=given.dtype)
        self.weights = torch.linalg.solve(given.T @ given + penalty, given.T @ cells)

    def measure(self, features: Tensor, cells: Tensor) -> float:
        """The share of the cells' variance that it tells."""
        error = (features / self.spread @ self.weights - cells).square().sum()
        return float(1 - error / (cells - cells.mean(0)).square().sum())


class Pictures:
    """Mini's pictures of held-out prompts, a few at a time, and their features."""

    def __init__(self, studio: MiniStudio) -> None:
        from cascade_studio.nodes.host.sampling import features

        self.studio, self.source = studio, features
        self.prompts = [prompt["prompt"] for prompt in read_split()[1]]

    def sample(self, first: int, count: int, steps: int, shift: float) -> list[tuple[dict, object]]:
        """Latents of one prompt each with what was seen in the last step, and the prompts."""
        found = []
        for number in range(first, first + count):
            positive = self.studio.text(self.prompts[number % len(self.prompts)])
            latent = self.studio.canvas(SIDE, SIDE)[0]
            given = {"steps": steps, "shift": shift, "seed": number, "keep_features": True, "cfg": 4.0}
            given |= {"positive": positive, "negative": self.studio.negative}
            found.append((self.studio.sample_prior(latent, **given), positive))
        return found

    def look_again(self, latent: dict, positive: object) -> tuple[Tensor, ...]:
        """The features of one more pass."""
        return self.source.extract_features(self.studio.parts.prior, positive, latent, "feature_sources")

    def encode(self, latent: dict) -> dict:
        """The latent of the finished picture, as the image encoder sees it."""
        picture = self.studio.call(
            "CascadeStudio_DecodeStageA",
            latent=self.studio.sample_decoder(latent, steps=6),
            vae=self.studio.parts.stage_a,
        )
        return self.studio.call("CascadeStudio_EncodeImage", image=picture, vae=self.studio.parts.stage_c_vae)


def main(count: int) -> None:
    pictures = Pictures(MiniStudio(inprocess.Host(inprocess.prepare())))
    rows, cells = [], []
    for latent, positive in pictures.sample(1000, 3 * count, 10, 2.0):
        encoded = pictures.encode(latent)
        rows.append(as_rows(pictures.look_again(encoded, positive)))
        cells.append(as_cells(encoded["samples"]))
    reader = Reader(torch.cat(rows), torch.cat(cells))
    print(f"{count} pictures of {SIDE} px, reader learned from {3 * count} encoded ones")
    for steps, shift in RUNS:
        seen, looked, wanted = [], [], []
        for latent, positive in pictures.sample(0, count, steps, shift):
            seen.append(as_rows(latent["cascade_studio_features"].features))
            looked.append(as_rows(pictures.look_again(latent, positive)))
            wanted.append(as_cells(latent["samples"]))
        last, extra, wanted = torch.cat(seen), torch.cat(looked), torch.cat(wanted)
        apart = 100 * float((last - extra).square().mean().sqrt() / extra.std())
        told = [100 * reader.measure(features, wanted) for features in (last, extra)]
        print(
            f"{steps:3} steps, shift {shift:g}: last step tells {told[0]:5.1f} %, extra pass {told[1]:5.1f} %; "
            f"the two are {apart:.1f} % apart",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else BATCH)
