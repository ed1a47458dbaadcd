"""How fine should Stage C's grid be: python3 dev.py run -m training.mini.pilot

For every grid the image encoder, starting from the one that ships, and a small decoder of equal cost learn together
for the same processor minutes on pictures as Stage C paints them. Measured on other backgrounds: PSNR inside the
subject, and how often the judge (``training.mini judge``) finds the subject in what the decoder makes; and what a step
of Stage C costs.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.nets.encoder import ImageEncoder, normalise
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .autoencoders import Following, picture_loss, psnr, settle_norms
from .compose import LARGE
from .data import SEED
from .export import PRIOR_CODER, _wide
from .judge import SIGHT, first_five, load_judge, measure_told
from .loop import Place, factor_at, frozen, grid, save_sheet
from .nets import TRAINING
from .scenes import SHORT, Scenes
from .sizes import ENCODER, STAGE_C

log = logging.getLogger(__name__)

GRIDS = (6, 8, 12)
BATCH, LR, NOISE, HELD = 24, 1.5e-3, 0.2, 400
FINISH = 0.8
"""From this share of the budget on the statistics of norms and latents stay."""


class SmallDecoder(nn.Module):
    """Stage C latents of any grid → RGB at 128 px, at nearly the same cost for every grid."""

    def __init__(self, c_in: int = 16, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(c_in, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.middle = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 4 * 96, 1), nn.PixelShuffle(2)
        )
        self.last = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(96, 4 * 48, 1),
            nn.PixelShuffle(2),
            nn.GELU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(48, 12, 1),
            nn.PixelShuffle(2),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, latent: Tensor) -> Tensor:
        x = F.interpolate(self.first(latent), size=(16, 16), mode="bilinear", align_corners=False)
        return self.last(self.middle(x))


def view_for_encoder(rgb: Tensor, cells: int) -> Tensor:
    """RGB (B, 3, 256, 256) as the encoder takes it for a grid of ``cells`` a side."""
    return normalise(F.interpolate(rgb, size=(32 * cells, 32 * cells), mode="bilinear", antialias=True))


def make_painted_scenes(rng: random.Random) -> Scenes:
    """Pictures as Stage C paints them: one style, nearly filling the canvas, hardly moved, never mirrored."""
    return Scenes(rng, sizes=LARGE, mirrored=0.0, room=0.3)


def learn(place: Place, cells: int, minutes: float) -> tuple[nn.Module, nn.Module, int]:
    """Encoder and decoder after ``minutes`` of processor time, and their steps."""
    torch.manual_seed(SEED)
    scenes = make_painted_scenes(random.Random(SEED))
    shipped = _wide(Path(__file__).parents[2] / "mini" / f"{PRIOR_CODER}.safetensors")
    encoder, decoder = ImageEncoder(ENCODER), SmallDecoder()
    encoder.load_state_dict(
        {key.removeprefix("encoder."): value for key, value in shipped.items() if key.startswith("encoder.")}
    )
    following = Following(encoder.mapper[1])
    nets = nn.ModuleList([encoder, decoder]).to(place.device)
    ema, optimiser = EMA(nets, 0.99), Optimiser(nets.parameters(), LR, weight_decay=1e-3)
    used, steps, said, lost = 0.0, 0, 0.0, []
    while used < 60 * minutes:
        started = clock(place)
        progress = used / (60 * minutes)
        following.active = progress < FINISH
        settle_norms(encoder, progress < FINISH)
        batch = scenes.batch(BATCH)
        rgb, alpha = batch.rgb.to(place.device), batch.alpha.to(place.device)
        with place.autocast():
            latent = encoder(view_for_encoder(rgb, cells)).float()
            latent = latent + NOISE * torch.rand(len(latent), 1, 1, 1).to(latent) * torch.randn_like(latent)
            made = decoder(latent).float()
        wanted, mask = (F.interpolate(x, size=(SIGHT, SIGHT), mode="area") for x in (rgb, alpha))
        loss = picture_loss(made, wanted, 1 + mask)
        optimiser.step(loss, factor_at(progress))
        ema.update(nets)
        lost.append(float(loss.detach()))
        used, steps = used + clock(place) - started, steps + 1
        if used - said > 60:
            log.info("%d cells: step %d, %.1f min, loss %.4f", cells, steps, used / 60, sum(lost) / len(lost))
            said, lost = used, []
    return *ema.copy_of(nets), steps


def clock(place: Place) -> float:
    """Seconds: of the processor on a CPU, of the wall elsewhere."""
    return time.process_time() if place.device.type == "cpu" else time.monotonic()


@torch.no_grad()
def measure(place: Place, cells: int, encoder: nn.Module, decoder: nn.Module, judge: nn.Module) -> dict[str, float]:
    """PSNR in dB inside the subject at 128 px, and the judge's top-1 and top-5, on held-out backgrounds."""
    scenes = make_painted_scenes(random.Random(SEED + 1))
    batch = scenes.batch(HELD, held=True)
    made = torch.cat(
        [
            decoder(encoder(view_for_encoder(part.to(place.device), cells))).float().clamp(0, 1).cpu()
            for part in batch.rgb.split(BATCH)
        ]
    )
    wanted, mask = (F.interpolate(x, size=(SIGHT, SIGHT), mode="area") for x in (batch.rgb, batch.alpha))
    order = first_five(judge, made, place.device)
    real = first_five(judge, wanted, place.device)
    save_sheet(grid(torch.cat([wanted[:10], made[:10]]), 10), place.work / "sheets" / f"pilot-{cells}.png")
    return {
        "dB inside the subject": psnr(made, wanted, mask),
        **measure_told(order, batch.subjects),
        "top-1 of the pictures themselves": measure_told(real, batch.subjects)["top-1"],
    }


def step_seconds(place: Place, cells: int, halved: bool) -> float:
    """Processor seconds of one training step of Stage C, 64 latents; ``halved``: the deeper level at half the sides."""
    torch.manual_seed(SEED)
    net = StageC(replace(STAGE_C, switch_level=(halved,)), backend=TRAINING)
    initialise_unet(net)
    net.to(place.device)
    x, text = torch.randn(64, 16, cells, cells), torch.randn(64, SHORT, STAGE_C.c_clip_text)
    inputs = [value.to(place.device) for value in (x, torch.rand(64), text, text[:, 0])]

    def step() -> None:
        with place.autocast():
            out = net(*inputs)
        out.float().square().mean().backward()
        net.zero_grad()

    return seconds_of(place, step)


def seconds_of(place: Place, step: Callable[[], None], count: int = 3) -> float:
    """The mean time of ``step`` after a first one."""
    step()
    started = clock(place)
    for _ in range(count):
        step()
    return (clock(place) - started) / count


def main() -> None:
    """Measure every grid and print the table."""
    parser = argparse.ArgumentParser(prog="training.mini.pilot", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="the recipe's work folder, with a judge in it")
    parser.add_argument("--minutes", type=float, default=6.0, help="processor minutes for each grid")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    place = Place(options.work, torch.device(options.device), seed=SEED)
    nets = {cells: learn(place, cells, options.minutes) for cells in GRIDS}
    judge = frozen(load_judge(place, 1258))
    rows = []
    for cells, (encoder, decoder, steps) in nets.items():
        found = measure(place, cells, encoder, decoder, judge)
        cost = step_seconds(place, cells, False), step_seconds(place, cells, True)
        rows.append(
            f"| {cells} x {cells} | {steps} | {found['dB inside the subject']:.1f} | {100 * found['top-1']:.1f} % | "
            f"{100 * found['top-5']:.1f} % | {cost[0]:.2f} s | {cost[1]:.2f} s |"
        )
        log.info("judge on the pictures themselves: %.1f %%", 100 * found["top-1 of the pictures themselves"])
    log.info(
        "\n%s",
        "\n".join(
            [
                "| grid | steps | dB inside the subject | top-1 | top-5 | Stage C step | with switch_level |",
                "| --- | --- | --- | --- | --- | --- | --- |",
                *rows,
            ]
        ),
    )


if __name__ == "__main__":
    main()
