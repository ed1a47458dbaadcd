"""What Upscale with Cascade and Detailer for Cascade gain over plain enlarging on Mini, for docs/large_pictures.md.

    python3 dev.py run tests/benchmarks/large_pictures.py [--count 48] [--judge FILE] [--pictures DIR]

Real renders of Mini's subjects on backgrounds that training did not use are shrunk, some with the grain of a camera
added, and enlarged again: by bicubic interpolation, and by the nodes. Told are the PSNR against the render, how steep
the picture is by that of the render (its squared differences of neighbours: blur has less, noise more), and with a
trained judge (``training.mini judge``) how often it recognises the subject. Small subjects in a large picture, half as
sharp, are the detailer's. ``--pictures`` writes what was compared, one row a picture.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import inprocess  # noqa: E402
import torch  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from cascade_studio.stages.inputs import saliency  # noqa: E402
from cascade_studio.stages.inputs.inpaint import resize_image  # noqa: E402
from training.mini.judge import Judge, at_sight, first_five  # noqa: E402
from training.mini.scenes import Batch, Scenes  # noqa: E402

SIDE, SEED = 256, 20261129
SCENE = 768
"""Side of the large picture with a small subject."""
FACTORS = 2, 4
"""How much smaller a render becomes before it is enlarged again."""
GRAIN = 0.0, 0.1
"""Standard deviation of the noise on the small picture, as of a camera in the dark; pictures hold 0 to 1."""
SMALL, SOFT = 64, 2
"""Side of the small subject, and how many of its pixels a blurred one stands for."""
UPSCALE = (0.3, 1.0), (0.3, 0.0), (0.2, 1.0), (0.5, 1.0)
"""Denoise and keep_source of Upscale with Cascade: the node's own, and others with ``--sweep``."""
DETAIL = (0.0, 0.3, 1.0), (0.0, 0.3, 0.0), (0.1, 0.5, 1.0)
"""Denoise of Stage C, that of Stage B, and keep_source in Detailer for Cascade, likewise."""


def psnr(given: Tensor, expected: Tensor) -> float:
    """Peak signal to noise ratio of two pictures in [0, 1], in dB."""
    error = float((given - expected).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def shrink(image: Tensor, factor: int) -> Tensor:
    """Pictures (B, H, W, 3) averaged over squares of ``factor`` pixels."""
    return F.avg_pool2d(image.movedim(-1, 1), factor).movedim(1, -1)


def measure_steepness(image: Tensor) -> float:
    """Mean squared difference of neighbours in pictures (B, H, W, 3)."""
    return float(image.diff(dim=1).square().mean() + image.diff(dim=2).square().mean())


class Scoring:
    """Lines of the table: PSNR, steepness, and the judge's share where there is one."""

    def __init__(self, judge: nn.Module | None, subjects: list[int]) -> None:
        self.judge, self.subjects = judge, subjects

    def tell(self, name: str, given: Tensor, expected: Tensor) -> None:
        mean = sum(psnr(one, other) for one, other in zip(given, expected)) / len(given)
        told = f"   steep {measure_steepness(given) / measure_steepness(expected):4.2f}"
        if self.judge is not None:
            found = first_five(self.judge, at_sight(given.movedim(-1, 1)), torch.device("cpu"))
            first = sum(five[0] == subject for five, subject in zip(found, self.subjects)) / len(found)
            any_of = sum(subject in five for five, subject in zip(found, self.subjects)) / len(found)
            told += f"   judge first {100 * first:5.1f} %, of five {100 * any_of:5.1f} %"
        print(f"{name:<50} {mean:6.2f} dB{told}", flush=True)


def models(studio: MiniStudio) -> dict[str, Any]:
    parts = studio.parts
    return {"decoder": parts.decoder, "stage_a": parts.stage_a, "stage_c_vae": parts.stage_c_vae}


def prompts(studio: MiniStudio, batch: Batch, scenes: Scenes) -> list[str]:
    return [
        f"{scenes.subjects[i].labels['en']} on a {colour} background"
        for i, colour in zip(batch.subjects, batch.colours)
    ]


def upscale(studio: MiniStudio, image: Tensor, texts: list[str], **given: Any) -> Tensor:
    return studio.call(
        "CascadeStudio_Upscale",
        image=image,
        positive=studio.texts(texts),
        negative=studio.negative,
        seed=SEED,
        tile_size=SIDE,
        tile_overlap=64,
        **models(studio),
        **given,
    )


def detail(studio: MiniStudio, image: Tensor, mask: Tensor, texts: list[str], **given: Any) -> Tensor:
    return studio.call(
        "CascadeStudio_Detailer",
        image=image,
        mask=mask,
        prior=studio.parts.prior,
        positive=studio.texts(texts),
        negative=studio.negative,
        seed=SEED,
        **models(studio),
        **given,
    )


def add_grain(image: Tensor, grain: float) -> Tensor:
    """``image`` with normal noise of this standard deviation, within [0, 1]."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED))
    return (image + grain * noise).clamp(0, 1)


def small_subjects(rgb: Tensor, grain: float) -> tuple[Tensor, Tensor, Tensor, slice]:
    """Large pictures with a small render in the middle, the same half as sharp and with ``grain`` on it, the mask
    around it, and where it lies on each side."""
    place = slice((SCENE - SMALL) // 2, (SCENE + SMALL) // 2)
    sharp = rgb[:, :1, :1].expand(-1, SCENE, SCENE, -1).clone()
    sharp[:, place, place] = shrink(rgb, SIDE // SMALL)
    soft = sharp.clone()
    soft[:, place, place] = resize_image(add_grain(shrink(sharp[:, place, place], SOFT), grain), SMALL, SMALL)
    mask = torch.zeros(len(rgb), SCENE, SCENE)
    mask[:, place, place] = 1
    return sharp, soft, mask, place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--judge", type=Path, help="the judge's tensors")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--sweep", action="store_true", help="several settings in place of the workflows' own")
    given = parser.parse_args()
    scenes = Scenes(random.Random(SEED), sizes=(0.86, 0.92), mirrored=0.0)
    batch = scenes.batch(given.count, held=True)
    rgb = batch.rgb.movedim(1, -1).contiguous()
    judge = None
    if given.judge:
        judge = Judge(len(scenes.subjects)).eval()
        judge.load_state_dict(torch.load(given.judge, map_location="cpu"))
    scoring, host = Scoring(judge, batch.subjects), inprocess.Host(inprocess.prepare())
    try:
        studio = MiniStudio(host)
        texts = prompts(studio, batch, scenes)
        measure_saliency()
        with torch.no_grad():
            scoring.tell("the renders themselves", rgb, rgb)
            run(studio, scoring, rgb, texts, given)
    finally:
        host.close()


def run(studio: MiniStudio, scoring: Scoring, rgb: Tensor, texts: list[str], given: argparse.Namespace) -> None:
    rows = {}
    for grain in GRAIN:
        told = f", grain {grain:g}" if grain else ""
        for factor in FACTORS:
            small = add_grain(shrink(rgb, factor), grain)
            plain = resize_image(small, SIDE, SIDE)
            scoring.tell(f"{factor}x{told}, bicubic", plain, rgb)
            columns = rows[f"{factor}x{told}"] = [plain]
            for denoise, keep in UPSCALE if given.sweep else UPSCALE[:1]:
                settings = {"scale": float(factor), "denoise": denoise, "keep_source": keep}
                columns.append(upscale(studio, small, texts, **settings))
                scoring.tell(f"{factor}x{told}, Upscale with Cascade {denoise:g}, keep {keep:g}", columns[-1], rgb)
        sharp, soft, mask, place = small_subjects(rgb, grain)
        wanted, plain = sharp[:, place, place], soft[:, place, place]
        scoring.tell(f"subject of {SMALL} px{told}, as it is", plain, wanted)
        columns = rows[f"detail{told}"] = [wanted, plain]
        for prior, decoder, keep in DETAIL if given.sweep else DETAIL[:1]:
            settings = {"denoise": prior, "decoder_denoise": decoder, "keep_source": keep}
            settings |= {"context": 1.0, "grow": 2, "feather": 4}
            columns.append(detail(studio, soft, mask, texts, **settings)[:, place, place])
            scoring.tell(
                f"subject{told}, Detailer for Cascade {prior:g}, {decoder:g}, keep {keep:g}", columns[-1], wanted
            )
    if given.pictures:
        write(rows, rgb, given.pictures)


def measure_saliency(count: int = 96) -> None:
    """Saliency Mask on renders of 40 to 90 % of the canvas, whose alpha says what is the subject."""
    batch = Scenes(random.Random(SEED), sizes=(0.4, 0.9)).batch(count, held=True)
    wanted = batch.alpha[:, 0] > 0.5
    for method in saliency.METHODS:
        if method == saliency.FINE and saliency.import_opencv() is None:
            continue  # another would be taken
        found = saliency.find_salient(batch.rgb.movedim(1, -1), method) > saliency.THRESHOLD
        both, either = ((found & wanted).sum((1, 2)), (found | wanted).sum((1, 2)))
        print(f"saliency, {method:<30} intersection over union {float((both / either).mean()):.3f}", flush=True)


def write(rows: dict[str, list[Tensor]], rgb: Tensor, folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in rows.items():
        shown = [resize_image(each[:8], SIDE, SIDE) for each in (rgb, *columns)]
        sheet = torch.cat([torch.cat(list(each), 0) for each in shown], 1)
        Image.fromarray((sheet * 255).round().byte().numpy()).save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
